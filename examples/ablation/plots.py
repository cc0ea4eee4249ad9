"""The ablation's plots: mean unseen mIoU of every row as bars, and mIoU against U-Net evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GRID = (30, 30, 30), (255, 255, 255), (215, 215, 215)
SHADES = ((165, 195, 225), (35, 95, 155), (230, 150, 60), (110, 110, 110))
LABEL, PLOT, LINE, MARGIN = 170, 640, 15, 20
COST_SIZE = (860, 420)
SOURCE, UNSEEN = (230, 150, 60), (35, 95, 155)


def plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Mean unseen mIoU: a bar a row and budget, a whisker of one standard deviation, a dot a seed."""
    names, budgets = (
        list(dict.fromkeys(row["row"] for row in rows)),
        list(dict.fromkeys(row["budget"] for row in rows)),
    )
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


def plot_costs(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """mIoU of the rows schedule_* against U-Net evaluations of one image (log scale), source and unseen mean.

    At the budget at which most schedules were trained, the larger one of equals.

    A dot is a row's mean over seeds, a whisker one standard deviation, both beside the row's name.
    """
    schedules = [row for row in rows if row["row"].startswith("schedule_")]
    budgets = [row["budget"] for row in schedules]
    budget = max(budgets, key=lambda value: (budgets.count(value), value), default=0)
    own = [row for row in schedules if row["budget"] == budget]
    canvas = Image.new("RGB", COST_SIZE, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    left, right, top, bottom = 60, COST_SIZE[0] - 130, 40, COST_SIZE[1] - 60
    series = [(UNSEEN, "mean unseen", "mean over the unseen domains"), (SOURCE, None, "source domain")]
    highest = 100 * max(
        (max(value["values"]) for row in own for value in row["mean_iou"].values()), default=0.1
    )
    most = max((row["unet_evaluations_per_image"] for row in own), default=1.0)

    def place(evaluations: float, percent: float) -> tuple[float, float]:
        share = math.log(evaluations) / max(math.log(most), 1e-9)
        return left + 20 + (right - left - 20) * share, bottom - (bottom - top) * percent / highest

    for percent in range(0, int(highest) + 1, 5):
        y = place(1, percent)[1]
        draw.line((left, y, right, y), fill=GRID)
        draw.text((left - 8, y), str(percent), fill=INK, font=font, anchor="rm")
    for evaluations in sorted({row["unet_evaluations_per_image"] for row in own}):
        x = place(evaluations, 0)[0]
        draw.line((x, bottom, x, bottom + 5), fill=INK)
        draw.text((x, bottom + 8), f"{evaluations:.3g}", fill=INK, font=font, anchor="ma")
    draw.text(
        (left, bottom + 30), f"U-Net evaluations of one image; {budget} iterations", fill=INK, font=font
    )
    for number, (shade, column, words) in enumerate(series):
        draw.rectangle((left + 280 * number, 10, left + 12 + 280 * number, 22), fill=shade)
        draw.text((left + 18 + 280 * number, 8), f"mIoU, {words}", fill=INK, font=font)
        for row in own:
            value = row["mean_iou"][column or next(iter(row["mean_iou"]))]
            mean, deviation = 100 * value["mean"], 100 * (value["std"] or 0.0)
            x, y = place(row["unet_evaluations_per_image"], mean)
            low, high = (place(1, mean + sign * deviation)[1] for sign in (-1, 1))
            draw.line((x, low, x, high), fill=shade, width=2)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=shade)
            if column is not None:
                draw.text((x + 8, y), row["row"].removeprefix("schedule_"), fill=INK, font=font, anchor="lm")
    return canvas
