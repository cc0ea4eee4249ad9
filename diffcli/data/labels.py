"""Reading label files: ids in 8, 16 or 32 bits, palette and colour images become train ids."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from diffcli.classes import CITYSCAPES_CLASSES, IGNORE_ID
from diffcli.data.domains import LabelEncoding
from diffcli.data.images import damaged, decode, is_cut_short, read_bytes
from diffcli.errors import DataError

Label = NDArray[np.uint8]
Pixels = NDArray[np.integer[Any]]


class OutsideMapping(DataError):
    """A label file holds values or colours that its encoding does not know."""

    def __init__(self, values: Sequence[object], path: Path) -> None:
        shown = ", ".join(str(value) for value in values[:12]) + (", ..." if len(values) > 12 else "")
        super().__init__(
            f"label values outside the mapping: {shown}",
            where=str(path),
            hint="is this the right label folder? for own ids or colours use domain: folder with label_ids or "
            "label_colors",
        )
        self.values = tuple(values)


_VALUES = 1 << 16
_ALWAYS_IGNORED = (254, 255, 65534, 65535)
"""-1 and -2 as unsigned files spell them, and 255 itself."""


class LabelReader:
    """Turns label files of one encoding into train ids (H, W), uint8, 255 = ignore.

    Args:
        encoding: what the file's values mean.
        train_ids: position i holds the train id that the encoding's id i becomes; ids beyond it are ignored.
    """

    def __init__(self, encoding: LabelEncoding, train_ids: Sequence[int]) -> None:
        self.encoding = encoding
        self.train_ids = tuple(train_ids)
        self._table, self._outside = _value_tables(encoding, self.train_ids)
        self._codes, self._code_ids = _color_tables(encoding, self.train_ids)

    def read(self, path: Path) -> Label:
        """Train ids (H, W) of a label file.

        Raises:
            DataError: the file cannot be read, or holds values or colours outside the mapping (they are listed).
        """
        pixels = read_pixels(path, colors_only=not self.encoding.ids)
        colored = pixels.ndim == 3 and pixels.dtype == np.uint8
        if self.encoding.colors and colored and not (self.encoding.ids and self._are_spread_ids(pixels)):
            return self._from_colors(pixels, path)
        return self._from_values(_single_channel(pixels, path), path)

    def _are_spread_ids(self, pixels: Pixels) -> bool:
        """Three equal channels whose values are no known colours: ids that were saved as a grey RGB image."""
        grey = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(
            pixels[..., 0], pixels[..., 2]
        )
        return grey and not np.isin(_color_codes(pixels), self._codes).all()

    def convert(self, values: Label) -> Label:
        """Ids that are known to be in the mapping, as train ids: what `read` does, without a file."""
        return np.asarray(cv2.LUT(values, self._table[:256]), dtype=np.uint8)

    def _from_values(self, values: Pixels, path: Path) -> Label:
        if values.dtype == np.uint8:
            table, outside = self._table[:256], self._outside[:256]
            if cv2.countNonZero(cv2.LUT(values, outside)):
                raise OutsideMapping(np.flatnonzero(_counts(values) * outside).tolist(), path)
            return np.asarray(cv2.LUT(values, table), dtype=np.uint8)
        indexes = values.astype(np.int64)
        indexes[indexes < 0] += _VALUES
        if indexes.max(initial=0) >= _VALUES or indexes.min(initial=0) < 0:
            raise OutsideMapping(np.unique(values[(values < -2) | (indexes >= _VALUES)]).tolist(), path)
        if self._outside[indexes].any():
            raise OutsideMapping(np.unique(values[self._outside[indexes] > 0]).tolist(), path)
        return self._table[indexes]

    def _from_colors(self, pixels: Pixels, path: Path) -> Label:
        codes = _color_codes(pixels)
        positions = np.searchsorted(self._codes, codes)
        positions[positions == len(self._codes)] = 0
        unknown = self._codes[positions] != codes
        if unknown.any():
            raise OutsideMapping([_rgb(int(code)) for code in np.unique(codes[unknown])], path)
        return self._code_ids[positions]


def read_pixels(path: Path, *, colors_only: bool = False) -> Pixels:
    """The stored numbers of a label file: (H, W) of 8, 16 or 32 bits, or (H, W, 3) RGB of 8 or 16; alpha is dropped.

    A palette image gives its indexes; with `colors_only` every image gives colours.

    Raises:
        DataError: the file is missing, damaged or no image.
    """
    data = read_bytes(path)
    if _is_deep_color_png(data):
        return decode(data, cv2.IMREAD_UNCHANGED, path)[..., 2::-1]
    if is_cut_short(data):
        raise damaged(path)
    try:
        with PillowImage.open(io.BytesIO(data.tobytes())) as image:
            return _pillow_pixels(image, colors_only=colors_only)
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise damaged(path) from error


def _pillow_pixels(image: PillowImage.Image, *, colors_only: bool) -> Pixels:
    if colors_only:
        return np.array(image.convert("RGB"))
    match image.mode:
        case "PA" | "LA":
            return np.array(image)[..., 0]
        case "1":
            return np.array(image).astype(np.uint8)
        case "L" | "P" | "RGB" | "I" | "I;16" | "I;16B" | "I;16L":
            return np.array(image)
        case _:
            return np.array(image.convert("RGB"))


def _is_deep_color_png(data: NDArray[np.uint8]) -> bool:
    """16-bit colour PNG, which Pillow would cut to 8 bits: depth and colour type stand at bytes 24 and 25."""
    return bool(data[:4].tobytes() == b"\x89PNG" and data.size > 25 and data[24] == 16 and data[25] in (2, 6))


def _single_channel(pixels: Pixels, path: Path) -> Pixels:
    """The ids of an image of one channel or of three equal ones, or those in red (of 16 bits, or with the rest 0)."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    plain = np.array_equal(green, blue) and (np.array_equal(red, green) or not green.any())
    if pixels.dtype == np.uint8 and not plain:
        raise DataError(
            "the label is a colour image, but no colours are known for it",
            where=str(path),
            hint="list them in YAML: label_colors: [[[128, 64, 128], 0], ...]",
        )
    return np.ascontiguousarray(red)


def _value_tables(encoding: LabelEncoding, train_ids: Sequence[int]) -> tuple[Label, Label]:
    """(train id, whether outside the mapping) of each of the 65 536 values that a file can hold."""
    known = np.full(_VALUES, -1)
    for value, train_id in encoding.ids.items():
        known[value] = _renamed(train_id, train_ids)
    values = np.arange(_VALUES)
    divided = np.where(values < encoding.plain_below, values, values // encoding.divide)
    table = known[divided]
    for value in _ALWAYS_IGNORED:
        if value not in encoding.ids:
            table[value] = IGNORE_ID
    return np.where(table < 0, IGNORE_ID, table).astype(np.uint8), (table < 0).astype(np.uint8)


def _color_tables(encoding: LabelEncoding, train_ids: Sequence[int]) -> tuple[NDArray[np.uint32], Label]:
    """Sorted colour codes and their train ids."""
    colors = {
        (r << 16) + (g << 8) + b: _renamed(train_id, train_ids) for (r, g, b), train_id in encoding.colors
    }
    codes = sorted(colors)
    return np.array(codes, dtype=np.uint32), np.array([colors[code] for code in codes], dtype=np.uint8)


def _renamed(train_id: int, train_ids: Sequence[int]) -> int:
    return train_ids[train_id] if 0 <= train_id < len(train_ids) else IGNORE_ID


def _color_codes(pixels: Pixels) -> NDArray[np.uint32]:
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return np.asarray((red << 16) | (green << 8) | blue, dtype=np.uint32)


def _rgb(code: int) -> tuple[int, int, int]:
    return code >> 16, (code >> 8) & 255, code & 255


def _counts(values: Pixels) -> NDArray[np.int64]:
    return np.bincount(values.ravel(), minlength=256)


def train_ids_by_name(classes: Sequence[str]) -> tuple[int, ...]:
    """For each Cityscapes train id the position of the class of that name in `classes`, 255 where it has none."""
    return tuple(classes.index(name) if name in classes else IGNORE_ID for name in CITYSCAPES_CLASSES)
