"""Many processes as one program, as torchrun or `accelerate launch` start them: one a GPU, on one or several machines.

Without a launcher there is one process, and every function here does the plain thing. With one, each process is a rank
of `world_size()`; rank 0 is the main process. Ranks work on shards of the same list and meet where their results are
put together: what one of them raises there, all raise, so that none waits for another that has gone. Words and tables
are those of rank 0 alone; an error is printed once, whichever rank meets it.

The collectives are torch.distributed's, with three additions of ours: a DiffError travels with the values, nothing is
exchanged without a launcher, and torch is imported only where there is one. They run over gloo on the CPU: eval and
predict have no accelerate.Accelerator, whose collectives would also move every value through the GPU, and gloo notices
at once that a rank has died. Gradients go through accelerate and DistributedDataParallel (NCCL between GPUs).
"""

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from diffcli.errors import DataError, DiffError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TIMEOUT = timedelta(hours=12)
"""How long a rank waits for the others' results; one that died is noticed at once, by its closed connection."""
GRACE = 3.0
"""Seconds that a rank with an error waits for the others to report theirs, before the launcher ends them all."""
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher sets."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Membership:
    """This process among the others."""

    rank: int
    world_size: int
    group: "ProcessGroup"
    """All ranks, over gloo."""
    store: Any
    """Keys and values that all ranks see; it answers also while they wait for each other."""


_membership: list[_Membership] = []
"""The one membership, while there is one."""


# ------------------------------------------------------------------------------------- the start and the end


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


def init_process_group() -> None:
    """Meet the other processes, if a launcher started any, and select this process's GPU.

    Raises:
        DiffError: they cannot be reached.
    """
    if not launched():
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if cuda and local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # what "cuda" means from here on
    try:
        store, rank, world_size = next(rendezvous("env://"))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size
        )
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise DiffError(
            f"the processes of this run do not reach each other: {str(error).splitlines()[0]}",
            where=":".join(os.environ[name] for name in ENVIRONMENT[2:]),
            hint="check that all of them start, and that the port is free and open between the machines",
        ) from error
    assert group is not None
    prefixed = dist.PrefixStore("diffcli", store)  # type: ignore[attr-defined]
    _membership.append(_Membership(rank, world_size, group, prefixed))


def shut_down(code: int) -> int:
    """Part from the others; returns the exit code, unless another rank failed: then this process ends here.

    A launcher kills every rank when the first one ends with an error: each waits until all have reported theirs.
    """
    if not _membership:
        return code
    import torch.distributed as dist

    here = _membership.pop()
    if code:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    failed = code
    with suppress(RuntimeError):  # the store is gone, and with it the rank that kept it
        failed = here.store.add("failed", int(code != 0))
        deadline = time.monotonic() + (GRACE if code else TIMEOUT.total_seconds())
        here.store.add("left", 1)
        while (
            here.store.add("left", 0) < here.world_size
            and time.monotonic() < deadline
            and (code or not failed)
        ):
            time.sleep(0.02)
            failed = here.store.add("failed", 0)
    if failed:
        os._exit(code or 1)  # an orderly end would wait for what the failed rank was to send
    dist.destroy_process_group()
    return code


@contextmanager
def only_main_prints() -> Iterator[None]:
    """While it lasts, only rank 0 writes to stdout and stderr: words, tables, progress bars, warnings."""
    if is_main_process():
        yield
        return
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - libraries keep it for their logs
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def error_to_report(error: Exception) -> Exception | None:
    """The error as this process has to report it; None where another one reports it, or its cause."""
    if not _membership:
        return error
    here = _membership[0]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends whoever is left: report first
    try:
        if _is_lost_connection(error):
            time.sleep(0.2)  # a rank that leaves says so before it goes
            if here.store.add("failed", 0):
                return None
            error = DiffError(
                "another process of this run died without a message",
                hint="it was killed, or its machine ran out of memory; what was written is whole",
            )
        digest = blake2b(str(error).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
        return error if here.store.add(f"reported/{digest}", 1) == 1 else None
    except RuntimeError:  # no store any more
        return error


def _is_lost_connection(error: Exception) -> bool:
    from torch.distributed import DistError

    words = ("gloo", "connection", "nccl", "socket", "broken pipe")
    is_one = isinstance(error, DistError | RuntimeError) and not isinstance(error, DiffError)
    return is_one and any(word in str(error).lower() for word in words)


# -------------------------------------------------------------------------------------------- rank and shard


def rank() -> int:
    """This process's number, from 0."""
    return _membership[0].rank if _membership else 0


def world_size() -> int:
    """Number of processes."""
    return _membership[0].world_size if _membership else 1


def is_main_process() -> bool:
    """Whether this is rank 0, which writes and prints."""
    return rank() == 0


def shard(items: Sequence[T], *, chunk: int = 1) -> list[T]:
    """This rank's part of what all ranks hold: every `world_size()`-th chunk, so that batches stay what they were."""
    step = world_size() * chunk
    return [
        item for first in range(rank() * chunk, len(items), step) for item in items[first : first + chunk]
    ]


# ------------------------------------------------------------------------------------------------ collectives


def all_gather(work: Callable[[], T]) -> list[T]:
    """What `work` returns in each rank, in their order, in every rank.

    Raises:
        DiffError: that of the first rank whose `work` raised one; in every rank.
    """
    if not _membership:
        return [work()]
    import torch.distributed as dist

    outcomes: list[Any] = [None] * world_size()
    dist.all_gather_object(outcomes, _outcome(work), group=_membership[0].group)
    return [_value(outcome) for outcome in outcomes]


def broadcast(work: Callable[[], T]) -> T:
    """What `work` returns in rank 0, which alone runs it, in every rank.

    Raises:
        DiffError: `work` raised it; in every rank.
    """
    if not _membership:
        return work()
    import torch.distributed as dist

    outcome: list[Any] = [_outcome(work) if is_main_process() else None]
    dist.broadcast_object_list(outcome, src=0, group=_membership[0].group)
    return _value(outcome[0])  # type: ignore[no-any-return]


def _outcome(work: Callable[[], T]) -> tuple[T | None, DiffError | None]:
    """What `work` returns, or the DiffError that it raises."""
    try:
        return work(), None
    except DiffError as error:
        return None, error


def _value(outcome: tuple[Any, DiffError | None]) -> Any:
    value, failure = outcome
    if failure is not None:
        raise failure
    return value


@contextmanager
def raise_together() -> Iterator[None]:
    """What one rank raises inside, every rank raises at the end: the first rank's DiffError."""
    if not _membership:
        yield
        return
    failure: DiffError | None = None
    try:
        yield
    except DiffError as error:
        failure = error

    def outcome() -> None:
        if failure is not None:
            raise failure

    if all_reduce([failure is not None])[0]:  # a number is cheaper to exchange than an object
        all_gather(outcome)


def all_reduce(values: Sequence[float]) -> list[float]:
    """Each value summed over the ranks, in float64."""
    if not _membership:
        return [float(value) for value in values]
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total, group=_membership[0].group)
    return [float(value) for value in total]


def barrier() -> None:
    """Wait until every rank has come here."""
    all_reduce([0.0])


def require_same(value: object, *, what: str) -> None:
    """Refuse to work on lists that differ between the ranks, whose shards would not make up a whole.

    Raises:
        DataError: they differ; in every rank.
    """
    if not _membership:
        return
    digests = all_gather(lambda: blake2b(pickle.dumps(value), digest_size=16).digest())
    other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
    if other is not None:
        raise DataError(
            f"process {other} sees other {what} than process 0",
            hint="every machine needs the same files under the same paths",
        )
