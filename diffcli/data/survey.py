"""Reading every label of a domain and the header of every image, to say all that is wrong before training starts."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from diffcli.config.size import Size
from diffcli.data.domain import Domain
from diffcli.data.images import is_cut_short, read_image
from diffcli.data.statistics import (
    ClassStatistics,
    Progress,
    count_label,
    in_parallel,
    keep_statistics,
    kept_statistics,
)
from diffcli.errors import DataError, DiffError

_ORIENTATION = 0x0112
"""EXIF tag; from 5 on the image is stored lying on its side."""
_SIDEWAYS = 5


@dataclass(frozen=True)
class Look:
    """What one sample turned out to be."""

    image: Size | None = None
    """Upright size of the image; None where it cannot be read."""
    label: Size | None = None
    """Size of the label; None where there is none or it cannot be read."""
    faults: tuple[DiffError, ...] = ()
    """Why it cannot be used."""


@dataclass(frozen=True)
class Survey:
    """What a whole domain turned out to be; `statistics` counts the labels without faults."""

    looks: list[Look]
    statistics: ClassStatistics

    @property
    def faults(self) -> list[DiffError]:
        """All that is wrong, in the order of the samples."""
        return [fault for look in self.looks for fault in look.faults]


def survey(
    domain: Domain, *, workers: int = 4, progress: Progress | None = None, cache: Path | None = None
) -> Survey:
    """Look at every sample; a bad one is noted and the others are looked at all the same.

    Class statistics are taken from the cache and kept there (`class_statistics`), so that the training that follows
    need not count again. Of images only the header and the end are read, unless they raise doubts.
    """
    known = kept_statistics(domain, cache=cache)
    counts = np.zeros((len(domain), len(domain.classes) + 1), dtype=np.int64)

    def look(index: int) -> Look:
        return _look(domain, index, None if known else counts[index])

    looks = list(in_parallel(look, len(domain), workers=workers, progress=progress))
    statistics = known or ClassStatistics(domain.classes, counts[:, :-1], counts[:, -1])
    found = Survey(looks, statistics)
    if known is None and not found.faults and all(look.label for look in looks):
        keep_statistics(domain, statistics, cache=cache)
    return found


def _look(domain: Domain, index: int, counts: np.ndarray | None) -> Look:
    """One sample; its pixels are counted into `counts` unless they are known."""
    sample = domain.samples[index]
    faults: list[DiffError] = []
    image = label = None
    try:
        image = image_size(sample.image) if sample.image is not None else None
    except DiffError as error:
        faults.append(error)
    try:
        if counts is None and sample.label is not None:
            label = image_size(sample.label)
        elif sample.label is not None or sample.scene is not None:
            values = domain.read_label(index)
            label = Size(values.shape[1], values.shape[0])
            if counts is not None:
                counts[:] = count_label(values, len(domain.classes))
    except DiffError as error:
        faults.append(error)
    if sample.scene is not None:
        image = label
    elif not faults and label is not None and image != label:
        try:
            domain.load(index)  # knows which sizes belong together
        except DiffError as error:
            faults.append(error)
    return Look(image, label, tuple(faults))


def image_size(path: Path) -> Size:
    """The upright size of an image, from its header; a file of which header or end are not whole is decoded.

    Raises:
        DataError: the file is missing, empty, damaged, cut short or no image.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            whole = not is_cut_short(np.frombuffer(head + file.read(), dtype=np.uint8))
        if whole:
            with PillowImage.open(path) as image:
                lying = bool(image.info.get("exif")) and image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
                return Size(image.height, image.width) if lying else Size(image.width, image.height)
    except (UnidentifiedImageError, SyntaxError, ValueError, PillowImage.DecompressionBombError):
        pass
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    height, width = read_image(path).shape[:2]
    return Size(width, height)
