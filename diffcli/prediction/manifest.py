"""`predictions.jsonl` of a folder: what became of each image, video and frame."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from diffcli.errors import DiffError
from diffcli.files import FULL, write_text

if sys.platform != "win32":
    import fcntl

MANIFEST = "predictions.jsonl"


class Entry(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    """A change that breaks readers of the file counts it up."""
    input: str
    frame: int | None = None
    """Of a video, from 0; a video has one more line without it."""
    status: Literal["done", "skipped", "failed"]
    outputs: dict[str, str] = {}
    """Kind -> file, relative to the folder, so that it can be moved."""
    size: tuple[int, int] | None = None
    """Width and height."""
    seconds: float | None = None
    """Of the network, for this image."""
    frames: int | None = None
    """Of a video: how many were segmented."""
    confidence: float | None = None
    """Mean probability of the predicted class, 0..1."""
    error: str | None = None

    def line(self) -> str:
        """One line of JSON; what is not known and may be left out is."""
        unknown = {name for name in ("frame", "frames", "confidence", "error") if getattr(self, name) is None}
        return self.model_dump_json(exclude=unknown) + "\n"


class Manifest:
    """The file of one folder. A line is written when the files that it names are on disk.

    Lines are appended, each in one write, so that an interrupted run keeps what is done and several processes can share
    the file; the last line of an image counts. `begin` and `finish` leave one line for each image and frame.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MANIFEST

    def begin(self, inputs: Iterable[Path]) -> None:
        """Remove the lines of images and videos that are segmented again, and whatever is no whole line.

        Raises:
            DiffError: the folder cannot be written to.
        """
        again = {path_text(path) for path in inputs}
        if not self.path.exists():
            write_text(self.path, "")
        self._rewrite(lambda entry: entry.input not in again)

    def finish(self) -> None:
        """Leave one line for each image and frame: another process may have segmented the same ones meanwhile."""
        self._rewrite(lambda entry: True)

    def _rewrite(self, keeps: Callable[[Entry], bool]) -> None:
        with self._locked():
            latest: dict[tuple[str, int | None], Entry] = {}
            for entry in self.entries():
                key = entry.input, entry.frame
                latest.pop(key, None)  # its place is that of its last line
                latest[key] = entry
            write_text(self.path, "".join(entry.line() for entry in latest.values() if keeps(entry)))

    def entries(self) -> Iterator[Entry]:
        """What the file holds, so far as it can be read."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise DiffError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
        for line in lines:
            with suppress(ValidationError):  # the torn last line of a machine that went down
                yield Entry.model_validate_json(line)

    def add(
        self,
        image: Path,
        *,
        status: Literal["done", "skipped", "failed"],
        frame: int | None = None,
        outputs: Mapping[str, Path] | None = None,
        size: tuple[int, int] | None = None,
        seconds: float | None = None,
        frames: int | None = None,
        confidence: float | None = None,
        error: str | None = None,
    ) -> None:
        """Append a line.

        Args:
            size: height and width.
            seconds: of the network, for this image.
        """
        entry = Entry(
            input=path_text(image),
            frame=frame,
            status=status,
            outputs={
                kind: path_text(os.path.relpath(path, self.folder)) for kind, path in (outputs or {}).items()
            },
            size=None if size is None else (size[1], size[0]),
            seconds=None if seconds is None else round(seconds, 4),
            frames=frames,
            confidence=confidence,
            error=error,
        )
        with _full_disk_said(self.path), self._locked(), open(self.path, "ab", buffering=0) as file:
            file.write(entry.line().encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """While it lasts, no other process writes the file; where the file system has no locks, nothing is held."""
        if sys.platform == "win32":
            yield
            return
        handle = os.open(self.folder, os.O_RDONLY)  # the folder: the file itself is replaced by a rewrite
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def path_text(path: str | Path) -> str:
    """A path as text; bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


@contextmanager
def _full_disk_said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "make room, or write to another disk" if error.errno in FULL else None
        raise DiffError(
            f"cannot be written: {error.strerror or error}", where=str(path), hint=hint
        ) from error


def text_path(text: str) -> str:
    """The path that `path_text` wrote: escapes are bytes that are not UTF-8 again."""
    return os.fsdecode(
        re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    )
