"""Several runs on the same domains: what differs in their settings and in the IoU of each class, as one page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diffcli.config.base import as_plain, flat
from diffcli.config.settings import RunConfig
from diffcli.drawing.pages import css_color, render
from diffcli.drawing.pictures import Pixels
from diffcli.evaluation.report import Record, Report, Share
from diffcli.evaluation.tables import Table, comparison, markdown, percent
from diffcli.files import write_text

COMPARISON = "comparison.html"
OWN_KEYS = ("name", "runtime")
"""Settings that differ between runs and machines without a difference in what was learned."""


class ComparedRun(Record):
    """What one column is."""

    name: str
    run: str | None
    checkpoint: str | None
    iteration: int | None
    backbone: str | None


class ComparedDomain(Record):
    """Scores by run; None where the run was not scored there."""

    name: str
    mean_iou_present: dict[str, Share]
    iou: dict[str, dict[str, Share]]
    """Class -> run -> IoU."""


class Comparison(Record):
    """comparison.json. Differences are those to the first run."""

    schema_version: Literal[1] = 1
    """A change that breaks readers of the file counts it up."""
    runs: list[ComparedRun]
    settings: dict[str, dict[str, Any]]
    """Setting -> run -> value, of those that are not the same in all runs."""
    domains: list[ComparedDomain]


def build_comparison(reports: Mapping[str, Report], configs: Mapping[str, RunConfig]) -> Comparison:
    """Compare runs of the same classes; both mappings go from a run's name."""
    scored = {run: {one.name: one for one in report.domains} for run, report in reports.items()}
    names = dict.fromkeys(name for domains in scored.values() for name in domains)
    classes = next(iter(reports.values())).classes
    return Comparison(
        runs=[
            ComparedRun(
                name=name,
                run=report.run,
                checkpoint=report.checkpoint,
                iteration=report.iteration,
                backbone=report.backbone,
            )
            for name, report in reports.items()
        ],
        settings=_differing({name: _learned_by(config) for name, config in configs.items()}),
        domains=[
            ComparedDomain(
                name=name,
                mean_iou_present={
                    run: domains[name].mean_iou_present if name in domains else None
                    for run, domains in scored.items()
                },
                iou={
                    one: {
                        run: domains[name].per_class[one].iou if name in domains else None
                        for run, domains in scored.items()
                    }
                    for one in classes
                },
            )
            for name in names
        ],
    )


def write_comparison(
    folder: Path, found: Comparison, reports: Mapping[str, Report], *, palette: Pixels
) -> None:
    """Write comparison.html, .md and .json."""
    means = comparison(reports)
    text = json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False)
    write_text(folder / "comparison.json", text)
    tables = [means, *([settings_table(found)] if found.settings else []), *map(class_table, found.domains)]
    write_text(folder / "comparison.md", "\n".join(map(markdown, tables)))
    write_text(folder / COMPARISON, _page(found, means, palette))


def class_table(domain: ComparedDomain) -> Table:
    """IoU of each class in percent, a column a run, and the differences to the first one."""
    first, *others = domain.mean_iou_present
    columns = ["class", first, *(word for run in others for word in (run, f"{run} - {first}"))]

    def row(name: str, values: Mapping[str, Share]) -> list[object]:
        cells: list[object] = [name, percent(values[first])]
        for run in others:
            cells += [percent(values[run]), percent(difference(values[run], values[first]))]
        return cells

    rows = [row(name, values) for name, values in domain.iou.items()]
    return Table(
        f"IoU in percent on {domain.name}", columns, rows, [row("mean, present", domain.mean_iou_present)]
    )


def settings_table(found: Comparison) -> Table:
    """The settings that are not the same, a column a run."""
    names = [run.name for run in found.runs]
    rows: list[list[object]] = [
        [key, *(_shown(values.get(name)) for name in names)] for key, values in found.settings.items()
    ]
    return Table("settings that differ", ["setting", *names], rows, [])


def difference(one: Share, other: Share) -> Share:
    """one - other; None where one of them is."""
    return None if one is None or other is None else one - other


def _page(found: Comparison, means: Table, palette: Pixels) -> str:
    first, *others = [run.name for run in found.runs]
    return render(
        "comparison.html",
        title=f"{', '.join([first, *others])} – comparison",
        first=first,
        others=others,
        runs=[run.model_dump() for run in found.runs],
        means=means,
        settings=settings_table(found),
        domains=[
            {
                "name": one.name,
                "rows": [
                    {
                        "name": name,
                        "color": css_color(palette[train_id]),
                        "first": values[first],
                        "others": [(values[run], difference(values[run], values[first])) for run in others],
                    }
                    for train_id, (name, values) in enumerate(one.iou.items())
                ],
            }
            for one in found.domains
        ],
    )


def _learned_by(config: RunConfig) -> dict[str, Any]:
    tree = as_plain(config)
    return flat({key: value for key, value in tree.items() if key not in OWN_KEYS})


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys(key for own in settings.values() for key in own)
    values = {key: {run: own.get(key) for run, own in settings.items()} for key in keys}
    return {key: found for key, found in values.items() if len({*map(_shown, found.values())}) > 1}


def _shown(value: object) -> str:
    """A setting as YAML would have it on one line."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shown(one)}' for key, one in value.items())}}}"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))  # type: ignore[call-overload,no-any-return]
