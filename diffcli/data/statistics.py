"""How many pixels of each class each sample holds, and the probabilities of rare class sampling that follow from it.

Counting reads every label once, in parallel, and is kept in the user's cache folder: never beside the data.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from diffcli.config.settings import RareClassConfig
from diffcli.data.domain import Domain
from diffcli.data.labels import Label
from diffcli.data.transforms import class_counts
from diffcli.errors import DataError, DiffError
from diffcli.files import write_atomically

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""

T = TypeVar("T")

_FORMAT = 2


@dataclass(frozen=True)
class ClassStatistics:
    """Pixels of each class in each sample of a domain, as its label files hold them (before resizing)."""

    classes: tuple[str, ...]
    pixels: NDArray[np.int64]
    """(samples, classes): pixels of the class in the sample."""
    ignored: NDArray[np.int64]
    """(samples,): pixels that carry no class."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """(classes,): share of all labelled pixels; 0 everywhere where nothing is labelled."""
        totals = self.pixels.sum(axis=0)
        return np.asarray(totals / max(totals.sum(), 1), dtype=np.float64)


@dataclass(frozen=True)
class RareClasses:
    """Rare class sampling, ready to draw from."""

    classes: NDArray[np.int64]
    """Train ids that are sampled, rarest first."""
    weights: NDArray[np.float64]
    """Probability of each of them."""
    samples: dict[int, NDArray[np.int64]]
    """train id -> indexes of the samples that hold enough of it."""
    left_out: tuple[int, ...]
    """Train ids of which no sample holds enough."""


def rare_class_probabilities(
    totals: NDArray[np.int64], *, temperature: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Train ids that occur, by ascending number of pixels, and P = softmax((1 - f) / temperature) in float32.

    f is the class's share of the pixels of all classes (DAFormer's rare class sampling).
    """
    classes = np.argsort(totals, kind="stable")
    classes = classes[totals[classes] > 0]
    frequency = (totals[classes] / totals.sum()).astype(np.float32)
    logits = (1 - frequency) / np.float32(temperature)
    weights = np.exp(logits - logits.max(initial=-np.inf))
    return classes, (weights / weights.sum()).astype(np.float32)


def class_weights(shares: NDArray[np.float64], *, balance: float) -> NDArray[np.float32]:
    """(classes,) weight of each class's pixels, share^-balance, scaled so that the mean over all pixels is 1.

    A class without pixels gets the weight of the rarest.
    """
    weights = np.maximum(shares, shares[shares > 0].min(initial=1.0)) ** -balance
    return np.asarray(weights / max(float((shares * weights).sum()), 1e-12), dtype=np.float32)


def rare_classes(statistics: ClassStatistics, config: RareClassConfig) -> RareClasses:
    """Which classes are drawn how often, and from which samples: those with more than `min_pixels` pixels of the class.

    A class that no sample holds enough of is left out; the others' probabilities are scaled to sum to one.

    Raises:
        DataError: no sample holds enough pixels of any class.
    """
    classes, weights = rare_class_probabilities(statistics.pixels.sum(axis=0), temperature=config.temperature)
    samples = {int(c): np.flatnonzero(statistics.pixels[:, c] > config.min_pixels) for c in classes}
    kept = np.array([samples[int(c)].size > 0 for c in classes], dtype=bool)
    if not kept.any():
        raise DataError(
            f"rare class sampling: no image holds more than {config.min_pixels} pixels of any class",
            hint="lower train.rare_class_sampling.min_pixels, or set train.rare_class_sampling: null",
        )
    chosen = {int(c): samples[int(c)] for c in classes[kept]}
    share = weights[kept].astype(np.float64)
    if share.sum() == 0:  # every class left is too frequent for float32 to tell from zero
        share = np.ones(len(chosen))
    left_out = sorted(set(range(len(statistics.classes))) - set(chosen))
    return RareClasses(np.array(list(chosen)), share / share.sum(), chosen, tuple(left_out))


def class_statistics(
    domain: Domain,
    *,
    workers: int = 4,
    progress: Progress | None = None,
    cache: Path | None = None,
    faults: dict[int, DataError] | None = None,
) -> ClassStatistics:
    """Pixels of each class in each sample, from the cache where the same files were counted before.

    The cache is keyed by the list of label files, their sizes and times and the mapping, so that a changed folder is
    counted again. It is in `cache`, by default the user's cache folder (DIFFCLI_CACHE or ~/.cache/diffcli).

    Args:
        workers: threads that decode (decoding leaves the interpreter's lock).
        progress: called with (done, total) after each sample.
        faults: receives sample -> why its label cannot be read; such samples count nothing, and nothing is cached.

    Raises:
        DataError: a label is missing, damaged or holds values outside the mapping, and no `faults` are kept.
    """
    statistics = kept_statistics(domain, cache=cache)
    if statistics is None:
        known = len(faults or ())
        statistics = _count(domain, workers=workers, progress=progress, faults=faults)
        if len(faults or ()) == known:
            keep_statistics(domain, statistics, cache=cache)
    return statistics


def kept_statistics(domain: Domain, *, cache: Path | None = None) -> ClassStatistics | None:
    """The statistics of an earlier count of the same files; None where there are none or they cannot be used."""
    try:
        with _path(domain, cache).open("rb") as file:
            counts = np.asarray(np.load(file, allow_pickle=False), dtype=np.int64)
    except (OSError, ValueError, EOFError):
        return None
    if counts.shape != (len(domain), len(domain.classes) + 1):
        return None
    return ClassStatistics(domain.classes, counts[:, :-1], counts[:, -1])


def keep_statistics(domain: Domain, statistics: ClassStatistics, *, cache: Path | None = None) -> None:
    """Keep the statistics for later; a cache that cannot be written costs time, never the run."""
    counts = np.concatenate([statistics.pixels, statistics.ignored[:, None]], axis=1)
    try:
        with write_atomically(_path(domain, cache)) as temporary:
            np.save(temporary, counts)
    except (DiffError, OSError):
        return


def count_label(label: Label, classes: int) -> NDArray[np.int64]:
    """(classes + 1,): pixels of each class, then those that carry none."""
    found = class_counts(label)
    return np.append(found[:classes], found[classes:].sum())


def cache_folder() -> Path:
    """DIFFCLI_CACHE, or diffcli in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    own = os.environ.get("DIFFCLI_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diffcli"


def _count(
    domain: Domain, *, workers: int, progress: Progress | None, faults: dict[int, DataError] | None
) -> ClassStatistics:
    total, classes = len(domain), len(domain.classes)
    counts = np.zeros((total, classes + 1), dtype=np.int64)

    def count(index: int) -> None:
        try:
            counts[index] = count_label(domain.read_label(index), classes)
        except DataError as error:
            if faults is None:
                raise
            faults[index] = error

    for _ in in_parallel(count, total, workers=workers, progress=progress):
        pass
    return ClassStatistics(domain.classes, counts[:, :-1], counts[:, -1])


def in_parallel(
    work: Callable[[int], T], total: int, *, workers: int, progress: Progress | None = None
) -> Iterator[T]:
    """work(0), work(1), ... in order, by threads; the first exception cancels what has not begun."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            for done, result in enumerate(pool.map(work, range(total)), start=1):
                if progress is not None:
                    progress(done, total)
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _path(domain: Domain, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "statistics" / f"{_key(domain)}.npy"


def _key(domain: Domain) -> str:
    """Digest of everything that the counts depend on."""
    digest = hashlib.sha256(f"{_FORMAT} {domain.classes}".encode())
    for reader in domain.readers:
        encoding = reader.encoding
        others = (encoding.other_ids, encoding.other_colors)
        parts = (sorted(encoding.ids.items()), encoding.colors, encoding.divide, encoding.plain_below, others)
        digest.update(repr((*parts, reader.train_ids)).encode())
    for sample in domain.samples:
        if sample.label is not None:
            digest.update(file_state(sample.label) + f"{sample.reader}\n".encode())
        else:
            digest.update(f"{sample.scene} {domain.resize}\n".encode())
    if domain.samples and domain.samples[0].scene is not None:
        digest.update(domain.read_label(0).tobytes())  # another way of drawing scenes gives another key
    return digest.hexdigest()[:40]


def file_state(path: Path) -> bytes:
    """A file's name, size and time of change, for digests; of a file that cannot be found its name alone."""
    name = os.fsencode(path)
    try:
        state = path.stat()
    except (OSError, ValueError):
        return name + b"\0"
    return name + f"\0{state.st_size} {state.st_mtime_ns} ".encode()
