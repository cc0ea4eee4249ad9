"""The ablation's results: what the cells' reports say, as JSON, as a Markdown table a budget, and as a plot."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, finished, title, training_lines
from PIL import Image, ImageDraw, ImageFont

from diffcli import console
from diffcli.files import write_atomically, write_text
from diffcli.runs import REPORT

COSTS = {
    "unet_evaluations_per_image": "U-Net evaluations",
    "seconds_per_image": "s / image",
    "seconds_per_iteration": "s / iteration",
}
NOTE = (
    "mIoU in percent over the classes present, of the last checkpoint: mean ± standard deviation over seeds. "
    "Evaluations and seconds are of one image at inference and of one training iteration."
)
INK, PAPER, GRID = (30, 30, 30), (255, 255, 255), (215, 215, 215)
SHADES = ((165, 195, 225), (35, 95, 155), (230, 150, 60), (110, 110, 110))
LABEL, PLOT, LINE, MARGIN = 170, 640, 15, 20

Wanted = Mapping[tuple[str, int, int], Cell]
"""(row, budget, seed) -> the cell that holds its scores."""
Summary = dict[str, Any]
"""One row at one budget, over the seeds that are finished."""


def write_results(output: Path, wanted: Wanted, *, show: bool = False) -> None:
    """Write results.json, results.md and results.png of what is finished; with `show`, print the tables as well."""
    asked = dict.fromkeys((budget, row) for row, budget, _ in wanted)
    found = [summary(row, budget, wanted) for budget, row in sorted(asked, key=lambda key: key[0])]
    rows = [row for row in found if row["seeds"]]
    if not rows:
        return
    write_text(output / "results.json", json.dumps({"rows": rows}, indent=2))
    write_text(output / "results.md", markdown(rows))
    with write_atomically(output / "results.png") as temporary:
        plot(rows).save(temporary)
    if show:
        for budget, own in by_budget(rows).items():
            console.table(f"mIoU in percent after {budget} iterations", heading(own), table(own))
        console.say(f"results: {output / 'results.md'}")


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
    """mIoU of every domain, the source's first, and the mean over the unseen ones."""
    told = json.loads((one.folder / REPORT).read_text(encoding="utf-8"))
    scores = {domain["name"]: float(domain["mean_iou_present"]) for domain in told["domains"]}
    data = one.config.data
    source = [entry.name or entry.domain for entry in data.eval if entry.domain == data.train.domain]
    unseen = [name for name in scores if name not in source]
    ordered = {name: scores[name] for name in (*source, *unseen)}
    return ordered | {"mean unseen": statistics.fmean(scores[name] for name in unseen)}


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


def plot(rows: Sequence[Summary]) -> Image.Image:
    """Mean unseen mIoU: a bar a row and budget, a whisker of one standard deviation, a dot a seed."""
    names, budgets = list(dict.fromkeys(row["row"] for row in rows)), list(by_budget(rows))
    group = LINE * len(budgets) + 10
    canvas = Image.new("RGB", (LABEL + PLOT + 3 * MARGIN, 3 * MARGIN + group * len(names) + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    top = 5 * max(1, -(-max(max(row["mean_iou"]["mean unseen"]["values"]) for row in rows) * 100 // 5))

    def x(percent: float) -> float:
        return LABEL + MARGIN + PLOT * percent / top

    _axis(draw, font, x, top=int(top), bottom=canvas.height - 2 * MARGIN)
    for i, budget in enumerate(budgets):
        left = LABEL + MARGIN + 150 * i
        draw.rectangle((left, 6, left + 12, 18), fill=SHADES[i % len(SHADES)])
        draw.text((left + 18, 4), f"{budget} iterations", fill=INK, font=font)
    for row in rows:
        y = 2 * MARGIN + group * names.index(row["row"]) + LINE * budgets.index(row["budget"])
        if row["budget"] == next(other["budget"] for other in rows if other["row"] == row["row"]):
            draw.text((MARGIN, y + 2), row["row"], fill=INK, font=font)
        _bar(
            draw,
            x,
            y,
            row["mean_iou"]["mean unseen"],
            shade=SHADES[budgets.index(row["budget"]) % len(SHADES)],
        )
    return canvas


def _axis(draw: ImageDraw.ImageDraw, font: Any, x: Any, *, top: int, bottom: float) -> None:
    """Percentages below, a faint line each."""
    step = 5 if top <= 50 else 10
    for percent in range(0, top + 1, step):
        draw.line((x(percent), 1.5 * MARGIN, x(percent), bottom), fill=GRID)
        draw.text((x(percent), bottom + 4), str(percent), fill=INK, font=font, anchor="ma")
    draw.text((x(0), bottom + 20), "mean mIoU over the unseen domains, percent", fill=INK, font=font)


def _bar(draw: ImageDraw.ImageDraw, x: Any, y: float, value: Mapping[str, Any], *, shade: Any) -> None:
    mean, deviation, middle = 100 * value["mean"], 100 * (value["std"] or 0.0), y + LINE / 2
    draw.rectangle((x(0), y + 1, x(mean), y + LINE - 2), fill=shade)
    if deviation:
        draw.line((x(max(0.0, mean - deviation)), middle, x(mean + deviation), middle), fill=INK, width=2)
    for one in value["values"]:
        draw.ellipse((x(100 * one) - 2, middle - 2, x(100 * one) + 2, middle + 2), fill=PAPER, outline=INK)
