"""`diffcli.train` and `diffcli.evaluate`: the commands as functions, with their results and their errors."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import diffcli
from diffcli.config.base import as_plain
from diffcli.evaluation.report import Report
from tests.fixtures.training import tiny_config


@pytest.mark.slow
def test_a_run_is_trained_and_scored(tmp_path: Path) -> None:
    """In a thread, as a server would, where no signal handler can be set; from settings as a mapping."""
    settings = as_plain(tiny_config(train__iterations=2))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            diffcli.train, settings, overrides=["train.iterations=1"], name="mine", runs=tmp_path
        )
        run = future.result()
    assert run == tmp_path / "mine"
    assert json.loads((run / "report.json").read_text())["training"]["iterations"] == 1
    report = diffcli.evaluate(
        run, domains=["miniworld/fog"], limit=1, output=tmp_path / "scores", device="cpu"
    )
    assert report == Report.model_validate_json((tmp_path / "scores" / "report.json").read_text())
    assert [(domain.name, domain.samples) for domain in report.domains] == [("miniworld/fog", 1)]


def test_mistakes_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(diffcli.DiffError, match=r"no setting train\.iteration\n.*train\.iterations"):
        diffcli.train({"train": {"iteration": 5}}, runs=tmp_path)
    with pytest.raises(diffcli.DiffError, match=r"missing\.yaml"):
        diffcli.train(tmp_path / "missing.yaml")
    with pytest.raises(diffcli.DiffError, match="there is no run nothing"):
        diffcli.evaluate("nothing")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.safetensors").touch()
    with pytest.raises(diffcli.DiffError, match="no best checkpoint"):
        diffcli.evaluate(tmp_path / "run", checkpoint="best")
    assert not (tmp_path / "run" / "eval").exists()
