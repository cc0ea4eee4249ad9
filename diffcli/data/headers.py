"""Sizes of images from their headers, and a check of a whole domain by them: seconds before hours of training."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from diffcli.config.size import Size
from diffcli.data.domain import Domain
from diffcli.data.images import is_cut_short, open_with_pillow, read_image, refuse_bomb, require_file
from diffcli.data.statistics import Progress, cache_folder, file_state, in_parallel
from diffcli.errors import DataError, DiffError
from diffcli.files import write_atomically

_ORIENTATION = 0x0112
"""EXIF tag; from 5 on the image is stored lying on its side."""
_SIDEWAYS = 5


def check_headers(
    domain: Domain,
    *,
    workers: int = 4,
    progress: Progress | None = None,
    cached: Callable[[], None] = lambda: None,
    cache: Path | None = None,
) -> dict[int, DataError]:
    """Sample -> why it cannot be used, as far as headers tell: no image, cut short, sizes that do not fit.

    What was found is kept in the cache until a file changes; only faulty samples are read again.

    Args:
        progress: called with (done, total) after each sample.
        cached: called instead where what was found earlier is taken.
    """
    listed = [i for i, sample in enumerate(domain.samples) if sample.image is not None]
    path = (cache or cache_folder()) / "headers" / f"{_key(domain)}.npy"
    good = _kept(path, len(listed))
    if good is None:
        good = np.zeros(len(listed), dtype=bool)
        todo, show = listed, progress
    else:
        cached()
        todo, show = [i for i, ok in zip(listed, good, strict=True) if not ok], None
    faults: dict[int, DataError] = {}

    def check(number: int) -> None:
        try:
            check_header(domain, todo[number])
        except DataError as error:
            faults[todo[number]] = error

    for _ in in_parallel(check, len(todo), workers=workers, progress=show):
        pass
    _keep(path, np.array([i not in faults for i in listed], dtype=bool))
    return dict(sorted(faults.items()))


def check_header(domain: Domain, index: int) -> None:
    """Raise DataError where headers tell that a sample cannot be used."""
    sample = domain.samples[index]
    if sample.image is None:
        return
    image = image_size(sample.image)
    if sample.label is None:
        return
    if not domain.same_shape(image, image_size(sample.label)):
        domain.load(index)  # knows how rotated images are stored, and what to say


def _kept(path: Path, samples: int) -> NDArray[np.bool_] | None:
    try:
        with path.open("rb") as file:
            good = np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return good if good.shape == (samples,) and good.dtype == np.bool_ else None


def _keep(path: Path, good: NDArray[np.bool_]) -> None:
    """A cache that cannot be written costs time, never the run."""
    try:
        with write_atomically(path) as temporary:
            np.save(temporary, good)
    except (DiffError, OSError):
        return


def _key(domain: Domain) -> str:
    digest = hashlib.sha256(b"headers 1")
    for sample in domain.samples:
        for path in filter(None, (sample.image, sample.label)):
            digest.update(file_state(path))
    return digest.hexdigest()[:40]


def image_size(path: Path) -> Size:
    """The upright size of an image, from its header; a file of which header or end are not whole is decoded.

    Raises:
        DataError: the file is missing, empty, damaged, cut short or no image.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            whole = not is_cut_short(np.frombuffer(head + file.read(), dtype=np.uint8))
        if whole:
            with open_with_pillow(path) as image:
                refuse_bomb(image.size, path.stat().st_size, path)
                lying = bool(image.info.get("exif")) and image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
                return Size(image.height, image.width) if lying else Size(image.width, image.height)
    except (UnidentifiedImageError, SyntaxError, ValueError, PillowImage.DecompressionBombError):
        pass
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    height, width = read_image(path).shape[:2]
    return Size(width, height)
