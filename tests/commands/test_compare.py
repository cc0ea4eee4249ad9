"""Compare: one image a domain under several runs, with the same noise, one model in memory at a time."""

import gc
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffcli.commands import compare
from diffcli.core.model import SegmentationModel, build_model
from diffcli.drawing.figures import PANEL_WIDTH, Compared, compared_picture
from diffcli.drawing.pictures import GAP
from diffcli.errors import ConfigError, DiffError
from diffcli.evaluation.domains import DomainChoice
from diffcli.runs import opening
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import LAST
from diffcli.runtime import console


@pytest.fixture(scope="module")
def twin(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under another name and with another seed of its noise."""
    folder = tmp_path_factory.mktemp("twin") / "twin"
    shutil.copytree(tiny_run, folder)
    model = opening.open_run(tiny_run / LAST).load_model()
    inversion = model.config.inversion.model_copy(update={"seed": 9})
    model.config = model.config.model_copy(update={"inversion": inversion})
    save_checkpoint(folder / LAST, model)
    return folder


def column(picture: Image.Image, number: int) -> np.ndarray:
    left = GAP + number * (PANEL_WIDTH + GAP)
    return np.asarray(picture)[:, left : left + PANEL_WIDTH]


def test_runs_stand_side_by_side_under_the_same_noise(
    tiny_run: Path, twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "miniworld/fog,miniworld/snow"
    with console.json_only():
        compare.run(
            compare.Request(
                runs=[tiny_run, twin],
                domains=DomainChoice(names=names),
                output=tmp_path / "c.png",
                index=3,
                device="cpu",
            )
        )
    told = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["index"]) for one in told["domains"]] == [
        ("miniworld/fog", 3),
        ("miniworld/snow", 3),
    ]
    for one in told["domains"]:
        assert one["image"] == "miniworld_0_1000003"
        assert one["mean_iou"]["tiny"] == one["mean_iou"]["twin"] > 0
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width == 4 * (PANEL_WIDTH + GAP) + GAP
        rows = slice(22, 400)  # below the names
        assert np.array_equal(column(picture, 2)[rows], column(picture, 3)[rows])
        assert len(np.unique(column(picture, 1)[22:180].reshape(-1, 3), axis=0)) > 5


def test_one_model_at_a_time(
    tiny_run: Path, twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[SegmentationModel]] = []
    load = opening.OpenRun.load_model

    def watched(self: opening.OpenRun, **options: Any) -> SegmentationModel:
        gc.collect()
        assert not any(model() for model in loaded)
        model = load(self, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(opening.OpenRun, "load_model", watched)
    compare.run(compare.Request(runs=[tiny_run, twin], output=tmp_path / "c.png", device="cpu"))
    assert len(loaded) == 2


def test_other_classes_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    config = opening.open_run(tiny_run / LAST).config.model
    inversion = config.inversion.model_copy(update={"class_prompts": {}})
    other = config.model_copy(update={"classes": ("road", "car"), "inversion": inversion})
    save_checkpoint(tmp_path / "other" / LAST, build_model(other))
    with pytest.raises(ConfigError, match="other classes than"):
        compare.run(compare.Request(runs=[tiny_run, tmp_path / "other"], output=tmp_path / "c.png"))
    assert not (tmp_path / "c.png").exists()


def test_what_cannot_be_compared(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image 2") as caught:
        compare.run(compare.Request(runs=[tiny_run], index=2, output=tmp_path / "c.png"))
    assert caught.value.hint == "--index 0 to 1"
    with pytest.raises(ConfigError, match="named twice"):
        compare.run(compare.Request(runs=[tiny_run, tiny_run], output=tmp_path / "c.png"))


def test_any_number_of_runs_of_any_name(tiny_run: Path) -> None:
    model = opening.open_run(tiny_run).config.model
    mask = np.full((32, 64), 255, np.uint8)
    image = np.zeros((32, 64, 3), np.uint8)
    runs = [f"{number}-{'long' * 30}" for number in range(5)]
    row = Compared("d", "i", image, mask, dict.fromkeys(runs, mask), dict.fromkeys(runs, float("nan")))
    picture = compared_picture([row, row], model=model)
    assert picture.width == 7 * (PANEL_WIDTH + GAP) + GAP
    margins = [column(picture, number)[:, -1] for number in range(7)]
    assert all((margin[:20] == 255).all() for margin in margins)


def test_only_pictures_are_replaced(tiny_run: Path, tmp_path: Path) -> None:
    """And what may not be replaced is refused before any run is opened."""
    (tmp_path / "thesis.docx").write_text("years of work")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("thesis.docx", r"the output is a \.png file"), ("pipe.png", "a named pipe")):
        with pytest.raises(DiffError, match=words):
            compare.run(compare.Request(runs=[tmp_path / "no run"], output=tmp_path / name))
    assert (tmp_path / "thesis.docx").read_text() == "years of work"
