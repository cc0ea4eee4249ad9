"""Figures after the paper's: predictions of several runs side by side, and the score map of one class."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffcli.config.settings import ModelConfig
from diffcli.drawing.pictures import GAP, INK, PAPER, TEXT_HEIGHT, Pixels, class_palette, legend, text_font

PANEL_WIDTH = 320
MAP_OPACITY, DIMMED = 0.7, 0.8
"""Share of the map's colour in a pixel, and brightness of the grey image below it."""
BAR_STEPS, MIN_BAR = 256, 40


class Compared(NamedTuple):
    """One image of one domain under several runs; all pictures of one size."""

    domain: str
    identity: str
    image: Pixels
    truth: Pixels
    predictions: Mapping[str, Pixels]
    """Run -> train ids."""
    iou: Mapping[str, float]
    """Run -> mean IoU of this image over the classes in its label; nan without a label."""


def compared_picture(rows: Sequence[Compared], *, model: ModelConfig) -> Image.Image:
    """Image | truth | a column a run, a row a domain, each image's mean IoU under its masks, and the colours below."""
    palette, font = class_palette(model), text_font()
    runs = list(rows[0].predictions)
    width = (2 + len(runs)) * (PANEL_WIDTH + GAP) + GAP
    masks = [mask for row in rows for mask in (row.truth, *row.predictions.values())]
    below = legend(masks, classes=model.classes, palette=palette, width=width)
    heights = [max(1, round(row.image.shape[0] * PANEL_WIDTH / row.image.shape[1])) for row in rows]
    height = TEXT_HEIGHT + sum(panel + TEXT_HEIGHT + GAP for panel in heights) + below.height
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)

    def write(column: int, top: int, text: str) -> None:
        draw.text((GAP + column * (PANEL_WIDTH + GAP), top + 3), _fitting(text), fill=INK, font=font)

    for column, name in enumerate(["image", "truth", *runs]):
        write(column, 0, name)
    top = TEXT_HEIGHT
    for row, panel_height in zip(rows, heights, strict=True):
        panels = [row.image, palette[row.truth], *(palette[mask] for mask in row.predictions.values())]
        for column, pixels in enumerate(panels):
            nearest = column > 0
            panel = _resized(pixels, (PANEL_WIDTH, panel_height), nearest=nearest)
            canvas.paste(panel, (GAP + column * (PANEL_WIDTH + GAP), top))
        captions = [f"{row.domain}, {row.identity}", "", *(_iou(row.iou[run]) for run in runs)]
        for column, caption in enumerate(captions):
            write(column, top + panel_height, caption)
        top += panel_height + TEXT_HEIGHT + GAP
    canvas.paste(below, (0, top))
    return canvas


def score_picture(image: Pixels, score: NDArray[np.float32], *, name: str) -> Image.Image:
    """The score (H,W) of class `name`, 0..1, as colours over the dimmed image (H,W,3), with a bar of them below.

    The map has the image's size; the bar adds a strip below it. A score has the same colour in every picture.
    """
    height, width = score.shape
    canvas = Image.new("RGB", (width, height + TEXT_HEIGHT), PAPER)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    canvas.paste(_tinted(np.asarray(grey, dtype=np.uint8), score), (0, 0))
    _draw_bar(canvas, top=height, name=name)
    return canvas


def score_colors(score: NDArray[np.float32]) -> Pixels:
    """Scores 0..1 of any shape H,W as colours H,W,3: dark blue, green, yellow, dark red."""
    levels = np.asarray(255 * score.clip(0, 1) + 0.5, dtype=np.uint8)
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1], dtype=np.uint8)


def _tinted(grey: Pixels, score: NDArray[np.float32]) -> Image.Image:
    """The scores' colours over a dimmed grey image; 8-bit arithmetic, since photographs are large."""
    pixels = cv2.addWeighted(grey, (1 - MAP_OPACITY) * DIMMED, score_colors(score), MAP_OPACITY, 0)
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8))


def _draw_bar(canvas: Image.Image, *, top: int, name: str) -> None:
    """`name 0 [colours] 1` as wide as the picture; a name that leaves no room for the colours is left out."""
    draw, font = ImageDraw.Draw(canvas), text_font()
    head = next((text for text in (f"{name}  0", "0") if font.getlength(text) < canvas.width - MIN_BAR), "")
    left = round(font.getlength(head)) + 2 * GAP
    right = canvas.width - round(font.getlength("1")) - 2 * GAP
    draw.text((GAP, top + 3), head, fill=INK, font=font)
    if right > left:
        scores = np.linspace(0, 1, BAR_STEPS, dtype=np.float32)[None]
        shades = _tinted(np.full((1, BAR_STEPS, 3), 128, np.uint8), scores)
        canvas.paste(shades.resize((right - left, TEXT_HEIGHT - 10)), (left, top + 5))
        draw.text((right + GAP, top + 3), "1", fill=INK, font=font)


def _resized(pixels: Pixels, size: tuple[int, int], *, nearest: bool) -> Image.Image:
    smooth = Image.Resampling.BOX if pixels.shape[1] > size[0] else Image.Resampling.BICUBIC
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if nearest else smooth)


def _fitting(text: str) -> str:
    """The text, its middle left out where it is wider than a panel."""
    font, kept = text_font(), len(text)
    short = text
    while font.getlength(short) > PANEL_WIDTH and kept > 2:
        kept -= 1
        short = f"{text[: kept // 2]}...{text[-(kept - kept // 2) :]}"
    return short


def _iou(value: float) -> str:
    return "no label" if np.isnan(value) else f"mIoU {100 * value:.1f}"
