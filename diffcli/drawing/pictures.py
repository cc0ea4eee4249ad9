"""Masks made visible: class colours, overlays, and the picture of image, truth and prediction side by side."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from diffcli.config.settings import ModelConfig

Pixels = NDArray[np.uint8]
"""An image, H,W,3 RGB; or a mask, H,W train ids, 255 = ignore."""

INK, PAPER, GAP = (30, 30, 30), (255, 255, 255), 6
_PANEL_WIDTH, TEXT_HEIGHT, _TEXT_SIZE = 400, 22, 14
_LEGEND_WIDTH = 240
"""A legend is at least this wide."""
_FALLBACK_HUE_STEP = 0.618034
"""Golden ratio: hues of any number of classes stay apart."""


class Row(NamedTuple):
    """One row of a picture: what it shows, and three images of one size."""

    name: str
    image: Pixels
    truth: Pixels | None
    prediction: Pixels


def class_palette(model: ModelConfig) -> Pixels:
    """Colours (256, 3) of the train ids; what is no class is black.

    The config's own where it has some; else Cityscapes' for the classes it names, generated ones for the others.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    for train_id, name in enumerate(model.classes):
        if model.palette is not None:
            palette[train_id] = model.palette[train_id]
        elif name in CITYSCAPES_CLASSES:
            palette[train_id] = CITYSCAPES_PALETTE[CITYSCAPES_CLASSES.index(name)]
        else:
            hue = train_id * _FALLBACK_HUE_STEP % 1
            color = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * (train_id % 2), 0.95 - 0.35 * (train_id % 3 == 2))
            palette[train_id] = [round(255 * part) for part in color]
    return palette


def mask_image(mask: Pixels, palette: Pixels) -> Image.Image:
    """An 8-bit palette image whose values are the mask's train ids."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette.tobytes())
    return picture


def blend(image: Pixels, mask: Pixels, palette: Pixels, *, opacity: float = 0.5) -> Pixels:
    """The image with its classes' colours laid over it; pixels of no class stay as they are."""
    alpha = np.where(mask[..., None] == 255, 0.0, opacity)
    return np.asarray((1 - alpha) * image + alpha * palette[mask] + 0.5, dtype=np.uint8)


def side_by_side(rows: Sequence[Row], *, model: ModelConfig) -> Image.Image:
    """Image | truth | prediction, a labelled row each, and below them the colours of the classes that occur."""
    palette = class_palette(model)
    panels = [_panels(row, palette) for row in rows]
    names = ["image", "truth", "prediction"]
    width = 3 * _PANEL_WIDTH + 4 * GAP
    masks = [mask for row in rows for mask in (row.prediction, row.truth) if mask is not None]
    below = legend(masks, classes=model.classes, palette=palette, width=width)
    height = TEXT_HEIGHT + sum(TEXT_HEIGHT + row[0].height + GAP for row in panels) + below.height
    canvas = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(canvas), text_font()
    for column, name in enumerate(names):
        draw.text((GAP + column * (_PANEL_WIDTH + GAP), 3), name, fill=INK, font=font)
    top = TEXT_HEIGHT
    for row, pictures in zip(rows, panels, strict=True):
        draw.text((GAP, top + 3), row.name, fill=INK, font=font)
        for column, panel in enumerate(pictures):
            canvas.paste(panel, (GAP + column * (_PANEL_WIDTH + GAP), top + TEXT_HEIGHT))
        top += TEXT_HEIGHT + pictures[0].height + GAP
    canvas.paste(below, (0, top))
    return canvas


def error_map(truth: Pixels, prediction: Pixels) -> Pixels:
    """Where a prediction is wrong: H,W,3, red on light grey, unlabelled pixels white."""
    picture = np.full((*truth.shape, 3), 225, dtype=np.uint8)
    picture[truth != prediction] = (200, 30, 30)
    picture[truth == 255] = 255
    return picture


def _panels(row: Row, palette: Pixels) -> list[Image.Image]:
    """The row's three pictures at the panel's width; one without truth has a grey one there."""
    height = max(1, round(row.image.shape[0] * _PANEL_WIDTH / row.image.shape[1]))
    size = (_PANEL_WIDTH, height)
    truth = np.full_like(row.prediction, 255) if row.truth is None else row.truth
    image = Image.fromarray(row.image).resize(
        size, Image.Resampling.BOX if row.image.shape[1] > _PANEL_WIDTH else None
    )
    masks = [
        Image.fromarray(palette[m]).resize(size, Image.Resampling.NEAREST) for m in (truth, row.prediction)
    ]
    return [image, *masks]


def legend(masks: Sequence[Pixels], *, classes: Sequence[str], palette: Pixels, width: int) -> Image.Image:
    """Name and colour of every class that occurs in the masks, in as many lines as they need."""
    occurring = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)))
    names = dict(enumerate(classes)) | {255: "no label"}
    return _key([(names[i], palette[i]) for i in occurring], width=width)


def with_legend(
    picture: Pixels, mask: Pixels, *, classes: Sequence[str], palette: Pixels, every: bool = False
) -> Image.Image:
    """A picture (H,W,3) with a strip below it: colour, name and share of each class in its mask (H,W).

    The largest class comes first. A picture that is too narrow for a name gets a margin at the right.

    Args:
        every: list every class of the model in the order of train ids, so that the strip has the same height for
            every frame of a video.
    """
    shares = np.bincount(mask.ravel(), minlength=256) / mask.size
    order = range(len(classes)) if every else [int(i) for i in np.argsort(-shares) if shares[i]]
    names = dict(enumerate(classes)) | {255: "no label"}
    entries = [(f"{names[i]} {_percent(float(shares[i]))}", palette[i]) for i in order]
    strip = _key(entries, width=max(picture.shape[1], _LEGEND_WIDTH), columns=every)
    canvas = Image.new("RGB", (strip.width, picture.shape[0] + strip.height), PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    canvas.paste(strip, (0, picture.shape[0]))
    return canvas


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def _key(entries: Sequence[tuple[str, Pixels]], *, width: int, columns: bool = False) -> Image.Image:
    """Colour and text of each entry, in as many lines as they need; in columns of equal width if asked."""
    font, places, x, y = text_font(), [], GAP, 0
    lengths = [24 + round(font.getlength(name)) + 14 for name, _ in entries]
    if columns and lengths:
        widest = 24 + round(max(font.getlength(name.rsplit(" ", 2)[0]) for name, _ in entries)) + 76
        lengths = [widest] * len(entries)
    for length in lengths:
        if x > GAP and x + length > width:
            x, y = GAP, y + TEXT_HEIGHT
        places.append((x, y))
        x += length
    strip = Image.new("RGB", (width, y + TEXT_HEIGHT + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y + 4, x + 18, y + 17), fill=tuple(color.tolist()), outline=INK)
        draw.text((x + 24, y + 3), name, fill=INK, font=font)
    return strip


def text_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of every picture."""
    return ImageFont.load_default(_TEXT_SIZE)
