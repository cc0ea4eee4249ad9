"""Scores of a segmenter on a labelled domain; training's validation and `diff eval` share it."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from diffcli.config.size import Size
from diffcli.core.metrics import ConfusionMatrix, Scores
from diffcli.data.batches import load_batches
from diffcli.data.dataset import Domain
from diffcli.data.transforms import resize_image, resize_label
from diffcli.drawing.pictures import Pixels
from diffcli.errors import DataError
from diffcli.prediction.segmenter import Segmenter, at_network_size
from diffcli.runtime import distributed

SHOWN_WIDTH = 1024
"""Samples for pictures are at most this wide."""
BATCHES_A_WORKER = 4
"""Fewer are read sooner than a process that loads them has started."""
MAX_PROBLEMS = 20
"""Unreadable samples that are kept by name; the others are counted."""


class Shown(NamedTuple):
    """One evaluated sample, for a picture: image, truth and prediction of one size, none larger than a screen."""

    identity: str
    image: Pixels
    truth: Pixels
    prediction: Pixels
    iou: float
    """Mean IoU of this image over the classes in its label."""


@dataclass(frozen=True)
class DomainScores:
    """What one domain's evaluation found."""

    name: str
    samples: int
    """Images that were scored."""
    skipped: int
    """Images left out because they or their labels are unreadable or wrong."""
    problems: tuple[DataError, ...]
    """Why: the first of them."""
    counts: Tensor
    """(classes, classes) int64 on the CPU: pixels by true and predicted class."""
    scores: Scores
    image_iou: NDArray[np.float32]
    """Mean IoU of each image over the classes in its label; nan where skipped or unlabelled."""
    shown: Shown
    """The sample in the middle, for the picture."""
    seconds_per_image: float
    """Of the model, not of loading."""
    evaluations_per_image: float
    """U-Net evaluations."""
    size: Size | None = None
    """At which the network saw the images; None: each at its own."""


def evaluate_domain(
    segmenter: Segmenter,
    domain: Domain,
    *,
    workers: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> DomainScores:
    """Segment every sample of a labelled domain and count its pixels into one confusion matrix.

    A sample that cannot be read, or whose label holds values outside the mapping, is left out and named in `problems`.
    Several processes (`diffcli.runtime.distributed`) take every other batch; each returns the scores of all samples.

    Args:
        workers: processes that load; 0 loads in this one.
        progress: called once an image; those of other processes count as done when as many are done here.

    Raises:
        DataError: the domain has no labels, or not one sample could be read.
        DiffError: the network's output is not finite.
    """
    if all(sample.label is None and sample.scene is None for sample in domain.samples):
        raise DataError(
            "no labels to compare with",
            where=domain.name,
            hint="masks of unlabelled images: diff predict IMAGES -o MASKS",
        )

    def count() -> _Tally:
        tally = _Tally(segmenter.network.classes, len(domain))
        _count(tally, segmenter, domain, workers=workers, progress=progress)
        return tally

    tally = _merged(distributed.all_gather(count))
    shown = tally.shown
    if shown is None:
        raise tally.problems[0].error
    samples = len(domain) - tally.skipped
    return DomainScores(
        name=domain.name,
        samples=samples,
        skipped=tally.skipped,
        problems=tuple(problem.error for problem in tally.problems),
        counts=tally.matrix.counts,
        scores=tally.matrix.scores(),
        image_iou=tally.image_iou,
        shown=distributed.broadcast(lambda: _shown(domain, *shown, iou=float(tally.image_iou[shown[0]]))),
        seconds_per_image=tally.seconds / samples,
        evaluations_per_image=tally.evaluations / samples,
        size=network_size(segmenter, domain),
    )


def _count(
    tally: "_Tally",
    segmenter: Segmenter,
    domain: Domain,
    *,
    workers: int,
    progress: Callable[[], object],
) -> None:
    """Segment this process's part of the samples into the tally."""
    before, done = segmenter.network.evaluations, 0
    indexes = distributed.shard(range(len(domain)), chunk=segmenter.batch_size)
    for batch in _equal_batches(segmenter, domain, indexes, workers=workers):
        loaded = [sample for sample in batch if isinstance(sample, _Loaded)]
        started = time.perf_counter()
        for sample, planes in zip(loaded, list(segmenter.segment(loaded)), strict=True):
            tally.add(sample, planes.mask)
        tally.seconds += time.perf_counter() - started
        tally.add_problems([sample for sample in batch if isinstance(sample, _Failed)])
        reported, done = done, min(done + len(batch) * distributed.world_size(), len(domain))
        for _ in range(reported, done):
            progress()
    tally.evaluations = segmenter.network.evaluations - before


def segment_domain(segmenter: Segmenter, domain: Domain, *, workers: int = 0) -> Iterator[tuple[int, Pixels]]:
    """(index, mask of train ids at the image's size) of every sample in order, labelled or not.

    Raises:
        DataError: the first sample that cannot be read.
        DiffError: the network's output is not finite.
    """
    for batch in _equal_batches(segmenter, domain, range(len(domain)), workers=workers):
        loaded: list[_Loaded] = []
        for sample in batch:
            if isinstance(sample, _Failed):
                raise sample.error
            loaded.append(sample)
        for sample, planes in zip(loaded, segmenter.segment(loaded), strict=True):
            yield sample.index, planes.mask


def network_size(segmenter: Segmenter, domain: Domain) -> Size | None:
    """At which the network sees the domain's images: its eval_size, else eval.size; None: each file's size."""
    return domain.eval_size or segmenter.settings.size


class _Tally:
    """What is kept of a domain while it is evaluated; it does not grow but for a number an image."""

    def __init__(self, classes: int, samples: int) -> None:
        self.matrix = ConfusionMatrix(classes)
        self.image_iou = np.full(samples, np.nan, dtype=np.float32)
        self.problems: list[_Failed] = []
        self.skipped = 0
        self.seconds = 0.0
        self.evaluations = 0
        self.shown: tuple[int, Pixels] | None = None
        """Index and mask of the sample in the middle, or of the first one until that has come."""

    def add(self, sample: "_Loaded", mask: Pixels) -> None:
        counts, iou = _compare(mask, sample.label, classes=self.matrix.classes)
        self.matrix.counts += counts
        self.image_iou[sample.index] = iou
        if self.shown is None or sample.index == len(self.image_iou) // 2:
            self.shown = (sample.index, mask)

    def add_problems(self, problems: Sequence["_Failed"]) -> None:
        self.skipped += len(problems)
        self.problems = sorted([*self.problems, *problems], key=lambda problem: problem.index)[:MAX_PROBLEMS]

    def merge(self, other: "_Tally") -> None:
        """Take in what another process counted of other samples of the same domain."""
        self.matrix.counts += other.matrix.counts
        self.image_iou = np.where(np.isnan(self.image_iou), other.image_iou, self.image_iou)
        self.add_problems(other.problems)
        self.skipped += other.skipped - len(other.problems)
        self.seconds += other.seconds
        self.evaluations += other.evaluations
        middle = len(self.image_iou) // 2
        candidates = [shown for shown in (self.shown, other.shown) if shown is not None]
        self.shown = min(candidates, key=lambda shown: (shown[0] != middle, shown[0]), default=None)


def _compare(mask: Pixels, label: Pixels, *, classes: int) -> tuple[Tensor, float]:
    """Confusion counts of one image, and its mean IoU over the classes in its label (nan without any)."""
    matrix = ConfusionMatrix(classes)
    matrix.update(torch.from_numpy(mask), torch.from_numpy(label))
    return matrix.counts, matrix.scores().mean_iou_present


def evaluate_sample(segmenter: Segmenter, domain: Domain, index: int) -> Shown:
    """One sample again, for a picture: the noise is the image's own, so that the mask is the same as before."""
    sample = _load(domain, index, size=network_size(segmenter, domain), takes_label=_takes_labels(segmenter))
    [planes] = segmenter.segment([sample])
    _, iou = _compare(planes.mask, sample.label, classes=segmenter.network.classes)
    return _shown(domain, index, planes.mask, iou=iou)


def _merged(tallies: Sequence[_Tally]) -> _Tally:
    first, *others = tallies
    for other in others:
        first.merge(other)
    return first


@dataclass(frozen=True)
class _Loaded:
    """One sample as a worker hands it over: a `NetworkImage` with its label."""

    index: int
    identity: str
    image: Pixels
    """At the network's size."""
    label: Pixels
    """At the size of its file, which the mask gets."""
    reference: Pixels | None

    @property
    def size(self) -> tuple[int, int]:
        return self.label.shape[0], self.label.shape[1]


@dataclass(frozen=True)
class _Failed:
    """A sample that cannot be used, and why."""

    index: int
    error: DataError


class _Samples(Dataset["_Loaded | _Failed"]):
    """The domain's samples; a user's fault comes as a value, since exceptions lose their fields between processes."""

    def __init__(self, domain: Domain, *, size: Size | None, takes_label: bool) -> None:
        self.domain, self.size, self.takes_label = domain, size, takes_label

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, index: int) -> _Loaded | _Failed:
        try:
            return _load(self.domain, index, size=self.size, takes_label=self.takes_label)
        except DataError as error:
            return _Failed(index, error)


def _load(domain: Domain, index: int, *, size: Size | None, takes_label: bool) -> _Loaded:
    image, label = domain.load(index)
    reference = label if takes_label else None
    return _Loaded(index, domain.identity(index), at_network_size(image, size), label, reference)


def _takes_labels(segmenter: Segmenter) -> bool:
    """Whether the true labels are the reference of the conditional branch."""
    return segmenter.settings.reference == "labels"


def _equal_batches(
    segmenter: Segmenter, domain: Domain, indexes: Sequence[int], *, workers: int
) -> Iterator[list[_Loaded | _Failed]]:
    """Samples of these numbers in order, in batches whose images are of one size; unreadable ones come along."""
    size, batch_size = network_size(segmenter, domain), segmenter.batch_size
    loaded = load_batches(
        _Samples(domain, size=size, takes_label=_takes_labels(segmenter)),
        indexes,
        batch_size=batch_size,
        workers=min(workers, os.cpu_count() or 1, len(indexes) // batch_size // BATCHES_A_WORKER),
        collate=list,
    )
    for samples in loaded:
        for _, batch in groupby(samples, lambda s: s.image.shape if isinstance(s, _Loaded) else None):
            yield list(batch)


def _shown(domain: Domain, index: int, mask: Pixels, *, iou: float) -> Shown:
    image, label = domain.load(index)
    height, width = label.shape
    scale = min(1.0, SHOWN_WIDTH / width)
    size = Size(round(width * scale), max(1, round(height * scale)))
    truth, prediction = resize_label(label, size), resize_label(mask, size)
    return Shown(domain.identity(index), resize_image(image, size), truth, prediction, iou)
