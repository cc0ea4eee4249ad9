"""Weights & Biases, MLflow and TensorBoard get numbers, pictures, settings and the report, where they are installed."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from diffcli.config.file import dump_config
from diffcli.errors import ConfigError
from diffcli.training.accelerator import build_accelerator
from diffcli.training.trackers import start_trackers
from tests.conftest import run_process
from tests.fixtures.training import tiny_config


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "tensorboard"])
def test_all_of_a_run_arrives(tracker: str, tmp_path: Path) -> None:
    """In a process of its own: trackers leave threads and settings behind. Nothing goes over a network."""
    pytest.importorskip(tracker)
    if tracker == "mlflow":
        pytest.importorskip("sqlalchemy")
    config = tiny_config(train__iterations=2, train__validate_interval=1, train__trackers=[tracker])
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    done = run_process("train", "tiny.yaml", cwd=tmp_path, env={"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    match tracker:
        case "wandb":
            [log] = [path.read_bytes() for name, path in files.items() if name.endswith(".wandb")]
            for word in (b"mean_iou/miniworld/night", b"class_iou/miniworld/night/road", b"learning_rate"):
                assert word in log
            assert b"train.learning_rate" in log
            media = [name for name in files if "/media/" in name]
            assert len([name for name in media if "/images/validation_" in name]) == 2
            assert len([name for name in media if "/html/report_" in name]) == 1
        case "mlflow":
            with sqlite3.connect(tmp_path / "mlflow.db") as database:
                keys = {key for (key,) in database.execute("select key from metrics")}
                params = dict(database.execute("select key, value from params"))
                assert database.execute("select name, status from runs").fetchall() == [("tiny", "FINISHED")]
            database.close()
            assert {"loss", "mean_iou/miniworld/night", "class_iou/miniworld/night/road"} <= keys
            assert params["train.learning_rate"] == "0.001"
            assert [name for name in files if name.endswith("report/report.html")]
            assert len([name for name in files if "/artifacts/validation/" in name]) == 2
        case "tensorboard":
            code = (
                "import sys\n"
                "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as Events\n"
                "tags = Events(sys.argv[1]).Reload().Tags()\n"
                "assert 'class_iou/miniworld/night/road' in tags['scalars'], tags\n"
                "assert {'validation', 'curves'} <= set(tags['images']), tags\n"
                "assert any('report' in tag for tag in tags['tensors']), tags\n"
            )
            subprocess.run([sys.executable, "-c", code, tmp_path / "runs" / "tiny"], check=True)


def test_a_tracker_that_cannot_start_is_an_error_of_ours(tmp_path: Path) -> None:
    """Here one whose settings accelerate does not know; they all fail in the same place."""
    config = tiny_config()
    accelerator = build_accelerator(config, runs=tmp_path)
    accelerator.log_with = [object()]  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="cannot be started"):
        start_trackers(accelerator, config, name="x")
