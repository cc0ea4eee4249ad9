"""Every YAML that ships in examples/ is valid, and the recipes say what the paper's say."""

from pathlib import Path

import pytest

from diffcli.classes import CITYSCAPES_CLASSES, CLASS_PROMPTS
from diffcli.config.file import load_config
from diffcli.config.settings import DEFAULT_BACKBONE, AugmentationConfig, RareClassConfig, RunConfig
from diffcli.config.size import Size
from diffcli.data.dataset import CROP_TRIES, known_domains
from diffcli.training.optimizer import BETAS, WARMUP_RATIO

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.yaml"))
UNSEEN = ["cityscapes", "bdd100k", "mapillary"]
ACDC = ["acdc/fog", "acdc/night", "acdc/rain", "acdc/snow"]

# name: (trained on, at, tested on)
RECIPES = {
    "gta5_to_unseen": ("gta5", Size(1280, 720), UNSEEN),
    "gta5_to_acdc": ("gta5", Size(1280, 720), ACDC),
    "gta5_to_dark_zurich": ("gta5", Size(1280, 720), ["dark_zurich"]),
    "gta5_all_prompts": ("gta5", Size(1280, 720), UNSEEN),
    "gta5_sd15": ("gta5", Size(1280, 720), UNSEEN),
    "gta5_sd21_base": ("gta5", Size(1280, 720), UNSEEN),
    "synthia_to_unseen": ("synthia", Size(1280, 760), UNSEEN),
    "cityscapes_to_unseen": ("cityscapes", Size(1024, 512), ["bdd100k", "mapillary", *ACDC]),
}


def example(name: str) -> RunConfig:
    return load_config(FOLDER / f"{name}.yaml")


def test_there_are_examples() -> None:
    assert {"quickstart", "own_folder", *RECIPES} <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_example_is_valid(path: Path) -> None:
    config = load_config(path)
    known = {spec.name for spec in known_domains()}
    assert {config.data.train.domain, *(entry.domain for entry in config.data.eval)} <= known


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_values_of_the_paper(name: str) -> None:
    """method.md, section 3."""
    config = example(name)
    trained_on, size, tested_on = RECIPES[name]
    assert config.name == name
    assert (config.data.train.domain, config.data.train.resize) == (trained_on, size)
    assert [entry.domain for entry in config.data.eval] == tested_on
    assert config.augmentation == AugmentationConfig(
        crop=Size(512, 512), crop_max_share=0.75, flip=0.5, photometric=0.5
    )
    train = config.train
    assert (train.iterations, train.batch_size, train.gradient_accumulation) == (40_000, 1, 1)
    assert (train.learning_rate, train.head_multiplier, train.weight_decay) == (6e-5, 10, 0.01)
    assert (BETAS, train.clip_norm) == ((0.9, 0.999), 5)
    assert (train.warmup_iterations, WARMUP_RATIO, CROP_TRIES) == (1500, 1e-6, 10)
    assert train.rare_class_sampling == RareClassConfig(
        temperature=0.01, min_pixels=3000, min_crop_pixels=1500
    )
    assert train.loss.ipkl
    assert (train.loss.consistency, train.loss.weight, train.loss.detach_teacher) == ("mse", 1, False)
    assert (config.eval.size, config.eval.mode) == (Size(1024, 512), "whole")
    inversion = config.model.inversion
    assert (inversion.schedule, inversion.eta, inversion.guidance_scale) == ("paper", 1, 5)


def test_five_prompts_act_by_default_and_one_recipe_has_all_19() -> None:
    assert sorted(CLASS_PROMPTS) == list(range(len(CITYSCAPES_CLASSES)))
    assert len(set(CLASS_PROMPTS.values())) == 19
    five = {train_id: CLASS_PROMPTS[train_id] for train_id in (1, 3, 12, 14, 16)}
    assert example("gta5_to_unseen").model.inversion.class_prompts == five
    assert example("gta5_all_prompts").model.inversion.class_prompts == CLASS_PROMPTS


def test_variants_change_the_backbone_alone() -> None:
    base = example("gta5_to_unseen")
    sources = {"gta5_to_unseen": DEFAULT_BACKBONE}
    for name in ("gta5_sd15", "gta5_sd21_base"):
        variant = example(name)
        backbone = variant.model.backbone
        sources[name] = backbone.source
        assert backbone.prediction_type == "auto"
        same = {"model": base.model, "name": base.name}
        assert variant.model_copy(update=same) == base
        assert variant.model.model_copy(update={"backbone": base.model.backbone}) == base.model
    assert len(set(sources.values())) == 3


def test_own_classes_have_own_prompts() -> None:
    config = example("own_folder")
    assert not set(config.model.classes) & {"road", "car"}
    assert config.model.palette is not None
    assert set(config.model.inversion.class_prompts) < set(range(len(config.model.classes)))
    assert {entry.domain for entry in (config.data.train, *config.data.eval)} == {"folder"}
