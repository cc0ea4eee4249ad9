"""The frozen half has a precision of its own: fp16 where it stays finite, else what the trained half runs in."""

import pytest
import torch

from diffcli.config.settings import ModelConfig
from diffcli.core.model import SegmentationModel, build_model
from diffcli.errors import ConfigError
from diffcli.runs.opening import COMPILE_REPAYS, settle_precision, wants_compile
from diffcli.runtime.device import resolve_backbone_precision
from tests.fixtures.models import TINY_MODEL

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def half() -> SegmentationModel:
    config = ModelConfig.model_validate(TINY_MODEL)
    return build_model(config, precision="bf16", backbone_precision="fp16")


def test_auto_is_fp16_on_a_gpu_that_trains_in_bf16() -> None:
    assert resolve_backbone_precision("auto", precision="bf16", device=CUDA) == "fp16"
    assert resolve_backbone_precision("auto", precision="fp16", device=CUDA) == "fp16"
    assert resolve_backbone_precision("auto", precision="float32", device=CUDA) == "float32"
    assert resolve_backbone_precision("auto", precision="bf16", device=CPU) == "bf16"
    assert resolve_backbone_precision("bf16", precision="float32", device=CPU) == "bf16"
    with pytest.raises(ConfigError, match="not known"):
        resolve_backbone_precision("fp8", precision="float32", device=CPU)


@pytest.mark.slow
def test_a_finite_backbone_stays_in_fp16(half: SegmentationModel, capsys: pytest.CaptureFixture[str]) -> None:
    settle_precision(half)
    assert half.extractor.backbone.dtype == torch.float16
    assert capsys.readouterr().err == ""
    logits = half.logits(torch.zeros(1, 3, 64, 64), identities=["a"])
    assert torch.isfinite(logits).all()


@pytest.mark.slow
def test_a_backbone_that_overflows_in_fp16_runs_in_bf16(
    half: SegmentationModel, capsys: pytest.CaptureFixture[str]
) -> None:
    half.extractor.backbone.unet.conv_in.weight.fill_(60000.0)
    half.extractor.backbone.network.reset()
    settle_precision(half)
    assert half.extractor.backbone.dtype == torch.bfloat16
    assert "overflow in fp16: the diffusion model runs in bf16" in capsys.readouterr().err
    assert half.extractor.is_finite()


def test_auto_compiles_long_work_on_a_gpu_alone() -> None:
    assert wants_compile("auto", device=CUDA, evaluations=COMPILE_REPAYS)
    assert not wants_compile("auto", device=CUDA, evaluations=COMPILE_REPAYS - 1)
    assert not wants_compile("auto", device=CPU, evaluations=10 * COMPILE_REPAYS)
    assert wants_compile(True, device=CPU, evaluations=0)
    assert not wants_compile(False, device=CUDA, evaluations=10 * COMPILE_REPAYS)
