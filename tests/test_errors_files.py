"""Errors travel between processes whole; files are written whole or not at all."""

import errno
import pickle
from pathlib import Path

import pytest

from diffcli.errors import DataError, DiffError
from diffcli.files import write_atomically, write_text


class Odd(DataError):
    """A kind whose constructor takes something else."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(f"values {values}", where="a.png", hint="mend it")
        self.values = values


@pytest.mark.parametrize(
    "error", [DiffError("what", where="here", hint="do"), DataError("what"), Odd([3, 4])]
)
def test_errors_pickle(error: DiffError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), write_atomically(path) as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(DiffError, match=r"report\.json: cannot be written whole: No space left"):  # noqa: SIM117
        with write_atomically(tmp_path / "report.json"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiffError, match="cannot write here"),
        write_atomically(tmp_path / "file" / "report.json"),
    ):
        pass
