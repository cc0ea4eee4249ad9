"""Reading images: any format and depth comes out as 8-bit RGB, upright."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffcli.errors import DataError

Image = NDArray[np.uint8]

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
    """The file's bytes. Raises DataError where it cannot be read or is empty."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if data.size == 0:
        raise DataError("the file is empty", where=str(path), hint="copy or download it again")
    return data


def decode(data: NDArray[np.uint8], flags: int, path: Path) -> NDArray[Any]:
    """The pixels as OpenCV decodes them. Raises DataError where it cannot, or the data stops half way."""
    if is_cut_short(data):
        raise damaged(path)
    try:
        pixels = cv2.imdecode(data, flags)
    except cv2.error as error:  # more pixels than OpenCV allows
        raise damaged(path) from error
    if pixels is None:
        raise damaged(path)
    return np.asarray(pixels)


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
        hint="copy or download it again, or take it out of the set",
    )
