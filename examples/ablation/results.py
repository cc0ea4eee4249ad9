"""The ablation's results: what the cells' reports say, as JSON, as a Markdown table a budget, and as plots."""

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import ROWS, Cell, finished, title, training_lines
from plots import plot, plot_costs

from diffcli.files import write_atomically, write_text
from diffcli.runs.folder import REPORT
from diffcli.runtime import console

COSTS = {
    "unet_evaluations_per_image": "U-Net evaluations",
    "seconds_per_image": "s / image",
    "seconds_per_iteration": "s / iteration",
}
NOTE = (
    "mIoU in percent over the classes present, of the last checkpoint: mean ± standard deviation over seeds. "
    "Evaluations and seconds are of one image at inference and of one training iteration."
)

Wanted = Mapping[tuple[str, int, int], Cell]
"""(row, budget, seed) -> the cell that holds its scores."""
Summary = dict[str, Any]
"""One row at one budget, over the seeds that are finished."""


def write_results(output: Path, wanted: Wanted, *, show: bool = False) -> None:
    """Write results.json, results.md, results.png and costs.png of what is finished; with `show`, print the tables.

    The plots show rows that were scored on unseen domains. Rows that an earlier call left in results.json and this one
    does not ask for stay.
    """
    asked = dict.fromkeys((row, budget) for row, budget, _ in wanted)
    found = [summary(row, budget, wanted) for row, budget in asked]
    done = [row for row in found if row["seeds"]]
    if not done:
        return
    rows = sorted([*_earlier(output / "results.json", but=asked), *done], key=_order)
    write_text(output / "results.json", json.dumps({"rows": rows}, indent=2))
    write_text(output / "results.md", markdown(rows))
    if drawn := [row for row in rows if "mean unseen" in row["mean_iou"]]:
        for name, picture in (("results.png", plot(drawn)), ("costs.png", plot_costs(drawn))):
            with write_atomically(output / name) as temporary:
                picture.save(temporary)
    if show:
        for budget, own in by_budget(rows).items():
            console.table(f"mIoU in percent after {budget} iterations", heading(own), table(own))
        console.say(f"results: {output / 'results.md'}")


def _earlier(file: Path, *, but: Collection[tuple[str, int]]) -> list[Summary]:
    """Rows of an earlier results.json, but for some (row, budget)."""
    told = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    return [row for row in told if (row["row"], row["budget"]) not in but]


def _order(row: Summary) -> tuple[int, int]:
    """By budget, then as rows are listed."""
    name = row["row"]
    return row["budget"], ROWS.index(name) if name in ROWS else len(ROWS)


def summary(row: str, budget: int, wanted: Wanted) -> Summary:
    """Scores (shares 0..1) and costs of one row at one budget: mean, standard deviation and the value of each seed."""
    done = {
        seed: one for (name, b, seed), one in wanted.items() if (name, b) == (row, budget) and finished(one)
    }
    scores = [_scores(one) for one in done.values()]
    columns = {name: spread([own[name] for own in scores]) for name in (scores[0] if scores else ())}
    costs = [_costs(one) for one in done.values()]
    return {
        "row": row,
        "title": title(row),
        "budget": budget,
        "seeds": list(done),
        "mean_iou": columns,
        **{
            key: statistics.fmean(own[key] for own in costs) if costs else None
            for key in (*COSTS, "iterations")
        },
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of one value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def _scores(one: Cell) -> dict[str, float]:
    """mIoU of every domain, the source's first, and the mean over the unseen ones where there are any."""
    told = json.loads((one.folder / REPORT).read_text(encoding="utf-8"))
    scores = {domain["name"]: float(domain["mean_iou_present"]) for domain in told["domains"]}
    data = one.config.data
    source = [entry.name or entry.domain for entry in data.eval if entry.domain == data.train.domain]
    unseen = [name for name in scores if name not in source]
    ordered = {name: scores[name] for name in (*source, *unseen)}
    mean = {"mean unseen": statistics.fmean(scores[name] for name in unseen)} if unseen else {}
    return ordered | mean


def _costs(one: Cell) -> dict[str, float]:
    told = json.loads((one.folder / REPORT).read_text(encoding="utf-8"))
    lines = training_lines(one.trained)
    iterations = lines[-1]["iteration"]
    return {
        **{key: statistics.fmean(domain[key] for domain in told["domains"]) for key in list(COSTS)[:2]},
        "seconds_per_iteration": sum(line["seconds"] for line in lines) / iterations,
        "iterations": iterations,
    }


# -------------------------------------------------------------------------------------------------- telling


def by_budget(rows: Sequence[Summary]) -> dict[int, list[Summary]]:
    """The rows of each budget."""
    budgets = dict.fromkeys(row["budget"] for row in rows)
    return {budget: [row for row in rows if row["budget"] == budget] for budget in budgets}


def heading(rows: Sequence[Summary]) -> list[str]:
    """Column names."""
    return ["row", *(name.removeprefix("miniworld/") for name in rows[0]["mean_iou"]), *COSTS.values()]


def table(rows: Sequence[Summary]) -> list[list[object]]:
    """Cells as text."""
    return [
        [
            row["row"],
            *map(_percent, row["mean_iou"].values()),
            f"{row['unet_evaluations_per_image']:.3g}",
            f"{row['seconds_per_image']:.3f}",
            f"{row['seconds_per_iteration']:.3f}",
        ]
        for row in rows
    ]


def _percent(value: Mapping[str, Any]) -> str:
    deviation = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def markdown(rows: Sequence[Summary]) -> str:
    """A table a budget, and what the rows mean."""
    lines = [NOTE, ""]
    for budget, own in by_budget(rows).items():
        seeds = sorted({seed for row in own for seed in row["seeds"]})
        names = heading(own)
        lines += [f"**{budget} iterations, seeds {', '.join(map(str, seeds))}**", "", _line(names)]
        lines += [
            "|" + "|".join([" --- ", *[" ---: "] * (len(names) - 1)]) + "|",
            *map(_line, table(own)),
            "",
        ]
    titles = {row["row"]: row["title"] for row in rows}
    return "\n".join([*lines, *(f"- {name}: {text}" for name, text in titles.items()), ""])


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
