"""results.csv and curves.png say what metrics.jsonl says."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffcli.drawing.curves import curve, curves_picture
from diffcli.runs.folder import CURVES, METRICS, RESULTS
from diffcli.training.history import read_metrics, write_history
from diffcli.training.trackers import flat_numbers

RECORDS: list[dict[str, Any]] = [
    {"iteration": 10, "loss": 2.5, "consistency": 0.25, "learning_rate": 1e-5},
    {"iteration": 20, "loss": 1.5, "consistency": 0.125, "learning_rate": 6e-5},
    {
        "iteration": 20,
        "mean_iou": 0.25,
        "mean_iou/night": 0.2,
        "mean_iou/fog": 0.3,
        "class_iou": {"night": {"road": 0.5, "sky": None}},
    },
    {"iteration": 30, "loss": 1.25, "consistency": 0.0625, "learning_rate": 3e-5},
]


def write(folder: Path, records: list[dict[str, Any]], end: str = "") -> None:
    text = "".join(json.dumps(record) + "\n" for record in records) + end
    (folder / METRICS).write_text(text, encoding="utf-8")


def test_results_hold_every_number_of_every_iteration(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    write_history(tmp_path)
    with (tmp_path / RESULTS).open(newline="") as file:
        rows = {int(row["iteration"]): row for row in csv.DictReader(file)}
    assert [*rows] == [10, 20, 30]
    for record in RECORDS:
        for key, value in record.items():
            if not isinstance(value, dict):
                assert float(rows[record["iteration"]][key]) == value
    assert rows[10]["mean_iou"] == ""
    assert not [key for key in rows[10] if key.startswith("class_iou")]


def test_curves_draw_the_numbers_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    write_history(tmp_path)
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.size == (1500, 450)
    assert curve(RECORDS, "loss") == ([10, 20, 30], [2.5, 1.5, 1.25])
    assert curve(RECORDS, "mean_iou/fog") == ([20], [0.3])
    higher = [{**record, "loss": 9.0} if "loss" in record else record for record in RECORDS]
    first, second = (np.asarray(curves_picture(records, title="x")) for records in (RECORDS, higher))
    assert (first != second).any()


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, RECORDS, end='{"iteration": 40, "lo')
    assert read_metrics(tmp_path / METRICS) == RECORDS
    write_history(tmp_path)


def test_a_run_without_a_line_has_empty_panels(tmp_path: Path) -> None:
    write_history(tmp_path)
    assert (tmp_path / RESULTS).read_text() == "iteration\n"
    assert (tmp_path / CURVES).is_file()


def test_trackers_get_the_iou_of_every_class_under_its_own_name() -> None:
    assert flat_numbers(RECORDS[2]) == {
        "iteration": 20,
        "mean_iou": 0.25,
        "mean_iou/night": 0.2,
        "mean_iou/fog": 0.3,
        "class_iou/night/road": 0.5,
    }
