"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diffcli import console


class Stop:
    """Whether the user or the scheduler asked to stop; asking twice stops at once."""

    requested = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
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
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
