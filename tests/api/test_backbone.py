"""DIFFBackbone: the diffusion features as an ordinary module, of which fusion and pyramid alone are trained."""

import os
import pickle
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, distributed, nn

import diffcli
from diffcli import DIFFBackbone
from diffcli.config.settings import ModelConfig
from diffcli.core.model import build_model, pad_to_multiple
from diffcli.runs.checkpoint import save_checkpoint
from tests.fixtures import processes
from tests.fixtures.models import TINY_MODEL, TINY_SD

CHANNELS = (32, 64, 64, 64)


def make(**settings: object) -> DIFFBackbone:
    return DIFFBackbone.from_source(str(TINY_SD), channels=CHANNELS, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def _made() -> DIFFBackbone:
    return make()


@pytest.fixture
def backbone(_made: DIFFBackbone) -> DIFFBackbone:
    """A fresh copy in evaluation, on one frozen model."""
    return deepcopy(_made).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [(64, 64), (70, 131), (33, 64)])
def test_four_maps_of_an_image_of_any_size(backbone: DIFFBackbone, size: tuple[int, int]) -> None:
    assert backbone.out_channels == CHANNELS
    assert backbone.out_strides == (4, 8, 16, 32)
    maps = backbone(torch.zeros(1, 3, *size))
    height, width = size
    expected = [
        (1, c, -(-height // s), -(-width // s)) for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(one.shape) for one in maps] == expected
    padded = backbone(pad_to_multiple(torch.zeros(1, 3, *size), 64, value=0.0), identities=["a"])
    for one, whole in zip(backbone(torch.zeros(1, 3, *size), identities=["a"]), padded, strict=True):
        assert torch.equal(one, whole[..., : one.shape[-2], : one.shape[-1]])


def test_strides_are_those_of_the_pipeline() -> None:
    embedded = DIFFBackbone.from_source("embedded", channels=CHANNELS)
    assert embedded.out_strides == (2, 4, 8, 16)
    maps = embedded(torch.zeros(1, 3, 64, 64))
    assert [one.shape[-1] for one in maps] == [32, 16, 8, 4]


def test_vanilla_fusion_tells_its_own_widths() -> None:
    vanilla = make(fusion="vanilla")
    assert tuple(one.shape[1] for one in vanilla(torch.zeros(1, 3, 64, 64))) == vanilla.out_channels


def test_only_fusion_and_pyramid_are_in_it(backbone: DIFFBackbone) -> None:
    names = {name.split(".")[0] for name in backbone.state_dict()}
    assert names == {"fusion", "pyramid", "passes"}
    unet = backbone.extractor.backbone.unet
    frozen = {x.data_ptr() for net in (unet, backbone.extractor.backbone.vae) for x in net.parameters()}
    assert frozen.isdisjoint(x.data_ptr() for x in backbone.parameters())
    assert all(x.requires_grad for x in backbone.parameters())
    nn.Sequential(backbone).train()
    assert not unet.training


def test_gradient_flows_to_everything_trained_and_to_nothing_else(
    backbone: DIFFBackbone, images: Tensor
) -> None:
    images.requires_grad_()
    sum(one.square().mean() for one in backbone.train()(images)).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in backbone.parameters())
    assert images.grad is None
    assert all(x.grad is None for x in backbone.extractor.backbone.unet.parameters())
    with torch.no_grad():
        assert not any(one.requires_grad for one in backbone(images))


def test_noise_is_fixed_in_evaluation_and_varies_in_training(backbone: DIFFBackbone, images: Tensor) -> None:
    other = deepcopy(backbone)
    first, second = backbone(images), backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    alone = backbone(images[1:])  # an image's maps do not depend on its batch
    assert all(torch.allclose(a[1:], b, atol=1e-4) for a, b in zip(first, alone, strict=True))
    backbone.train()
    passes = [backbone(images)[0] for _ in range(2)]
    assert not torch.equal(passes[0], first[0])
    assert not torch.equal(*passes)
    assert torch.equal(other.train()(images)[0], passes[0])  # the same seed, the same sequence
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other(images)[0], backbone(images)[0])  # which goes on after a checkpoint


def test_a_state_dict_and_a_pickle_give_it_again(
    backbone: DIFFBackbone, images: Tensor, tmp_path: Path
) -> None:
    fresh = make(seed=1).eval()
    assert not torch.equal(fresh(images)[0], backbone(images)[0])
    fresh.load_state_dict(backbone.state_dict(), strict=True)
    assert torch.equal(fresh(images)[0], backbone(images)[0])
    data = pickle.dumps(nn.Sequential(backbone))
    trained = sum(x.numel() * x.element_size() for x in backbone.state_dict().values())
    assert len(data) < trained + 100_000  # nothing frozen travels
    assert torch.equal(pickle.loads(data)(images)[0], backbone(images)[0])


def test_the_frozen_model_follows_to_the_device_and_keeps_its_precision() -> None:
    backbone = make(precision="bf16")
    frozen = backbone.extractor.backbone
    nn.Sequential(backbone).double()
    assert {x.dtype for x in backbone.parameters()} == {torch.float64}
    assert frozen.dtype == torch.bfloat16
    backbone.float()
    assert backbone(torch.zeros(1, 3, 64, 64))[0].dtype == torch.float32
    nn.Sequential(backbone).to("meta")  # the one other device that every machine has
    assert {x.device.type for x in (*frozen.unet.parameters(), *frozen.vae.parameters())} == {"meta"}
    assert {x.device.type for x in frozen.prompt_embeddings.values()} == {"meta"}


def test_autocast_reaches_the_trained_part_alone(backbone: DIFFBackbone, images: Tensor) -> None:
    plain = backbone._extract(images, ["a", "b"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(
            torch.equal(a, b) for a, b in zip(plain, backbone._extract(images, ["a", "b"]), strict=True)
        )
        assert backbone(images)[0].isfinite().all()


def test_a_run_gives_what_it_trained(tmp_path: Path) -> None:
    model = build_model(ModelConfig.model_validate(TINY_MODEL), seed=3)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors", model)
    backbone = DIFFBackbone.from_run(tmp_path / "run", device="cpu").eval()
    trained = model.decoder.state_dict()
    own = {name: x for name, x in backbone.state_dict().items() if name != "passes"}
    assert all(torch.equal(x, trained[name]) for name, x in own.items())
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        logits = model.decoder.head(backbone(images, identities=["a"]))
    full = nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(full, model.logits(images, identities=["a"]), atol=1e-5)


def two_backward_passes() -> None:
    """What each rank of the next test does."""
    distributed.init_process_group("gloo")
    wrapped = nn.parallel.DistributedDataParallel(make().train())
    generator = torch.Generator().manual_seed(distributed.get_rank())
    images = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    for _ in range(2):
        sum(one.square().mean() for one in wrapped(images)).backward()
    grads = torch.cat([x.grad.flatten() for x in wrapped.parameters()])
    both = [torch.empty_like(grads) for _ in range(2)]
    distributed.all_gather(both, grads)
    assert torch.equal(*both)
    assert grads.abs().sum() > 0
    distributed.barrier()
    time.sleep(1)  # gloo aborts a process whose partner goes while both are parting
    os._exit(0)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    code, _, words = processes.Ranks(two_backward_passes, cwd=tmp_path).communicate()
    assert code == 0, words[-2000:]


@pytest.mark.slow
def test_the_depth_example(script: Callable[..., Any], tmp_path: Path, repository: Path) -> None:
    """It runs, in under 100 lines; what it prints are numbers, what it writes a picture of both domains."""
    assert len((repository / "examples" / "depth_backbone.py").read_text().splitlines()) < 100
    done = script("depth_backbone.py", "--iterations", 6, "--scenes", 4, "--output", "depth.png")
    assert done.returncode == 0, done.stderr
    errors = [float(word.rstrip(",")) for word in done.stdout.split() if word.rstrip(",").startswith("0.")]
    assert len(errors) == 4
    picture = np.asarray(Image.open(tmp_path / "depth.png"))
    assert picture.shape == (2 * 128, 3 * 256, 3)
    assert picture[:, 256:512].std() > 10


def test_it_is_a_name_of_the_package() -> None:
    assert {"DIFFBackbone", "TrainedModel"} <= set(dir(diffcli))
