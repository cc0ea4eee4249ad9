"""Files are written whole or not at all."""

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffcli.errors import DiffError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk or a spent quota says."""


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it disappears.

    The temporary name ends like `path`, so that writers that choose a format by suffix work unchanged.

    Raises:
        DiffError: the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=path.suffix)
    except OSError as error:
        raise DiffError(
            f"cannot write here: {error.strerror or error}",
            where=str(path),
            hint="choose a folder that you may write to, on a disk with room",
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiffError(
            f"cannot be written whole: {error.strerror}",
            where=str(path),
            hint="make room, or write to another disk",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    """Permissions that the user masks out: mkstemp makes private files, results should be ordinary ones."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


_UMASK = threading.Lock()
"""It can only be read by setting it: two threads at once would leave the process without one."""
