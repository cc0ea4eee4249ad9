"""A report as tables: for the terminal, Markdown and CSV. Percentages are rounded here, and nowhere before."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffcli.evaluation.report import DomainReport, GroupReport, Report, Share, group_means


class Table(NamedTuple):
    """A table before it is printed or written: names left, numbers right; floats are shown with two decimals."""

    title: str
    columns: list[str]
    rows: list[list[object]]
    footer: list[list[object]]


def summary_table(report: Report) -> Table:
    """IoU in percent of each class, a column a domain, and the means below."""
    domains = report.domains
    prefix, names = _common_prefix([one.name for one in domains])

    def row(name: str, shares: Sequence[Share]) -> list[object]:
        return [name, *map(percent, shares)]

    rows = [row(name, [one.per_class[name].iou for one in domains]) for name in report.classes]
    footer = [
        row(f"mean, all {len(report.classes)}", [one.mean_iou_all for one in domains]),
        row("mean, present", [one.mean_iou_present for one in domains]),
        row("pixel accuracy", [one.pixel_accuracy for one in domains]),
        ["images", *(one.samples for one in domains)],
    ]
    return Table(f"IoU in percent{f' on {prefix}' if prefix else ''}", ["class", *names], rows, footer)


def means_table(report: Report) -> Table:
    """The means over each group of domains and over all of them, in percent."""
    overall = report.mean_over_domains
    groups = [one for one in report.groups if one.domains != overall.domains] + [overall]
    heads = [f"mean, all {len(report.classes)}", "mean, present", "pixel accuracy"]
    rows: list[list[object]] = [
        [
            one.name,
            *map(percent, (one.mean_iou_all, one.mean_iou_present, one.pixel_accuracy)),
            len(one.domains),
        ]
        for one in groups
    ]
    return Table("Mean over domains, in percent", ["mean over", *heads, "domains"], rows, [])


def comparison(reports: Mapping[str, Report]) -> Table:
    """Mean IoU over the classes present, in percent: a row a domain, a column a run (name -> report)."""
    means = [{one.name: one.mean_iou_present for one in report.domains} for report in reports.values()]
    names = list(dict.fromkeys(name for column in means for name in column))
    rows: list[list[object]] = [[name, *(percent(column.get(name)) for column in means)] for name in names]
    everywhere = [name for name in names if all(name in column for column in means)]
    groups = [
        group_means([one for one in report.domains if one.name in everywhere]) for report in reports.values()
    ]
    footer: list[list[object]] = [
        [f"mean over {same[0].name}", *(percent(one.mean_iou_present) for one in same)]
        for same in zip(*groups, strict=True)
    ]
    return Table("mean IoU in percent (classes present)", ["domain", *reports], rows, footer)


def percent(share: Share) -> Share:
    """A share as a percentage; not rounded, which only the last step to text does."""
    return None if share is None else 100 * share


# ------------------------------------------------------------------------------------------- to the terminal


def blocks(table: Table, *, width: int) -> list[Table]:
    """The table in blocks of columns, each after the first column, no wider than `width` where that is possible.

    The fewest blocks that do, and of about one width.
    """
    everything: list[Sequence[object]] = [table.columns, *table.rows, *table.footer]
    widths = [max(len(cell_text(row[i])) for row in everything) for i in range(len(table.columns))]
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


def cell_text(value: object) -> str:
    """A cell as it is shown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _common_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """The group that all names belong to ("acdc" of acdc/fog and acdc/night), and the names without it."""
    heads = {name.partition("/")[0] for name in names}
    if len(heads) != 1 or len(names) < 2 or not all("/" in name for name in names):
        return "", list(names)
    return heads.pop(), [name.partition("/")[2] for name in names]


# ------------------------------------------------------------------------------------------------- to files


def markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [f"**{table.title}**", "", _markdown_row(table.columns)]
    lines.append("|" + "|".join([" --- ", *([" ---: "] * (len(table.columns) - 1))]) + "|")
    lines += [_markdown_row(row) for row in [*table.rows, *table.footer]]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Sequence[object]) -> str:
    return "| " + " | ".join(cell_text(cell).replace("|", "\\|") for cell in row) + " |"


def markdown_report(report: Report) -> str:
    """report.md: the tables, then what was evaluated and how."""
    about = report.as_json()
    keys = ("run", "checkpoint", "iteration", "backbone", "precision", "diffcli", "time")
    settings = [
        f"- {key}: {value}" for key, value in {**{key: about.get(key) for key in keys}, **report.eval}.items()
    ]
    tables = [summary_table(report), *([means_table(report)] if len(report.domains) > 1 else [])]
    return "\n".join([*map(markdown, tables), *class_lines(report), *overlap_lines(report), *settings, ""])


def class_lines(report: Report) -> list[str]:
    """A sentence for each domain whose classes are not the run's."""
    return [f"{one.name}: {one.class_match}" for one in report.domains if one.class_match is not None]


def overlap_lines(report: Report) -> list[str]:
    """A sentence for each domain that has images in common with the training set."""
    return [
        f"{one.name}: {one.shared_images} of its images are in the run's training set: this is no test of "
        "generalisation"
        for one in report.domains
        if one.shared_images
    ]


def csv_report(report: Report) -> str:
    """report.csv: a line a domain and class, shares 0..1, then the domain's means; means over domains at the end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["domain", "class", "iou", "accuracy", "precision", "dice", "pixels"])
    for one in report.domains:
        for name, scores in one.per_class.items():
            writer.writerow([one.name, name, *scores.model_dump().values()])
        writer.writerows(_csv_means(one, report))
    for group in [*report.groups, report.mean_over_domains] if len(report.domains) > 1 else ():
        writer.writerows(_csv_means(group, report))
    return text.getvalue()


def _csv_means(one: DomainReport | GroupReport, report: Report) -> list[list[object]]:
    means = {
        f"mean of all {len(report.classes)}": one.mean_iou_all,
        "mean of classes present": one.mean_iou_present,
    }
    return [[one.name, title, mean, "", "", "", ""] for title, mean in means.items()]
