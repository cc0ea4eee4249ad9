"""`diff data preview`: the samples that a training draws, with the masks that its conditional branch is told."""

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.commands.preview import first_draws
from diffcli.config.file import dump_config
from diffcli.core.inversion import PromptGroups
from diffcli.data.batches import Batch
from diffcli.training import loop
from diffcli.training.trainer import Trainer
from tests.fixtures.training import start, tiny_config


def test_a_picture_and_what_it_shows(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    config = tiny_config()
    inversion = config.model.inversion.model_copy(update={"class_prompts": {0: "a road", 1: "a sidewalk"}})
    config = config.model_copy(update={"model": config.model.model_copy(update={"inversion": inversion})})
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    done = cli("data", "preview", "tiny.yaml", "--draws", 3, "-o", "fed.png", "--json")
    assert done.returncode == 0, done.stderr
    draws = json.loads(done.stdout)["draws"]
    assert [one["draw"] for one in draws] == [0, 1, 2]
    assert all(sum(one["shares"].values()) == pytest.approx(1, abs=0.02) for one in draws)
    told = [one for one in draws if "road" in one["shares"]]
    assert told
    assert all(one["prompts"]["road"] == "a road" for one in told)
    assert all(one["shares"].get(one["rare_class"], 0) > 0 for one in draws)
    with Image.open(tmp_path / "fed.png") as picture:
        width = picture.width
    done = cli("data", "preview", "tiny.yaml", "--draws", 3, "--set", "train.loss.ipkl=false")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.width < width  # without the column of the conditional branch


@pytest.mark.slow
def test_only_a_picture_is_written_over(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config()))
    (tmp_path / "thesis.docx").write_text("years of work")
    done = cli("data", "preview", "tiny.yaml", "-o", "thesis.docx")
    assert done.returncode == 1
    assert done.stderr.startswith("error: thesis.docx: the output is a .png file\n")
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_they_are_what_training_is_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, labels, rare classes and the masks of the conditional branch, of the first two iterations."""
    from diffcli.core import features

    fed: list[Batch] = []
    told: list[PromptGroups] = []
    step, groups = loop.training_step, features.prompt_groups

    def spy_step(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, Any]:
        fed.append(next(batches))
        return step(trainer, chain(fed[-1:], batches))

    def spy_groups(reference: torch.Tensor | None, **options: Any) -> PromptGroups:
        if reference is not None and len(fed):
            told.append(groups(reference, **options))
        return groups(reference, **options)

    monkeypatch.setattr(loop, "training_step", spy_step)
    monkeypatch.setattr(features, "prompt_groups", spy_groups)
    config = tiny_config(train__iterations=2, data__eval=[])
    previewed = list(first_draws(config, count=4))
    start(config, tmp_path)
    images = np.concatenate([batch.images.numpy() for batch in fed])
    labels = np.concatenate([batch.labels.numpy() for batch in fed])
    assert np.array_equal(images, np.stack([one.image for one in previewed]))
    assert np.array_equal(labels, np.stack([one.label for one in previewed]))
    assert [rare for batch in fed for rare in batch.rare_classes] == [one.rare_class for one in previewed]
    assert len(told) == len(previewed)
    for group, one in zip(told, previewed, strict=True):
        assert group.prompts[1:] == tuple(prompted.prompt for prompted in one.prompted)
        for mask, prompted in zip(group.masks[1:], one.prompted, strict=True):
            assert np.array_equal(mask.numpy(), prompted.mask)
