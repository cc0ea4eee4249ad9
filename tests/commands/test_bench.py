"""diff bench: real measurements of tiny networks in processes of their own; numbers are counted, never timed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diffcli.bench.cases import Case, build_backbone, in_this_process, measure_here
from diffcli.bench.plan import default_config, list_cases
from diffcli.cli.main import app
from diffcli.commands import bench
from diffcli.config.file import override
from diffcli.config.settings import ModelConfig
from diffcli.errors import ConfigError
from tests.fixtures import processes

TINY = ("--random-weights", "tiny", "--device", "cpu", "--size", "128x128", "--repeats", "1")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`diff bench ...` as a process that forks those of its rows itself."""
    running = processes.diff("bench", *arguments, cwd=cwd)
    out, words = running.communicate(timeout=300)
    return subprocess.CompletedProcess([*arguments], running.wait(), out, words)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Both kinds of work on the one-step schedule."""
    folder = tmp_path_factory.mktemp("bench")
    done = run(*TINY, "--schedules", "one", "--batch-sizes", "2", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["device"] == "cpu"
    return list(found["rows"])


@pytest.mark.slow
def test_every_row_says_what_was_done(rows: list[dict[str, Any]]) -> None:
    facts = [(row["work"], row["code"], row["batch"], row["unet_evaluations"]) for row in rows]
    assert facts == [
        ("inference", "baseline", 2, 2 * 2),
        ("inference", "diffcli", 2, 2),
        ("training", "baseline", 2, 2 * (2 + 2 + 2)),  # two prompted classes: four rows, and two without
        ("training", "diffcli", 2, 2 * (2 + 1 + 1)),
    ]
    for row in rows:
        assert row["flop"] > 0
        assert row["matmul_flop_per_second"] > 0
        assert row["peak_bytes"] > 2**20
        assert len(row["seconds"]) == 1


@pytest.mark.slow
def test_the_baseline_does_more_and_is_what_others_are_compared_with(rows: list[dict[str, Any]]) -> None:
    for work in ("inference", "training"):
        baseline, ours = (row for row in rows if row["work"] == work)
        assert baseline["speedup"] == 1
        assert baseline["flop"] > ours["flop"]
        assert ours["speedup"] == pytest.approx(baseline["median_seconds"] / ours["median_seconds"])


def test_flops_are_those_of_the_layers() -> None:
    """Twice the images, twice the FLOPs; attention is counted on a CPU too."""
    settings = ModelConfig.model_validate({"decoder": {"channels": [32, 64, 64, 64], "head_channels": 16}})
    case = Case(
        work="inference",
        code="diffcli",
        schedule="one",
        precision="float32",
        backbone_precision="float32",
        batch=1,
        width=64,
        height=64,
        device="cpu",
        repeats=1,
        model={**settings.model_dump(mode="json"), "inversion": {"schedule": "one"}},
        random_weights="tiny",
    )
    one, two = (
        measure_here(Case(**{**vars(case), "batch": batch}), build_backbone(case)) for batch in (1, 2)
    )
    assert two.flop == 2 * one.flop
    assert two.unet_evaluations == 2 * one.unet_evaluations == 2


@pytest.mark.slow
def test_tables_fit_80_columns(tmp_path: Path) -> None:
    done = run(*TINY, "--schedules", "one", "--work", "inference", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "times faster" in done.stdout
    assert "% of matmul" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--schedules", "many"),
        ("--batch-sizes", "0"),
        ("--size", "large"),
        ("--work", "sleep"),
        ("--random-weights", "sd9"),
        ("--precisions", "int4"),
    ],
)
def test_what_does_not_exist_is_said(option: str, value: str) -> None:
    result = CliRunner().invoke(app, ["bench", "--device", "cpu", option, value])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize("compiled", [False, True])
def test_compiling_adds_a_row_behind_the_plain_ones(compiled: bool) -> None:
    plan = bench.parse_plan(bench.Request(schedules="one", size="64x64", repeats=1))
    settings = override(default_config("tiny"), [f"runtime.compile={str(compiled).lower()}"])
    cases = list_cases(settings, plan, random_weights="tiny", place=torch.device("cpu"))
    codes = ["baseline", "diffcli", *(["compiled"] if compiled else [])]
    assert [case.code for case in cases] == codes * 2


def test_a_gpu_has_a_row_without_cuda_graphs_and_a_backbone_in_fp16() -> None:
    """What is listed for a GPU, without one: nothing is measured."""
    plan = bench.parse_plan(bench.Request(work="inference", schedules="one", precisions="fp16"))
    settings = override(default_config("tiny"), ["runtime.compile=true"])
    cases = list_cases(settings, plan, random_weights="tiny", place=torch.device("cuda"))
    assert [case.code for case in cases] == ["baseline", "eager", "diffcli", "compiled"]
    assert {case.backbone_precision for case in cases} == {"fp16"}


@pytest.mark.slow
def test_rows_that_share_a_process_count_the_same(rows: list[dict[str, Any]]) -> None:
    """As on a GPU: one backbone serves the baseline's layout and ours in turn."""
    request = bench.Request(schedules="one", size="64x64", repeats=1, batch_sizes="2")
    cases = list_cases(
        default_config("tiny"), bench.parse_plan(request), random_weights="tiny", place=torch.device("cpu")
    )
    found = list(in_this_process(cases))
    assert all(not isinstance(one, str) for one in found), found
    assert [one.unet_evaluations for one in found if not isinstance(one, str)] == [
        row["unet_evaluations"] for row in rows
    ]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_rows_on_a_gpu_are_measured_in_one_process(tmp_path: Path) -> None:
    gpu = ("--random-weights", "tiny", "--device", "cuda", "--size", "128x128", "--repeats", "1")
    done = run(*gpu, "--schedules", "one", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["code"] for row in rows] == ["baseline", "eager", "diffcli"] * 2
    assert all(0 < row["gpu_busy"] <= 1.5 for row in rows)


def test_own_is_the_schedule_of_the_settings() -> None:
    def cases(schedules: str, *changes: str) -> list[tuple[str, Any]]:
        plan = bench.parse_plan(bench.Request(work="inference", schedules=schedules))
        settings = override(default_config("tiny"), changes)
        found = list_cases(settings, plan, random_weights="tiny", place=torch.device("cpu"))
        return [(one.schedule, one.model["inversion"]["schedule"]) for one in found if one.code == "diffcli"]

    assert cases("own,paper", "model.inversion.schedule=clean") == [("clean", "clean"), ("paper", "paper")]
    assert cases("own,clean", "model.inversion.schedule=clean") == [("clean", "clean")]
    two = "model.inversion.schedule={timesteps: [100, 101], save_steps: [1, 0]}"
    (name, schedule), (other, _) = cases("own,one", two)
    assert (name, other) == ("own", "one")
    assert schedule["timesteps"] == [100, 101]


def test_help_shows_examples() -> None:
    result = CliRunner().invoke(app, ["bench", "--help"])
    assert "diff bench --random-weights sd21" in result.output


@pytest.mark.slow
def test_the_shortcuts_are_timed_one_by_one(script: Callable[..., Any]) -> None:
    options = ["--size", "64x64", "--repeats", "1", "--seconds", "0", "--schedule", "one"]
    done = script("benchmark_shortcuts.py", *options)
    assert done.returncode == 0, done.stderr
    ratios = [float(line.split()[-1]) for line in done.stdout.splitlines() if " ms" in line]
    assert len(ratios) == 9
    assert all(ratio > 0 for ratio in ratios)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_says_that_there_is_no_gpu(script: Callable[..., Any]) -> None:
    done = script("benchmark_gpu.py")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_gpu_script_runs_at_toy_size(script: Callable[..., Any]) -> None:
    done = script("benchmark_gpu.py", "--try", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("target: ") == 6
    assert max(map(len, done.stdout.splitlines())) <= 80
