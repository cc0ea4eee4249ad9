"""Reading every label of a domain and the header of every image, to say all that is wrong before training starts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffcli.config.size import Size
from diffcli.data.domain import Domain
from diffcli.data.headers import image_size
from diffcli.data.mapping import OutsideMapping, all_outside
from diffcli.data.statistics import (
    ClassStatistics,
    Progress,
    count_label,
    in_parallel,
    keep_statistics,
    kept_statistics,
)
from diffcli.errors import DataError, DiffError


@dataclass(frozen=True)
class SampleFacts:
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

    samples: list[SampleFacts]
    statistics: ClassStatistics

    @property
    def faults(self) -> list[DiffError]:
        """All that is wrong, in the order of the samples."""
        return [fault for one in self.samples for fault in one.faults]

    @property
    def damaged(self) -> int:
        """Samples that cannot be used whatever the mapping is."""
        return sum(any(not isinstance(f, OutsideMapping) for f in one.faults) for one in self.samples)

    @property
    def outside(self) -> list[OutsideMapping]:
        """Labels that hold values outside the mapping."""
        return [fault for fault in self.faults if isinstance(fault, OutsideMapping)]

    @property
    def unmapped(self) -> DataError | None:
        """All values outside the mapping as one error, with their shares of all pixels; None without any."""
        if not self.outside:
            return None
        counted = int(self.statistics.pixels.sum() + self.statistics.ignored.sum())
        return all_outside(self.outside, total=counted + sum(fault.total for fault in self.outside))


def survey(
    domain: Domain, *, workers: int = 4, progress: Progress | None = None, cache: Path | None = None
) -> Survey:
    """Read every sample; a bad one is reported and costs only itself.

    Class statistics are taken from the cache and kept there (`class_statistics`), so that the training that follows
    need not count again. Of images only the header and the end are read, unless they raise doubts.
    """
    known = kept_statistics(domain, cache=cache)
    counts = np.zeros((len(domain), len(domain.classes) + 1), dtype=np.int64)

    def read(index: int) -> SampleFacts:
        return _read_sample(domain, index, None if known else counts[index])

    facts = list(in_parallel(read, len(domain), workers=workers, progress=progress))
    statistics = known or ClassStatistics(domain.classes, counts[:, :-1], counts[:, -1])
    found = Survey(facts, statistics)
    if known is None and not found.faults and all(one.label for one in facts):
        keep_statistics(domain, statistics, cache=cache)
    return found


def _read_sample(domain: Domain, index: int, counts: np.ndarray | None) -> SampleFacts:
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
    elif not faults and image is not None and label is not None and not domain.same_shape(image, label):
        try:
            domain.load(index)  # knows which sizes belong together
        except DiffError as error:
            faults.append(error)
    return SampleFacts(image, label, tuple(faults))
