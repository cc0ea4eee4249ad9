"""Two commands that write to one folder at the same time: real processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.files import LOCK
from diffcli.runs.exported import EXPORT_FACTS, check_files

pytestmark = [pytest.mark.slow, pytest.mark.integration]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, repository: Path) -> Start:
    """`diff ...` as a process of its own."""

    def started(*arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "diffcli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repository)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


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


def test_two_predicts_share_a_folder(tmp_path: Path, tiny_run: Path, pictures: Path, start: Start) -> None:
    """Every image has one line and one mask; both calls end well."""
    command = ("predict", pictures / "images", "--run", tiny_run, "-o", "out", "--device", "cpu")
    for process in (start(*command), start(*command)):
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
    tmp_path: Path, tiny_run: Path, pictures: Path, start: Start
) -> None:
    lock = tmp_path / "out" / LOCK
    domain = ("--run", tiny_run, "--domain", "folder", "--root", pictures, "--device", "cpu")
    first = start("eval", *domain, "-o", "out")
    while not lock.exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    first.send_signal(19)  # SIGSTOP: it lives, and does nothing
    try:
        for command in (
            ("eval", *domain),
            ("predict", pictures / "images", "--run", tiny_run, "--device", "cpu"),
        ):
            second = start(*command, "-o", "out")
            _, words = second.communicate(timeout=300)
            assert second.returncode == 1
            assert f"error: out: process {first.pid} on " in words
            assert words.count("error: ") == 1
    finally:
        first.kill()
        first.communicate()
    assert lock.exists()
    third = start("eval", *domain, "-o", "out")
    _, words = third.communicate(timeout=300)
    assert third.returncode == 0, words
    assert (tmp_path / "out/report.json").is_file()
    assert not lock.exists()


def test_two_exports_into_one_folder_leave_a_whole_one(tmp_path: Path, tiny_run: Path, start: Start) -> None:
    command = ("export", tiny_run, "-o", "out", "--with-backbone")
    both = [start(*command), start(*command)]
    words = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, words
    for code, said in zip(codes, words, strict=True):
        assert code == 0 or "is using it" in said, said
    out = tmp_path / "out"
    check_files(out, json.loads((out / EXPORT_FACTS).read_text())["checksums"])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
