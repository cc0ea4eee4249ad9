"""Training: what a run folder holds, resuming to the last digit, and every way in which a run must stop well."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open

from diffcli.config.file import load_config
from diffcli.core.model import build_model
from diffcli.errors import BackboneError, CheckpointError, ConfigError, DataError, TrainingError
from diffcli.runs.folder import BEST, CONFIG, LAST, METRICS, PICTURE, REPORT, RESUME, VERSIONS
from diffcli.runs.opening import open_run
from diffcli.runs.provenance import PROVENANCE, read_provenance
from diffcli.training.init_from import initialise
from diffcli.training.samples import open_domains, training_set
from tests.fixtures.training import interrupted, metrics, start, tiny_config


@pytest.mark.slow
def test_run_folder_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = start(tiny_config(), tmp_path)
    for name in (CONFIG, VERSIONS, PROVENANCE, METRICS, LAST, BEST, REPORT, PICTURE):
        assert (folder / name).is_file(), name
    recorded = read_provenance(folder)
    assert recorded is not None
    assert recorded.seeds["train.seed"] == 0
    assert {name.split("/")[0] for name in recorded.weights} == {"unet", "vae", "text_encoder"}
    assert not (folder / RESUME).exists()
    assert json.loads(capsys.readouterr().out)["run"] == str(folder)
    losses = [line for line in metrics(folder) if "loss" in line]
    assert [line["iteration"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert all(
        line["loss"]
        == pytest.approx(
            line["loss_conditional"] + line["loss_unconditional"] + line["consistency"], rel=1e-5
        )
        for line in losses
    )


def test_checkpoint_holds_the_decoder_alone(tmp_path: Path) -> None:
    folder = start(tiny_config(train__iterations=1), tmp_path)
    with safe_open(folder / LAST, framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"fusion", "pyramid", "head"}  # noqa: SIM118
    model = open_run(folder / LAST).load_model()
    assert not any("unet" in name or "vae" in name for name in model.decoder.state_dict())


@pytest.mark.slow
def test_resume_continues_to_the_last_digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    straight = start(config, tmp_path / "straight")
    folder = interrupted(config, tmp_path / "resumed", at=3, monkeypatch=monkeypatch)
    assert (folder / RESUME).is_file()
    assert not (folder / REPORT).exists()
    elsewhere = tiny_config(runtime__data_workers=1)  # another machine may continue it
    resumed = start(elsewhere, tmp_path / "resumed", resume=True)
    assert resumed == folder
    assert metrics(resumed) == metrics(straight)
    before, after = open_run(straight / LAST).load_model(), open_run(resumed / LAST).load_model()
    for name, tensor in before.decoder.state_dict().items():
        assert torch.equal(tensor, after.decoder.state_dict()[name]), name


@pytest.mark.slow
def test_workers_do_not_change_the_losses(tmp_path: Path) -> None:
    alone = start(tiny_config(train__iterations=3), tmp_path / "alone")
    helped = start(tiny_config(train__iterations=3, runtime__data_workers=2), tmp_path / "helped")
    assert metrics(alone) == metrics(helped)


def test_resume_refuses_other_settings_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tiny_config(), tmp_path, at=2, monkeypatch=monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"train\.seed was 0, and is 1 now[\s\S]*may only change train\.iter"
    ):
        start(tiny_config(train__seed=1), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"iteration 2 is reached, and train\.iterations is 1"):
        start(tiny_config(train__iterations=1), tmp_path, resume=True)


@pytest.mark.slow
def test_resume_with_more_iterations_and_another_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there on the schedule is that of the new settings, and the run tells what changed, also after a kill."""
    folder = interrupted(tiny_config(), tmp_path, at=3, monkeypatch=monkeypatch)
    longer = tiny_config(train__iterations=9, train__learning_rate=3e-3)
    assert start(longer, tmp_path, resume=True) == folder
    rates = [line["learning_rate"] for line in metrics(folder) if "loss" in line]
    assert len(rates) == 9
    assert rates[3] == pytest.approx(3e-3 * (1 - 3 / 9))
    assert json.loads((folder / REPORT).read_text())["training"]["changed_settings"] == [
        {"iteration": 3, "settings": {"train.iterations": [6, 9], "train.learning_rate": [1e-3, 3e-3]}}
    ]
    assert load_config(folder / CONFIG).train.iterations == 9


@pytest.mark.slow
def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    """A rate of nearly zero: the first validation stays the best; its last one is not repeated."""
    config = tiny_config(
        train__iterations=50, train__learning_rate=1e-30, train__validate_interval=2, train__patience=2
    )
    folder = start(config, tmp_path)
    scored = [line["iteration"] for line in metrics(folder) if "mean_iou" in line]
    best = json.loads((folder / REPORT).read_text())["training"]["best"]["iteration"]
    assert scored[-1] == best + 4
    assert scored == sorted(set(scored))
    assert not (folder / RESUME).exists()


def test_patience_needs_validations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.patience counts validations, and there are none"):
        start(tiny_config(train__patience=2, train__validate_interval=None), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_starts_from_another_with_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(tiny_config(train__iterations=2), tmp_path)
    before = open_run(first / LAST).load_model()
    classes = [before.config.classes[3], *before.config.classes[:3]]
    AcceleratorState._reset_state(reset_partial_state=True)
    model = build_model(tiny_config().model.model_copy(update={"classes": (*classes, "tram")}))
    fresh = model.decoder.head.classifier.weight.clone()
    initialise(model, "tiny", runs=tmp_path)
    rows, trained = model.decoder.head.classifier.weight, before.decoder.head.classifier.weight
    assert torch.equal(rows[:4], trained[[3, 0, 1, 2]])
    assert torch.equal(rows[4], fresh[4])
    ours, theirs = model.decoder.fusion.state_dict(), before.decoder.fusion.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "start from scratch: tram" in capsys.readouterr().err
    again = start(tiny_config(train__iterations=1, train__init_from=str(first)), tmp_path)
    assert metrics(again)[0]["loss"] < metrics(first)[0]["loss"]


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no unfinished run named tiny"):
        start(tiny_config(), tmp_path, resume=True)


def test_what_fails_at_the_start_leaves_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(BackboneError):
        start(tiny_config(model__backbone={"source": str(tmp_path / "absent")}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_is_not_installed(tmp_path: Path) -> None:
    if find_spec("mlflow") is not None:
        pytest.skip("mlflow is installed here")
    with pytest.raises(ConfigError, match=r"mlflow is not installed[\s\S]*pip install 'diffcli\[mlflow\]'"):
        start(tiny_config(train__trackers=["mlflow"]), tmp_path)


def test_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    config = tiny_config(train__learning_rate=1e30, train__warmup_iterations=0, train__checkpoint_interval=1)
    with pytest.raises(TrainingError, match=r"not finite at iteration [1-5], on miniworld_") as error:
        start(config, tmp_path)
    assert "last good checkpoint" in str(error.value)
    state = open_run(tmp_path / "tiny" / LAST).load_model().decoder.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_bad_sample_keeps_the_work_before_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            tmp_path / f"data/images/{index}.png"
        )
        Image.fromarray(rng.integers(0, 19, (64, 64), dtype=np.uint8)).save(
            tmp_path / f"data/labels/{index}.png"
        )
    damage_inside(tmp_path / "data/images/3.png")
    config = tiny_config(
        data__train={"domain": "folder", "root": str(tmp_path / "data")},
        data__on_error="stop",
        train__rare_class_sampling=None,
        train__batch_size=1,
        train__seed=next(seed for seed in range(20) if _first_draw_of_last_image(seed, tmp_path) == 2),
    )
    with pytest.raises(DataError, match=r"3\.png") as error:
        start(config, tmp_path / "runs")
    assert "iterations up to 2 are saved" in str(error.value)
    assert (tmp_path / "runs" / "tiny" / RESUME).is_file()


def damage_inside(path: Path) -> None:
    """Zeros in a PNG's data: header and end are whole, so that only decoding tells."""
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start - 16) + data[-16:])


def _first_draw_of_last_image(seed: int, tmp_path: Path) -> int:
    """The draw at which a seed first meets the damaged picture."""
    config = tiny_config(
        data__train={"domain": "folder", "root": str(tmp_path / "data")},
        train__rare_class_sampling=None,
        train__seed=seed,
    )
    source, _ = open_domains(config)
    samples = training_set(config, source, None)
    for draw in range(4):
        try:
            samples[draw]
        except DataError:
            return draw
    return -1


@pytest.mark.slow
@pytest.mark.parametrize("ipkl", [True, False])
def test_autocast_on_cpu(tmp_path: Path, ipkl: bool) -> None:
    """bf16 moves the losses a little, and only a little."""
    settings = {"train__iterations": 2, "train__loss": {"ipkl": ipkl}}
    folder = start(tiny_config(**settings, runtime__precision="bf16"), tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    full = start(tiny_config(**settings), tmp_path / "full")
    pairs = zip(metrics(folder)[:2], metrics(full)[:2], strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=0.05) and a["loss"] != b["loss"] for a, b in pairs)


@pytest.mark.slow
def test_evaluations_are_counted(tmp_path: Path) -> None:
    """Without IPKL a one-step sample costs one U-Net evaluation; accumulation multiplies samples."""
    config = tiny_config(train__iterations=2, train__gradient_accumulation=3, train__loss={"ipkl": False})
    folder = start(config, tmp_path)
    assert [line["unet_evaluations"] for line in metrics(folder) if "loss" in line] == [6, 6]


@pytest.mark.slow
@pytest.mark.parametrize("consistency", ["mse", "kl", "ce", "dice"])
def test_every_consistency_loss_trains(tmp_path: Path, consistency: str) -> None:
    config = tiny_config(
        train__iterations=1, train__loss={"consistency": consistency, "detach_teacher": True}
    )
    assert "consistency" in metrics(start(config, tmp_path))[0]
