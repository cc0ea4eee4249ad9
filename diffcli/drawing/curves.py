"""Curves of a training run: losses, learning rate, and the mIoU of each domain, over iterations."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

LOSSES = {
    "loss": "total",
    "loss_unconditional": "cross-entropy, unconditional",
    "loss_conditional": "cross-entropy, conditional",
    "consistency": "consistency",
}
"""Keys of metrics.jsonl -> names in the legend."""
PLAIN_LOSS = {"loss": "cross-entropy"}
"""The same without the conditional branch, where the total is the one term."""
MIOU = "mean_iou"


def curves_picture(records: Sequence[Mapping[str, Any]], *, title: str) -> Image.Image:
    """Three panels, 1500x450 pixels, from the lines of metrics.jsonl; a panel without values says so."""
    from matplotlib.figure import Figure  # matplotlib takes a second to import

    figure = Figure(figsize=(15, 4.5), dpi=100, layout="constrained")
    figure.suptitle(title, parse_math=False)
    losses, rate, miou = figure.subplots(1, 3)
    for key, name in (LOSSES if _has(records, "loss_conditional") else PLAIN_LOSS).items():
        _draw(losses, records, key, name)
    _draw(rate, records, "learning_rate", "learning rate")
    domains = sorted({key for record in records for key in record if key.startswith(f"{MIOU}/")})
    for key in domains:
        _draw(miou, records, key, key.removeprefix(f"{MIOU}/"), scale=100, marker="o")
    if len(domains) > 1:
        _draw(miou, records, MIOU, "mean", scale=100, marker="o", color="black", linewidth=2)
    for axes, name in ((losses, "loss"), (rate, "learning rate"), (miou, "mIoU in percent")):
        axes.set_title(name)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "no values yet", ha="center", va="center", transform=axes.transAxes)
        elif len(axes.lines) > 1 or axes is miou:
            for text in axes.legend(fontsize="small").get_texts():
                text.set_parse_math(False)
        axes.set_xlim(0, 1.03 * max((int(record["iteration"]) for record in records), default=1) or 1)
        heights = [y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)]
        axes.set_ylim(0, 1.08 * max(heights, default=1) or 1)
    return figure_image(figure)


def figure_image(figure: Any) -> Image.Image:
    """A figure of matplotlib as an RGB picture; letters that its font lacks are boxes, without a warning for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def curve(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Iterations and values of the lines that hold `key`; the last one counts where an iteration comes twice."""
    found = {
        int(record["iteration"]): float(record[key]) for record in records if record.get(key) is not None
    }
    return [*found], [*found.values()]


def _has(records: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(record.get(key) is not None for record in records)


def _draw(
    axes: Any, records: Sequence[Mapping[str, Any]], key: str, name: str, *, scale: float = 1, **style: Any
) -> None:
    iterations, values = curve(records, key)
    if iterations:
        axes.plot(iterations, [scale * value for value in values], label=name, **style)
