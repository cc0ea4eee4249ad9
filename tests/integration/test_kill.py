"""Training that is killed 50 times and resumed ends with the very weights of one that is not.

The short form is in test_stopping.py.
"""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from diffcli.config.file import dump_config
from diffcli.runs.folder import LAST, METRICS, REPORT, RESUME
from tests.fixtures import processes
from tests.fixtures.training import metrics, start, tiny_config

pytestmark = pytest.mark.nightly

KILLS = 50


def train_until(moment: float, *, cwd: Path) -> bool:
    """`diff train`, killed so many seconds after it has gone on writing; whether it ended before that."""
    saved, before = cwd / "runs" / "tiny" / RESUME, lines(cwd)
    process = processes.diff("train", "tiny.yaml", *(["--resume"] if before else []), cwd=cwd)
    while process.poll() is None and (lines(cwd) <= before or not saved.exists()):
        time.sleep(0.02)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.returncode in (0, -signal.SIGKILL), process.communicate()[1]
    return process.returncode == 0


def lines(cwd: Path) -> int:
    """How many iterations have told their loss."""
    file = cwd / "runs" / "tiny" / METRICS
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


def test_killed_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments, so also while a checkpoint is written."""
    config = tiny_config(train__iterations=400, train__checkpoint_interval=2, train__batch_size=1)
    straight = start(config, tmp_path / "straight")
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(dump_config(config))
    moments = random.Random(0)
    killed = 0
    reached = []
    while not train_until(moments.uniform(0, 0.3) if killed < KILLS else 3600, cwd=folder):
        killed += 1
        reached.append(lines(folder))
        saved = folder / "runs" / "tiny"
        assert not (saved / REPORT).exists()
    print(f"{killed} kills, at iterations {reached}")
    assert killed == KILLS
    resumed = folder / "runs" / "tiny"
    assert (resumed / LAST).read_bytes() == (straight / LAST).read_bytes()
    assert metrics(resumed) == metrics(straight)
    ours, theirs = (json.loads((run / REPORT).read_text()) for run in (resumed, straight))
    assert ours["mean_over_domains"] == theirs["mean_over_domains"]
    assert not [path.name for path in resumed.rglob("*") if ".part-" in path.name]
