"""Submissions: which files the zip holds, with which values, and that it is written whole or not at all."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.api import model as api
from diffcli.classes import CITYSCAPES_ID_OF_TRAIN_ID
from diffcli.commands import submit
from diffcli.config.domain import domain_config
from diffcli.core.model import SegmentationModel
from diffcli.data.dataset import open_domain
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.evaluation.evaluator import segment_domain
from diffcli.evaluation.submission import find_server
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs import opening
from diffcli.runtime import console

SIZE = (48, 96)


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> SegmentationModel:
    return api.load(tiny_run, device="cpu")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """A test split as it unpacks: labels that say nothing; one is missing, which costs no image here."""
    root, random = tmp_path / "cityscapes", np.random.default_rng(0)
    for i, city in enumerate(("berlin", "bielefeld", "mainz")):
        name = f"{city}_{i:06}_000019"
        save(root / f"leftImg8bit/test/{city}/{name}_leftImg8bit.png", random.integers(0, 256, (*SIZE, 3)))
        if i:
            save(root / f"gtFine/test/{city}/{name}_gtFine_labelIds.png", np.zeros(SIZE))
    return root


def unpacked(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: np.asarray(Image.open(archive.open(name))) for name in archive.namelist()}


def test_cityscapes_takes_label_ids(
    tiny_run: Path,
    cityscapes: Path,
    tmp_path: Path,
    model: SegmentationModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "made" / "out.zip"
    with console.json_only():
        submit.run(submit.Request(domain="cityscapes", run=tiny_run, output=output, root=cityscapes))
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 3
    assert "3 images here, but the server's test set has 1525" in captured.err
    found = unpacked(output)
    assert sorted(found) == [
        "berlin_000000_000019_leftImg8bit.png",
        "bielefeld_000001_000019_leftImg8bit.png",
        "mainz_000002_000019_leftImg8bit.png",
    ]
    domain = open_domain(domain_config("cityscapes", root=cityscapes, split="test"), purpose="eval")
    settings = opening.open_run(tiny_run).config.eval
    for index, mask in segment_domain(trained_segmenter(model, settings), domain):
        written = found[f"{domain.identity(index)}.png"]
        assert written.dtype == np.uint8
        assert written.shape == SIZE
        assert np.array_equal(written, np.vectorize(CITYSCAPES_ID_OF_TRAIN_ID.get)(mask))
    assert len({int(value) for one in found.values() for value in np.unique(one)}) > 1


def test_acdc_takes_train_ids_of_all_conditions(tiny_run: Path, tmp_path: Path) -> None:
    for i, condition in enumerate(("fog", "night", "rain", "snow")):
        name = f"rgb_anon/{condition}/test/GP{i}/GP{i}_frame_00000{i}_rgb_anon.png"
        save(tmp_path / "acdc" / name, np.random.default_rng(i).integers(0, 256, (*SIZE, 3)))
    submit.run(
        submit.Request(domain="acdc", run=tiny_run, output=tmp_path / "out.zip", root=tmp_path / "acdc")
    )
    found = unpacked(tmp_path / "out.zip")
    assert sorted(found) == [f"labelTrainIds/GP{i}_frame_00000{i}_rgb_anon.png" for i in range(4)]
    assert all(mask.max() < 19 for mask in found.values())


def test_a_damaged_image_leaves_no_zip(tiny_run: Path, cityscapes: Path, tmp_path: Path) -> None:
    damaged = next(cityscapes.glob("leftImg8bit/test/mainz/*"))
    damaged.write_bytes(b"nonsense")
    with pytest.raises(DataError) as caught:
        submit.run(
            submit.Request(
                domain="cityscapes", run=tiny_run, output=tmp_path / "zips" / "out.zip", root=cityscapes
            )
        )
    assert damaged.name in str(caught.value)
    assert list((tmp_path / "zips").iterdir()) == []


def test_what_no_server_takes(tiny_run: Path, cityscapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zip"
    with pytest.raises(ConfigError, match="no evaluation server is known for gta5"):
        submit.run(submit.Request(domain="gta5", run=tiny_run, output=output))
    with pytest.raises(ConfigError, match=r"eval\.reference"):
        submit.run(
            submit.Request(
                domain="cityscapes",
                run=tiny_run,
                output=output,
                root=cityscapes,
                overrides=["eval.reference=labels"],
            )
        )
    with pytest.raises(DiffError, match="this is a folder"):
        submit.run(submit.Request(domain="cityscapes", run=tiny_run, output=tmp_path, root=cityscapes))
    with pytest.raises(DataError):
        submit.run(
            submit.Request(domain="cityscapes", run=tiny_run, output=output, root=tmp_path / "nowhere")
        )
    assert not output.exists()


@pytest.mark.parametrize("condition", ["fog", "night", "rain", "snow"])
def test_a_single_condition_of_acdc_has_a_server(condition: str) -> None:
    assert find_server(f"acdc/{condition}").images == 500
