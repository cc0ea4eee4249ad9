"""Real processes that are stopped, killed and starved: what was trained is kept, and a resumed run is the same run."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli.files import LOCK
from diffcli.runs.checkpoint import read_checkpoint
from diffcli.runs.folder import LAST, METRICS, REPORT, RESUME
from tests.fixtures import processes

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ROOT = Path(__file__).parents[2]
SETTINGS = f"""
name: tiny
model:
  backbone: {{source: {ROOT / "tests/parity/data/tiny-sd"}}}
  inversion: {{schedule: one}}
  decoder: {{channels: [32, 64, 64, 64], head_channels: 16}}
data:
  train: {{domain: miniworld/clean, count: 4}}
  eval: [{{domain: miniworld/night, count: 2}}]
augmentation: {{crop: 64x64}}
train: {{iterations: ITERATIONS, batch_size: 1, log_interval: 3, checkpoint_interval: 5, validate_interval: 10,
  rare_class_sampling: null}}
runtime: {{device: cpu, data_workers: WORKERS}}
eval: {{size: 64x64}}
"""

Process = processes.Forked | subprocess.Popen[str]
Start = Callable[..., Process]


def _default_signals() -> None:
    """A shell that starts the tests in the background has them ignored, and children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start("--resume", iterations=..., workers=...): `diff train` in a process group of its own.

    Forked, but with options for subprocess.Popen a new interpreter.
    """
    started: list[Process] = []

    def run(*options: str, iterations: int = 100_000, workers: int = 0, **popen: Any) -> Process:
        text = SETTINGS.replace("ITERATIONS", str(iterations)).replace("WORKERS", str(workers))
        (tmp_path / "tiny.yaml").write_text(text)
        words = ["train", "tiny.yaml", *options]
        if not popen:
            started.append(processes.diff(*words, cwd=tmp_path))
            return started[-1]
        process = subprocess.Popen(
            [sys.executable, "-m", "diffcli", *words],
            cwd=tmp_path,
            **{
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "process_group": 0,
                "preexec_fn": _default_signals,
                **popen,
            },
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition: Callable[[], bool], process: Process, *, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock, as far as it is whole."""
    if not (folder / METRICS).is_file():
        return []
    read = [json.loads(line) for line in (folder / METRICS).read_text().splitlines() if line.endswith("}")]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def trained(folder: Path, *, iterations: int) -> Callable[[], bool]:
    return lambda: any(line["iteration"] >= iterations for line in lines(folder))


def workers_of(process: Process) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.nightly),
        pytest.param(signal.SIGINT, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_to_the_whole_group_saves(tmp_path: Path, start: Start, number: signal.Signals) -> None:
    """As from `timeout`, systemd, `scancel`, a closed terminal: the loading processes get it too."""
    process = start(workers=2)
    until(trained(tmp_path / "runs/tiny", iterations=6), process)
    assert len(workers_of(process)) == 2
    os.killpg(process.pid, number)
    _, words = process.communicate(timeout=240)
    assert process.returncode == 128 + number, words
    assert words.count("stopped at iteration") == 1
    assert "Traceback" not in words
    assert (tmp_path / "runs/tiny" / RESUME).is_file()
    assert not (tmp_path / "runs/tiny" / LOCK).exists()


@pytest.mark.nightly
def test_a_stop_while_the_program_starts(tmp_path: Path, start: Start) -> None:
    for delay in (0.3, 1.0, 2.0):
        process = start()
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGTERM)
        _, words = process.communicate(timeout=240)
        if process.returncode == -signal.SIGTERM:
            assert delay == 0.3, "Python itself had hardly started"
            continue
        assert process.returncode == 143, words
        assert "Traceback" not in words


def test_a_stop_in_the_last_evaluation(tmp_path: Path, start: Start) -> None:
    process = start(iterations=2)
    until(lambda: (tmp_path / "runs/tiny" / RESUME).is_file(), process)
    os.killpg(process.pid, signal.SIGTERM)
    _, words = process.communicate(timeout=240)
    assert process.returncode == 143, words
    assert not (tmp_path / "runs/tiny" / REPORT).exists()
    again = start("--resume", iterations=2)
    _, words = again.communicate(timeout=240)
    assert again.returncode == 0, words
    assert [line["iteration"] for line in lines(tmp_path / "runs/tiny")] == [2, 2]


def test_a_killed_worker_is_one_line_and_the_run_is_saved(tmp_path: Path, start: Start) -> None:
    process = start(workers=2)
    until(trained(tmp_path / "runs/tiny", iterations=3), process)
    for worker in workers_of(process):
        os.kill(worker, signal.SIGKILL)
    _, words = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "a loading process was killed" in words
    assert "runtime.data_workers" in words
    assert "are saved: --resume continues" in " ".join(words.split())
    assert "Traceback" not in words
    assert (tmp_path / "runs/tiny" / RESUME).is_file()


def test_a_run_that_was_killed_again_and_again_is_the_same_run(tmp_path: Path, start: Start) -> None:
    """Weights, losses, counted evaluations and validations, to the last digit and line.

    Nobody else may resume it while it lives; afterwards the dead owner's lock is taken over at once.
    """
    straight = start(iterations=24)
    assert straight.wait(timeout=240) == 0
    (tmp_path / "runs").rename(tmp_path / "straight")
    process = start(iterations=24)
    until(lambda: (tmp_path / "runs/tiny" / RESUME).is_file(), process)
    process.send_signal(signal.SIGSTOP)
    second = start("--resume", iterations=24)
    _, words = second.communicate(timeout=240)
    assert second.returncode == 1
    assert f"runs/tiny: process {process.pid} on" in words
    process.send_signal(signal.SIGCONT)
    for iteration in (12, 18):
        until(trained(tmp_path / "runs/tiny", iterations=iteration), process)
        process.kill()
        process.wait()
        process = start("--resume", iterations=24)
    _, words = process.communicate(timeout=240)
    assert process.returncode == 0, words
    assert lines(tmp_path / "runs/tiny") == lines(tmp_path / "straight/tiny")
    one, other = (read_checkpoint(tmp_path / name / "tiny" / LAST).state for name in ("runs", "straight"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not list((tmp_path / "runs").rglob(".diffcli-part-*"))


@pytest.mark.nightly
def test_a_closed_terminal(tmp_path: Path, start: Start) -> None:
    """The run saves although nothing can be written to the terminal any more."""
    ours, theirs = pty.openpty()
    process = start(stdout=theirs, stderr=theirs, stdin=theirs, process_group=None, start_new_session=True)
    os.close(theirs)
    folder = tmp_path / "runs/tiny"
    until(
        lambda: bool(os.set_blocking(ours, False) or drain(ours)) and trained(folder, iterations=6)(), process
    )
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=240) == 129
    assert (folder / RESUME).is_file()
    assert not (folder / LOCK).exists()


def drain(terminal: int) -> bool:
    """Read what a terminal shows, so that its writer is not held up."""
    with suppress(BlockingIOError):
        while os.read(terminal, 65536):
            pass
    return True


@pytest.mark.nightly
def test_a_full_disk_is_one_line_and_the_old_checkpoint_is_whole(tmp_path: Path, start: Start) -> None:
    first = start(iterations=8)
    assert first.wait(timeout=120) == 0
    size = (tmp_path / "runs/tiny" / LAST).stat().st_size
    process = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, 2 * size)))
    _, words = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "resume.safetensors: cannot be written: File too large" in words
    assert "Traceback" not in words
    assert not list((tmp_path / "runs/tiny-2").rglob(".diffcli-part-*"))


@pytest.mark.nightly
def test_a_folder_that_is_removed_meanwhile(tmp_path: Path, start: Start) -> None:
    process = start()
    until(trained(tmp_path / "runs/tiny", iterations=3), process)
    (tmp_path / "runs/tiny").rename(tmp_path / "gone")
    _, words = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "the run folder was moved or removed while it trained" in words
    assert "Traceback" not in words
    assert (tmp_path / "runs/tiny" / RESUME).is_file()


@contextmanager
def as_in_a_container(tmp_path: Path) -> Iterator[list[str]]:
    """A command that runs another one with 16 kB of shared memory."""
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=16k none /dev/shm && exec "$@"',
        "sh",
    ]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield command


@pytest.mark.nightly
def test_hardly_any_shared_memory(tmp_path: Path, start: Start) -> None:
    """Batches need none; where not even a worker can be started, the main process loads."""
    start(iterations=4, workers=3).communicate(timeout=240)
    with as_in_a_container(tmp_path) as command:
        done = subprocess.run(
            [*command, sys.executable, "-m", "diffcli", "train", "tiny.yaml"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "runs/tiny-2") == lines(tmp_path / "runs/tiny")


@pytest.mark.nightly
def test_few_open_files(tmp_path: Path, start: Start) -> None:
    process = start(
        iterations=4,
        workers=32,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)),
    )
    _, words = process.communicate(timeout=240)
    assert process.returncode == 0, words
    assert "32 loading processes cannot be started" in words
    assert "--shm-size" in words
