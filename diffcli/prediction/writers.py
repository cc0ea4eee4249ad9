"""Results on their way to disk: writer threads with a bounded queue, and the manifest of a folder."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from diffcli.errors import DiffError
from diffcli.files import FULL, write_text

WRITERS, WAITING, WAITING_BYTES = 2, 16, 512 << 20
"""Threads that encode and write; results that may wait for them, in number and in bytes (one may be larger)."""
MANIFEST = "predictions.jsonl"


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


class Manifest:
    """`predictions.jsonl` of a folder: a line of JSON an image or frame, written when its files are on disk.

    A line is appended in one write, so that an interrupted run keeps what is done and several processes can share the
    file. Lines of earlier calls stay, unless this call does their input again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MANIFEST

    def begin(self, inputs: Iterable[Path]) -> None:
        """Drop the lines of images and videos that are done again, and whatever is no whole line.

        Raises:
            DiffError: the folder cannot be written to.
        """
        again = {str(path) for path in inputs}
        kept = [line for line in self.entries() if line.get("input") not in again]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def entries(self) -> Iterator[dict[str, Any]]:
        """What the file holds, so far as it can be read."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise DiffError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the torn last line of a machine that went down
                continue
            if isinstance(entry, dict):
                yield entry

    def add(
        self,
        image: Path,
        *,
        status: str,
        frame: int | None = None,
        outputs: Mapping[str, Path] | None = None,
        size: tuple[int, int] | None = None,
        seconds: float | None = None,
        **facts: object,
    ) -> None:
        """Append a line; outputs are told relative to the folder, so that it can be moved.

        Args:
            status: done, skipped or failed.
            size: height and width; told as [width, height].
            seconds: of the network, per image.
            facts: further fields; those that are None are left out.
        """
        entry: dict[str, object] = {
            "input": str(image),
            **({} if frame is None else {"frame": frame}),
            "status": status,
            "outputs": {k: os.path.relpath(path, self.folder) for k, path in (outputs or {}).items()},
            "size": None if size is None else [size[1], size[0]],
            "seconds": None if seconds is None else round(seconds, 4),
            **{key: value for key, value in facts.items() if value is not None},
        }
        with _said_when_full(self.path), open(self.path, "ab", buffering=0) as file:
            file.write((json.dumps(entry) + "\n").encode())


@contextmanager
def _said_when_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "make room, or write to another disk" if error.errno in FULL else None
        raise DiffError(
            f"cannot be written: {error.strerror or error}", where=str(path), hint=hint
        ) from error
