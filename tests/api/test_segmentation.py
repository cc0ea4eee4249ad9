"""`model(image)` and `model.segment([...])`: the mask of `diff predict` with all that is known of it, and its files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import diffcli
from diffcli.api.model import TrainedModel
from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.commands import predict
from diffcli.data.miniworld import render
from diffcli.errors import ConfigError, DataError
from diffcli.runs.opening import open_run

WRITTEN = ("mask", "label-ids", "color", "overlay", "confidence", "confidence-map", "stats")


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> TrainedModel:
    loaded = diffcli.load(tiny_run, device="cpu")
    assert isinstance(loaded, TrainedModel)
    return loaded


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images; the second one is of another size."""
    folder = tmp_path_factory.mktemp("streets")
    paths = [folder / f"street {i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(render(0, i, "clean", size=(64, 128))[0]).resize((150 + i % 2 * 20, 90)).save(path)
    return paths


@pytest.fixture(scope="module")
def written(tiny_run: Path, streets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `diff predict` writes of these images."""
    folder = tmp_path_factory.mktemp("predicted")
    images = [str(path) for path in streets]
    request = predict.Request(
        images=images, run=tiny_run, output=folder, write=",".join(WRITTEN), device="cpu"
    )
    predict.run(request)
    return folder


def test_a_batch_gives_what_predict_writes(
    model: TrainedModel, streets: list[Path], written: Path, tmp_path: Path
) -> None:
    """Every file, byte for byte."""
    pairs = [model.segment(streets), model.segment(streets, batch=2)]
    for path, found, other in zip(streets, *pairs, strict=True):
        assert found.name == str(path)
        assert np.array_equal(found.mask, other.mask)
        assert np.array_equal(found.mask, np.asarray(Image.open(written / path.name)))
        assert found.image.shape == (*found.mask.shape, 3)
        files = found.save(tmp_path / "saved", ",".join(WRITTEN))
        assert set(files) == set(WRITTEN)
        for file in files.values():
            assert file.read_bytes() == (written / file.name).read_bytes(), file.name
    assert found.classes == CITYSCAPES_CLASSES
    assert tuple(found.palette[0]) == (128, 64, 128)


def test_one_image_is_a_batch_of_one(model: TrainedModel, streets: list[Path], tmp_path: Path) -> None:
    found = model(streets[0], probabilities=True)
    assert np.array_equal(found.mask, model.predict(streets[0]))
    assert found.probabilities is not None
    assert found.probabilities.shape == (19, *found.mask.shape)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-4)
    own = np.take_along_axis(found.probabilities, found.mask[None].astype(int), axis=0)[0]
    assert np.allclose(found.confidence, own, atol=1e-6)
    assert model(streets[0]).probabilities is None
    assert sum(found.shares.values()) == pytest.approx(1)
    assert [*found.shares.values()] == sorted(found.shares.values(), reverse=True)
    overlay = found.overlay()
    assert overlay.width >= 150
    assert overlay.height > 90  # the legend
    assert found.overlay(legend=False).size == (150, 90)
    assert found.save(tmp_path / "own.png", "mask,stats") == {
        "mask": tmp_path / "own.png",
        "stats": tmp_path / "own_stats.json",
    }
    assert json.loads((tmp_path / "own_stats.json").read_text())["input"] == str(streets[0])
    assert np.array_equal(pickle.loads(pickle.dumps(found)).mask, found.mask)


def test_what_has_no_file_is_named_by_its_pixels(
    model: TrainedModel, streets: list[Path], tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(streets[0]).convert("RGB"))
    first, second = model.segment([pixels, Image.open(streets[0])])
    assert first.name == second.name
    assert np.array_equal(first.mask, model.predict(pixels))
    assert first.save(tmp_path)["mask"] == tmp_path / f"{first.name}.png"


def test_probabilities_of_tiles(tiny_run: Path) -> None:
    """Bands are put together for every class; the mask is the one without probabilities."""
    trained = open_run(
        tiny_run,
        overrides=["eval.size=null", "eval.mode=slide", "eval.window=128x128", "eval.stride=64x64"],
    )
    model = TrainedModel(trained.load_model(device="cpu"), trained.config.eval)
    pixels: NDArray[np.uint8] = np.asarray(
        Image.fromarray(render(0, 2, "clean", size=(64, 128))[0]).resize((224, 160))
    )
    found = model(pixels, probabilities=True)
    assert found.probabilities is not None
    assert found.probabilities.shape == (19, 160, 224)
    assert np.array_equal(found.probabilities.argmax(axis=0), found.mask)
    assert np.array_equal(found.mask, model.predict(pixels))


def test_it_says_what_it_is(model: TrainedModel, streets: list[Path], tiny_run: Path) -> None:
    words = repr(model)
    for part in (
        f"{tiny_run} (last, iteration 7)",
        "19 classes",
        "schedule one (1 U-Net",
        "on cpu in float32",
    ):
        assert part in words, words
    words = repr(model(streets[1]))
    assert f"{streets[1]}, 170x90: " in words
    assert "mean confidence 0." in words


def test_what_cannot_be_done_is_refused(model: TrainedModel, streets: list[Path], tmp_path: Path) -> None:
    found = model(streets[0])
    with pytest.raises(ConfigError, match="one image has no uncertainty"):
        found.save(tmp_path / "out", "mask,uncertainty")
    with pytest.raises(ConfigError, match="knows no 'masks'"):
        found.save(tmp_path / "out", "masks")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="cannot be read"):
        model.segment([streets[0], "missing.png"])
