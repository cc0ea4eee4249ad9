"""The tiny pipeline with real classes and random weights, and shorthands for inputs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcli.config import BackboneConfig, CustomSchedule, DecoderConfig, InversionConfig, ModelConfig
from diffcli.core.backbone import DiffusionBackbone
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise
from diffcli.core.loading import load_backbone
from diffcli.core.model import SegmentationModel, join

PARITY_DATA = Path(__file__).parent.parent / "parity_data"
CLASS_PROMPTS = {1: "a sidewalk", 3: "a wall", 4: "a sidewalk"}
PROMPTS = ("", "a street", *CLASS_PROMPTS.values())

Extract = Callable[..., list[Tensor]]


@pytest.fixture(scope="session")
def parity_data() -> Path:
    """The compact kit that the repository carries."""
    return PARITY_DATA


@pytest.fixture(scope="session")
def _loaded() -> DiffusionBackbone:
    config = BackboneConfig(source=str(PARITY_DATA / "tiny-sd"))
    return load_backbone(config, prompts=PROMPTS, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def backbone(_loaded: DiffusionBackbone) -> Iterator[DiffusionBackbone]:
    """The tiny diffusion model, loaded once; its counter starts at 0 in every test."""
    _loaded.evaluations = 0
    _loaded.prediction_type = "epsilon"
    yield _loaded
    _loaded.prediction_type = "epsilon"


@pytest.fixture
def extract(backbone: DiffusionBackbone) -> Extract:
    """extract(images, identities=..., references=..., **InversionConfig) -> features, in float32."""

    def run(
        images: Tensor,
        *,
        identities: list[str] | None = None,
        references: list[Tensor | None] | None = None,
        **settings: object,
    ) -> list[Tensor]:
        config = InversionConfig(**{"schedule": "five", "class_prompts": CLASS_PROMPTS, **settings})
        noise = seeded_noise(0, identities or [f"image {i}" for i in range(len(images))])
        return DiffusionFeatureExtractor(backbone, config).extract(images, noise=noise, references=references)

    return run


@pytest.fixture
def model(backbone: DiffusionBackbone) -> SegmentationModel:
    """A fresh small model with one step of inversion."""
    return join(small_config(), backbone)


def small_config(**decoder: object) -> ModelConfig:
    """Five classes, narrow decoder, one evaluation an image."""
    return ModelConfig(
        backbone=BackboneConfig(source=str(PARITY_DATA / "tiny-sd")),
        inversion=InversionConfig(schedule="one", class_prompts=CLASS_PROMPTS),
        decoder=DecoderConfig(**{"channels": (32, 64, 64, 64), "head_channels": 16, **decoder}),
        classes=("road", "sidewalk", "building", "wall", "fence"),
    )


@pytest.fixture
def small() -> Callable[..., ModelConfig]:
    """small(**DecoderConfig) -> ModelConfig on the tiny pipeline."""
    return small_config


@pytest.fixture
def images() -> Tensor:
    """Two different 64x64 images in [-1,1]."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def two_steps() -> CustomSchedule:
    """A schedule of two evaluations, cheaper than `short`."""
    return CustomSchedule(timesteps=(20, 60), save_steps=(1, 0))
