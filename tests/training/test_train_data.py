"""What training makes of the data it is given: bad samples, splits that overlap, where the best is chosen, classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.numpy import load_file

from diffcli.config.settings import RunConfig
from diffcli.errors import ConfigError, DataError
from diffcli.runs.folder import BEST, LAST, REPORT
from diffcli.training.samples import open_domains
from diffcli.training.selection import select, with_held_out
from tests.training.test_train import damage_inside, start, tiny_config


@pytest.fixture(autouse=True)
def _fresh_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))


def make(root: Path, count: int = 6, *, values: tuple[int, ...] = (0, 1), folder: str = "") -> Path:
    """Pairs of 64x64 pixels, labels of blocks of the values."""
    rng = np.random.default_rng(len(folder))
    for what in ("images", "labels"):
        (root / what / folder).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            root / f"images/{folder}/{i}.png"
        )
        blocks = np.array(values, np.uint8)[rng.integers(0, len(values), (4, 4))]
        Image.fromarray(np.kron(blocks, np.ones((16, 16), np.uint8))).save(root / f"labels/{folder}/{i}.png")
    return root


def config_of(root: Path, *, evaluated: list[dict[str, Any]] | None = None, **changes: Any) -> RunConfig:
    source = {"domain": "folder", "root": str(root), **changes.pop("source", {})}
    return tiny_config(
        data__train=source,
        data__eval=evaluated or [],
        train__batch_size=1,
        **{"train__rare_class_sampling": None, **changes},
    )


def training_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / REPORT).read_text())["training"]
    return found


@pytest.mark.parametrize("inside", [False, True], ids=["seen in headers", "seen when decoded"])
@pytest.mark.parametrize("rare", [False, True], ids=["even", "rare classes"])
def test_a_damaged_image_costs_its_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: bool, rare: bool
) -> None:
    root = make(tmp_path / "data")
    path = root / "images/5.png"
    if inside:
        damage_inside(path)
    else:
        path.write_bytes(path.read_bytes()[:400])
    sampling = {"min_pixels": 20, "min_crop_pixels": 10} if rare else None
    folder = start(
        config_of(root, train__iterations=12, train__rare_class_sampling=sampling), tmp_path / "runs"
    )
    assert training_of(folder)["skipped_samples"] == 1
    words = capsys.readouterr().err
    assert words.count("5.png") == 1
    assert "1 sample of 6 could not be used" in words


def test_a_damaged_label_costs_its_draws(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    damage_inside(root / "labels/2.png")
    rare = {"min_pixels": 20, "min_crop_pixels": 10}
    folder = start(config_of(root, train__rare_class_sampling=rare), tmp_path / "runs")
    assert training_of(folder)["skipped_samples"] == 1


def test_many_bad_images_stop_before_training(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    for i in (1, 4):
        (root / f"images/{i}.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2 samples of 6 cannot be used, more than 1 %") as caught:
        start(config_of(root), tmp_path / "runs")
    assert "1.png" in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_resumed_run_skips_what_the_first_one_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit what an uninterrupted run reaches."""
    root = make(tmp_path / "data")
    damage_inside(root / "images/5.png")
    config = config_of(root, train__iterations=8)
    whole = start(config, tmp_path / "whole")

    from diffcli.training import loop
    from diffcli.training.step import training_step

    def until_five(trainer: Any, batches: Any) -> Any:
        if trainer.iteration == 5:
            raise DataError("the disk is gone")
        return training_step(trainer, batches)

    monkeypatch.setattr(loop, "training_step", until_five)
    with pytest.raises(DataError, match="the disk is gone"):
        start(config, tmp_path / "parts")
    monkeypatch.setattr(loop, "training_step", training_step)
    AcceleratorState._reset_state(reset_partial_state=True)
    parts = start(config, tmp_path / "parts", resume=True)
    ours, theirs = load_file(whole / LAST), load_file(parts / LAST)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_values_outside_the_mapping_are_named_with_their_lines(tmp_path: Path) -> None:
    root = make(tmp_path / "data", values=(0, 1, 30))
    with pytest.raises(DataError, match="1 label values outside the mapping, in 6 files") as caught:
        start(config_of(root), tmp_path / "runs")
    assert "30: 255  # " in str(caught.value.hint)
    start(config_of(root, source={"label_ids": {0: 0, 1: 1, "*": 255}}), tmp_path / "runs")


@pytest.mark.parametrize("rare", [False, True])
def test_masks_of_0_and_255(tmp_path: Path, capsys: pytest.CaptureFixture[str], rare: bool) -> None:
    root = make(tmp_path / "data", values=(0, 255))
    sampling = {"min_pixels": 20, "min_crop_pixels": 10} if rare else None
    start(
        config_of(
            root,
            model__classes=["ground", "thing"],
            model__inversion={"schedule": "one", "class_prompts": {}},
            train__rare_class_sampling=sampling,
            train__iterations=2,
        ),
        tmp_path / "runs",
    )
    words = capsys.readouterr().err
    assert "class without one pixel in 6 labels: thing" in words
    assert "label_ids: {0: 0, 255: 1}" in words


# overlap and selection


@pytest.mark.slow
def test_an_evaluation_set_that_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through a link as well; it is neither unseen nor does it choose the best checkpoint."""
    root = make(tmp_path / "data")
    (tmp_path / "alias").symlink_to(root)
    evaluated = [
        {"domain": "folder", "name": "again", "root": str(tmp_path / "alias")},
        {"domain": "miniworld/night", "count": 2},
    ]
    config = config_of(root, evaluated=evaluated, train__iterations=4, train__validate_interval=2)
    training = training_of(start(config, tmp_path / "runs"))
    assert training["shared_images"] == {"again": 6}
    assert training["selected_on"] == ["miniworld/night"]
    assert training["unseen_domains"] == 1
    assert "again: 6 of its images are in the training set" in capsys.readouterr().err


def test_the_last_checkpoint_is_the_best_where_all_was_trained_on(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    evaluated = [{"domain": "folder", "root": str(root)}]
    config = config_of(root, evaluated=evaluated, train__iterations=4, train__validate_interval=2)
    folder = start(config, tmp_path / "runs")
    assert training_of(folder)["best"] == {}
    last, best = load_file(folder / LAST), load_file(folder / BEST)
    assert all(np.array_equal(last[name], best[name]) for name in last)


def chosen_on(config: RunConfig) -> tuple[tuple[str, ...], bool]:
    config = with_held_out(config)
    source, targets = open_domains(config)
    found = select(config, source, targets)
    return found.domains, found.held_out


@pytest.mark.parametrize("how", ["val_fraction", "val split", "in data.eval"])
def test_the_best_is_chosen_on_the_held_out_part_of_the_source(tmp_path: Path, how: str) -> None:
    night = {"domain": "miniworld/night", "count": 2}
    options: dict[str, Any] = {"train__iterations": 4, "train__validate_interval": 2, "evaluated": [night]}
    if how == "val_fraction":
        root = make(tmp_path / "data")
        options["source"] = {"val_fraction": 0.3}
    else:
        for split in ("train", "valid"):
            root = make(tmp_path / "data", folder=split)
    if how == "in data.eval":
        options["evaluated"] = [night, {"domain": "folder", "name": "mine", "root": str(root)}]
    name = "mine" if how == "in data.eval" else "data (held out)"
    assert chosen_on(config_of(root, **options)) == ((name,), True)
    assert chosen_on(config_of(root, **options, train__select_on="source")) == ((name,), True)
    assert chosen_on(config_of(root, **options, train__select_on="targets")) == (("miniworld/night",), False)


def test_no_held_out_part(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    options: dict[str, Any] = {"train__iterations": 4, "train__validate_interval": 2}
    options["evaluated"] = [{"domain": "miniworld/night", "count": 2}]
    assert chosen_on(config_of(root, **options)) == (("miniworld/night",), False)
    with pytest.raises(ConfigError, match="the source has no held-out part"):
        chosen_on(config_of(root, **options, train__select_on="source"))


@pytest.mark.parametrize(
    ("source", "entry", "part"),
    [
        ("miniworld", "miniworld/clean", True),
        ("miniworld", "miniworld", False),
        ("miniworld/clean", "miniworld/fog", False),
        ("cityscapes", "cityscapes/coarse", True),
        ("acdc", "acdc/fog", True),
        ("acdc/fog", "acdc/night", False),
        ("gta5", "cityscapes", False),
    ],
)
def test_parts_of_the_source(source: str, entry: str, part: bool) -> None:
    from diffcli.config.domain import domain_config
    from diffcli.training.selection import is_part

    assert is_part(domain_config(entry), domain_config(source)) is part
