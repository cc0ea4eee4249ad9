"""The folder of a run that trains: made or found, locked while its process lives, its metrics."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.errors import CheckpointError, DiffError
from diffcli.files import LOCK, hold_lock, remove_leftovers, write_text
from diffcli.runs.folder import (
    CONFIG,
    LAST,
    METRICS,
    RESUME,
    VERSIONS,
    create_run,
    find_unfinished,
    versions,
)
from diffcli.runtime import distributed


@contextmanager
def locked_run(name: str, *, config: RunConfig, resume: bool, runs: Path) -> Iterator[Path]:
    """Make a new run folder, or find the one to resume; while it lasts, no other process can train in it.

    Raises:
        CheckpointError: there is nothing to resume.
        DiffError: another process trains in it; the folder cannot be made or written to.
    """
    if resume:
        folder = distributed.broadcast(lambda: find_unfinished(name, runs=runs, config=config))
    else:
        folder = distributed.broadcast(lambda: create_run(name, runs=runs))
    with ExitStack() as stack:
        with distributed.raise_together():
            if distributed.is_main_process():
                stack.enter_context(hold_lock(folder / LOCK, where=folder))
                if resume and not (folder / RESUME).is_file():
                    raise CheckpointError(
                        "another process has finished this run meanwhile", where=str(folder)
                    )
                write_settings(folder, config)
                remove_leftovers((folder / LAST).parent.absolute())
        yield folder


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """What fails before the first iteration leaves no new run folder."""
    try:
        yield
    except BaseException:
        if distributed.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # if it was made for this run
        raise


def write_settings(folder: Path, config: RunConfig) -> None:
    """What the run is made with: its settings, and versions of everything that results depend on."""
    write_text(folder / CONFIG, dump_config(config))
    write_text(folder / VERSIONS, json.dumps(versions(), indent=2))


def check_space(folder: Path, *, weights: int) -> None:
    """Refuse to train where the checkpoints will not fit.

    They are last, best and resume (weights and AdamW's two moments), and the next resume file beside the old one.

    Args:
        weights: bytes of the trained weights.

    Raises:
        DiffError: says how much is missing.
    """
    needed, free = 8 * weights, shutil.disk_usage(folder).free
    if free < needed:
        raise DiffError(
            f"the checkpoints need {needed / 1e6:.0f} MB of disk space, {free / 1e6:.0f} MB are free",
            where=str(folder),
            hint="free some space, or train in a folder on another disk",
        )


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl.

    Raises:
        DiffError: the disk is full, or the folder is gone.
    """
    require_folder(folder)
    try:
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise DiffError(
            f"cannot be written: {error.strerror}", where=str(folder / METRICS), hint="free some space"
        ) from error


def require_folder(folder: Path) -> None:
    """Notice that a run's folder is gone, before a new one is begun in its place.

    Raises:
        DiffError: it is gone.
    """
    if not (folder / CONFIG).is_file():
        raise DiffError(
            "the run folder was moved or removed while it trained",
            where=str(folder),
            hint="leave it in place until training ends",
        )


def count_metrics(folder: Path) -> int:
    """Lines of metrics.jsonl, flushed to the disk."""
    with suppress(FileNotFoundError), (folder / METRICS).open("rb") as file:
        os.fsync(file)
        return sum(1 for _ in file)
    return 0


def cut_metrics(folder: Path, *, lines: int) -> None:
    """Drop what was logged after the state that is resumed: it will be logged again."""
    with suppress(FileNotFoundError):
        kept = (folder / METRICS).read_bytes().splitlines(keepends=True)[:lines]
        write_text(folder / METRICS, b"".join(kept).decode(errors="replace"))
