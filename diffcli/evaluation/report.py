"""How scores are told: tables in the terminal and in Markdown, report.json, a picture."""

import math
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffcli.classes import CLASS_SUBSETS
from diffcli.config.base import as_plain
from diffcli.config.settings import EvalConfig, ModelConfig
from diffcli.drawing.pictures import Row, side_by_side
from diffcli.evaluation.scoring import DomainScores
from diffcli.files import write_atomically
from diffcli.runtime import console


def report(scores: Sequence[DomainScores], *, model: ModelConfig, settings: EvalConfig) -> dict[str, Any]:
    """What report.json holds. Shares are 0..1, None where a class occurs neither in labels nor in predictions.

    mean_iou averages the classes that occur in labels or predictions (the official Cityscapes rule), mean_iou_all all
    classes of the model (one that never occurs counts 0), mean_iou_present those that occur in the labels.
    """
    domains = [_domain_report(one, model) for one in scores]
    *groups, overall = group_means(domains)
    return {
        "classes": list(model.classes),
        "eval": as_plain(settings),
        "domains": domains,
        "groups": groups,
        "mean_over_domains": overall,
    }


MEANS = ("mean_iou", "mean_iou_all", "mean_iou_present", "pixel_accuracy")


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """Names that share what is before a slash, by it (acdc: acdc/fog, acdc/night), where there are several."""
    heads = Counter(name.partition("/")[0] for name in names if "/" in name)
    return {
        head: [name for name in names if name.startswith(f"{head}/")]
        for head, count in heads.items()
        if count > 1
    }


def counted(names: Sequence[str]) -> list[str]:
    """The names that count in a mean over domains: one that is called like a family holds its images again."""
    known = families(names)
    return [name for name in names if name not in known]


def group_means(domains: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the domains of each family (acdc/fog, acdc/night), then over all domains.

    Args:
        domains: each with its `name` and MEANS.
    """
    names = [one["name"] for one in domains]
    groups = {f"{family}/*": members for family, members in families(names).items()}
    groups["all domains"] = counted(names)
    return [
        {
            "name": title,
            "domains": members,
            **{key: _mean([one[key] for one in domains if one["name"] in members]) for key in MEANS},
        }
        for title, members in groups.items()
    ]


def _domain_report(one: DomainScores, model: ModelConfig) -> dict[str, Any]:
    scores, labelled = one.scores, one.counts.sum(1).tolist()
    columns = {
        "iou": scores.iou,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "dice": scores.dice,
    }
    per_class = {
        name: {**{key: _share(column[i]) for key, column in columns.items()}, "pixels": labelled[i]}
        for i, name in enumerate(model.classes)
    }
    return {
        "name": one.name,
        "samples": one.samples,
        "skipped": one.skipped,
        "size": None if one.size is None else str(one.size),
        "problems": [str(problem) for problem in one.problems],
        "mean_iou": _share(scores.mean_iou),
        "mean_iou_all": _share(scores.mean_iou_all),
        "mean_iou_present": _share(scores.mean_iou_present),
        "classes_present": int(scores.present.sum()),
        "mean_iou_of": subset_means(one, model),
        "pixel_accuracy": _share(scores.pixel_accuracy),
        "mean_accuracy": _share(scores.mean_accuracy),
        "per_class": per_class,
        "confusion": one.counts.tolist(),
        "seconds_per_image": round(one.seconds_per_image, 4),
        "unet_evaluations_per_image": round(one.evaluations_per_image, 2),
    }


def subset_means(one: DomainScores, model: ModelConfig) -> dict[str, float | None]:
    """Mean IoU over the class subsets that this field reports, where the model knows all of their classes."""
    return {
        title: _share(float(one.scores.iou[[model.classes.index(name) for name in names]].nanmean()))
        for title, names in CLASS_SUBSETS.items()
        if set(names) <= set(model.classes)
    }


def _share(value: float | Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else round(number, 6)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return round(statistics.fmean(defined), 6) if defined else None


class Table(NamedTuple):
    """A table before it is printed or written: names left, percentages right."""

    title: str
    columns: list[str]
    rows: list[list[object]]
    footer: list[list[object]]


def summary_table(scores: Sequence[DomainScores], *, model: ModelConfig) -> Table:
    """IoU in percent of each class, a column a domain, and the means below."""
    prefix, names = _common_prefix([one.name for one in scores])

    def row(name: str, values: Sequence[float | Tensor]) -> list[object]:
        return [name, *(100 * float(value) for value in values)]

    rows = [row(name, [one.scores.iou[i] for one in scores]) for i, name in enumerate(model.classes)]
    footer = [
        row(f"mean, all {len(model.classes)}", [one.scores.mean_iou_all for one in scores]),
        row("mean, present", [one.scores.mean_iou_present for one in scores]),
        row("pixel accuracy", [one.scores.pixel_accuracy for one in scores]),
        ["images", *(one.samples for one in scores)],
    ]
    return Table(f"IoU in percent{f' on {prefix}' if prefix else ''}", ["class", *names], rows, footer)


def means_table(scores: Sequence[DomainScores], *, model: ModelConfig) -> Table:
    """The means over each group of domains and over all of them, in percent."""
    groups = group_means([_domain_report(one, model) for one in scores])
    everything = groups[-1]["domains"]
    groups = [one for one in groups[:-1] if one["domains"] != everything] + groups[-1:]
    heads = [f"mean, all {len(model.classes)}", "mean, present", "pixel accuracy"]
    rows: list[list[object]] = [
        [one["name"], *(one[key] and 100 * one[key] for key in MEANS[1:]), len(one["domains"])]
        for one in groups
    ]
    return Table("Mean over domains, in percent", ["mean over", *heads, "domains"], rows, [])


def print_table(scores: Sequence[DomainScores], *, model: ModelConfig) -> None:
    """Print the table of classes and domains on stdout; for several domains also their means."""
    print_blocks(summary_table(scores, model=model))
    if len(scores) > 1:
        console.print_text("")
        print_blocks(means_table(scores, model=model))


def print_blocks(table: Table) -> None:
    """Print a table on stdout, in blocks of columns that fit the terminal."""
    for i, block in enumerate(blocks(table, width=shutil.get_terminal_size().columns)):
        if i:
            console.print_text("")
        console.table(*block[:3], footer=block.footer)


def blocks(table: Table, *, width: int) -> list[Table]:
    """The table in blocks of columns, each after the first column, no wider than `width` where that is possible.

    The fewest blocks that do, and of about one width.
    """
    everything: list[Sequence[object]] = [table.columns, *table.rows, *table.footer]
    widths = [max(len(_text(row[i])) for row in everything) for i in range(len(table.columns))]
    fewest = _split(widths, width)
    narrower = (_split(widths, limit) for limit in range(widths[0], width))
    return [_columns(table, taken) for taken in next((s for s in narrower if len(s) == len(fewest)), fewest)]


def _split(widths: Sequence[int], limit: int) -> list[list[int]]:
    """Columns from the second on, in runs that fit into `limit` together with the first."""
    split: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if split[-1] and widths[0] + sum(widths[j] + 2 for j in [*split[-1], i]) > limit:
            split.append([])
        split[-1].append(i)
    return split


def _columns(table: Table, chosen: Sequence[int]) -> Table:
    """The first column and the chosen ones."""
    places = [0, *chosen]
    return Table(
        table.title,
        [table.columns[i] for i in places],
        [[row[i] for i in places] for row in table.rows],
        [[row[i] for i in places] for row in table.footer],
    )


def _text(value: object) -> str:
    """A cell as it is shown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _common_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """The family that all names share ("acdc" of acdc/fog and acdc/night), and the names without it."""
    families = {name.partition("/")[0] for name in names if "/" in name}
    if len(families) != 1 or len(names) < 2 or not all("/" in name for name in names):
        return "", list(names)
    return families.pop(), [name.partition("/")[2] for name in names]


def markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [f"**{table.title}**", "", _markdown_row(table.columns)]
    lines.append("|" + "|".join([" --- ", *([" ---: "] * (len(table.columns) - 1))]) + "|")
    lines += [_markdown_row(row) for row in [*table.rows, *table.footer]]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Sequence[object]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in row) + " |"


def write_picture(path: Path, scores: Sequence[DomainScores], *, model: ModelConfig) -> None:
    """Write image | truth | prediction as a PNG, a row a domain."""
    rows = [
        Row(one.name, one.shown.image, one.shown.truth, one.shown.prediction) for one in scores if one.shown
    ]
    with write_atomically(path) as temporary:
        side_by_side(rows, model=model).save(temporary)
