"""Export: a folder that loads by itself and predicts the same, written whole or not at all."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import diffcli
from diffcli.backbone import single_file
from diffcli.backbone.loading import quiet
from diffcli.commands import export
from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.core.model import build_model
from diffcli.errors import BackboneError, CheckpointError, DiffError
from diffcli.runs.checkpoint import read_checkpoint, save_checkpoint
from diffcli.runs.exported import EXPORT_WEIGHTS
from diffcli.runs.opening import open_run
from tests.fixtures.sd_layouts import shrink_layouts, write_pipeline, write_single_file


@pytest.fixture
def moved_run(tiny_run: Path, tiny_config: RunConfig, tmp_path: Path) -> tuple[Path, Path]:
    """(run, its diffusion model): a copy of both, so that the model can be taken away."""
    source = shutil.copytree(tiny_config.model.backbone.source, tmp_path / "sd")
    run = shutil.copytree(tiny_run, tmp_path / "run")
    backbone = tiny_config.model.backbone.model_copy(update={"source": str(source)})
    model = tiny_config.model.model_copy(update={"backbone": backbone})
    (run / "config.yaml").write_text(dump_config(tiny_config.model_copy(update={"model": model})))
    weights = run / "checkpoints" / "last.safetensors"
    built = build_model(model)
    built.decoder.load_state_dict(read_checkpoint(weights).state)
    save_checkpoint(weights, built)
    return run, source


def test_an_export_predicts_what_the_run_does(tiny_run: Path, tmp_path: Path) -> None:
    export.run(export.Request(run=tiny_run, output=tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
    ]
    images = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = [
        diffcli.load(path, device="cpu").logits(images, identities=["a"])
        for path in (tiny_run, tmp_path / "out")
    ]
    assert torch.equal(*logits)


def test_settings_and_facts(tiny_run: Path, tmp_path: Path) -> None:
    export.run(export.Request(run=tiny_run, output=tmp_path / "out"))
    exported, original = open_run(tmp_path / "out"), open_run(tiny_run)
    assert exported.config.model == original.config.model
    assert exported.config.eval == original.config.eval
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["classes"][1] == {"train_id": 1, "name": "sidewalk", "color": [244, 35, 232]}
    assert facts["iteration"] == 7
    assert facts["base_model"]["included"] is False
    readme = (tmp_path / "out" / "README.md").read_text()
    assert 'diffcli.load("out")' in readme
    assert facts["base_model"]["source"] in readme


def test_with_the_frozen_model_it_needs_nothing_else(moved_run: tuple[Path, Path], tmp_path: Path) -> None:
    run, source = moved_run
    export.run(export.Request(run=run, output=tmp_path / "out", with_backbone=True))
    before = diffcli.load(run, device="cpu")
    shutil.rmtree(source)
    with pytest.raises(BackboneError):
        diffcli.load(run, device="cpu")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    after = diffcli.load(moved, device="cpu")
    assert torch.equal(before.logits(images, identities=["a"]), after.logits(images, identities=["a"]))


def test_a_single_file_becomes_a_folder_in_its_precision(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-precision file that says it predicts v: the folder says so too, and is as large."""
    layouts = shrink_layouts(tmp_path / "layouts")
    monkeypatch.setattr(single_file, "LAYOUTS", layouts)
    pipeline = {"layout": layouts / "sd-2", "prediction_type": "v_prediction", "dtype": torch.float16}
    with quiet():
        write_pipeline(tmp_path / "folder", **pipeline)  # type: ignore[arg-type]
        metadata = {"modelspec.prediction_type": "v"}
        file = write_single_file(tmp_path / "folder", tmp_path / "file" / "x.safetensors", metadata=metadata)
    backbone = tiny_config.model.backbone.model_copy(update={"source": str(file)})
    built = build_model(tiny_config.model.model_copy(update={"backbone": backbone}))
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors", built)
    export.run(export.Request(run=tmp_path / "run", output=tmp_path / "out", with_backbone=True))
    shutil.rmtree(layouts)
    shutil.rmtree(file.parent)
    loaded = diffcli.load(tmp_path / "out", device="cpu")
    assert loaded.extractor.backbone.prediction_type == "v_prediction"
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(built.logits(images, identities=["a"]), loaded.logits(images, identities=["a"]))
    with safe_open(
        tmp_path / "out/backbone/unet/diffusion_pytorch_model.safetensors", framework="pt"
    ) as weights:
        assert weights.get_tensor("conv_in.weight").dtype == torch.float16


def test_a_flipped_bit_of_an_export_is_found(moved_run: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = moved_run
    output = tmp_path / "out"
    export.run(export.Request(run=run, output=output, with_backbone=True))
    for name in (EXPORT_WEIGHTS, "backbone/vae/diffusion_pytorch_model.safetensors"):
        whole = (output / name).read_bytes()
        (output / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="checksum") as caught:
            open_run(output)
        assert caught.value.where == str(output / name)
        (output / name).write_bytes(whole)
    open_run(output)


def test_an_export_can_be_exported_again(tiny_run: Path, tmp_path: Path) -> None:
    export.run(export.Request(run=tiny_run, output=tmp_path / "first", with_backbone=True))
    export.run(export.Request(run=tmp_path / "first", output=tmp_path / "second", with_backbone=True))
    assert (tmp_path / "second" / "backbone" / "unet" / "config.json").is_file()


def test_an_earlier_export_is_replaced_anything_else_refused(tiny_run: Path, tmp_path: Path) -> None:
    for with_backbone in (True, False):
        export.run(export.Request(run=tiny_run, output=tmp_path / "out", with_backbone=with_backbone))
    assert not (tmp_path / "out" / "backbone").exists()
    (tmp_path / "empty").mkdir()
    export.run(export.Request(run=tiny_run, output=tmp_path / "empty"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(DiffError, match=r"no export|is a file"):
            export.run(export.Request(run=tiny_run, output=tmp_path / name))
    assert (tmp_path / "full" / "thesis.tex").exists()


def test_a_failure_leaves_the_earlier_export_and_nothing_else(
    moved_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, source = moved_run
    export.run(export.Request(run=run, output=tmp_path / "out", with_backbone=True))
    before = sorted(tmp_path.rglob("*"))
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BackboneError):
        export.run(export.Request(run=run, output=tmp_path / "out", with_backbone=True))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiffError, match="No space left"):
        export.run(export.Request(run=run, output=tmp_path / "out"))
    lost = {source / "unet" / "diffusion_pytorch_model.safetensors"}
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path not in lost]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export.run(export.Request(run=tmp_path / "missing", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_importing_diffcli_is_instant_and_its_names_are_there() -> None:

    code = "import sys, diffcli; assert 'torch' not in sys.modules; print(diffcli.__version__)"
    home = Path(diffcli.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=home)
    assert {"load", "SegmentationModel"} <= set(dir(diffcli))
    assert diffcli.SegmentationModel.__module__ == "diffcli.core.model"
    with pytest.raises(AttributeError, match="nothing"):
        diffcli.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
def test_the_whole_way(cli: Callable[..., CompletedProcess[str]], tiny_run: Path, tmp_path: Path) -> None:
    """export, then eval and predict on the exported folder: exit codes, and JSON alone on stdout."""
    assert cli("export", tiny_run, "-o", "out", "--with-backbone").returncode == 0
    one_scene = "data.eval=[{domain: miniworld/fog, count: 1}]"
    done = cli("eval", "--run", "out", "--set", one_scene, "--set", "eval.size=64x64", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["domains"][0]["name"] == "miniworld/fog"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    done = cli("predict", "a.png", "b.png", "-o", "masks", "--run", "out", "--json")
    assert done.returncode == 1
    assert "b.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(json.loads(done.stdout)["images"]) == 1
    assert (tmp_path / "masks" / "a.png").is_file()
