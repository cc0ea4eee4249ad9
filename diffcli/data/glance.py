"""A look at a handful of labels, for `check` and `train`: what they hold, and what in the mapping does not fit them."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffcli.classes import IGNORE_ID
from diffcli.data.domain import Domain
from diffcli.data.mapping import OutsideMapping, Value, all_outside, likely_ids, percent
from diffcli.data.statistics import ClassStatistics, count_label
from diffcli.errors import DataError, DiffError
from diffcli.runtime.words import counted

HANDFUL = 8


@dataclass
class Glance:
    """What a few samples, spread evenly over a domain, turned out to be."""

    samples: int = 0
    faults: list[DiffError] = field(default_factory=list)
    """Samples that cannot be used."""
    outside: list[OutsideMapping] = field(default_factory=list)
    """Labels with values outside the mapping."""
    values: Counter[Value] = field(default_factory=Counter)
    """Value or colour -> pixels, as the files hold them."""
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(classes,): pixels of each class."""

    @property
    def errors(self) -> list[DiffError]:
        """What training would fail of, values outside the mapping as one error."""
        total = sum(self.values.values())
        return [*self.faults, *([all_outside(self.outside, total=total)] if self.outside else [])]


def glance(domain: Domain, *, most: int = HANDFUL) -> Glance:
    """Load at most `most` labelled samples and count what their labels hold."""
    labelled = [i for i, sample in enumerate(domain.samples) if sample.label is not None]
    few = min(most, len(labelled))
    found = Glance(few, pixels=np.zeros(len(domain.classes), dtype=np.int64))
    for index in (labelled[i * len(labelled) // few] for i in range(few)):
        sample = domain.samples[index]
        assert sample.label is not None
        try:
            found.values.update(domain.readers[sample.reader].stored_values(sample.label))
            _, label = domain.load(index)
            found.pixels += count_label(label, len(domain.classes))[:-1]
        except OutsideMapping as error:
            found.outside.append(error)
        except DiffError as error:
            found.faults.append(error)
    return found


def empty_classes(domain: Domain, found: Glance, statistics: ClassStatistics | None = None) -> str | None:
    """Which classes have no pixel in any label, and the mapping that was probably meant; None where all have some.

    Without `statistics` it says so only where the handful is the whole domain, or where its values suggest another
    mapping than the one in use: rare classes are missing from most handfuls.
    """
    if found.outside or not found.samples:
        return None
    pixels = found.pixels if statistics is None else statistics.pixels.sum(axis=0)
    empty = [name for name, count in zip(domain.classes, pixels, strict=True) if not count]
    labelled = sum(sample.label is not None for sample in domain.samples)
    suggestion = _suggestion(domain, found)
    if not empty or (statistics is None and found.samples < labelled and not suggestion):
        return None
    read = labelled if statistics is not None else found.samples
    one = len(empty) == 1
    text = (
        f"{domain.name}: {'class' if one else 'classes'} without one pixel in "
        f"{counted(read, 'label')}: {', '.join(empty)}"
    )
    return f"{text}; {suggestion}" if suggestion else text


def _suggestion(domain: Domain, found: Glance) -> str:
    """label_ids that the values in the files suggest, where they differ from the mapping in use."""
    settings = {reader.encoding.setting for reader in domain.readers}
    values = {value: pixels for value, pixels in found.values.items() if isinstance(value, int)}
    if len(values) != len(found.values) or not settings & {"train ids", "label_ids"}:
        return ""
    likely = likely_ids(list(values), len(domain.classes))
    if likely is None or all(_now(domain, value) == train_id for value, train_id in likely.items()):
        return ""
    total = sum(values.values())
    held = " and ".join(f"{value} ({percent(values[value], total)})" for value in sorted(values))
    ignored = ", and 255 is ignored" if IGNORE_ID in values and _now(domain, IGNORE_ID) == IGNORE_ID else ""
    lines = ", ".join(f"{value}: {train_id}" for value, train_id in likely.items())
    return f"the files hold {held}{ignored}. Likely: label_ids: {{{lines}}}"


def _now(domain: Domain, value: int) -> int:
    """The train id that a value becomes."""
    encoding = domain.readers[0].encoding
    other = IGNORE_ID if encoding.other_ids is None else encoding.other_ids
    return encoding.ids.get(value, other)


def no_pixel_at_all(domain: Domain, statistics: ClassStatistics) -> DataError | None:
    """An error where no label carries a class: nothing could be learnt or scored."""
    if statistics.pixels.any():
        return None
    return DataError(
        f"{domain.name}: no pixel of any label carries a class",
        hint="every value is ignored: set label_ids to what the values mean",
    )
