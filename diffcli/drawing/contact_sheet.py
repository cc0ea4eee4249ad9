"""The picture of a dataset: class shares as bars, and samples with their labels laid over them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffcli.config.settings import ModelConfig
from diffcli.drawing.curves import figure_image
from diffcli.drawing.pictures import Pixels, blend, class_palette

_INK, _SOFT, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
_WIDTH, _GAP, _LINE, _COLUMNS = 1200, 8, 20, 3
_SMALLEST = 1e-5
"""Share at which the bars of the logarithmic scale begin."""


class Panel(NamedTuple):
    """One sample of the contact sheet."""

    name: str
    image: Pixels
    label: Pixels


def inspection_picture(
    title: str, shares: NDArray[np.float64], panels: Sequence[Panel], *, model: ModelConfig
) -> Image.Image:
    """Class shares on a logarithmic scale (rare classes are what one looks for), and below them the panels."""
    palette = class_palette(model)
    head = _bars(title, shares, model.classes, palette)
    sheet = _sheet(panels, palette)
    canvas = Image.new("RGB", (_WIDTH, head.height + sheet.height), _PAPER)
    canvas.paste(head, (0, 0))
    canvas.paste(sheet, (0, head.height))
    return canvas


def _bars(title: str, shares: NDArray[np.float64], classes: Sequence[str], palette: Pixels) -> Image.Image:
    """One bar a class in its colour, in as many columns as keep the picture low; none where nothing is labelled."""
    from matplotlib.figure import Figure  # matplotlib takes a second to import

    lines = len(classes) if shares.any() else 0
    columns = 2 if lines > 10 else 1
    rows = -(-lines // columns)
    figure = Figure(figsize=(_WIDTH / 100, (rows * _LINE + 60) / 100), dpi=100, layout="constrained")
    words = "share of labelled pixels, logarithmic" if lines else "no labels"
    figure.suptitle(f"{title}  |  {words}", fontsize=10, parse_math=False)
    parts = figure.subplots(1, columns, squeeze=False)[0] if lines else []
    for column, axes in enumerate(parts):
        own = range(column * rows, min((column + 1) * rows, lines))
        lengths = [max(float(shares[i]), _SMALLEST) for i in own]
        colors = [tuple(palette[i] / 255) for i in own]
        places = range(len(own))
        bars = axes.barh(places, lengths, color=colors, edgecolor="#666666", linewidth=0.4, height=0.72)
        texts = [f"{100 * shares[i]:.3g} %" if shares[i] else "none" for i in own]
        axes.bar_label(bars, texts, padding=4, fontsize=8, color="#555555")
        axes.set_xscale("log")
        axes.set_xlim(_SMALLEST, 4)  # room for the text behind a bar of nearly everything
        names = [_shortened(classes[i]) for i in own]
        axes.set_yticks(places, names, fontsize=8, parse_math=False)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"], fontsize=7)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    return figure_image(figure)


def _shortened(name: str) -> str:
    """A class name of at most 30 letters, the end of a longer one left out."""
    return name if len(name) <= 30 else f"{name[:27]}..."


def _sheet(panels: Sequence[Panel], palette: Pixels) -> Image.Image:
    """Rows of panels at one width, each row as high as its highest panel."""
    width = (_WIDTH - _GAP) // _COLUMNS - _GAP
    font = ImageFont.load_default(12)
    overlays = [_overlay(panel, palette, width) for panel in panels]
    rows = [range(i, min(i + _COLUMNS, len(panels))) for i in range(0, len(panels), _COLUMNS)]
    heights = [max(overlays[i].height for i in row) + _LINE for row in rows]
    picture = Image.new("RGB", (_WIDTH, sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = _GAP + column * (width + _GAP)
            picture.paste(overlays[i], (left, top))
            name = _fitted(panels[i].name, width, font)
            draw.text((left, top + overlays[i].height + 2), name, fill=_SOFT, font=font)
        top += height
    return picture


def _overlay(panel: Panel, palette: Pixels, width: int) -> Image.Image:
    """The label's colours over the image, at the panel's width; what is ignored stays as photographed."""
    height = max(1, round(panel.image.shape[0] * width / panel.image.shape[1]))
    image = Image.fromarray(panel.image).resize((width, height), Image.Resampling.BILINEAR)
    label = Image.fromarray(panel.label).resize((width, height), Image.Resampling.NEAREST)
    return Image.fromarray(blend(np.asarray(image), np.asarray(label), palette))


def _fitted(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, with its beginning left out where it is too long: the ends of file names differ."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
