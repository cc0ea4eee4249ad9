"""The picture of a dataset: class shares as bars, and samples with their labels laid over them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffcli.config.settings import ModelConfig
from diffcli.drawing.pictures import Pixels, blend, class_palette

_INK, _SOFT, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
_WIDTH, _GAP, _LINE, _COLUMNS = 1200, 8, 20, 3
_SMALLEST = 1e-5
"""Share at which a bar of the logarithmic scale begins."""


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
    font = ImageFont.load_default(14)
    lines = len(classes) if shares.any() else 0
    columns = 2 if lines > 10 else 1
    rows = -(-lines // columns)
    picture = Image.new("RGB", (_WIDTH, (rows + 2) * _LINE + _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    words = "share of labelled pixels, logarithmic" if lines else "no labels"
    draw.text((_GAP, _GAP), f"{title}  |  {words}", fill=_INK, font=font)
    names = max((font.getlength(name) for name in classes), default=0)
    names = min(round(names), _WIDTH // columns // 3)
    room = _WIDTH // columns - names - 100
    for i in range(lines):
        column, row = divmod(i, rows)
        left, top = column * (_WIDTH // columns) + _GAP, row * _LINE + _LINE + _GAP + 4
        draw.text((left, top), _fitted(classes[i], names, font), fill=_INK, font=font)
        start, length = left + names + _GAP, round(room * _logarithmic(float(shares[i])))
        if length:
            draw.rectangle((start, top + 2, start + length, top + 14), fill=tuple(palette[i].tolist()))
        text = f"{100 * shares[i]:.3g} %" if shares[i] else "none"
        draw.text((start + length + _GAP, top), text, fill=_SOFT, font=font)
    return picture


def _logarithmic(share: float) -> float:
    """0 below the smallest share worth a bar, 1 for all pixels."""
    return max(1 - math.log(share) / math.log(_SMALLEST), 0.0) if share > 0 else 0.0


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
