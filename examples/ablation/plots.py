"""The ablation's plots: mean unseen mIoU of every row as bars, and mIoU against U-Net evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

SHADES = ("#a5c3e1", "#235f9b", "#e6963c", "#6e6e6e")
"""Of the budgets."""
SOURCE, UNSEEN = "#e6963c", "#235f9b"


def plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Mean unseen mIoU: a bar a row and budget, a whisker of one standard deviation, a dot a seed."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    height = 0.8 / len(budgets)
    figure, axes = _figure(9, 1.2 + 0.22 * len(budgets) * len(names) + 0.1 * len(names))
    for i, budget in enumerate(budgets):
        own = [row for row in rows if row["budget"] == budget]
        places = [names.index(row["row"]) + (i - (len(budgets) - 1) / 2) * height for row in own]
        values = [row["mean_iou"]["mean unseen"] for row in own]
        axes.barh(
            places,
            [100 * value["mean"] for value in values],
            height=0.9 * height,
            color=SHADES[i % len(SHADES)],
            xerr=[100 * (value["std"] or 0.0) for value in values],
            label=f"{budget} iterations",
        )
        seeds = [
            (100 * one, place) for place, value in zip(places, values, strict=True) for one in value["values"]
        ]
        axes.scatter(
            *zip(*seeds, strict=True), s=12, color="white", edgecolor="black", linewidth=0.8, zorder=3
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    axes.set_xlabel("mean mIoU over the unseen domains, percent")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(budgets), frameon=False)
    return _picture(figure)


def plot_costs(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """mIoU of the rows schedule_* against U-Net evaluations of one image (log scale), source and unseen mean.

    At the budget at which most schedules were trained, the larger one of equals.

    A dot is a row's mean over seeds, a whisker one standard deviation, both beside the row's name.
    """
    schedules = [row for row in rows if row["row"].startswith("schedule_")]
    budgets = [row["budget"] for row in schedules]
    budget = max(budgets, key=lambda value: (budgets.count(value), value), default=0)
    own = [row for row in schedules if row["budget"] == budget]
    figure, axes = _figure(8.6, 4.2)
    evaluations = [row["unet_evaluations_per_image"] for row in own]
    for shade, column, words in (
        (SOURCE, None, "mIoU, source domain"),
        (UNSEEN, "mean unseen", "mIoU, mean over the unseen domains"),
    ):
        values = [row["mean_iou"][column or next(iter(row["mean_iou"]))] for row in own]
        means, deviations = ([100 * (value[key] or 0.0) for value in values] for key in ("mean", "std"))
        axes.errorbar(evaluations, means, yerr=deviations, fmt="o", color=shade, label=words)
        for row, x, y, side in zip(own, evaluations, means, _sides(evaluations, means), strict=True):
            name = row["row"].removeprefix("schedule_")
            axes.annotate(name, (x, y), (8, side), textcoords="offset points", va="center", fontsize=9)
    axes.set_xscale("log")
    ticks = sorted(set(evaluations))
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.4)
    axes.set_xlabel(f"U-Net evaluations of one image; {budget} iterations")
    axes.set_ylabel("percent")
    if own:
        axes.legend(loc="lower right", frameon=False)
    return _picture(figure)


def _sides(places: Sequence[float], heights: Sequence[float]) -> list[int]:
    """Points by which each name is raised: names at one place go apart."""
    sides = []
    for i, (x, y) in enumerate(zip(places, heights, strict=True)):
        near = [other for j, other in enumerate(heights) if j != i and places[j] == x and abs(other - y) < 3]
        sides.append(0 if not near else 6 if y >= max(near) else -6)
    return sides


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: Figure) -> Image.Image:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
