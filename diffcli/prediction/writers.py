"""Results on their way to disk: writer threads with a bounded queue, and whether a file is whole."""

import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from diffcli.errors import DataError
from diffcli.prediction.video import Video, is_video

WRITERS, WAITING, WAITING_BYTES = 2, 16, 512 << 20
"""Threads that encode and write; results that may wait for them, in number and in bytes (one may be larger)."""


class WriterPool:
    """Writes by threads while the model works. What may wait is bounded; a writer's error is raised by the next call.

    With one thread, things are written in the order in which they were handed over.
    """

    def __init__(
        self, threads: int = WRITERS, *, waiting: int = WAITING, nbytes: int = WAITING_BYTES
    ) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._limit, self._byte_limit = waiting, nbytes
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0

    def submit(self, task: Callable[[], None], *, nbytes: int) -> None:
        """Hand over a task that holds `nbytes`; waits while too much is waiting. Raises what an earlier task raised."""
        while self._waiting and (
            self._waiting[0][0].done()
            or len(self._waiting) >= self._limit
            or self._bytes + nbytes > self._byte_limit
        ):
            self._collect()
        self._waiting.append((self._pool.submit(task), nbytes))
        self._bytes += nbytes

    def finish(self) -> None:
        """Wait for all that was handed over. Raises what the first failed task raised."""
        while self._waiting:
            self._collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """What was handed over is written, also where the work ends by an error."""
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown()

    def _collect(self) -> None:
        future, nbytes = self._waiting.popleft()
        self._bytes -= nbytes
        future.result()


def is_whole(path: Path) -> bool:
    """Whether a file that predict wrote is there and can be read to its end: pictures, JSON and videos."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif is_video(path):
            with closing(Video(path)):
                pass  # the index of a video is at its end: one that was cut off cannot be opened
        else:
            with Image.open(path) as picture:
                picture.load()
    except (OSError, ValueError, SyntaxError, DataError):  # SyntaxError: Pillow's, for a broken PNG
        return False
    return True
