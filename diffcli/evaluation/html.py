"""report.html: one file that opens without network: domains, classes, confusion, worst and median images, settings.

Every name in it comes from settings and file names, and is escaped.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from diffcli.config.settings import ModelConfig
from diffcli.drawing.pictures import Pixels, class_palette, error_map
from diffcli.evaluation.domains import ClassMatch
from diffcli.evaluation.evaluator import DomainScores, Shown
from diffcli.evaluation.report import Report

IMAGE_WIDTH = 420
"""Images are stored at most this wide."""

Examples = Sequence[tuple[str, Shown]]
"""(what it is an example of, the sample)."""

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #667; --line: #dde1e8; --bar: #9dbcf0; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p, .soft { color: var(--soft); margin: .2rem 0 .6rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; } thead th { vertical-align: bottom; }
tfoot td { font-weight: 600; } .key { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
.confusion th, .confusion td { padding: 0; border: 1px solid #fff; font-size: 11px; text-align: center; }
.confusion td { width: 25px; height: 21px; }
.confusion th { font-weight: 400; }
.confusion tbody th { text-align: right; padding-right: .4rem; white-space: nowrap; }
.confusion thead th { writing-mode: vertical-rl; transform: rotate(180deg); padding: .4rem 0; text-align: left; }
.shots { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px; margin-bottom: 1rem; }
.shots img { width: 100%; display: block; } .shots figure { margin: 0; }
figcaption { font-size: 12px; color: var(--soft); }
.warning { background: #fff4e0; border-left: 4px solid #e0a030; padding: .5rem .8rem; white-space: pre-wrap; }
"""


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
    body = "\n".join(
        [
            *_head(about, scores),
            *_domains(about),
            *_classes(about, model),
            *(line for one, own in zip(scores, examples, strict=True) for line in _domain(one, model, own)),
            *_settings(about),
        ]
    )
    title = f"{escape(str(about.get('run', '')))} – evaluation"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(about: Mapping[str, Any], scores: Sequence[DomainScores]) -> Iterator[str]:
    facts = [
        f"{key} {about[key]}"
        for key in ("checkpoint", "iteration", "backbone", "precision", "device", "time")
        if key in about
    ]
    yield f"<h1>{escape(str(about.get('run', '')))}</h1><p>{escape(' · '.join(facts))}</p>"
    for entry in (entry for entry in about["domains"] if entry["class_match"]):
        match = ClassMatch.model_validate(entry["class_match"])
        yield f'<div class="warning">{escape(entry["name"])}: {escape(str(match))}</div>'
    for one in (one for one in scores if one.skipped):
        problems = "\n".join(str(problem).splitlines()[0] for problem in one.problems)
        yield (
            f'<div class="warning">{escape(one.name)}: {one.skipped} of {one.skipped + one.samples} images '
            f"are not in its scores.\n{escape(problems)}</div>"
        )


def _domains(about: Mapping[str, Any]) -> Iterator[str]:
    """Means of each domain as bars."""
    count = len(about["classes"])
    columns = {
        "mean_iou_present": "mean IoU, classes present",
        "mean_iou_all": f"mean IoU, all {count} classes",
        "pixel_accuracy": "pixel accuracy",
    }
    rows = [
        [
            escape(one["name"]),
            *(_bar(one[key]) for key in columns),
            f"<td>{one['classes_present']}</td><td>{one['samples']}</td><td>{one['size'] or 'each its own'}</td>"
            f"<td>{one['seconds_per_image']:.2f}</td><td>{one['unet_evaluations_per_image']:.1f}</td>",
        ]
        for one in about["domains"]
    ]
    heads = [
        "domain",
        *columns.values(),
        "classes present",
        "images",
        "seen at",
        "s/image",
        "U-Net evaluations/image",
    ]
    footers = [
        [f"mean over {escape(one['name'])}", *(_bar(one[key]) for key in columns), "<td></td>" * 5]
        for one in [*about["groups"], about["mean_over_domains"]]
    ]
    yield "<h2>Domains</h2><p>In percent.</p>"
    yield _table(heads, rows, footers=footers)


def _classes(about: Mapping[str, Any], model: ModelConfig) -> Iterator[str]:
    """IoU of every class, a column a domain."""
    palette = class_palette(model)
    rows = []
    for train_id, name in enumerate(about["classes"]):
        color = "#{:02x}{:02x}{:02x}".format(*palette[train_id].tolist())
        key = f'<span class="key" style="background:{color}"></span>{escape(name)}'
        rows.append([key, *(_bar(one["per_class"][name]["iou"]) for one in about["domains"])])
    yield "<h2>IoU of every class</h2><p>In percent; – where a class occurs neither in labels nor in predictions.</p>"
    yield _table(["class", *(one["name"] for one in about["domains"])], rows)


def _domain(one: DomainScores, model: ModelConfig, examples: Examples) -> Iterator[str]:
    """Examples and confusion matrix of one domain."""
    yield f"<h2>{escape(one.name)}</h2>"
    palette = class_palette(model)
    for what, shown in examples:
        score = "unlabelled" if math.isnan(shown.iou) else f"{100 * shown.iou:.1f} %"
        yield f"<h3>{escape(what)}: {escape(shown.identity)} <span class=soft>mean IoU {score}</span></h3>"
        panels = {
            "image": shown.image,
            "truth": palette[shown.truth],
            "prediction": palette[shown.prediction],
            "errors": error_map(shown.truth, shown.prediction),
        }
        figures = (_figure(pixels, caption) for caption, pixels in panels.items())
        yield f'<div class="shots">{"".join(figures)}</div>'
    yield "<h3>Confusion</h3><p>Rows: the true class, columns: what was predicted, in percent of the row.</p>"
    yield _confusion(one.counts.numpy(), model.classes)


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    occurring = [i for i in range(len(classes)) if counts[i].sum() or counts[:, i].sum()]
    head = "".join(f"<th>{escape(classes[i])}</th>" for i in occurring)
    rows = []
    for i in (i for i in occurring if counts[i].sum()):
        shares = counts[i] / counts[i].sum()
        cells = "".join(
            _cell(shares[j], right=i == j, title=f"{classes[i]} → {classes[j]}") for j in occurring
        )
        rows.append(f"<tr><th>{escape(classes[i])}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(share: float, *, right: bool, title: str) -> str:
    """A share of a true class as a shade: blue on the diagonal, red beside it."""
    color = f"rgba({'40,100,210' if right else '205,45,45'},{math.sqrt(share):.2f})" if share else "#f4f5f8"
    ink = "#fff" if share > 0.3 else "inherit"
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    return (
        f'<td style="background:{color};color:{ink}" title="{escape(title)} {100 * share:.2f} %">{text}</td>'
    )


def _settings(about: Mapping[str, Any]) -> Iterator[str]:
    rows = [[escape(key), f"<td>{escape(str(value))}</td>"] for key, value in about["eval"].items()]
    yield "<h2>Settings</h2>"
    yield _table(["eval", "value"], [*rows, ["diffcli", f"<td>{escape(about.get('diffcli', ''))}</td>"]])


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, footers: Sequence[Sequence[str]] = ()
) -> str:
    """A table whose rows are an escaped first cell and further cells in HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body, foot = (
        "".join(f"<tr><td>{row[0]}</td>{''.join(row[1:])}</tr>" for row in part) for part in (rows, footers)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table>"
    return f'<div class="scroll">{table}</div>'


def _bar(share: float | None) -> str:
    """A table cell with a share in percent and a bar behind it."""
    if share is None:
        return "<td>–</td>"
    edge = f"{100 * share:.1f}%"
    shade = f"linear-gradient(to right,var(--bar) {edge},transparent {edge})"
    return f'<td style="background:{shade}">{100 * share:.2f}</td>'


def _figure(pixels: Pixels, caption: str) -> str:
    """A photograph as JPEG, anything drawn as PNG, inside the page."""
    image = Image.fromarray(pixels)
    photo = caption == "image"
    if image.width > IMAGE_WIDTH:
        size = (IMAGE_WIDTH, max(1, round(image.height * IMAGE_WIDTH / image.width)))
        image = image.resize(size, Image.Resampling.BOX if photo else Image.Resampling.NEAREST)
    data = io.BytesIO()
    if photo:
        image.save(data, "JPEG", quality=85)
    else:
        image.quantize(256).save(data, "PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    text = base64.b64encode(data.getvalue()).decode("ascii")
    source = f"data:image/{kind};base64,{text}"
    return f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
