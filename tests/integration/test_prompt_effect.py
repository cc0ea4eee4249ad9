"""examples/prompt_effect.py on a pipeline of random weights, and its area under the ROC curve on known cases."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY_SD = Path(__file__).parents[1] / "parity/data/tiny-sd"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import prompt_effect

    return prompt_effect


@pytest.mark.parametrize(
    ("score", "area"), [([3, 4, 1, 2], 1.0), ([1, 2, 3, 4], 0.0), ([1, 4, 2, 3], 0.5)], ids=str
)
def test_area_under_roc(script: Any, score: list[int], area: float) -> None:
    mask = torch.tensor([[True, True], [False, False]])
    assert script.area_under_roc(torch.tensor(score).float().reshape(2, 2), mask) == area


def test_the_area_of_a_class_that_fills_all_is_unknown(script: Any) -> None:
    assert math.isnan(script.area_under_roc(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)))


def test_as_json(script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--backbone", str(TINY_SD), "--images", "2", "--crop", "64", "--timesteps", "500", "--json"]
    monkeypatch.setattr("sys.argv", ["prompt_effect.py", *arguments])
    script.main()
    told = json.loads(capsys.readouterr().out)
    assert told["visited"] == [3, 7, 11, 14, 18, 22, 30, 52, 91]
    assert told["timesteps"] == [*told["visited"], 500]
    assert all(row["empty"] > 0 for row in told["states"].values())
    assert told["loss"]["500"].keys() == {"true", "empty", "wrong"}
    assert len(told["frequent"]) == 10
