"""SIGINT (Ctrl-C), SIGTERM (timeout, systemd, a scheduler) and SIGHUP (a closed terminal) as requests to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 2.0
"""Seconds within which a launcher passes on a signal that its processes have had from the terminal or scheduler."""
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal ended the work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stop:
    """Whether the user or the system asked to stop; asking twice stops at once."""

    requested = False
    number: int = signal.SIGTERM
    """The signal that asked."""
    at_once = False
    """Nothing needs finishing: the first request already stops."""
    _when = 0.0

    def __call__(self, number: int, _frame: FrameType | None = None) -> None:
        from diffcli.runtime import distributed

        if self.requested:
            if distributed.world_size() > 1 and time.monotonic() - self._when < ECHO:
                return
            raise Stopped(number)
        self.requested, self.number, self._when = True, number, time.monotonic()
        if self.at_once:
            raise Stopped(number)
        _announce(
            f"{signal.Signals(number).name}: finishing this iteration and saving; again to stop at once"
        )


def stop_at_once() -> Stop:
    """From now on SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C raises KeyboardInterrupt."""
    stop = Stop()
    stop.at_once = True
    for number in STOPPING:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    return stop


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """While it lasts, the first signal only sets `requested`; a signal that was ignored before stays ignored.

    In another thread than the main one, which no signal reaches, nothing changes.
    """
    from diffcli.runtime import distributed

    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield stop
    except BaseException:
        if distributed.world_size() > 1:  # a launcher ends whoever is left: what went wrong is reported first
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """While it lasts, a request stops at once: for work that loses nothing. Only one process may stop like this.

    Raises:
        Stopped: a request came, now or before.
    """
    if stop.requested:
        raise Stopped(stop.number)
    stop.at_once = True
    try:
        yield
    finally:
        stop.at_once = False


def _announce(text: str) -> None:
    """Say it on the terminal; after SIGHUP there may be none any more, and what is written later must not fail."""
    from diffcli.runtime import console

    try:
        console.say(text)
    except OSError:
        console.leave_terminal()


@contextmanager
def deferred() -> Iterator[None]:
    """While it lasts, signals that ask to stop wait; a process that is forked meanwhile begins with them waiting."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_worker() -> None:
    """In a worker process: stopping is the main process's business, also where a signal goes to the whole group."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
