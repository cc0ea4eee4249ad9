"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diffcli.runtime import console, distributed

ECHO = 2.0
"""Seconds within which a launcher passes on a signal that its processes have had from the terminal or scheduler."""


class Stop:
    """Whether the user or the scheduler asked to stop; asking twice stops at once."""

    requested = False
    _when = 0.0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            if distributed.world_size() > 1 and time.monotonic() - self._when < ECHO:
                return
            raise KeyboardInterrupt
        self.requested, self._when = True, time.monotonic()
        console.say(
            f"{signal.Signals(number).name}: finishing this iteration and saving; again to stop at once"
        )


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """While it lasts, the first SIGINT or SIGTERM only sets `requested`."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except BaseException:
        if distributed.world_size() > 1:  # a launcher ends whoever is left: what went wrong is told first
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
