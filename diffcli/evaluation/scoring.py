"""Scores of a model on a domain; training's validation and `diff eval` share it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.core.metrics import ConfusionMatrix, Scores
from diffcli.core.model import SegmentationModel
from diffcli.data.batches import single_threaded
from diffcli.data.dataset import Domain
from diffcli.data.transforms import resize_image, resize_label
from diffcli.drawing.pictures import Pixels
from diffcli.errors import DataError
from diffcli.prediction.inference import network_image, segment_images
from diffcli.runtime import distributed

SHOWN_WIDTH = 1024
"""Samples for pictures are at most this wide."""
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
    model: SegmentationModel,
    domain: Domain,
    config: EvalConfig,
    *,
    workers: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> DomainScores:
    """Segment every sample of a labelled domain and count its pixels into one confusion matrix.

    A sample that cannot be read, or whose label holds values outside the mapping, is left out and told in `problems`.
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
    config = settings_of(domain, config)
    classes = len(model.config.classes)

    def count_share() -> _Tally:
        tally = _Tally(classes, len(domain))
        _count(tally, model, domain, config, workers=workers, progress=progress)
        return tally

    tally = _merged(distributed.all_gather(count_share))
    shown = tally.shown
    if shown is None:
        raise tally.problems[0].error
    count = len(domain) - tally.skipped
    return DomainScores(
        name=domain.name,
        samples=count,
        skipped=tally.skipped,
        problems=tuple(problem.error for problem in tally.problems),
        counts=tally.matrix.counts,
        scores=tally.matrix.scores(),
        image_iou=tally.image_iou,
        shown=distributed.broadcast(lambda: _shown(domain, *shown, iou=float(tally.image_iou[shown[0]]))),
        seconds_per_image=tally.seconds / count,
        evaluations_per_image=tally.evaluations / count,
        size=config.size,
    )


def _count(
    tally: "_Tally",
    model: SegmentationModel,
    domain: Domain,
    config: EvalConfig,
    *,
    workers: int,
    progress: Callable[[], object],
) -> None:
    """Segment this process's share of the samples into the tally."""
    evaluations, done = model.extractor.backbone.evaluations, 0
    own = distributed.shard(range(len(domain)), chunk=config.batch_size)
    for batch in _equal_batches(domain, own, config, workers=workers):
        good = [sample for sample in batch if isinstance(sample, _Loaded)]
        started = time.perf_counter()
        for sample, mask in zip(good, _predict(model, good, config), strict=True):
            tally.add(sample, mask)
        tally.seconds += time.perf_counter() - started
        tally.add_problems([sample for sample in batch if isinstance(sample, _Failed)])
        before, done = done, min(done + len(batch) * distributed.world_size(), len(domain))
        for _ in range(before, done):
            progress()
    tally.evaluations = model.extractor.backbone.evaluations - evaluations


def segment_domain(
    model: SegmentationModel, domain: Domain, config: EvalConfig, *, workers: int = 0
) -> Iterator[tuple[int, Pixels]]:
    """(index, mask of train ids at the image's own size) of every sample in order, labelled or not.

    Raises:
        DataError: the first sample that cannot be read.
        DiffError: the network's output is not finite.
    """
    config = settings_of(domain, config)
    for batch in _equal_batches(domain, range(len(domain)), config, workers=workers):
        good: list[_Loaded] = []
        for sample in batch:
            if isinstance(sample, _Failed):
                raise sample.error
            good.append(sample)
        for sample, mask in zip(good, _predict(model, good, config), strict=True):
            yield sample.index, mask.cpu().numpy()


def settings_of(domain: Domain, config: EvalConfig) -> EvalConfig:
    """The settings with the domain's own size, where it has one."""
    return config if domain.eval_size is None else config.model_copy(update={"size": domain.eval_size})


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

    def add(self, sample: "_Loaded", mask: Tensor) -> None:
        counts, iou = _compare(mask, sample.label, classes=self.matrix.classes)
        self.matrix.counts += counts
        self.image_iou[sample.index] = iou
        if self.shown is None or sample.index == len(self.image_iou) // 2:
            self.shown = (sample.index, mask.cpu().numpy())

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


def _compare(mask: Tensor, label: Pixels, *, classes: int) -> tuple[Tensor, float]:
    """Confusion counts of one image, and its mean IoU over the classes in its label (nan without any)."""
    matrix = ConfusionMatrix(classes)
    matrix.update(mask, torch.from_numpy(label).to(mask.device))
    return matrix.counts, matrix.scores().mean_iou_present


def evaluate_sample(model: SegmentationModel, domain: Domain, index: int, config: EvalConfig) -> Shown:
    """One sample again, for a picture: the noise is the image's own, so that the mask is the same as before."""
    config = settings_of(domain, config)
    sample = _load(domain, index, config.size)
    [mask] = _predict(model, [sample], config)
    _, iou = _compare(mask, sample.label, classes=len(model.config.classes))
    return _shown(domain, index, mask.cpu().numpy(), iou=iou)


def _merged(tallies: Sequence[_Tally]) -> _Tally:
    first, *others = tallies
    for other in others:
        first.merge(other)
    return first


@dataclass(frozen=True)
class _Loaded:
    """One sample as a worker hands it over."""

    index: int
    identity: str
    image: Pixels
    """At the network's size."""
    label: Pixels
    """At its own size."""


@dataclass(frozen=True)
class _Failed:
    """A sample that cannot be used, and why."""

    index: int
    error: DataError


class _Samples(Dataset["_Loaded | _Failed"]):
    """The domain's samples; a user's fault comes as a value, since exceptions lose their fields between processes."""

    def __init__(self, domain: Domain, size: Size | None) -> None:
        self.domain, self.size = domain, size

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, index: int) -> _Loaded | _Failed:
        try:
            return _load(self.domain, index, self.size)
        except DataError as error:  # a subclass may not survive the way between processes
            return _Failed(index, DataError(error.message, where=error.where, hint=error.hint))


def _load(domain: Domain, index: int, size: Size | None) -> _Loaded:
    image, label = domain.load(index)
    return _Loaded(index, domain.identity(index), network_image(image, size), label)


def _equal_batches(
    domain: Domain, indexes: Sequence[int], config: EvalConfig, *, workers: int
) -> Iterator[list[_Loaded | _Failed]]:
    """Samples of these numbers in order, in batches whose images are of one size; unreadable ones come along."""
    loader = DataLoader(
        _Samples(domain, config.size),
        batch_size=config.batch_size,
        sampler=indexes,
        num_workers=min(workers, math.ceil(len(indexes) / config.batch_size)),
        collate_fn=list,
        worker_init_fn=single_threaded,
    )
    for samples in loader:
        for _, batch in groupby(samples, lambda s: s.image.shape if isinstance(s, _Loaded) else None):
            yield list(batch)


def _predict(model: SegmentationModel, samples: Sequence[_Loaded], config: EvalConfig) -> list[Tensor]:
    """Masks (H,W) of samples of one size, each at its label's size."""
    if not samples:
        return []
    return segment_images(
        model,
        [sample.image for sample in samples],
        sizes=[(sample.label.shape[0], sample.label.shape[1]) for sample in samples],
        identities=[sample.identity for sample in samples],
        config=config,
        references=[sample.label for sample in samples] if config.reference == "labels" else None,
    )


def _shown(domain: Domain, index: int, mask: Pixels, *, iou: float) -> Shown:
    image, label = domain.load(index)
    height, width = label.shape
    scale = min(1.0, SHOWN_WIDTH / width)
    size = Size(round(width * scale), max(1, round(height * scale)))
    truth, prediction = resize_label(label, size), resize_label(mask, size)
    return Shown(domain.identity(index), resize_image(image, size), truth, prediction, iou)
