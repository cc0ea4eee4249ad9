"""The picture of what a network is fed: crops as they are augmented, their labels, and what the prompts act on."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from diffcli.config.settings import ModelConfig
from diffcli.drawing.pictures import (
    GAP,
    INK,
    PAPER,
    TEXT_HEIGHT,
    Pixels,
    blend,
    class_palette,
    legend,
    text_font,
)

_PANEL, _TEXT, _LETTERS = 260, 380, 50
"""Widths of a panel and of the text beside it, in pixels, and of a line of it, in letters."""
_RARE = (200, 30, 30)


class Prompted(NamedTuple):
    """Where one class's prompt acts."""

    train_id: int
    prompt: str
    mask: Pixels
    """h,w latent cells: 1 where it acts."""


class Fed(NamedTuple):
    """One draw of a training."""

    draw: int
    file: str
    image: Pixels
    """H,W,3 after augmentation."""
    label: Pixels
    """H,W train ids."""
    rare_class: int | None
    """Train id that rare class sampling drew it for."""
    prompted: Sequence[Prompted]
    """What the conditional branch is told; empty where it is off or no prompted class is there."""


def fed_picture(draws: Sequence[Fed], *, model: ModelConfig, branches: bool) -> Image.Image:
    """A row for each draw: crop, labels over it, the masks of the prompts (with `branches`), and all of it in words."""
    palette, font = class_palette(model), text_font()
    columns = ["crop", "labels", *(["what the conditional branch is told"] if branches else [])]
    text_left = GAP + len(columns) * (_PANEL + GAP)
    width = text_left + _TEXT + GAP
    rows = [_panels(one, palette, branches=branches) for one in draws]
    lines = [_lines(one, model.classes) for one in draws]
    heights = [
        max(row[0].height, len(text) * TEXT_HEIGHT) + GAP for row, text in zip(rows, lines, strict=True)
    ]
    below = legend([one.label for one in draws], classes=model.classes, palette=palette, width=width)
    canvas = Image.new("RGB", (width, TEXT_HEIGHT + sum(heights) + below.height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(columns):
        draw.text((GAP + column * (_PANEL + GAP), 3), name, fill=INK, font=font)
    top = TEXT_HEIGHT
    for row, text, height in zip(rows, lines, heights, strict=True):
        for column, panel in enumerate(row):
            canvas.paste(panel, (GAP + column * (_PANEL + GAP), top))
        for number, (line, color) in enumerate(text):
            place = top + number * TEXT_HEIGHT
            if isinstance(color, int):
                box = (text_left, place + 4, text_left + 14, place + 17)
                draw.rectangle(box, fill=tuple(palette[color].tolist()), outline=INK)
            ink = _RARE if color == "rare" else INK
            draw.text((text_left + 20, place + 3), line, fill=ink, font=font)
        top += height
    canvas.paste(below, (0, top))
    return canvas


def _panels(one: Fed, palette: Pixels, *, branches: bool) -> list[Image.Image]:
    height = max(1, round(one.image.shape[0] * _PANEL / one.image.shape[1]))
    size = (_PANEL, height)
    image = Image.fromarray(one.image).resize(size, Image.Resampling.BILINEAR)
    label = Image.fromarray(one.label).resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(image)
    panels = [image, Image.fromarray(blend(pixels, np.asarray(label), palette))]
    if branches:
        grey = np.asarray(image.convert("L").convert("RGB")) // 2 + 96
        told = np.full(one.label.shape, 255, dtype=np.uint8)
        if one.prompted:
            told = np.full(one.prompted[0].mask.shape, 255, dtype=np.uint8)
        for prompted in one.prompted:
            told[prompted.mask > 0] = prompted.train_id
        cells = np.asarray(Image.fromarray(told).resize(size, Image.Resampling.NEAREST))
        panels.append(Image.fromarray(blend(np.asarray(grey, dtype=np.uint8), cells, palette, opacity=0.8)))
    return panels


def _lines(one: Fed, classes: Sequence[str]) -> list[tuple[str, int | str]]:
    """Lines of text, each with the train id of its colour box, "rare", or "" for plain ink."""
    name = one.file if len(one.file) <= _LETTERS else f"...{one.file[3 - _LETTERS :]}"
    lines: list[tuple[str, int | str]] = [(f"draw {one.draw}", ""), (name, "")]
    if one.rare_class is not None:
        lines.append((f"drawn for the rare class {classes[one.rare_class]}", "rare"))
    for prompted in one.prompted:
        first, *others = textwrap.wrap(f"{classes[prompted.train_id]}: {prompted.prompt}", _LETTERS) or [""]
        lines.append((first, prompted.train_id))
        lines += [(text, "") for text in others]
    return lines
