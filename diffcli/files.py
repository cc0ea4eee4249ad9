"""Files and folders are written whole or not at all, and only over what this program could have written.

What is being written stands beside its target under a temporary name, locked by its writer. The lock ends with the
process, so that the next one can tell what a killed process left behind, and removes it. A folder that a command writes
to for a while is locked in the same way: see `hold_lock`.
"""

import errno
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from diffcli.errors import DiffError

if sys.platform != "win32":  # there nothing is locked, and leftovers stay
    import fcntl

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk or a spent quota says."""
BROKEN = (*FULL, errno.EIO, errno.EROFS, errno.ESTALE)
"""Errors of the disk that is written to."""
UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
"""What the system says of a path that is wrong, or not for this user."""
TEMPORARY = ".diffcli-part-"
"""How temporary names begin."""
LOCK = ".diffcli-lock"
"""The lock of a folder, in it: of a run that trains, of reports that are made, of predictions that are written."""
ROOM = "choose a folder that you may write to, on a disk with free space"


# ---------------------------------------------------------------------------------------------------- one file


@contextmanager
def write_atomically(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it disappears.

    The temporary name ends like `path`, so that writers that choose a format by suffix work unchanged.

    Args:
        durable: flush file and folder to the disk before the old file goes, so that a power cut leaves one of them.

    Raises:
        DiffError: the folder cannot be written to, the disk is full, or `path` is not a regular file.
    """
    path = Path(path)
    _require_regular(path)
    remove_leftovers(path.parent.absolute())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _locked_temporary(path)
    except OSError as error:
        raise DiffError(
            f"cannot write here: {error.strerror or error}", where=str(path), hint=ROOM
        ) from error
    try:
        yield temporary
        _put_in_place(temporary, path, durable=durable)
    except Exception as error:
        if (reason := _disk_error(error)) is None:
            raise
        raise DiffError(
            f"cannot be written: {reason}", where=str(path), hint="free some space, or write to another disk"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as UTF-8 (a name that is not UTF-8 with escapes), atomically."""
    with write_atomically(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """An open, locked file beside `path`; another process that cleans up here may take it before it is locked."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=path.suffix)
        _lock(handle)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name), os.fstat(handle)):
                return handle, Path(name)
        os.close(handle)


def _put_in_place(temporary: Path, path: Path, *, durable: bool) -> None:
    try:
        os.chmod(temporary, 0o666 & ~_umask())
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except FileNotFoundError as error:
        raise DiffError(
            "cannot be written: its folder was removed meanwhile", where=str(path), hint=ROOM
        ) from error
    except PermissionError as error:
        raise DiffError(f"cannot be written: {error.strerror}", where=str(path), hint=ROOM) from error


def _flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's entries; some file systems cannot flush a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _disk_error(error: Exception) -> str | None:
    """What is wrong with the disk, if that is the error; libraries that write by themselves say it in words."""
    if isinstance(error, DiffError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in BROKEN else None
    known = next((os.strerror(code) for code in BROKEN if os.strerror(code) in str(error)), None)
    if known is None and ("PytorchStreamWriter" in str(error) or "inline_container" in str(error)):
        return "the disk is full or cannot be written to"
    return known


def _umask() -> int:
    """Permissions that the user masks out: mkstemp makes private files, results should be ordinary ones."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


_UMASK = threading.Lock()
"""It can only be read by setting it: two threads at once would leave the process without one."""


# ------------------------------------------------------------------------------------------ what may be replaced


def check_output(path: Path, *, suffixes: Sequence[str]) -> None:
    """Refuse an output file before the work, if it could not or must not be written afterwards.

    Args:
        suffixes: those of the files that the command writes, as in (".png",).

    Raises:
        DiffError: another suffix; something other than a regular file has this name; the folder cannot be written to.
    """
    if path.is_dir():
        raise DiffError(
            "this is a folder", where=str(path), hint=f"name a file in it: {path / f'NAME{suffixes[0]}'}"
        )
    if path.suffix.lower() not in suffixes:
        raise DiffError(
            f"the output is a {suffixes[0]} file",
            where=str(path),
            hint=f"choose a name that ends in {' or '.join(suffixes)}",
        )
    _require_regular(path)
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        DiffError: says why.
    """
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(existing))
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise DiffError(
            f"cannot write here: {error.strerror or error}", where=str(folder), hint=ROOM
        ) from error


def _require_regular(path: Path) -> None:
    """Refuse to replace links, devices, pipes, sockets and folders."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise DiffError(
            f"cannot write here: {error.strerror or error}", where=str(path), hint=ROOM
        ) from error
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe"}
    kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device or socket")
    raise DiffError(
        f"this is {kind}, and only a regular file is replaced", where=str(path), hint="choose another name"
    )


# -------------------------------------------------------------------------------------------------- one folder


@contextmanager
def replace_folder(folder: Path, *, is_ours: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success it takes its place, on any failure it disappears.

    Args:
        is_ours: whether a file of the old folder, as a relative path with slashes, is one that this program wrote.
            Those are removed with it; all others stay.

    Raises:
        DiffError: it cannot be written, or another process is writing it.
    """
    folder = folder.resolve()
    remove_leftovers(folder.parent)
    beside = blake2b(os.fsencode(folder.name), digest_size=8).hexdigest()  # the folder itself is moved away
    with hold_lock(folder.parent / f"{LOCK}-{beside}", where=folder), _staging(folder) as (new, old):
        yield new
        _swap(folder, new=new, old=old, is_ours=is_ours)


@contextmanager
def _staging(folder: Path) -> Iterator[tuple[Path, Path]]:
    """An empty folder beside `folder`, and a place for the old one; what is still there in the end is removed."""
    try:
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=TEMPORARY))
        handle = os.open(staging / "lock", os.O_RDWR | os.O_CREAT)
        _lock(handle)
        new, old = (staging / name / folder.name for name in ("new", "old"))
        new.mkdir(parents=True)
        old.parent.mkdir()
    except OSError as error:
        raise DiffError(
            f"cannot write here: {error.strerror or error}", where=str(folder), hint=ROOM
        ) from error
    try:
        yield new, old
    except Exception as error:
        if (reason := _disk_error(error)) is None:
            raise
        raise DiffError(f"cannot be written: {reason}", where=str(folder), hint=ROOM) from error
    finally:
        _discard(staging)
        os.close(handle)


def _swap(folder: Path, *, new: Path, old: Path, is_ours: Callable[[str], bool]) -> None:
    try:
        if folder.exists():
            _keep_others(folder, new, is_ours)
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise DiffError(
            f"cannot be written: {error.strerror or error}", where=str(error.filename or folder), hint=ROOM
        ) from error


def _keep_others(folder: Path, new: Path, is_ours: Callable[[str], bool]) -> None:
    """Take what others put into the old folder over into the new one: linked or copied, so that both stay whole."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        target = new / name
        if is_ours(name.as_posix()) or os.path.lexists(target):
            continue
        if path.is_dir() and not path.is_symlink():
            target.mkdir(parents=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(path, target, follow_symlinks=False)


def _discard(staging: Path) -> None:
    """Remove a staging folder; an old folder that nothing has replaced goes back first."""
    for old in (staging / "old").glob("*"):
        if not (staging.parent / old.name).exists():
            old.rename(staging.parent / old.name)
    shutil.rmtree(staging, ignore_errors=True)


# ------------------------------------------------------------------------------------------ locks and leftovers


@cache
def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`; once in this process, for a folder may be large."""
    for path in Path(folder).glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # another process was faster, or the files are another user's
            is_folder = path.is_dir()
            handle = os.open(path / "lock" if is_folder else path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if not _lock(handle):
                    continue
                _discard(path) if is_folder else path.unlink()
            finally:
                os.close(handle)
    for path in Path(folder).glob(f"{LOCK}-*"):
        with suppress(DiffError), hold_lock(path, where=path):
            pass  # taken over from a dead owner, and removed


def _lock(handle: int) -> bool:
    """Lock an open file for as long as it is open; whether that succeeded (some file systems have no locks)."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def hold_lock(path: Path, *, where: Path, shared: bool = False) -> Iterator[None]:
    """While it lasts, no other process can hold the lock file `path`; it ends with the process, however that ends.

    The file's folder is made where it is missing.

    A record lock, which worker processes do not inherit: one that outlives a killed owner does not keep it.

    Args:
        where: what is locked, for the message.
        shared: others may hold it too if they share it.

    Raises:
        DiffError: a live process holds it.
    """
    handle = _open_locked(path, where=where, shared=shared)
    try:
        if not shared:
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):  # others share it: the last one removes it
            if sys.platform != "win32":
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        os.close(handle)


def _open_locked(path: Path, *, where: Path, shared: bool) -> int:
    """The locked file at `path`, opened; its last owner may remove it between our opening and locking it."""
    _require_regular(path)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise DiffError(
                f"cannot write here: {error.strerror or error}", where=str(where), hint=ROOM
            ) from error
        try:
            if sys.platform != "win32":
                fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass
        except (BlockingIOError, PermissionError) as error:
            owner = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise DiffError(
                f"{owner} is using it", where=str(where), hint="wait until that has ended, or stop it first"
            ) from error
        except OSError:  # a file system without locks: better unlocked than not at all
            return handle
        os.close(handle)
