"""`diff import`: a published checkpoint becomes a run that the other commands take."""

import json
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from diffcli.api.model import load as load_run
from diffcli.commands import import_checkpoint
from diffcli.config.file import dump_config, load_config
from diffcli.config.settings import ModelConfig, RunConfig
from diffcli.errors import CheckpointError
from diffcli.runs.checkpoint import read_checkpoint
from diffcli.runs.folder import find_run
from diffcli.runs.published import convert_state

DATA = Path(__file__).parents[1] / "parity" / "data"


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return load(lzma.decompress((DATA / "weights_model.safetensors.xz").read_bytes()))


@pytest.fixture
def checkpoint(tmp_path: Path, published: dict[str, Tensor]) -> Path:
    """As a training run of the published code leaves it, with a frozen network inside."""
    frozen = {"backbone.diff_model.diffusion_extractor.unet.conv_in.weight": torch.zeros(16, 4, 3, 3)}
    torch.save({"state_dict": {**published, **frozen}, "meta": {"iter": 40_000}}, tmp_path / "iter_40000.pth")
    return tmp_path / "iter_40000.pth"


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., RunConfig]:
    """settings(...): the settings of a YAML file for the tiny diffusion model."""

    def write(backbone: str = "", inversion: str = "schedule: five", rest: str = "") -> RunConfig:
        path = tmp_path / "settings.yaml"
        path.write_text(
            f"model:\n  backbone: {{source: '{DATA / 'tiny-sd'}'{backbone}}}\n  inversion: {{{inversion}}}\n{rest}"
        )
        return load_config(path)

    return write


def test_the_run_is_finished_and_segments(
    tmp_path: Path, checkpoint: Path, settings: Callable[..., RunConfig], published: dict[str, Tensor]
) -> None:
    run = import_checkpoint.run(
        import_checkpoint.Request(checkpoint=checkpoint, output=tmp_path / "runs" / "old", config=settings())
    )
    assert find_run(None, runs=tmp_path / "runs") == run
    config = load_config(run / "config.yaml").model
    assert (config.decoder.channels, config.decoder.head_channels) == ((64, 64, 64, 128), 32)
    assert config.backbone.prediction_type == "as_epsilon"
    stored = read_checkpoint(run / "checkpoints" / "last.safetensors")
    expected = convert_state(published)
    assert stored.state.keys() == expected.keys()
    assert all(torch.equal(stored.state[name], x) for name, x in expected.items())
    assert stored.info["imported_from"] == "iter_40000.pth"
    report = json.loads((run / "report.json").read_text())
    assert (report["domains"], report["imported_from"]) == ([], "iter_40000.pth")
    assert json.loads((run / "versions.json").read_text())["diffcli"]
    model = load_run(run, device="cpu")
    logits = model.logits(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 19, 64, 64)
    assert logits.isfinite().all()


def test_a_safetensors_file_and_an_explicit_prediction_type(
    tmp_path: Path,
    published: dict[str, Tensor],
    settings: Callable[..., RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_file(published, tmp_path / "weights.safetensors")
    config = settings(backbone=", prediction_type: auto")
    run = import_checkpoint.run(
        import_checkpoint.Request(
            checkpoint=tmp_path / "weights.safetensors", output=tmp_path / "run", config=config
        )
    )
    assert load_config(run / "config.yaml").model.backbone.prediction_type == "auto"
    assert "as_epsilon" not in capsys.readouterr().err


def test_what_is_said(
    tmp_path: Path, checkpoint: Path, settings: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    import_checkpoint.run(
        import_checkpoint.Request(checkpoint=checkpoint, output=tmp_path / "run", config=settings())
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert "direct fusion of 960, 720, 480 channels, 19 classes" in err
    assert "prediction_type is as_epsilon" in err
    assert "warning" not in err


def test_settings_that_do_not_fit(
    tmp_path: Path, checkpoint: Path, settings: Callable[..., RunConfig]
) -> None:
    output = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"keeps 5 steps, the configured schedule 9") as caught:
        import_checkpoint.run(
            import_checkpoint.Request(checkpoint=checkpoint, output=output, config=settings(inversion=""))
        )
    assert caught.value.where == str(checkpoint)
    few = "  classes: [road, sidewalk]\n"
    with pytest.raises(CheckpointError, match="segments 19 classes, the settings name 2"):
        import_checkpoint.run(
            import_checkpoint.Request(
                checkpoint=checkpoint,
                output=output,
                config=settings(inversion="schedule: five, class_prompts: {}", rest=few),
            )
        )
    assert not output.exists()


def test_an_occupied_folder_is_left_alone(
    tmp_path: Path, checkpoint: Path, settings: Callable[..., RunConfig]
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something already"):
        import_checkpoint.run(
            import_checkpoint.Request(checkpoint=checkpoint, output=output, config=settings())
        )
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_weighted_fusions_are_imported_with_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = import_checkpoint.PublishedDecoder("mixing", (64, 64, 64, 128), 32, 19, (960, 720, 480))
    config = import_checkpoint.resolve_model(ModelConfig(), found)
    assert config.decoder.fusion.kind == "mixing"
    import_checkpoint.explain(config, found, tmp_path)
    assert "predictions will differ" in capsys.readouterr().err


def test_the_command(
    cli: Callable[..., "subprocess.CompletedProcess[str]"],
    tmp_path: Path,
    checkpoint: Path,
    settings: Callable[..., RunConfig],
) -> None:
    (tmp_path / "old.yaml").write_text(dump_config(settings()), encoding="utf-8")
    done = cli("import", checkpoint, "-o", "imported", "--config", "old.yaml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imported" / "report.json").is_file()
