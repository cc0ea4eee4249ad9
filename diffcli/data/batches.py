"""Samples as batches, loaded by worker processes that outlive signals and whose failures are explained."""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli.data.dataset import TrainingSample, TrainingSet
from diffcli.errors import DataError, DiffError
from diffcli.runtime import console, signals

POLL = 5.0
"""Seconds after which a worker that has died is noticed."""
WAIT = 1800.0
"""Seconds without a batch after which the workers are given up."""

T = TypeVar("T")

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
    """B,H,W train ids: uint8 as loaded, int64 on the device."""
    identities: list[str]
    files: list[str]
    rare_classes: list[int | None]
    """Train id that rare class sampling drew each sample for."""
    faults: list[DiffError] = field(default_factory=list)
    """Why samples could not be used in whose place others were drawn."""

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU copies while the processor goes on; the loader asks for it."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """On a device; from pinned memory without waiting for the copy."""
        images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
        return replace(self, images=images, labels=labels.long())


def training_batches(
    samples: TrainingSet,
    *,
    draws: Sequence[int],
    batch_size: int,
    workers: int,
    pin: bool = False,
    skip: bool = False,
) -> Generator[Batch, None, None]:
    """Batches of the numbered samples, in order; with `pin` in page-locked memory, for a GPU.

    Args:
        skip: draw another sample in the place of one that cannot be used, the same one whenever the draw is repeated.

    Raises:
        DiffError: a sample cannot be used; raised when its batch is due, with everything before it delivered. With
            `skip`, only where none of `ATTEMPTS` others can be used either.
        DataError: see `load_batches`.
    """
    loaded = load_batches(
        _Guarded(samples, attempts=ATTEMPTS if skip else 1),
        draws,
        batch_size=batch_size,
        workers=workers,
        collate=_collate,
        pin=pin,
    )
    for batch in loaded:
        if isinstance(batch, DiffError):
            raise batch
        yield batch if isinstance(batch, Batch) else batch.tensors()


def load_batches(
    dataset: Dataset[Any],
    indexes: Sequence[int],
    *,
    batch_size: int,
    workers: int,
    collate: Callable[[list[Any]], T],
    pin: bool = False,
) -> Generator[T, None, None]:
    """What `collate` makes of every `batch_size` samples, in the order of `indexes`.

    With workers, samples and batches hold arrays, not tensors: arrays travel through pipes, while tensors would take
    shared memory and file descriptors, and a worker that has none left hangs for ever.

    Args:
        workers: processes that load; fewer are started where the system has no room for them. 0: this process loads.

    Raises:
        DataError: a worker was killed, or none has delivered for `WAIT` seconds.
    """
    batches = _start(dataset, indexes, batch_size=batch_size, workers=workers, collate=collate, pin=pin)
    last = time.monotonic()
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader timed out" in str(error) and time.monotonic() - last < WAIT:
                    continue
                raise _explained(error) from error
            yield batch
            last = time.monotonic()
    finally:
        _end(batches)


def _start(
    dataset: Dataset[Any],
    indexes: Sequence[int],
    *,
    batch_size: int,
    workers: int,
    collate: Callable[[list[Any]], Any],
    pin: bool,
) -> Iterator[Any]:
    """The running loader, with half the workers, and half of those, where the system has no room for them."""
    while workers and (error := _shortage(workers)):
        console.warn(
            f"{workers} loading processes cannot be started ({error.strerror or error}); continuing with "
            f"{workers // 2}: allow more open files (ulimit -n) and shared memory (docker run --shm-size=1g), or set "
            "runtime.data_workers"
        )
        workers //= 2
    with warnings.catch_warnings(), signals.deferred(), _sigchld_as_before():
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=indexes,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_set_up_worker,
            pin_memory=pin,
            timeout=POLL if workers else 0,
        )
        try:
            return iter(loader)
        except OSError as error:
            raise DataError(
                f"{workers} loading processes cannot be started: {error.strerror or error}",
                hint="set fewer runtime.data_workers; 0 loads in the main process",
            ) from error


def _shortage(workers: int) -> OSError | None:
    """Why so many workers' pipes and semaphores cannot be had; tried out, since half a loader cannot be undone."""
    queues: list[SimpleQueue[int]] = []
    try:
        queues.extend(SimpleQueue() for _ in range(2 * workers + 4))
    except OSError as error:
        return error
    finally:
        for queue in queues:
            queue.close()
    return None


@contextmanager
def _sigchld_as_before() -> Iterator[None]:
    """Take back the loader's handler, which would raise in the middle of whatever runs when a worker dies.

    `next` reports a dead worker too, where nothing is half done.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _end(batches: Iterator[Any]) -> None:
    """Stop the workers; one that does not stop in time (it hangs in a read) is killed, since it ignores SIGTERM."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()
        for worker in batches._workers:  # type: ignore[attr-defined]
            if worker.is_alive():
                worker.kill()


def _explained(error: RuntimeError) -> Exception:
    """What a failure of the workers means; any other error as it is."""
    if "DataLoader timed out" in str(error):
        return DataError(
            f"the loading processes have delivered nothing for {WAIT / 60:.0f} minutes",
            hint="check that the dataset's disk or network drive answers; in a container allow more shared memory "
            "(docker run --shm-size=1g); runtime.data_workers: 0 loads in the main process",
        )
    if "DataLoader worker" in str(error):
        return DataError(
            "a loading process was killed, probably because memory ran out",
            hint="set fewer runtime.data_workers (0 loads in the main process), or free some memory",
        )
    if "Too many open files" in str(error):
        return DataError(
            "too many open files", hint="raise the limit (ulimit -n), or set runtime.data_workers: 0"
        )
    return error


def _set_up_worker(_worker: int) -> None:
    """One thread, and no reaction to signals that ask to stop."""
    signals.ignore_in_worker()
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


@dataclass(frozen=True)
class _Arrays:
    """A batch as it travels from a worker."""

    samples: list[TrainingSample]
    faults: list[DiffError]

    def tensors(self) -> Batch:
        return Batch(
            images=torch.from_numpy(np.stack([sample["image"] for sample in self.samples])),
            labels=torch.from_numpy(np.stack([sample["label"] for sample in self.samples])),
            identities=[sample["identity"] for sample in self.samples],
            files=[sample["file"] for sample in self.samples],
            rare_classes=[sample["rare_class"] for sample in self.samples],
            faults=self.faults,
        )

    def pin_memory(self) -> Batch:
        return self.tensors().pin_memory()


def _collate(samples: list[_Loaded]) -> _Arrays | DiffError:
    batch = _Arrays([], [])
    for sample in samples:
        if isinstance(sample, DiffError):
            return sample
        batch.samples.append(sample[0])
        batch.faults.extend(sample[1])
    return batch
