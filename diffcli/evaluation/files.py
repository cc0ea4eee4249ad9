"""The files of a report: report.html, .json, .csv and .md, and picture.png."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffcli.config.settings import ModelConfig
from diffcli.data.dataset import Domain
from diffcli.evaluation.evaluator import DomainScores, Shown, evaluate_sample
from diffcli.evaluation.html import Examples, html_report
from diffcli.evaluation.report import Report, write_picture
from diffcli.evaluation.tables import csv_report, markdown_report
from diffcli.files import write_text
from diffcli.prediction.segmenter import Segmenter
from diffcli.runs.folder import PICTURE, REPORT, REPORT_PAGE, REPORT_TABLE, REPORT_TEXT

WORST = 2
"""Images with the lowest score that the page shows of each domain."""


def write_reports(
    folder: Path,
    report: Report,
    scores: Sequence[DomainScores],
    *,
    model: ModelConfig,
    examples: Sequence[Examples],
) -> None:
    """Write all of them; `diff eval` and the end of `diff train` do."""
    write_text(folder / REPORT, json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    write_text(folder / REPORT_TABLE, csv_report(report))
    write_text(folder / REPORT_TEXT, markdown_report(report))
    write_text(folder / REPORT_PAGE, html_report(report, scores, model=model, examples=examples))
    if scores:
        write_picture(folder / PICTURE, scores, model=model)


def choose_examples(segmenter: Segmenter, domain: Domain, scores: DomainScores) -> list[tuple[str, Shown]]:
    """The worst images and the median one, segmented again (their masks come out the same)."""
    order = [int(i) for i in np.argsort(scores.image_iou) if not np.isnan(scores.image_iou[i])]
    if not order:
        return []
    chosen = dict.fromkeys(order[:WORST], "worst")
    if len(order) > 1:
        chosen[order[len(order) // 2]] = "median"
    return [(what, evaluate_sample(segmenter, domain, i)) for i, what in chosen.items()]
