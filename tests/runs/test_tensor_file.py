"""Tensor files: what comes back, and that damage is refused by name."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcli.errors import CheckpointError
from diffcli.runs.tensor_file import FORMAT, read_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "x.safetensors", TENSORS, kind="ours", header={"iteration": 3})
    return tmp_path / "x.safetensors"


def test_what_is_written_comes_back(written: Path) -> None:
    found = read_tensors(written, kind="ours", hint="do")
    assert found is not None
    tensors, header = found
    assert header == {"iteration": 3}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert read_tensors(written, kind="theirs", hint="do") is None


def test_every_flipped_bit_is_refused(written: Path) -> None:
    """In the header as in the tensors, wherever it is; and every truncation."""
    sound = written.read_bytes()
    for position in range(0, len(sound), 7):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << (position % 8)
        written.write_bytes(damaged)
        found = None
        with suppress(CheckpointError):
            found = read_tensors(written, kind="ours", hint="take another")
        assert found is None, position
    for length in (0, 5, 100, len(sound) - 1):
        written.write_bytes(sound[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(written, kind="ours", hint="take another")


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    header = json.dumps({"format": FORMAT + 1})
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"ours": header})
    with pytest.raises(
        CheckpointError, match=f"format {FORMAT + 1}, and this version of diffcli reads up to"
    ):
        read_tensors(tmp_path / "x.safetensors", kind="ours", hint="do")
