"""`diffcli.load(RUN).predict(image)`: the mask that `diff predict` writes, of whatever shows an image."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import diffcli
from diffcli.api.any_image import any_image
from diffcli.api.model import TrainedModel
from diffcli.commands import predict
from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig, RuntimeConfig
from diffcli.data.miniworld import render
from diffcli.errors import ConfigError, DataError
from diffcli.runs.folder import CONFIG
from diffcli.runs.opening import open_run


@pytest.fixture(scope="module")
def street() -> NDArray[np.uint8]:
    return render(0, 1, "clean", size=(64, 128))[0]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> TrainedModel:
    return diffcli.load(tiny_run, device="cpu")


def test_a_file_has_the_mask_that_predict_writes(
    model: TrainedModel,
    tiny_run: Path,
    street: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    path = tmp_path / "street.jpg"
    upright = Image.fromarray(street).resize((150, 90))
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees
    upright.save(path, exif=turned)
    predict.run(predict.Request(images=[str(path)], run=tiny_run, output=tmp_path / "masks", device="cpu"))
    written = np.asarray(Image.open(tmp_path / "masks" / "street.png"))
    for given in (path, str(path)):
        mask = model.predict(given)
        assert mask.dtype == np.uint8
        assert mask.shape == (150, 90)
        assert np.array_equal(mask, written)
    assert len(np.unique(mask)) > 1
    opened = model.predict(Image.open(path), identity="street")
    assert opened.shape == mask.shape
    assert (opened == mask).mean() > 0.98  # two JPEG decoders


def test_the_runs_eval_settings_count(tiny_run: Path, street: NDArray[np.uint8]) -> None:
    trained = open_run(tiny_run, overrides=["eval.size=64x64", "eval.flip=true"])
    other = TrainedModel(trained.load_model(device="cpu"), trained.config.eval)
    assert not other.extractor.backbone.network.compiled
    assert diffcli.load(tiny_run, device="cpu").settings.size == (128, 64)
    plain = diffcli.load(tiny_run, device="cpu").predict(street)
    assert not np.array_equal(other.predict(street), plain)
    wanting = trained.config.eval.model_copy(update={"reference": "labels"})
    labels = TrainedModel(trained.load_model(device="cpu"), wanting)
    with pytest.raises(ConfigError, match="reference is labels"):
        labels.predict(street)
    assert labels.predict(street, reference=np.zeros((8, 8), np.uint8)).shape == street.shape[:2]


def test_every_kind_of_image_is_the_same_image(model: TrainedModel, street: NDArray[np.uint8]) -> None:
    expected = model.predict(street)
    tensor = torch.from_numpy(street)
    assert np.array_equal(any_image((tensor.movedim(-1, 0).float() - 127.5) / 127.5), street)
    for image in (
        Image.fromarray(street),
        tensor,
        tensor.movedim(-1, 0),
        np.dstack([street, np.full(street.shape[:2], 7, np.uint8)]),
        street[:, ::-1][:, ::-1],
    ):
        assert np.array_equal(any_image(image), street)
    assert np.array_equal(model.predict(tensor.movedim(-1, 0)), expected)
    assert np.array_equal(model.predict(street), expected)
    assert expected.shape == street.shape[:2]


def test_grey_alpha_and_sixteen_bits(street: NDArray[np.uint8]) -> None:
    grey = street[..., 0]
    spread = np.dstack([grey] * 3)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for image in (grey, torch.from_numpy(grey.copy()), Image.fromarray(grey), deep):
        assert np.array_equal(any_image(image), spread)
    assert np.array_equal(any_image(Image.fromarray(street).convert("RGBA")), street)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        torch.full((3, 4, 4), 255.0),
        torch.zeros(4, 4, 3),
        torch.full((3, 4, 4), torch.nan),
    ],
)
def test_what_is_no_image(image: object) -> None:
    with pytest.raises(DataError, match="no image"):
        any_image(image)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot be read"):
        any_image("no_such_file.png")


def test_one_line_as_a_user_writes_it(
    cli: Callable[..., CompletedProcess[str]],
    tiny_run: Path,
    street: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    """The command line and the one line agree, export included."""
    Image.fromarray(street).save(tmp_path / "a.png")
    done = cli("predict", "a.png", "-o", "masks", "--run", tiny_run, "--json")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["images"]
    written = np.asarray(Image.open(tmp_path / entry["mask"]))
    assert np.array_equal(diffcli.load(tiny_run).predict(tmp_path / "a.png"), written)


def test_the_settings_say_that_the_network_is_compiled(
    tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = open_run(tiny_run, overrides=["runtime.compile=true"])
    assert trained.load_model(device="cpu").extractor.backbone.network.compiled
    assert "compiled at its first use" in capsys.readouterr().err


def test_a_run_does_not_bring_the_machine_it_was_trained_on(
    tiny_run: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    there = RuntimeConfig(
        device="cuda:7", precision="fp16", compile=True, data_workers=64, max_unet_batch=512
    )
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    (folder / CONFIG).write_text(dump_config(tiny_config.model_copy(update={"runtime": there})))
    assert open_run(folder).config.runtime == RuntimeConfig()
    here = open_run(folder, overrides=["runtime.device=cpu", "runtime.max_unet_batch=3"])
    assert here.load_model().extractor.max_unet_batch == 3
