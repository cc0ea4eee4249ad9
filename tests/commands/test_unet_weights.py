"""A run whose U-Net has other weights than its source: `diff check` names them, `diff export` takes them along."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffcli
from diffcli.backbone import single_file
from diffcli.backbone.loading import quiet
from diffcli.commands import export
from diffcli.config.settings import ModelConfig, RunConfig
from diffcli.core.model import build_model
from diffcli.runs.checkpoint import save_checkpoint
from tests.fixtures.sd_layouts import shrink_layouts, write_pipeline, write_single_file

UNET = "unet/diffusion_pytorch_model.safetensors"


def save_run(model: ModelConfig, folder: Path) -> Path:
    save_checkpoint(folder / "checkpoints" / "last.safetensors", build_model(model))
    return folder


@pytest.fixture
def weights(tiny_config: RunConfig, tmp_path: Path) -> Path:
    own = load_file(Path(tiny_config.model.backbone.source) / UNET)
    path = tmp_path / "gone" / "tuned.safetensors"
    path.parent.mkdir()
    save_file({name: (1.1 * x).half() for name, x in own.items()}, path)
    return path


def with_backbone(config: RunConfig, **settings: object) -> ModelConfig:
    return config.model.model_copy(
        update={"backbone": config.model.backbone.model_copy(update=dict(settings))}
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "variant", "single file"])
def test_an_export_holds_the_replaced_weights(
    tiny_config: RunConfig, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings: dict[str, object] = {"unet_weights": weights}
    if kind == "variant":
        source = shutil.copytree(tiny_config.model.backbone.source, tmp_path / "gone" / "sd")
        for path in source.rglob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))
        settings |= {"source": str(source), "variant": "fp16"}
    if kind == "single file":
        layouts = shrink_layouts(tmp_path / "layouts")
        monkeypatch.setattr(single_file, "LAYOUTS", layouts)
        with quiet():
            write_pipeline(tmp_path / "sd", layout=layouts / "sd-1", prediction_type="epsilon", seed=3)
            file = write_single_file(tmp_path / "sd", tmp_path / "gone" / "sd.safetensors")
            shutil.move(tmp_path / "sd" / "tokenizer", tmp_path / "gone" / "tokenizer")
        own = load_file(tmp_path / "sd" / UNET)
        save_file({name: (1.1 * x).half() for name, x in own.items()}, weights)
        settings |= {"source": str(file)}
    expected = load_file(weights)
    model = with_backbone(tiny_config, **settings)
    run = save_run(model, tmp_path / "run")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = diffcli.load(run, device="cpu").logits(images, identities=["a"])
    export.run(export.Request(run=run, output=tmp_path / "out", with_backbone=True))
    shutil.rmtree(tmp_path / "gone")
    loaded = diffcli.load(tmp_path / "out", device="cpu")
    assert torch.equal(before, loaded.logits(images, identities=["a"]))
    (inside,) = (tmp_path / "out" / "backbone" / "unet").glob("*.safetensors")
    stored = load_file(inside)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in stored.items())
    assert "tuned.safetensors" in (tmp_path / "out" / "README.md").read_text()
    export.run(export.Request(run=tmp_path / "out", output=tmp_path / "again", with_backbone=True))
    assert load_file(next((tmp_path / "again/backbone/unet").glob("*.safetensors"))).keys() == stored.keys()


def test_an_export_without_them_says_where_they_are(
    tiny_config: RunConfig, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(with_backbone(tiny_config, unet_weights=weights), tmp_path / "run")
    export.run(export.Request(run=run, output=tmp_path / "out"))
    assert "on this machine only" in (said := capsys.readouterr().err)
    assert weights.name in said
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["base_model"]["unet_weights"] == str(weights)


def test_check_looks_for_them(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {train: miniworld}\nmodel: {backbone: {source: embedded}}\n")
    key = "model.backbone.unet_weights"
    done = cli("check", "a.yaml", "--set", f"{key}=none.safetensors")
    assert done.returncode == 1
    assert "none.safetensors: no such file" in done.stderr
    (tmp_path / "a.pth").touch()
    assert "pickled" in cli("check", "a.yaml", "--set", f"{key}=a.pth").stderr
    own = Path(diffcli.__file__).parent / "assets/miniworld-sd/unet/diffusion_pytorch_model.safetensors"
    shutil.copyfile(own, tmp_path / "tuned.safetensors")
    done = cli("check", "a.yaml", "--set", f"{key}=tuned.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "tuned.safetensors") in json.loads(done.stdout)["backbone"]
    both = cli(
        "check", "a.yaml", "--set", f"{key}=x.safetensors", "--set", "model.backbone.random_weights=true"
    )
    assert both.returncode == 2
    assert "contradict" in both.stderr
