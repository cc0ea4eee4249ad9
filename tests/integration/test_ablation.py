"""The ablation's harness on real tiny trainings: what is run once, skipped, resumed, and told at the end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from diffcli.errors import ConfigError, DiffError
from diffcli.runs.folder import LAST, METRICS, REPORT, RESUME
from tests.fixtures.models import TINY_SD

ROOT = Path(__file__).parents[2]
ABLATION = ROOT / "examples" / "ablation"
TINY = [
    f"model.backbone.source={TINY_SD}",
    "model.inversion.schedule=one",
    "model.decoder.channels=[32, 64, 64, 64]",
    "model.decoder.head_channels=16",
    "data.train.count=6",
    "runtime.data_workers=0",
    "data.eval=[{domain: miniworld/clean, name: clean (source), count: 1}, {domain: miniworld/fog, count: 1}]",
    "augmentation.crop=64x64",
    "train.batch_size=2",
    "train.checkpoint_interval=1",
    "train.log_interval=1",
    "runtime.device=cpu",
    "eval.size=128x64",
]

Start = Callable[..., None]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ABLATION)
    import run

    return run


@pytest.fixture
def ran(harness: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows as they are run, in this process instead of one of their own."""
    rows: list[str] = []

    def here(job: Any) -> bool:
        AcceleratorState._reset_state(reset_partial_state=True)
        rows.append(job.row)
        harness.run_cell(job)
        return True

    monkeypatch.setattr(harness, "_in_own_process", here)
    return rows


@pytest.fixture
def start(harness: Any, ran: list[str], tmp_path: Path) -> Start:
    def start(*rows: str, budgets: str = "1", seeds: str = "0", changes: tuple[str, ...] = ()) -> None:
        lists = ["--rows", *rows, "--budgets", *budgets.split(), "--seeds", *seeds.split()]
        harness.main([*lists, "--output", str(tmp_path), "--set", *TINY, *changes])

    return start


@pytest.mark.slow
def test_rows_are_trained_once_and_told_together(start: Start, ran: list[str], tmp_path: Path) -> None:
    start("full", "no_ipkl", "schedule_one", "reference_truth", "scratch_wallclock", seeds="0 1")
    # schedule_one is what TINY makes of no_ipkl: one training serves both, as one does full and reference_truth
    assert ran == ["full", "no_ipkl", "reference_truth", "scratch_wallclock"] * 2
    told = json.loads((tmp_path / "results.json").read_text())["rows"]
    rows = {row["row"]: row for row in told}
    assert list(rows) == ["full", "no_ipkl", "scratch_wallclock", "schedule_one", "reference_truth"]
    assert rows["schedule_one"]["mean_iou"] == rows["no_ipkl"]["mean_iou"]
    assert list(rows["full"]["mean_iou"]) == ["clean (source)", "miniworld/fog", "mean unseen"]
    assert rows["full"]["unet_evaluations_per_image"] == 1
    assert rows["reference_truth"]["unet_evaluations_per_image"] > 1
    assert rows["scratch_wallclock"]["unet_evaluations_per_image"] == 0
    assert rows["scratch_wallclock"]["seconds_per_iteration"] > 0
    for row in told:
        unseen = row["mean_iou"]["mean unseen"]
        assert unseen["values"] == row["mean_iou"]["miniworld/fog"]["values"]
        assert len(unseen["values"]) == 2
        assert unseen["std"] >= 0
    for seed in (0, 1):  # the clock ends scratch_wallclock
        given, taken = (
            [json.loads(line).get("seconds", 0.0) for line in path.read_text().splitlines()]
            for path in (
                tmp_path / f"{row}-1it-seed{seed}" / METRICS for row in ("full", "scratch_wallclock")
            )
        )
        assert abs(sum(taken) - sum(given)) <= 2 * max(taken)
    assert "| full | " in (tmp_path / "results.md").read_text()
    with Image.open(tmp_path / "results.png") as plot:
        assert plot.width > 600


@pytest.mark.slow
def test_what_is_finished_is_skipped(start: Start, ran: list[str], tmp_path: Path) -> None:
    start("no_ipkl")
    report = (tmp_path / "no_ipkl-1it-seed0" / REPORT).stat()
    start("no_ipkl")
    assert ran == ["no_ipkl"]
    assert (tmp_path / "no_ipkl-1it-seed0" / REPORT).stat() == report
    with pytest.raises(ConfigError, match="other settings"):
        start("no_ipkl", changes=("train.learning_rate=0.5",))


@pytest.mark.slow
@pytest.mark.parametrize("row", ["no_ipkl", "scratch_iterations"])
def test_an_interrupted_training_goes_on(
    row: str, start: Start, ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first checkpoint, it ends as it would have without."""
    import scratch

    from diffcli.training import loop

    def folder() -> Path:
        return tmp_path / f"{row}-2it-seed0"

    def metrics() -> list[dict[str, Any]]:
        lines = map(json.loads, (folder() / METRICS).read_text().splitlines())
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    start(row, budgets="2")
    straight = metrics()
    folder().rename(tmp_path / "straight")
    steps = iter([None, KeyboardInterrupt])

    def interrupted(step: Any) -> Any:
        def act(*arguments: Any) -> Any:
            fault = next(steps, None)
            if fault is not None:
                raise fault
            return step(*arguments)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted(loop.training_step))
        patch.setattr(scratch.Training, "_step", interrupted(scratch.Training._step))
        with pytest.raises(KeyboardInterrupt):
            start(row, budgets="2")
    assert (folder() / RESUME).is_file()
    start(row, budgets="2")
    assert not (folder() / RESUME).exists()
    assert metrics() == straight
    if row == "no_ipkl":
        assert (folder() / LAST).read_bytes() == (tmp_path / "straight" / LAST).read_bytes()


def test_a_training_stopped_before_its_first_checkpoint_starts_over(
    start: Start, ran: list[str], tmp_path: Path
) -> None:
    leftover = tmp_path / "no_ipkl-1it-seed0"
    leftover.mkdir()
    (leftover / "config.yaml").write_text("half")
    start("no_ipkl")
    assert [path.name for path in tmp_path.glob("no_ipkl*")] == [leftover.name]
    assert (leftover / REPORT).is_file()


def test_a_row_that_fails_costs_only_those_that_need_it(
    harness: Any, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here = harness._in_own_process
    monkeypatch.setattr(harness, "_in_own_process", lambda job: job.row != "full" and run_here(job))
    with pytest.raises(DiffError, match="failed: full-1it-seed0, reference_truth-1it-seed0"):
        start("full", "reference_truth", "no_ipkl")
    assert [row["row"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]] == ["no_ipkl"]


@pytest.mark.slow
def test_rows_of_earlier_calls_stay_in_the_results(
    start: Start, ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[tuple[str, int, list[int]]]:
        rows = json.loads((tmp_path / "results.json").read_text())["rows"]
        return [(row["row"], row["budget"], row["seeds"]) for row in rows]

    start("latents_only")
    start("no_ipkl", budgets="1 2")
    assert told() == [("no_ipkl", 1, [0]), ("latents_only", 1, [0]), ("no_ipkl", 2, [0])]
    start("latents_only", seeds="0 1")
    assert told() == [("no_ipkl", 1, [0]), ("latents_only", 1, [0, 1]), ("no_ipkl", 2, [0])]


def test_an_unknown_row_is_named(start: Start, ran: list[str]) -> None:
    with pytest.raises(ConfigError, match="no row fusion_banana"):
        start("fusion_banana")
    assert ran == []


def test_every_row_differs_from_the_full_method_in_what_its_name_says(harness: Any) -> None:
    from cells import DECIDING, ROWS, SCRATCH, settings, title

    assert {f"{row}.yaml" for row in ROWS if row not in SCRATCH} | {"base.yaml"} == {
        path.name for path in ABLATION.glob("*.yaml")
    }
    assert set(DECIDING) <= set(ROWS)
    configs = {row: settings(row, 100, 0, ()) for row in ROWS if row not in SCRATCH}
    same = [row for row, config in configs.items() if config == configs["full"]]
    assert same == ["full"]
    assert configs["schedule_clean"] == configs["no_ipkl"]  # one training serves both
    for row, config in configs.items():
        assert title(row)
        assert config.train.validate_interval is None
        assert (config.data, config.augmentation) == (configs["full"].data, configs["full"].augmentation)
        assert config.data.eval[0].domain == config.data.train.domain
    assert configs["random_weights"].model.backbone.random_weights
    assert configs["latents_only"].model.decoder.features == "latent"


def test_the_control_has_about_as_many_parameters(harness: Any) -> None:
    from scratch import UNet, trained_parameters, width_for

    for wanted in (200_000, 1_000_000):
        network = UNet(width=width_for(wanted, classes=19), classes=19)
        assert wanted <= trained_parameters(network) < 1.3 * wanted
    assert network(torch.zeros(1, 3, 32, 48)).shape == (1, 19, 32, 48)


@pytest.mark.slow
def test_as_a_command(tmp_path: Path) -> None:
    """A process of its own a cell; the words on stderr, the table on stdout."""
    lists = ["--rows", "scratch_iterations", "--budgets", "1", "--seeds", "0"]
    done = subprocess.run(
        [sys.executable, ABLATION / "run.py", *lists, "--output", tmp_path, "--set", *TINY],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[1/1] scratch_iterations, 1 iterations, seed 0" in done.stderr
    assert "scratch_iterations  " in done.stdout


@pytest.mark.slow
def test_without_unseen_domains_only_the_plots_are_missing(start: Start, tmp_path: Path) -> None:
    """As in a search on the source alone."""
    source = "data.eval=[{domain: miniworld/clean, name: source, count: 1}]"
    start("no_ipkl", changes=(source,))
    [row] = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert list(row["mean_iou"]) == ["source"]
    assert (tmp_path / "results.md").is_file()
    assert not (tmp_path / "results.png").exists()
