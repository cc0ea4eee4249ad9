"""What training looked like so far, for people: results.csv and curves.png beside metrics.jsonl."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli.drawing.curves import curves_picture
from diffcli.files import write_atomically, write_text
from diffcli.runs.folder import CURVES, METRICS, RESULTS


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was cut off by a kill is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def write_history(folder: Path) -> None:
    """Write results.csv and curves.png anew from metrics.jsonl."""
    records = read_metrics(folder / METRICS)
    write_text(folder / RESULTS, results_table(records))
    picture = curves_picture(records, title=folder.name)
    with write_atomically(folder / CURVES) as temporary:
        picture.save(temporary)


def results_table(records: Sequence[Mapping[str, Any]]) -> str:
    """CSV with one row for each iteration that has a line, one column for each number; IoU by class is left out."""
    rows: dict[int, dict[str, Any]] = {}
    columns = ["iteration"]
    for record in records:
        numbers = {key: value for key, value in record.items() if not isinstance(value, dict)}
        rows.setdefault(int(record["iteration"]), {}).update(numbers)
        columns += [key for key in numbers if key not in columns]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return text.getvalue()
