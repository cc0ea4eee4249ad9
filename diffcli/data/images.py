"""Reading images: any format and depth comes out as 8-bit RGB, upright."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from diffcli.errors import DataError

Image = NDArray[np.uint8]

MAX_BYTES = 2**31
"""No image file is larger than this; a larger one is not read into memory."""
LARGE = 2**26
"""Pixels (8192x8192) up to which an image is decoded whatever its file's size."""
MAX_PIXELS_PER_BYTE = 8300
"""Deflate packs at most 1032 bytes into one, each of 8 pixels of one bit; every other format holds fewer."""
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG markers whose segment states the size."""

PIXEL_MEAN = PIXEL_SCALE = 127.5
"""(pixel - PIXEL_MEAN) / PIXEL_SCALE is what networks see: 0..255 as [-1,1]."""


def read_image(path: Path, *, upright: bool = True) -> Image:
    """The image (H, W, 3), RGB, 0..255: grey is spread, alpha dropped, 16 bits scaled to 8, EXIF rotation applied.

    Args:
        upright: False leaves an image that carries an EXIF rotation as it is stored.

    Raises:
        DataError: the file is missing, empty, damaged, cut short or no image.
    """
    data = read_bytes(path)
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return np.asarray(cv2.cvtColor(decode(data, flags, path), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_bytes(path: Path) -> NDArray[np.uint8]:
    """The file's bytes. Raises DataError where it is no ordinary file, cannot be read, is empty or far too large."""
    require_file(path)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if data.size == 0:
        raise DataError("the file is empty", where=str(path), hint="copy or download it again")
    return data


def require_file(path: Path) -> None:
    """Raise DataError unless this is an ordinary file of a size that an image can have: a pipe would never end."""
    try:
        state = path.stat()
    except OSError as error:
        if os.path.islink(path):  # of a name that is too long, is_symlink raises the same error again
            raise DataError(
                f"a link to {os.readlink(path)}, which is not there",
                where=str(path),
                hint="put the file there, or remove the link",
            ) from error
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:  # a null character in the name
        raise DataError("no such file", where=str(path)) from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError("not an ordinary file", where=str(path), hint="remove it from the folder")
    if state.st_size > MAX_BYTES:
        raise DataError(
            f"{state.st_size / 2**30:.0f} GiB are no image", where=str(path), hint="remove it from the folder"
        )


def decode(data: NDArray[np.uint8], flags: int, path: Path) -> NDArray[Any]:
    """The pixels as OpenCV decodes them. Raises DataError where it cannot, or the data stops half way."""
    if is_cut_short(data):
        raise damaged(path)
    refuse_bomb(claimed_size(data, path), data.size, path)
    try:
        pixels = cv2.imdecode(data, flags)
    except cv2.error as error:  # more pixels than OpenCV allows
        raise damaged(path) from error
    if pixels is None:
        raise damaged(path)
    return np.asarray(pixels)


def claimed_size(data: NDArray[np.uint8], path: Path) -> tuple[int, int]:
    """(width, height) that the header states; (0, 0) where it states none that is known here.

    Raises:
        DataError: a format other than PNG and JPEG claims more pixels than Pillow takes.
    """
    if data[:4].tobytes() == b"\x89PNG":
        return _big_endian(data[16:20]), _big_endian(data[20:24])
    if data[:2].tobytes() != b"\xff\xd8":
        return _pillow_size(data, path)
    at = 2
    while at + 9 < data.size and data[at] == 0xFF:
        marker = int(data[at + 1])
        if marker in _START_OF_FRAME:
            return _big_endian(data[at + 7 : at + 9]), _big_endian(data[at + 5 : at + 7])
        at += 1 if marker == 0xFF else 2 + _big_endian(data[at + 2 : at + 4])
    return 0, 0


def _pillow_size(data: NDArray[np.uint8], path: Path) -> tuple[int, int]:
    try:
        with open_with_pillow(data) as image:
            return image.size
    except PillowImage.DecompressionBombError as error:
        raise DataError(f"too large: {error}", where=str(path), hint="save it as PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError):
        return 0, 0


def open_with_pillow(source: Path | NDArray[np.uint8]) -> PillowImage.Image:
    """The image of a file or of its bytes, not yet decoded; Pillow does not warn of its size: see `refuse_bomb`."""
    file = source if isinstance(source, Path) else io.BytesIO(source.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
        return PillowImage.open(file)


def refuse_bomb(size: tuple[int, int], held: int, path: Path) -> None:
    """Raise DataError where a header claims far more pixels than the file's bytes can hold."""
    pixels = size[0] * size[1]
    if pixels > LARGE and pixels > held * MAX_PIXELS_PER_BYTE:
        raise DataError(
            f"the file claims {size[0]}x{size[1]} pixels, but holds {held} bytes",
            where=str(path),
            hint="it is damaged or made to fill the memory: remove it",
        )


def _big_endian(data: NDArray[np.uint8]) -> int:
    return int.from_bytes(data.tobytes(), "big")


def is_cut_short(data: NDArray[np.uint8]) -> bool:
    """Whether a JPEG or PNG lacks its end marker: decoders would fill the rest with grey and go on."""
    ends = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
    end = ends.get(data[:2].tobytes())
    return end is not None and end not in data[-4096:].tobytes() and end not in data.tobytes()


def damaged(path: Path) -> DataError:
    """The error for a file that does not decode."""
    return DataError(
        "the file is damaged or no image",
        where=str(path),
        hint="copy or download it again, or remove it from the set",
    )
