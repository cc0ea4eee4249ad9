"""Training samples as batches of tensors, loaded by worker processes."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli.data.dataset import TrainingSample, TrainingSet
from diffcli.errors import DiffError


@dataclass(frozen=True)
class Batch:
    """One batch of training samples of one size."""

    images: Tensor
    """B,H,W,3 uint8."""
    labels: Tensor
    """B,H,W int64 train ids."""
    identities: list[str]
    files: list[str]

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU copies while the processor goes on; the loader asks for it."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """On a device; from pinned memory without waiting for the copy."""
        images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
        return replace(self, images=images, labels=labels)


def training_batches(
    samples: TrainingSet, *, draws: Sequence[int], batch_size: int, workers: int, pin: bool = False
) -> Iterator[Batch]:
    """Batches of the numbered samples, in order; with `pin` in page-locked memory, for a GPU.

    Raises:
        DiffError: a sample cannot be used; raised when its batch is due, with everything before it delivered.
    """
    loader: DataLoader[TrainingSample | DiffError] = DataLoader(
        _Guarded(samples),
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


class _Guarded(Dataset[TrainingSample | DiffError]):
    """Hands a user's fault from a worker process to the main one as a value, so that its message stays clean."""

    def __init__(self, samples: TrainingSet) -> None:
        self.samples = samples

    def __getitem__(self, draw: int) -> TrainingSample | DiffError:
        try:
            return self.samples[draw]
        except DiffError as error:
            return error


def _collate(samples: list[TrainingSample | DiffError]) -> Batch | DiffError:
    good = []
    for sample in samples:
        if isinstance(sample, DiffError):
            return sample
        good.append(sample)
    return Batch(
        images=torch.from_numpy(np.stack([sample["image"] for sample in good])),
        labels=torch.from_numpy(np.stack([sample["label"] for sample in good])).long(),
        identities=[sample["identity"] for sample in good],
        files=[sample["file"] for sample in good],
    )
