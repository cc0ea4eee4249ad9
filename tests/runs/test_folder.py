"""Run folders: a fresh one each time, and the right one found."""

import os
from pathlib import Path

import pytest

from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.runs.folder import CONFIG, LAST, REPORT, create_run, find_run, versions


def make(runs: Path, name: str, *, finished_at: int | None) -> Path:
    folder = create_run(name, runs=runs)
    (folder / CONFIG).touch()
    (folder / LAST).parent.mkdir()
    (folder / LAST).touch()
    if finished_at is not None:
        (folder / REPORT).touch()
        os.utime(folder / REPORT, (finished_at, finished_at))
    return folder


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    names = [create_run("night", runs=tmp_path / "runs").name for _ in range(3)]
    assert names == ["night", "night-2", "night-3"]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-rf", "a\nb", " x"])
def test_a_name_that_is_no_folder_s_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a run folder"):
        create_run(name, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["quickstart", "2024-01-01", "gta5 to unseen", "été", "a.b"])
def test_a_sensible_name_is_taken(tmp_path: Path, name: str) -> None:
    assert create_run(name, runs=tmp_path).name == name


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(DiffError):
        create_run("x", runs=tmp_path / "runs")


def test_the_newest_finished_run_is_meant(tmp_path: Path) -> None:
    make(tmp_path, "old", finished_at=100)
    newest = make(tmp_path, "new", finished_at=300)
    make(tmp_path, "middle", finished_at=200)
    make(tmp_path, "unfinished", finished_at=None)
    assert find_run(None, runs=tmp_path) == newest


def test_without_any_run_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"diff train examples/quickstart\.yaml"):
        find_run(None, runs=tmp_path / "runs")
    make(tmp_path / "runs", "half", finished_at=None)
    with pytest.raises(CheckpointError, match="--run half"):
        find_run(None, runs=tmp_path / "runs")


def test_a_run_is_a_path_a_name_or_an_export(tmp_path: Path) -> None:
    folder = make(tmp_path / "runs", "one", finished_at=1)
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").touch()
    for name, meant in {
        "one": folder,
        str(folder): folder,
        str(export): export,
        str(folder / LAST): folder / LAST,
    }.items():
        assert find_run(name, runs=tmp_path / "runs") == meant


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, "quickstart", finished_at=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="did you mean quickstart"):
        find_run("quickstrat", runs=tmp_path)
    with pytest.raises(CheckpointError, match="runs there: quickstart"):
        find_run("zzz", runs=tmp_path)
    with pytest.raises(CheckpointError, match="no trained weights"):
        find_run("empty", runs=tmp_path)


def test_versions_name_what_results_depend_on() -> None:
    assert {"diffcli", "python", "torch", "diffusers", "platform"} <= versions().keys()
