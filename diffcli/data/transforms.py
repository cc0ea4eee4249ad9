"""What varies a training sample: crop, flip, photometric distortion, padding (paper, training details).

Every function takes 8-bit arrays and an explicit generator and returns 8-bit arrays; none changes its input.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from diffcli.classes import IGNORE_ID
from diffcli.config.size import Size
from diffcli.data.images import Image
from diffcli.data.labels import Label

Crop = tuple[slice, slice]

BRIGHTNESS = 32
"""Brightness moves by up to this much, on 0..255."""
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
"""Hue turns by up to this much, on OpenCV's 0..179."""
IMAGE_PADDING = 0


def resize_image(image: Image, size: Size) -> Image:
    """The image (H, W, 3) resized bilinearly."""
    if image.shape[:2] == (size.height, size.width):
        return image
    return np.asarray(
        cv2.resize(image, (size.width, size.height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


def resize_label(label: Label, size: Size) -> Label:
    """The label (H, W) resized by nearest neighbour, aligned with `resize_image`: no value is invented."""
    if label.shape == (size.height, size.width):
        return label
    resized = cv2.resize(label, (size.width, size.height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, dtype=np.uint8)


def draw_crop(
    label: Label,
    *,
    size: Size,
    rng: np.random.Generator,
    tries: int,
    max_share: float,
    wanted: int | None = None,
    min_pixels: int = 0,
) -> Crop:
    """Rows and columns of a random crop (smaller than `size` where the label is).

    A crop is drawn again up to `tries` times while one class fills more than `max_share` of its labelled pixels (or
    none is labelled); all of this up to `tries` times again until it holds more than `min_pixels` of class `wanted`.
    """
    crop = _draw_mixed_crop(label, size=size, rng=rng, tries=tries, max_share=max_share)
    if wanted is not None:
        for _ in range(tries):
            if np.count_nonzero(label[crop] == wanted) > min_pixels:
                break
            crop = _draw_mixed_crop(label, size=size, rng=rng, tries=tries, max_share=max_share)
    return crop


def _draw_mixed_crop(
    label: Label, *, size: Size, rng: np.random.Generator, tries: int, max_share: float
) -> Crop:
    crop = _draw_any_crop(label, size=size, rng=rng)
    for _ in range(tries):
        if _largest_share(label[crop]) <= max_share:
            break
        crop = _draw_any_crop(label, size=size, rng=rng)
    return crop


def _draw_any_crop(label: Label, *, size: Size, rng: np.random.Generator) -> Crop:
    height, width = label.shape
    top = int(rng.integers(max(height - size.height, 0) + 1))
    left = int(rng.integers(max(width - size.width, 0) + 1))
    return slice(top, min(top + size.height, height)), slice(left, min(left + size.width, width))


def _largest_share(label: Label) -> float:
    """Share of the most frequent class among the labelled pixels; infinite where nothing is labelled."""
    counts = class_counts(label)
    labelled = counts[:IGNORE_ID].sum()
    return float(counts[:IGNORE_ID].max() / labelled) if labelled else float("inf")


def class_counts(label: Label) -> NDArray[np.int64]:
    """Number of pixels of each value 0..255."""
    if label.size >= 1 << 24:  # beyond it OpenCV's float32 counts are no longer exact
        return np.bincount(label.ravel(), minlength=256)
    histogram = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [256], [0, 256])
    return np.asarray(histogram, dtype=np.int64).ravel()


def flip_horizontally(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Left becomes right."""
    return np.asarray(cv2.flip(pixels, 1), dtype=np.uint8)


def photometric_distortion(image: Image, *, rng: np.random.Generator, probability: float = 0.5) -> Image:
    """Change brightness, contrast, saturation and hue of an RGB image, each with `probability`, in this order.

    Contrast comes after brightness or at the very end, by a coin (the recipe of the paper, after SSD).
    """
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS) if rng.random() < probability else 0.0
    contrast_last = rng.random() < 0.5
    contrast = rng.uniform(*CONTRAST) if rng.random() < probability else 1.0
    saturation = rng.uniform(*SATURATION) if rng.random() < probability else 1.0
    hue = int(rng.integers(-HUE, HUE + 1)) if rng.random() < probability else 0
    early = _linear_table(1.0, brightness)
    if not contrast_last:
        early = _linear_table(contrast, 0.0)[early]
    image = _through_table(image, early)
    image = _adjust_colors(image, saturation=saturation, hue=hue)
    return _through_table(image, _linear_table(contrast if contrast_last else 1.0, 0.0))


_VALUES = np.arange(256)


def _linear_table(scale: float, offset: float) -> NDArray[np.uint8]:
    """value -> scale * value + offset, clipped to 0..255."""
    return np.asarray(np.clip(_VALUES * scale + offset, 0, 255), dtype=np.uint8)


def _through_table(image: Image, table: NDArray[np.uint8]) -> Image:
    if np.array_equal(table, _VALUES):
        return image
    return np.asarray(cv2.LUT(image, table), dtype=np.uint8)


def _adjust_colors(image: Image, *, saturation: float, hue: int) -> Image:
    """Scale saturation and turn hue, in one conversion to HSV and back."""
    if saturation == 1.0 and hue == 0:
        return image
    tables = np.stack([(_VALUES + hue) % 180, _linear_table(saturation, 0.0), _VALUES], axis=-1).astype(
        np.uint8
    )
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables[None])
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


def pad(pixels: NDArray[np.uint8], size: Size, *, value: int) -> NDArray[np.uint8]:
    """Padded on the right and at the bottom with `value`, at least to `size`; contiguous."""
    bottom = max(size.height - pixels.shape[0], 0)
    right = max(size.width - pixels.shape[1], 0)
    if not bottom and not right:
        return np.ascontiguousarray(pixels)
    widths = [(0, bottom), (0, right), *[(0, 0)] * (pixels.ndim - 2)]
    return np.asarray(np.pad(pixels, widths, constant_values=value), dtype=np.uint8)
