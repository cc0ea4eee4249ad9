"""Two commands that write to one folder at the same time: real processes."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.files import LOCK
from diffcli.runs.exported import EXPORT_FACTS, check_files
from tests.fixtures import processes

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty labelled pictures."""
    random = np.random.default_rng(0)
    for folder, high, shape in (("images", 256, (64, 64, 3)), ("labels", 4, (64, 64))):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(40):
            pixels = random.integers(0, high, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{i}.png")
    return tmp_path / "data"


def test_two_predicts_share_a_folder(tmp_path: Path, tiny_run: Path, pictures: Path) -> None:
    """Every image has one line and one mask; both calls end well."""
    command = ("predict", pictures / "images", "--run", tiny_run, "-o", "out", "--device", "cpu")
    for process in (processes.diff(*command, cwd=tmp_path), processes.diff(*command, cwd=tmp_path)):
        _, words = process.communicate(timeout=300)
        assert process.returncode == 0, words
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    names = {path.name for path in (pictures / "images").iterdir()}
    assert sorted(Path(line["input"]).name for line in lines) == sorted(names)
    assert all(line["status"] == "done" for line in lines)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *names,
        "predictions.jsonl",
        "index.html",
    }


def test_a_second_eval_is_refused_and_one_after_a_kill_is_not(
    tmp_path: Path,
    tiny_run: Path,
    pictures: Path,
) -> None:
    lock = tmp_path / "out" / LOCK
    domain = ("--run", tiny_run, "--domain", "folder", "--root", pictures, "--device", "cpu")
    first = processes.diff("eval", *domain, "-o", "out", cwd=tmp_path)
    while not lock.exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it lives, and does nothing
    try:
        for command in (
            ("eval", *domain),
            ("predict", pictures / "images", "--run", tiny_run, "--device", "cpu"),
        ):
            second = processes.diff(*command, "-o", "out", cwd=tmp_path)
            _, words = second.communicate(timeout=300)
            assert second.returncode == 1
            assert f"error: out: process {first.pid} on " in words
            assert words.count("error: ") == 1
    finally:
        first.kill()
        first.communicate()
    assert lock.exists()
    third = processes.diff("eval", *domain, "-o", "out", cwd=tmp_path)
    _, words = third.communicate(timeout=300)
    assert third.returncode == 0, words
    assert (tmp_path / "out/report.json").is_file()
    assert not lock.exists()


def test_two_exports_into_one_folder_leave_a_whole_one(tmp_path: Path, tiny_run: Path) -> None:
    command = ("export", tiny_run, "-o", "out", "--with-backbone")
    both = [processes.diff(*command, cwd=tmp_path), processes.diff(*command, cwd=tmp_path)]
    words = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, words
    for code, said in zip(codes, words, strict=True):
        assert code == 0 or "is using it" in said, said
    out = tmp_path / "out"
    check_files(out, json.loads((out / EXPORT_FACTS).read_text())["checksums"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [out.name]
