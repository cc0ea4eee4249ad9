"""Exported networks, for real: written, reloaded in their own runtimes, compared, run without PyTorch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from diffcli.api.model import TrainedModel, load
from diffcli.commands import export, predict
from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.config.size import Size
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import build_model
from diffcli.data.miniworld import render
from diffcli.data.transforms import resize_image
from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.export.networks import check_networks
from diffcli.export.runner import open_exported, to_model_range
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.exported import EXPORT_FACTS, file_checksums
from diffcli.runs.folder import CONFIG, LAST

SIZE = Size(128, 64)
TWO_ROWS = {
    "schedule": {"timesteps": [20, 60], "save_steps": [1, 0]},
    "prompt": "a street",
    "guidance_scale": 2.0,
}


def write_run(folder: Path, config: RunConfig, **model: object) -> Path:
    """A run folder of fresh weights with other model settings."""
    settings = RunConfig.model_validate(
        {**config.model_dump(), "model": {**config.model.model_dump(), **model}}
    )
    built = build_model(settings.model)
    torch.manual_seed(0)
    for parameter in built.decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(folder / LAST, built)
    (folder / CONFIG).write_text(dump_config(settings))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of them of another size."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, size in enumerate([(128, 256), (128, 256), (192, 320)]):
        Image.fromarray(render(3, index, "fog", size=size)[0]).save(folder / f"{index}.png")
    return folder


def test_what_export_json_says(onnx_export: Path) -> None:
    facts = json.loads((onnx_export / "export.json").read_text())
    assert facts["kind"] == "onnx"
    assert facts["classes"][1] == {"train_id": 1, "name": "sidewalk", "color": [244, 35, 232]}
    assert (facts["input"]["width"], facts["input"]["height"], facts["input"]["range"]) == (128, 64, [-1, 1])
    assert facts["noise"]["order"] == ["the VAE posterior's", "the noising draw of one-step mode", "step 0"]
    assert np.load(onnx_export / "noise.npy").shape[0] == facts["noise"]["draws"] == 3
    assert facts["schedule"]["timesteps"] == [100]
    assert facts["check"]["label_agreement"] >= 0.999
    assert facts["check"]["max_logit_difference"] < 1e-3
    assert {"torch", "diffusers", "onnx", "onnxruntime"} <= set(facts["versions"])
    assert "noise[:, :2]" in (onnx_export / "README.md").read_text()


def test_nothing_of_the_machine_is_in_the_graphs(onnx_export: Path, repository: Path) -> None:
    for file in onnx_export.glob("*.onnx"):
        assert str(repository).encode() not in file.read_bytes()
        onnx.checker.check_model(file)


def test_onnxruntime_by_hand_with_noise_of_ones_own(onnx_export: Path, tiny_run: Path) -> None:
    """Three images, a batch that was not traced, by the loop that README.md of the folder shows."""
    names = ["a", "b", "c"]
    images = torch.rand(3, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    source = seeded_noise(0, names)
    side = onnx.load(onnx_export / "step.onnx").graph.input[0].type.tensor_type.shape.dim
    assert side[0].dim_param == "batch"
    shape = (1, *(dim.dim_value for dim in side[1:]))
    noise = torch.stack([torch.cat([source(i, shape) for _ in range(3)]) for i in range(3)]).numpy()
    encoder, step, decoder = (
        onnxruntime.InferenceSession(onnx_export / f"{part}.onnx") for part in ("encoder", "step", "decoder")
    )
    (latent,) = encoder.run(None, {"image": images.numpy(), "noise": noise[:, :2]})
    _, *maps = step.run(None, {"latent": latent, "noise": noise[:, 2], "index": np.array(0)})
    (logits,) = decoder.run(["logits"], dict(zip((x.name for x in decoder.get_inputs()), maps, strict=True)))
    wanted = load(tiny_run, device="cpu").logits(images, identities=names).numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())


def test_predict_without_pytorch(onnx_export: Path, tiny_run: Path, photos: Path, repository: Path) -> None:
    """The same masks as the model's under the stored noise, and every other output, by a process without torch."""
    code = (
        "import sys, atexit, runpy\n"
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))))\n"
        f"sys.argv = ['diff', 'predict', 'photos', '-o', 'masks', '--model', {str(onnx_export)!r}, '--batch', '2',\n"
        "            '--write', 'mask,confidence,stats', '--heatmap', 'road']\n"
        "runpy.run_module('diffcli', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:diffcli", "-c", code],
        cwd=photos.parent,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HEAVY []" in done.stdout
    model, settings = (
        load(tiny_run, device="cpu"),
        RunConfig.model_validate({"eval": {"size": "128x64"}}).eval,
    )
    for path in sorted(photos.glob("*.png")):
        image = np.asarray(Image.open(path))
        mask = np.asarray(Image.open(photos.parent / "masks" / path.name))
        assert mask.shape == image.shape[:2]
        assert (photos.parent / "masks" / f"{path.stem}_confidence.png").is_file()
        assert (photos.parent / "masks" / f"{path.stem}_road_heatmap.png").is_file()
        wanted = TrainedModel(model, settings).predict(image, identity="export")
        assert (mask == wanted).mean() >= 0.999
        assert np.array_equal(load(onnx_export).predict(path), mask)
    assert len((photos.parent / "masks" / "predictions.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_pt2_with_two_rows_and_two_steps(
    tiny_config: RunConfig, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guidance between two prompts, batches of one to three, and predict on it."""
    inversion = {**tiny_config.model.inversion.model_dump(), **TWO_ROWS}
    run = write_run(tmp_path / "run", tiny_config, inversion=inversion)
    export.run(export.Request(run=run, output=tmp_path / "out", format="pt2"))
    assert "labels agree on 100.000 %" in capsys.readouterr().err
    exported, model = open_exported(tmp_path / "out" / "step.pt2", device="cpu"), load(run, device="cpu")
    for count in (1, 3):
        images = to_model_range([small(render(0, i, "rain")[0]) for i in range(count)])
        wanted = model.logits(torch.from_numpy(images), identities=["export"] * count).numpy()
        np.testing.assert_allclose(exported.logits(images), wanted, atol=1e-4 * np.abs(wanted).max())
    predict.run(
        predict.Request(images=[str(photos)], model=tmp_path / "out", output=tmp_path / "masks", device="cpu")
    )
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3


def small(image: np.ndarray) -> np.ndarray:
    return resize_image(image, SIZE)


def test_an_export_that_does_not_agree_is_refused(onnx_export: Path, tiny_run: Path, tmp_path: Path) -> None:
    """One weight file is edited behind the export's back: the labels differ, and the check says so."""
    broken = shutil.copytree(onnx_export, tmp_path / "broken")
    graph = onnx.load(broken / "decoder.onnx")
    (bias,) = (x for x in graph.graph.initializer if x.name.endswith("classifier.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[5] += 1e3
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(graph, broken / "decoder.onnx")
    facts = json.loads((broken / EXPORT_FACTS).read_text())
    (broken / EXPORT_FACTS).write_text(json.dumps(facts | {"checksums": file_checksums(broken)}))
    model = load(tiny_run, device="cpu")
    assert check_networks(model, onnx_export, size=SIZE).label_agreement >= 0.999
    with pytest.raises(DiffError, match="does not agree with the model"):
        check_networks(model, broken, size=SIZE)


@pytest.mark.slow
def test_what_does_not_agree_is_not_left_on_disk(tiny_config: RunConfig, tmp_path: Path) -> None:
    """The VAE latent alone: no step network. Nothing can agree on more than all pixels."""
    decoder = {**tiny_config.model.decoder.model_dump(), "features": "latent"}
    run = write_run(tmp_path / "run", tiny_config, decoder=decoder)
    with pytest.raises(DiffError, match="not kept"):
        export.run(export.Request(run=run, output=tmp_path / "out", format="pt2", agreement=1.01))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_options_that_contradict_each_other(tiny_run: Path, tmp_path: Path) -> None:
    for options in (
        {"format": "onnx", "with_backbone": True},
        {"size": "64x64"},
        {"format": "onnx", "size": "64"},
    ):
        with pytest.raises(ConfigError, match=r"--with-backbone|--size"):
            export.run(export.Request(run=tiny_run, output=tmp_path / "out", **options))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_size_is_asked_for_one(tiny_config: RunConfig, tmp_path: Path) -> None:
    settings = tiny_config.model_copy(update={"eval": tiny_config.eval.model_copy(update={"size": None})})
    run = write_run(tmp_path / "run", settings)
    with pytest.raises(ConfigError, match=r"eval\.size is null"):
        export.run(export.Request(run=run, output=tmp_path / "out", format="onnx"))


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_is_said(
    onnx_export: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DiffError, match=f"needs {package}") as caught:
        export.run(export.Request(run=tiny_run, output=tmp_path / "out", format="onnx"))
    assert caught.value.hint == "pip install 'diffcli[onnx]'"
    if package == "onnxruntime":
        with pytest.raises(DiffError, match="needs onnxruntime"):
            open_exported(onnx_export)


def test_what_is_no_model(onnx_export: Path, tiny_run: Path, tmp_path: Path) -> None:
    def damaged(name: str, change: Callable[[Path], object]) -> Path:
        folder = shutil.copytree(onnx_export, tmp_path / name)
        change(folder)
        return folder

    def cut(file: str) -> Callable[[Path], object]:
        return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:1000])

    export.run(export.Request(run=tiny_run, output=tmp_path / "for-diffcli"))
    (tmp_path / "empty").mkdir()
    cases = {
        "no such export": tmp_path / "nowhere",
        "there is no export.json here": tmp_path / "empty",
        "an export for diffcli itself": tmp_path / "for-diffcli",
        "step.onnx: damaged: its checksum": damaged("a", cut("step.onnx")),
        "export.json: it is damaged": damaged("b", cut("export.json")),
        "noise.npy: a file of this export cannot be read": damaged(
            "c", lambda folder: (folder / "noise.npy").unlink()
        ),
        "step.onnx: a file of this export cannot be read": damaged(
            "d", lambda folder: (folder / "step.onnx").unlink()
        ),
    }
    for message, path in cases.items():
        with pytest.raises(CheckpointError) as caught:
            open_exported(path)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 2
    with pytest.raises(ConfigError, match="onnxruntime has no warp"):
        open_exported(onnx_export, device="warp")


def test_faults_as_a_user_sees_them(
    cli: Callable[..., CompletedProcess[str]], photos: Path, onnx_export: Path
) -> None:
    done = cli("predict", photos, "-o", "masks", "--model", "nowhere")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: nowhere: no such export"
    done = cli("predict", photos, "-o", "masks", "--model", onnx_export, "--samples", 4, "--tile", "64x64")
    assert done.returncode == 2
    assert "--model and --samples, --tile do not go together" in done.stderr
    assert len(done.stderr.splitlines()) == 2
