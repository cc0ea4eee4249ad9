"""Features through recorded steps are those of plain calls: batches, remainders, prompt groups, split rows, sizes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import CustomSchedule, InversionConfig
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise
from tests.fixtures.models import CLASS_PROMPTS
from tests.fixtures.replays import Replays


@pytest.fixture
def captured(backbone: DiffusionBackbone) -> Iterator[Replays]:
    """The shared backbone, recorded from now on; plain again afterwards."""
    replays = Replays()
    backbone.network.capture(replays)
    yield replays
    backbone.network.capture(None)


def random_images(count: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.mark.parametrize("max_unet_batch", [1, 3, 64])
def test_captured_features_are_the_same(
    backbone: DiffusionBackbone, captured: Replays, two_steps: CustomSchedule, max_unet_batch: int
) -> None:
    config = InversionConfig(schedule=two_steps, class_prompts=CLASS_PROMPTS)
    extractor = DiffusionFeatureExtractor(backbone, config, max_unet_batch=max_unet_batch)
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:32] = 1
    walls = torch.full((64, 64), 3, dtype=torch.uint8)
    batches: list[tuple[Tensor, list[Tensor | None] | None]] = [
        (random_images(2), None),
        (random_images(2), [labels, None]),
        (random_images(1), None),  # the remainder of a set
        (random_images(2), [walls, labels]),
        (random_images(1, 64, 128), None),
    ]
    for turn in range(3):
        for images, references in batches:
            names = [f"{turn}/{i}" for i in range(len(images))]

            def features(
                images: Tensor = images,
                references: list[Tensor | None] | None = references,
                names: list[str] = names,
            ) -> list[Tensor]:
                return extractor.extract(images, noise=seeded_noise(0, names), references=references)

            found = features()
            network = backbone.network
            recorded, network.captures = network.captures, None
            expected = features()
            network.captures = recorded
            assert all(torch.equal(ours, plain) for ours, plain in zip(found, expected, strict=True))
    assert captured.replayed > captured.recorded > 0


def test_steps_that_are_alike_share_a_recording(
    backbone: DiffusionBackbone, captured: Replays, extract: Callable[..., list[Tensor]]
) -> None:
    """Five steps save maps; the last of them needs no noise prediction: two recordings, whatever the images."""
    for turn in range(4):
        extract(random_images(2), identities=[f"{turn}a", f"{turn}b"])
    assert captured.recorded == 2
    assert backbone.network.captures is not None
    assert len(backbone.network.captures) == 2
