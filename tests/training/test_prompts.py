"""A run with IPKL says so when its backbone does not react to the class prompts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.config.domain import domain_config
from diffcli.config.settings import AugmentationConfig, BackboneConfig, InversionConfig
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.data.dataset import TrainingSet, open_domain
from diffcli.training.prompts import LEAST_REACTION, prompt_reaction, prompts_unheard

TINY_SD = Path(__file__).parent.parent / "parity/data" / "tiny-sd"
PROMPTS = {0: "road", 1: "sidewalk", 2: "building"}


@pytest.fixture
def backbone() -> DiffusionBackbone:
    """Random weights: words differ as much as they can."""
    return load_backbone(
        BackboneConfig(source=str(TINY_SD)),
        prompts=["", *PROMPTS.values()],
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.fixture
def samples() -> TrainingSet:
    domain = open_domain(domain_config("miniworld/clean", count=2), purpose="train")
    return TrainingSet(
        domain,
        augmentation=AugmentationConfig.model_validate({"crop": "64x64"}),
        rare_classes=None,
        statistics=None,
        seed=0,
    )


def extractor(backbone: DiffusionBackbone, **settings: object) -> DiffusionFeatureExtractor:
    config = InversionConfig.model_validate({"schedule": "five", "class_prompts": PROMPTS, **settings})
    return DiffusionFeatureExtractor(backbone, config)


def deafen(backbone: DiffusionBackbone, *, share: float) -> None:
    """Let every prompt say what the empty one says, but for a share of the difference."""
    empty = backbone.prompt_embeddings[""]
    backbone.prompt_embeddings = {
        prompt: empty + share * (states - empty) for prompt, states in backbone.prompt_embeddings.items()
    }


def test_a_backbone_that_listens_brings_no_line(backbone: DiffusionBackbone, samples: TrainingSet) -> None:
    assert prompts_unheard(samples, extractor(backbone)) is None


def test_a_deaf_backbone_brings_one_line(backbone: DiffusionBackbone, samples: TrainingSet) -> None:
    deafen(backbone, share=0.0)
    line = prompts_unheard(samples, extractor(backbone))
    assert line is not None
    assert line.startswith("the backbone does not react to these prompts: they change its features by 0.0 %")
    assert "IPKL will cost time for nothing" in line


def test_only_words_count_not_the_sum_over_more_prompts(backbone: DiffusionBackbone) -> None:
    # attention features grow with the number of prompts (method section 1.4), whatever these say
    deafen(backbone, share=0.0)
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    assert prompt_reaction(extractor(backbone), torch.zeros(1, 3, 64, 64), labels, identity="x") < 1e-4


def test_nothing_is_said_where_no_sample_shows_a_prompted_class(
    backbone: DiffusionBackbone, samples: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    deafen(backbone, share=0.0)
    load = samples.domain.load
    monkeypatch.setattr(
        samples.domain, "load", lambda index: (load(index)[0], np.full_like(load(index)[1], 255))
    )
    assert prompts_unheard(samples, extractor(backbone)) is None


def test_the_embedded_model_reacts_to_its_words(samples: TrainingSet) -> None:
    embedded = load_backbone(
        BackboneConfig(source="embedded"),
        prompts=["", *PROMPTS.values()],
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    images = torch.from_numpy(samples[0]["image"])[None].movedim(-1, 1) / 127.5 - 1
    labels = torch.from_numpy(samples[0]["label"])[None]
    assert prompt_reaction(extractor(embedded), images, labels, identity="x") > LEAST_REACTION
