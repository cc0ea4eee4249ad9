"""Reading label files: ids in 8, 16 or 32 bits, palette and colour images become train ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from diffcli.classes import CITYSCAPES_CLASSES, IGNORE_ID
from diffcli.data.domains import LabelEncoding
from diffcli.data.images import damaged, decode, is_cut_short, open_with_pillow, read_bytes, refuse_bomb
from diffcli.data.mapping import ColoredLabel, OutsideMapping
from diffcli.errors import DataError

Label = NDArray[np.uint8]
Pixels = NDArray[np.integer[Any]]


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
        self._other_id = _renamed_or_none(encoding.other_ids, self.train_ids)
        self._other_color = _renamed_or_none(encoding.other_colors, self.train_ids)

    def read(self, path: Path) -> Label:
        """Train ids (H, W) of a label file.

        Raises:
            DataError: the file cannot be read, its format is lossy, or it holds values or colours outside the mapping
                (they are listed).
        """
        pixels = read_pixels(path, colors_only=not self._has_ids)
        if self._is_colored(pixels):
            return self._from_colors(pixels, path)
        return self._from_values(self._single_channel(pixels, path), path)

    def stored_values(self, path: Path) -> dict[Any, int]:
        """Value, or colour (red, green, blue), -> pixels that have it: what the file holds before any mapping."""
        pixels = read_pixels(path, colors_only=not self._has_ids)
        if self._is_colored(pixels) or (pixels.ndim == 3 and not _is_plain(pixels)):
            return _color_counts(pixels)
        values, counts = np.unique(self._single_channel(pixels, path), return_counts=True)
        return {int(value): int(count) for value, count in zip(values, counts, strict=True)}

    @property
    def _has_ids(self) -> bool:
        return bool(self.encoding.ids) or self.encoding.other_ids is not None

    def _is_colored(self, pixels: Pixels) -> bool:
        colored = pixels.ndim == 3 and pixels.dtype == np.uint8
        known = bool(self.encoding.colors) or self.encoding.other_colors is not None
        return known and colored and not (self._has_ids and self._are_spread_ids(pixels))

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
                raise self._outside_error(values, outside[values] > 0, path)
            return np.asarray(cv2.LUT(values, table), dtype=np.uint8)
        indexes = values.astype(np.int64)
        indexes[indexes < 0] += _VALUES
        beyond = (values < -2) | (indexes >= _VALUES) | (indexes < 0)
        if beyond.any():
            if self._other_id is None:
                raise self._outside_error(values, beyond, path)
            indexes[beyond] = 0
        if self._outside[indexes].any():
            raise self._outside_error(values, self._outside[indexes] > 0, path)
        return np.where(beyond, np.uint8(self._other_id or 0), self._table[indexes])

    def _single_channel(self, pixels: Pixels, path: Path) -> Pixels:
        """The ids of an image of one channel, of three equal ones, or those in red (16 bits, or the rest 0)."""
        if pixels.ndim == 2:
            return pixels
        if pixels.dtype == np.uint8 and not _is_plain(pixels):
            raise ColoredLabel(
                _color_counts(pixels),
                total=pixels.shape[0] * pixels.shape[1],
                path=path,
                setting=self.encoding.setting,
            )
        return np.ascontiguousarray(pixels[..., 0])

    def _outside_error(self, values: Pixels, outside: NDArray[np.bool_], path: Path) -> OutsideMapping:
        found, counts = np.unique(values[outside], return_counts=True)
        pixels = {int(value): int(count) for value, count in zip(found, counts, strict=True)}
        return OutsideMapping(pixels, total=values.size, path=path, setting=self.encoding.setting)

    def _from_colors(self, pixels: Pixels, path: Path) -> Label:
        codes = _color_codes(pixels)
        if not self._codes.size:
            return np.full(codes.shape, self._other_color, dtype=np.uint8)
        positions = np.searchsorted(self._codes, codes)
        positions[positions == len(self._codes)] = 0
        unknown = self._codes[positions] != codes
        if self._other_color is not None:
            return np.where(unknown, np.uint8(self._other_color), self._code_ids[positions])
        if unknown.any():
            raise OutsideMapping(
                _counted_colors(codes[unknown]), total=codes.size, path=path, setting=self.encoding.setting
            )
        return self._code_ids[positions]


def read_pixels(path: Path, *, colors_only: bool = False) -> Pixels:
    """The stored numbers of a label file: (H, W) of 8, 16 or 32 bits, or (H, W, 3) RGB of 8 or 16; alpha is dropped.

    A palette image gives its indexes; with `colors_only` every image gives colours. Floating point values are taken
    where each is a whole number.

    Raises:
        DataError: the file is missing, damaged or no image; its format is lossy, or its values are fractions.
    """
    data = read_bytes(path)
    if _is_deep_color_png(data):
        return decode(data, cv2.IMREAD_UNCHANGED, path)[..., 2::-1]
    if is_cut_short(data):
        raise damaged(path)
    try:
        with open_with_pillow(data) as image:
            refuse_bomb(image.size, data.size, path)
            lossy = _lossy_format(image, data)
            if lossy:
                raise DataError(
                    f"labels in a lossy format ({lossy}): compression changed values along the edges",
                    where=str(path),
                    hint="export the labels again as PNG; converting this file does not bring its values back",
                )
            return _pillow_pixels(image, data, path, colors_only=colors_only)
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise damaged(path) from error


def _lossy_format(image: PillowImage.Image, data: NDArray[np.uint8]) -> str:
    """The name of a format that does not keep values; empty for one that does."""
    compression = str(image.info.get("compression", "")) if image.format == "TIFF" else ""
    if compression in ("jpeg", "tiff_jpeg", "jpeg2000", "jpeg_2000", "webp"):
        return f"TIFF with {compression} compression"
    if image.format in ("JPEG", "MPO", "JPEG2000", "AVIF"):
        return str(image.format)
    return "lossy WebP" if image.format == "WEBP" and b"VP8 " in _webp_chunks(data) else ""


def _webp_chunks(data: NDArray[np.uint8]) -> set[bytes]:
    """Names of the chunks of a WebP file; pictures are VP8 (lossy) or VP8L (lossless)."""
    found, at = set(), 12
    while at + 8 <= data.size:
        name = data[at : at + 4].tobytes()
        found.add(name)
        inside = 24 if name == b"ANMF" else 8 + int.from_bytes(data[at + 4 : at + 8].tobytes(), "little")
        at += inside + inside % 2
    return found


def _pillow_pixels(
    image: PillowImage.Image, data: NDArray[np.uint8], path: Path, *, colors_only: bool
) -> Pixels:
    if image.mode == "F":
        return _whole_numbers(np.array(image), path)
    if colors_only and not image.mode.startswith("I"):
        return np.array(image.convert("RGB"))
    match image.mode:
        case "PA" | "LA":
            return np.array(image)[..., 0]
        case "1":
            return np.array(image).astype(np.uint8)
        case "L":
            return np.array(image) // _grey_step(data)
        case "P" | "RGB" | "I" | "I;16" | "I;16B" | "I;16L" | "I;16N":
            return np.array(image)
        case "RGBA" | "RGBX" | "RGBa":
            return np.array(image)[..., :3]
        case _:
            raise DataError(
                f"label files of mode {image.mode} are not understood",
                where=str(path),
                hint="save the labels as PNG of one channel, or as RGB colours",
            )


def _whole_numbers(values: NDArray[Any], path: Path) -> Pixels:
    """Floating point labels as integers. Raises DataError where a value is no whole number in -2 .. 65535."""
    fits = np.isfinite(values) & (values >= -2) & (values < _VALUES)
    fits[fits] = values[fits] == np.floor(values[fits])
    if not fits.all():
        wrong = ", ".join(f"{value:g}" for value in np.unique(values[~fits])[:5])
        raise DataError(
            f"label values that are no whole numbers in -2 .. 65535: {wrong}",
            where=str(path),
            hint="labels are class ids; save them as integers (is this a depth or probability map?)",
        )
    return values.astype(np.int32)


def _grey_step(data: NDArray[np.uint8]) -> int:
    """What Pillow multiplies the values of a grey PNG of 2 or 4 bits by, to fill 0..255."""
    if data[:4].tobytes() != b"\x89PNG" or data.size < 26 or data[25] != 0:
        return 1
    return {2: 85, 4: 17}.get(int(data[24]), 1)


def _is_deep_color_png(data: NDArray[np.uint8]) -> bool:
    """16-bit colour PNG, which Pillow would cut to 8 bits: depth and colour type stand at bytes 24 and 25."""
    return bool(data[:4].tobytes() == b"\x89PNG" and data.size > 25 and data[24] == 16 and data[25] in (2, 6))


def _is_plain(pixels: Pixels) -> bool:
    """Whether three channels hold one number: all equal, or the last two empty."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return bool(np.array_equal(green, blue) and (np.array_equal(red, green) or not green.any()))


def _value_tables(encoding: LabelEncoding, train_ids: Sequence[int]) -> tuple[Label, Label]:
    """(train id, whether outside the mapping) of each of the 65 536 values that a file can hold."""
    known = np.full(_VALUES, -1)
    for value, train_id in encoding.ids.items():
        known[value] = _renamed(train_id, train_ids)
    values = np.arange(_VALUES)
    divided = np.where(values < encoding.plain_below, values, values // encoding.divide)
    table = known[divided]
    if encoding.other_ids is not None:
        table[table < 0] = _renamed(encoding.other_ids, train_ids)
    for value in _ALWAYS_IGNORED if encoding.other_ids is None else ():
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


def _renamed_or_none(train_id: int | None, train_ids: Sequence[int]) -> int | None:
    return None if train_id is None else _renamed(train_id, train_ids)


def _color_codes(pixels: Pixels) -> NDArray[np.uint32]:
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return np.asarray((red << 16) | (green << 8) | blue, dtype=np.uint32)


def _color_counts(pixels: Pixels) -> dict[Any, int]:
    return _counted_colors(_color_codes(pixels))


def _counted_colors(codes: NDArray[np.uint32]) -> dict[Any, int]:
    found, counts = np.unique(codes, return_counts=True)
    pairs = zip(map(int, found), map(int, counts), strict=True)
    return {(code >> 16, (code >> 8) & 255, code & 255): count for code, count in pairs}


def train_ids_by_name(
    classes: Sequence[str], *, names: Sequence[str] = CITYSCAPES_CLASSES
) -> tuple[int, ...]:
    """For each of `names` the position of the class of that name in `classes`, 255 where it has none."""
    return tuple(classes.index(name) if name in classes else IGNORE_ID for name in names)
