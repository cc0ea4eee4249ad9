"""Loading in worker processes: order, and what is said when they fail."""

import os
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from diffcli.data import batches
from diffcli.data.batches import load_batches
from diffcli.errors import DataError


class Numbers(Dataset[Any]):
    """Sample i is an array of i; `bad` indexes do something else first."""

    def __init__(self, bad: int = -1, signal: int = 0) -> None:
        self.bad, self.signal = bad, signal

    def __getitem__(self, index: int) -> Any:
        if index == self.bad:
            os.kill(os.getpid(), self.signal)
        return np.full(3, index)


def loaded(dataset: Dataset[Any], count: int, *, workers: int) -> list[Sequence[int]]:
    found = load_batches(dataset, range(count), batch_size=2, workers=workers, collate=list)
    return [[int(array[0]) for array in batch] for batch in found]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(workers: int) -> None:
    assert loaded(Numbers(), 7, workers=workers) == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_ignores_what_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    assert loaded(Numbers(bad=3, signal=number), 7, workers=2) == [[0, 1], [2, 3], [4, 5], [6]]
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.slow
def test_a_killed_worker_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "POLL", 0.5)
    with pytest.raises(DataError, match=r"a loading process was killed[\s\S]*runtime\.data_workers"):
        loaded(Numbers(bad=3, signal=signal.SIGKILL), 7, workers=2)


@pytest.mark.slow
def test_workers_that_hang_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And do not keep the program from ending."""
    monkeypatch.setattr(batches, "POLL", 0.5)
    monkeypatch.setattr(batches, "WAIT", 1.0)
    with pytest.raises(DataError, match=r"have delivered nothing[\s\S]*--shm-size[\s\S]*data_workers: 0"):
        loaded(Numbers(bad=3, signal=signal.SIGSTOP), 7, workers=2)
