"""Errors travel between processes whole."""

import pickle

import pytest

from diffcli.errors import DataError, DiffError


class Odd(DataError):
    """A kind whose constructor takes something else."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(f"values {values}", where="a.png", hint="fix it")
        self.values = values


@pytest.mark.parametrize(
    "error", [DiffError("what", where="here", hint="do"), DataError("what"), Odd([3, 4])]
)
def test_errors_pickle(error: DiffError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
