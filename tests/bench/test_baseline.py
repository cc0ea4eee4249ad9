"""The yardstick of `diff bench` computes the same and spends what the published code spends."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.bench.baseline import Baseline
from diffcli.config.settings import CustomSchedule, InversionConfig, LossConfig, ModelConfig
from diffcli.core.ipkl import PairedDecoder, extract_pair, ipkl_loss
from diffcli.core.model import SegmentationModel, join

Small = Callable[..., ModelConfig]
CLASS_PROMPTS = {1: "a sidewalk", 3: "a wall"}
LAST_UNSAVED = CustomSchedule(timesteps=(20, 60, 90), save_steps=(1, 0))


@pytest.fixture(params=["one", LAST_UNSAVED])
def pair(
    request: pytest.FixtureRequest, backbone: DiffusionBackbone, small: Small
) -> tuple[SegmentationModel, Baseline]:
    """The model and the baseline around its parts; its last step is never read."""
    inversion = InversionConfig(schedule=request.param, class_prompts=CLASS_PROMPTS)
    model = join(small().model_copy(update={"inversion": inversion}), backbone)
    return model, Baseline(model.config, extractor=model.extractor, decoder=model.decoder)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(
        ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max())
    )


def test_logits_are_the_models(pair: tuple[SegmentationModel, Baseline], images: Tensor) -> None:
    model, baseline = pair
    backbone, steps = model.extractor.backbone, len(model.extractor.schedule.timesteps)
    close(baseline.logits(images, identities=["a", "b"]), model.logits(images, identities=["a", "b"]))
    ours = len(images) * model.extractor.schedule.evaluated_steps
    assert backbone.evaluations - ours == 2 * len(images) * steps


def test_losses_are_those_of_training(pair: tuple[SegmentationModel, Baseline], images: Tensor) -> None:
    model, baseline = pair
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, :, :32], labels[1, 32:] = 1, 3
    loss, names = LossConfig(), {"identities": ["a", "b"], "seed": 3}
    features = extract_pair(model.extractor, images, labels, **names)
    decoded = PairedDecoder(model.decoder)(features.conditional, features.unconditional)
    ours = ipkl_loss(decoded[1], decoded[0], labels, loss)
    spent = model.extractor.backbone.evaluations
    theirs = baseline.training_losses(images, labels, loss=loss, **names)
    close(theirs.total, ours.total)
    steps = model.extractor.schedule
    assert spent == (2 + 1) * len(images) * steps.evaluated_steps
    extra = model.extractor.backbone.evaluations - spent
    assert extra == (3 + 2) * len(images) * len(steps.timesteps)


def test_the_stride_64_is_fused_and_dropped(pair: tuple[SegmentationModel, Baseline], images: Tensor) -> None:
    _, baseline = pair
    seen: list[tuple[int, ...]] = []
    baseline.dropped.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    baseline.logits(F.pad(images[:1], (0, 64)), identities=["a"])
    width = sum(baseline.dropped.widths) * baseline.dropped.steps
    assert seen == [(1, width, 1, 2)]
