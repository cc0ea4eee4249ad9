"""The folder of a run that trains: found out before the work, whole afterwards, damage refused by name."""

import os
import resource
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffcli.commands import train
from diffcli.errors import CheckpointError, DiffError
from diffcli.files import LOCK, TEMPORARY
from diffcli.runs.folder import CONFIG, LAST, METRICS, RESUME, VERSIONS
from diffcli.runs.tensor_file import read_tensors, write_tensors
from diffcli.runtime.signals import Stop
from diffcli.training import run_folder
from tests.fixtures.training import interrupted, start, tiny_config


def test_a_folder_that_cannot_be_made_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(DiffError, match="cannot be made: Not a directory"):
        start(tiny_config(model__backbone={"source": str(tmp_path / "absent")}), tmp_path / "runs")


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DiffError, match=r"cannot be made: File name too long\n.*short name"):
        start(tiny_config(name="x" * 300), tmp_path)


def test_too_little_space_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(DiffError, match=r"the checkpoints need \d+ MB of disk space, 0 MB are free"):
        start(tiny_config(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "pickled"])
def test_a_damaged_resume_file_is_refused_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = interrupted(tiny_config(), tmp_path, at=2, monkeypatch=monkeypatch)
    sound = (folder / RESUME).read_bytes()
    flipped = bytearray(sound)
    flipped[-1000] ^= 4
    bad = {"flipped": bytes(flipped), "cut": sound[:-100], "empty": b"", "pickled": b"\x80\x04]."}[damage]
    (folder / RESUME).write_bytes(bad)
    others = {name: (folder / name).read_bytes() for name in (CONFIG, VERSIONS, METRICS, LAST)}
    with pytest.raises(CheckpointError, match=r"resume\.safetensors: damaged") as error:
        start(tiny_config(), tmp_path, resume=True)
    assert "weights_only" not in str(error.value)
    assert str(error.value).count("\n") == 1
    assert others == {name: (folder / name).read_bytes() for name in others}
    assert (folder / RESUME).read_bytes() == bad


@pytest.mark.slow
def test_a_resume_file_with_odd_values_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum holds: it was written so."""
    folder = interrupted(tiny_config(), tmp_path, at=2, monkeypatch=monkeypatch)
    kind = "diffcli-resume"
    found = read_tensors(folder / RESUME, kind=kind, hint="")
    assert found is not None
    tensors, header = found
    odd: list[dict[str, Any]] = [
        *({"iteration": value} for value in ("three", None, -1, float("nan"), float("inf"), [])),
        *({"changes": value} for value in (None, [1], [{"iteration": 1, "settings": {"a": 1}}])),
        *({"best": 1}, {"skipped": []}, {"since_logged": {"days": 1}}, {"settings": []}),
    ]
    for changed in odd:
        write_tensors(folder / RESUME, tensors, kind=kind, header={**header, **changed})
        with pytest.raises(CheckpointError, match="does not fit this run") as error:
            start(tiny_config(), tmp_path, resume=True)
        assert str(error.value).count("\n") == 1


def test_metrics_are_cut_to_what_was_saved(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / CONFIG).touch()
        run_folder.append_metrics(tmp_path, {"iteration": i})
    assert run_folder.count_metrics(tmp_path) == 5
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"iteration": 5, "lo')  # a kill in the middle of a line
    run_folder.cut_metrics(tmp_path, lines=3)
    assert (tmp_path / METRICS).read_text().splitlines() == [f'{{"iteration": {i}}}' for i in range(3)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiffError, match="cannot be made: Permission denied"):
        start(tiny_config(), tmp_path / "runs")


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 kB, as on a disk that is full: less than a resume file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_the_files_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = interrupted(tiny_config(), tmp_path, at=2, monkeypatch=monkeypatch)
    before = (folder / RESUME).read_bytes()
    request.getfixturevalue("small_files")
    with pytest.raises(
        DiffError, match=r"resume\.safetensors: cannot be written: File too large\n.*free some"
    ):
        start(tiny_config(), tmp_path, resume=True)
    assert (folder / RESUME).read_bytes() == before
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
    assert not (folder / LOCK).exists()


def test_a_folder_that_is_moved_meanwhile_is_made_again_for_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MovesIt(Stop):
        @property
        def requested(self) -> bool:  # type: ignore[override]
            if (tmp_path / "tiny" / METRICS).is_file() and not (tmp_path / "gone").exists():
                (tmp_path / "tiny").rename(tmp_path / "gone")
            return False

    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda trainer, _stop: fit(trainer, MovesIt()))
    with pytest.raises(DiffError, match="the run folder was moved or removed while it trained") as error:
        start(tiny_config(), tmp_path)
    assert "are saved: --resume continues" in str(error.value)
    monkeypatch.undo()
    assert start(tiny_config(), tmp_path, resume=True) == tmp_path / "tiny"
