"""What `diff check` says of time, memory and disk: an estimate, or a measurement."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from diffcli.commands.check import _duration, _size, _times
from diffcli.config.file import dump_config
from diffcli.runs.folder import LAST, RESUME
from tests.fixtures.training import start, tiny_config

CLI = Callable[..., CompletedProcess[str]]


def needs(cli: CLI, folder: Path, *arguments: object) -> dict[str, Any]:
    (folder / "tiny.yaml").write_text(dump_config(tiny_config()))
    done = cli("check", "tiny.yaml", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["needs"]
    return found


def test_an_estimate_is_called_one(cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcli.training.needs.matmul_rate", lambda: 1e10)  # other work makes it vary
    found = needs(cli, tmp_path)
    assert found["measured"] is False
    least, most = found["seconds_per_iteration"]
    assert 0 < least < most  # prompts cost
    assert needs(cli, tmp_path, "--set", "train.loss.ipkl=false")["seconds_per_iteration"][0] < least
    assert found["cache"] == 6 * 20 * 8
    done = cli("check", "tiny.yaml")
    assert "estimated from FLOPs" in done.stdout
    assert "--measure" in done.stdout


@pytest.mark.slow
def test_a_measurement_runs_iterations_and_keeps_nothing(cli: CLI, tmp_path: Path) -> None:
    found = needs(cli, tmp_path, "--measure")
    assert found["measured"] is True
    assert found["device"] == "cpu"
    assert found["seconds_per_iteration"][0] == found["seconds_per_iteration"][1] > 0
    assert found["seconds_per_image"][0] > 0
    assert found["memory"] > 100 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    run = start(tiny_config(train__iterations=1), tmp_path / "runs")
    kept = sum(path.stat().st_size for path in (run / LAST).parent.iterdir())
    assert not (run / RESUME).exists()
    assert found["disk_kept"] == pytest.approx(kept, rel=0.1)


def test_units_are_those_that_people_use() -> None:
    assert [_duration(seconds) for seconds in (0.0213, 61, 95, 7000, 400_000)] == [
        "0.021 s",
        "61 s",
        "1.6 min",
        "1.9 h",
        "4.6 days",
    ]
    assert _times((61, 61)) == "61 s"
    assert _times((120, 240)) == "2 to 4 min"
    assert _times((30, 240)) == "30 s to 4 min"
    assert [_size(count) for count in (0, 1, 2_000, 3_400_000, 5e9)] == [
        "0 kB",
        "1 kB",
        "2 kB",
        "3.4 MB",
        "5 GB",
    ]
