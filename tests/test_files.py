"""Files and folders are written whole or not at all, over nothing else, and killed writers leave nothing for long."""

import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcli.errors import DiffError
from diffcli.files import (
    TEMPORARY,
    check_output,
    check_writable,
    hold_lock,
    remove_leftovers,
    replace_folder,
    write_atomically,
    write_text,
)


@contextmanager
def process_of(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A process of its own that is ready; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---------------------------------------------------------------------------------------------------- one file


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), write_atomically(path) as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_is_an_ordinary_one(tmp_path: Path) -> None:
    write_text(tmp_path / "report.json", "new", durable=True)
    assert (tmp_path / "report.json").read_text() == "new"
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DiffError, match=r"report\.json: cannot be written: No space left"):  # noqa: SIM117
        with write_atomically(tmp_path / "report.json"):
            raise OSError(errno.ENOSPC, "No space left on device")


def write_much(path: Path, library: str) -> None:
    tensor = torch.zeros(100_000)
    match library:
        case "python":
            path.write_bytes(bytes(100_000))
        case "torch":
            torch.save({"a": tensor}, path)
        case _:
            save_file({"a": tensor}, path)


@pytest.mark.parametrize("library", ["python", "torch", "safetensors"])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, library: str, small_files: None) -> None:
    """Whoever writes, and however it says that nothing fits."""
    path = tmp_path / "weights.bin"
    write_text(path, "old")
    with (
        pytest.raises(DiffError, match=r"weights\.bin: cannot be written: .*\n  -> free some space"),
        write_atomically(path) as temporary,
    ):
        write_much(temporary, library)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiffError, match="cannot write here"),
        write_atomically(tmp_path / "file" / "report.json"),
    ):
        pass


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DiffError, match="cannot write here: File name too long"):
        write_text(tmp_path / ("x" * 300), "text")


def test_a_folder_that_disappears_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with (
        pytest.raises(DiffError, match="its folder was removed"),
        write_atomically(folder / "a.txt"),
    ):
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------ what may be replaced


@pytest.fixture(params=["link", "pipe", "socket", "folder"])
def odd_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something with the right name that is not a regular file."""
    path = tmp_path / "picture.png"
    match request.param:
        case "link":
            (tmp_path / "target").write_text("precious")
            path.symlink_to(tmp_path / "target")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            monkeypatch.chdir(tmp_path)  # a socket's name must be short
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        case _:
            path.mkdir()
    return path


def test_only_regular_files_are_replaced(odd_file: Path) -> None:
    before = os.lstat(odd_file)
    with pytest.raises(DiffError, match="this is a"):
        check_output(odd_file, suffixes=(".png",))
    with pytest.raises(DiffError, match="only a regular file is replaced"):
        write_text(odd_file, "new")
    assert os.lstat(odd_file).st_ino == before.st_ino


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.docx"
    thesis.write_text("years of work")
    with pytest.raises(DiffError, match=r"the output is a \.zip file"):
        check_output(thesis, suffixes=(".zip",))
    assert thesis.read_text() == "years of work"


def test_an_output_may_be_new_or_replace_its_like(tmp_path: Path) -> None:
    check_output(tmp_path / "new folder" / "new.PNG", suffixes=(".png",))
    assert not (tmp_path / "new folder").exists()
    write_text(tmp_path / "old.png", "")
    check_output(tmp_path / "old.png", suffixes=(".png",))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffError, match="cannot write here"):
        check_writable(tmp_path / "file" / "deep" / "er")
    check_writable(tmp_path / "deep" / "er")


# -------------------------------------------------------------------------------------------------- one folder


def test_a_folder_is_replaced_whole_and_foreign_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    for name in ("model.bin", "old.bin", "notes.txt", "mine/deep.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("before")
    (folder / "link").symlink_to("notes.txt")
    with replace_folder(folder, is_ours=lambda name: name.endswith(".bin")) as new:
        (new / "model.bin").write_text("after")
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.*")}
    assert files == {"model.bin": "after", "notes.txt": "before", "mine/deep.txt": "before"}
    assert (folder / "link").is_symlink()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.bin").write_text("before")
    with pytest.raises(FileNotFoundError), replace_folder(folder) as new:
        (new / "model.bin").write_text((tmp_path / "absent").read_text())
    assert (folder / "model.bin").read_text() == "before"
    assert list(tmp_path.iterdir()) == [folder]


# ------------------------------------------------------------------------------------------ locks and leftovers

WRITER = """
    import sys, time
    from pathlib import Path
    from diffcli.files import replace_folder, write_atomically
    folder = Path(sys.argv[1])
    with write_atomically(folder / "a.txt") as temporary, replace_folder(folder / "exported") as new:
        temporary.write_text("half")
        (new / "model.bin").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}notes").mkdir()  # no lock in it: not ours
    (tmp_path / f"{TEMPORARY}notes" / "mine.txt").write_text("mine")
    with process_of(WRITER, tmp_path):
        assert len(list(tmp_path.glob(f"{TEMPORARY}*"))) == 3
        remove_leftovers.cache_clear()
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.glob(f"{TEMPORARY}*"))) == 3, "a live process's file is left alone"
    remove_leftovers.cache_clear()
    write_text(tmp_path / "b.txt", "next")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TEMPORARY}notes", "b.txt"]


def test_an_old_folder_comes_back_after_a_kill_between_the_two_moves(tmp_path: Path) -> None:
    staging = tmp_path / f"{TEMPORARY}abc"
    for name in ("new", "old"):
        (staging / name / "exported").mkdir(parents=True)
        (staging / name / "exported" / "which").write_text(name)
    (staging / "lock").touch()
    remove_leftovers.cache_clear()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert (tmp_path / "exported" / "which").read_text() == "old"


OWNER = """
    import sys, time
    from pathlib import Path
    from diffcli.files import hold_lock
    with hold_lock(Path(sys.argv[1]) / ".lock", where=Path(sys.argv[1])):
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_lock_is_refused_while_its_owner_lives_and_taken_over_afterwards(tmp_path: Path) -> None:
    with (
        process_of(OWNER, tmp_path) as owner,
        pytest.raises(DiffError, match=f"process {owner.pid} on .* is using it"),
        hold_lock(tmp_path / ".lock", where=tmp_path),
    ):
        pass
    with hold_lock(tmp_path / ".lock", where=tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


SHARER = OWNER.replace("where=Path(sys.argv[1]))", "where=Path(sys.argv[1]), shared=True)")


def test_a_shared_lock_is_shared_with_those_that_share_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with process_of(SHARER, tmp_path):
        with hold_lock(lock, where=tmp_path, shared=True):
            pass
        assert lock.exists(), "the other one still holds it"
        with pytest.raises(DiffError, match="is using it"), hold_lock(lock, where=tmp_path):
            pass
    with hold_lock(lock, where=tmp_path):
        pass
    with (
        process_of(OWNER, tmp_path),
        pytest.raises(DiffError, match="is using it"),
        hold_lock(lock, where=tmp_path, shared=True),
    ):
        pass
    lock.unlink()
    with hold_lock(lock, where=tmp_path, shared=True):
        pass
    assert not lock.exists()


REPLACER = """
    import sys, time
    from pathlib import Path
    from diffcli.files import replace_folder
    with replace_folder(Path(sys.argv[1]) / "exported") as new:
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_folder_that_another_process_replaces_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "exported"
    with (
        process_of(REPLACER, tmp_path) as owner,
        pytest.raises(DiffError, match=f"process {owner.pid} on .* is using it"),
        replace_folder(target),
    ):
        pass
    remove_leftovers.cache_clear()
    with replace_folder(target) as new:  # the other one was killed
        (new / "a").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["exported", "a"]


def test_something_else_of_the_name_of_a_lock_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(DiffError, match="a named pipe"), hold_lock(tmp_path / ".lock", where=tmp_path):
        pass
