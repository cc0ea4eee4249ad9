"""report.html: one file that opens without network: domains, classes, confusion, worst and median images, settings.

Every name in it comes from settings and file names; the template escapes them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcli.config.settings import ModelConfig
from diffcli.data.mapping import problem_lines
from diffcli.drawing.pages import css_color, data_url, render
from diffcli.drawing.pictures import class_palette, error_map
from diffcli.evaluation.domains import ClassMatch
from diffcli.evaluation.evaluator import DomainScores, Shown
from diffcli.evaluation.report import Report
from diffcli.evaluation.tables import overlap_lines
from diffcli.runtime.words import counted

IMAGE_WIDTH = 420
"""Images are stored at most this wide."""

Examples = Sequence[tuple[str, Shown]]
"""(what it is an example of, the sample)."""

_MEANS = ("mean_iou_present", "mean_iou_all", "pixel_accuracy")


def html_report(
    report: Report,
    scores: Sequence[DomainScores],
    *,
    model: ModelConfig,
    examples: Sequence[Examples],
) -> str:
    """The page.

    Args:
        report: what report.json holds.
        examples: samples to show of each domain.
    """
    about = report.as_json()
    palette = class_palette(model)
    heading = str(about.get("run", ""))
    known = ("checkpoint", "iteration", "backbone", "precision", "device", "time")
    matches = [
        f"{one['name']}: {ClassMatch.model_validate(one['class_match'])}"
        for one in about["domains"]
        if one["class_match"]
    ]
    return render(
        "report.html",
        title=f"{heading} – evaluation",
        heading=heading,
        facts=" · ".join(f"{key} {about[key]}" for key in known if key in about),
        warnings=[*matches, *overlap_lines(report), *_left_out(scores)],
        columns=[
            "mean IoU, classes present",
            f"mean IoU, all {len(about['classes'])} classes",
            "pixel accuracy",
        ],
        domains=[
            {
                "name": one["name"],
                "shares": [one[key] for key in _MEANS],
                "classes_present": one["classes_present"],
                "samples": one["samples"],
                "size": one["size"] or "image size",
                "seconds": one["seconds_per_image"],
                "evaluations": one["unet_evaluations_per_image"],
            }
            for one in about["domains"]
        ],
        means=[
            {"name": f"mean over {one['name']}", "shares": [one[key] for key in _MEANS]}
            for one in [*about["groups"], about["mean_over_domains"]]
        ],
        classes=[
            {
                "name": name,
                "color": css_color(palette[train_id]),
                "shares": [one["per_class"][name]["iou"] for one in about["domains"]],
            }
            for train_id, name in enumerate(about["classes"])
        ],
        details=[
            {
                "name": one.name,
                "examples": [_example(what, shown, model) for what, shown in chosen],
                "confusion": _confusion(one.counts.numpy(), model.classes),
            }
            for one, chosen in zip(scores, examples, strict=True)
        ],
        settings=[*about["eval"].items(), ("diffcli", about.get("diffcli", ""))],
    )


def _left_out(scores: Sequence[DomainScores]) -> Iterator[str]:
    for one in (one for one in scores if one.skipped):
        problems = "\n".join(problem_lines(one.problems))
        total = one.skipped + one.samples
        yield f"{one.name}: {one.skipped} of {counted(total, 'image')} left out of its scores.\n{problems}"


def _example(what: str, shown: Shown, model: ModelConfig) -> dict[str, Any]:
    palette = class_palette(model)
    panels = {
        "image": shown.image,
        "truth": palette[shown.truth],
        "prediction": palette[shown.prediction],
        "errors": error_map(shown.truth, shown.prediction),
    }
    return {
        "title": f"{what}: {shown.identity}",
        "score": "unlabelled" if math.isnan(shown.iou) else f"mean IoU {100 * shown.iou:.1f} %",
        "panels": [
            {
                "caption": caption,
                "source": data_url(pixels, width=IMAGE_WIDTH, photograph=caption == "image"),
            }
            for caption, pixels in panels.items()
        ],
    }


def _confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Shares of each true class, for the classes that occur."""
    occurring = [i for i in range(len(classes)) if counts[i].sum() or counts[:, i].sum()]
    rows = []
    for i in (i for i in occurring if counts[i].sum()):
        shares = counts[i] / counts[i].sum()
        cells = [
            _cell(float(shares[j]), right=i == j, title=f"{classes[i]} → {classes[j]}") for j in occurring
        ]
        rows.append({"name": classes[i], "cells": cells})
    return {"heads": [classes[i] for i in occurring], "rows": rows}


def _cell(share: float, *, right: bool, title: str) -> dict[str, str]:
    """A share of a true class as a shade: blue on the diagonal, red beside it."""
    hue = "40,100,210" if right else "205,45,45"
    return {
        "color": f"rgba({hue},{math.sqrt(share):.2f})" if share else "#f4f5f8",
        "ink": "#fff" if share > 0.3 else "inherit",
        "text": f"{100 * share:.0f}" if share >= 0.005 else "",
        "title": f"{title} {100 * share:.2f} %",
    }
