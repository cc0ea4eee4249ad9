"""Training samples as batches of tensors, loaded by worker processes."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli.data.dataset import TrainingSample, TrainingSet
from diffcli.errors import DiffError

_Loaded = tuple[TrainingSample, list[DiffError]] | DiffError
"""A sample with the faults of those in whose place it was drawn, or the fault that ends the run."""

ATTEMPTS = 20
"""Samples drawn in the place of a bad one before the run stops."""


@dataclass(frozen=True)
class Batch:
    """One batch of training samples of one size."""

    images: Tensor
    """B,H,W,3 uint8."""
    labels: Tensor
    """B,H,W int64 train ids."""
    identities: list[str]
    files: list[str]
    faults: list[DiffError] = field(default_factory=list)
    """Why samples could not be used in whose place others were drawn."""

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU copies while the processor goes on; the loader asks for it."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """On a device; from pinned memory without waiting for the copy."""
        images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


def training_batches(
    samples: TrainingSet,
    *,
    draws: Sequence[int],
    batch_size: int,
    workers: int,
    pin: bool = False,
    skip: bool = False,
) -> Iterator[Batch]:
    """Batches of the numbered samples, in order; with `pin` in page-locked memory, for a GPU.

    Args:
        skip: draw another sample in the place of one that cannot be used, the same one whenever the draw is repeated.

    Raises:
        DiffError: a sample cannot be used; raised when its batch is due, with everything before it delivered. With
            `skip`, only where none of `ATTEMPTS` others can be used either.
    """
    loader: DataLoader[_Loaded] = DataLoader(
        _Guarded(samples, attempts=ATTEMPTS if skip else 1),
        batch_size=batch_size,
        sampler=draws,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=single_threaded,
        pin_memory=pin,
    )
    batch: Batch | DiffError
    for batch in loader:
        if isinstance(batch, DiffError):
            raise batch
        yield batch


def single_threaded(_worker: int) -> None:
    """Set up a loading process: one thread; stopping is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


class _Guarded(Dataset[_Loaded]):
    """Hands a user's fault from a worker process to the main one as a value, so that its message stays clean."""

    def __init__(self, samples: TrainingSet, *, attempts: int) -> None:
        self.samples = samples
        self.attempts = attempts

    def __getitem__(self, draw: int) -> _Loaded:
        faults: list[DiffError] = []
        for attempt in range(self.attempts):
            try:
                return self.samples.sample(draw, attempt=attempt), faults
            except DiffError as error:
                faults.append(error)
        return faults[0]


def _collate(samples: list[_Loaded]) -> Batch | DiffError:
    good: list[TrainingSample] = []
    faults: list[DiffError] = []
    for sample in samples:
        if isinstance(sample, DiffError):
            return sample
        good.append(sample[0])
        faults += sample[1]
    return Batch(
        images=torch.from_numpy(np.stack([sample["image"] for sample in good])),
        labels=torch.from_numpy(np.stack([sample["label"] for sample in good])).long(),
        identities=[sample["identity"] for sample in good],
        files=[sample["file"] for sample in good],
        faults=faults,
    )
