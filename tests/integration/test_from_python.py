"""examples/from_python.py runs from its first cell to its last, offline."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest


@pytest.mark.slow
def test_the_example_runs(script: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    done = script("from_python.py")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "from_python"
    assert len([*(run / "predictions").glob("*_overlay.jpg")]) == 4
    assert len([*(run / "eval").glob("*/report.json")]) == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("<TrainedModel of runs/from_python (last, iteration 60)") for line in lines)
    assert any(line.startswith("<Segmentation of ") for line in lines)
    assert lines[-1] == "  -> did you mean train.iterations?"
