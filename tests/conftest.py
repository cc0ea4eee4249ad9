"""What every test shares: the command line, here or as a process of its own; markers; tests/fixtures."""

import gc
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
INTEGRATION = ROOT / "tests" / "integration"

FIXTURES = ("tests.fixtures.models", "tests.fixtures.runs", "tests.fixtures.datasets")

SLOW_FIXTURES = {"cli_process", "launch", "onnx_export", "ranks", "workplace"}
"""What takes seconds to make: a test that uses one is marked slow."""

Done = subprocess.CompletedProcess[str]
CLI = Callable[..., Done]


def pytest_configure(config: pytest.Config) -> None:
    """One thread a process, for machines are shared; 80 columns, as in a pipe; every process finds this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.update(OMP_NUM_THREADS="1", COLUMNS="80", PYTHONPATH=path)
    if getattr(config.option, "numprocesses", None):
        return  # the workers of pytest-xdist run the tests; this process imports nothing of them, and starts at once
    import torch
    from hypothesis import settings

    for name in FIXTURES:
        config.pluginmanager.import_plugin(name)
    torch.set_num_threads(1)
    settings.register_profile("ci", derandomize=True, deadline=None, database=None)
    settings.register_profile("local", deadline=None)
    settings.load_profile("ci" if "CI" in os.environ else "local")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker for each core, but not so many that they need more memory than machines have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark by folder and by slow fixtures; keep `nightly` tests for -m nightly and `cuda` tests for a GPU."""
    import torch

    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker("integration")
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    if "nightly" not in config.option.markexpr:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


def pytest_collection_finish() -> None:
    """What is imported now stays: the garbage collector need not go through a million objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


def run_process(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300
) -> Done:
    """`diff ...` as its own process, in a pipe of 80 columns."""
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:diffcli", "-m", "diffcli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def cli_process(tmp_path: Path) -> CLI:
    """Run `diff ...` as its own process in an empty folder: what only a fresh interpreter shows."""
    return partial(run_process, cwd=tmp_path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """here(function, words): what a function that reads sys.argv prints, and its exit code, in an empty folder."""

    def run(
        function: Callable[[], object],
        words: Sequence[object],
        *,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Done:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        code: str | int | None = 0
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", [str(word) for word in words])
            patch.chdir(cwd or tmp_path)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            try:
                function()
            except SystemExit as end:
                code = end.code
        texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
        return subprocess.CompletedProcess([*words], code if isinstance(code, int) else bool(code), *texts)

    return run


@pytest.fixture
def cli(here: Callable[..., Done]) -> CLI:
    """Run `diff ...` from its error boundary on, in this process: cli("check", file, env={...}, cwd=...).

    Seconds cheaper than `cli_process`: torch is imported already, and warnings are errors.
    """
    from diffcli.cli.main import main

    return lambda *arguments, **options: here(main, ["diff", *arguments], **options)


@pytest.fixture
def script(here: Callable[..., Done]) -> CLI:
    """Run a file of examples/ as `python FILE ...`, in this process: script("depth_backbone.py", "--scenes", 4)."""

    def run(name: str, *arguments: object, **options: Any) -> Done:
        file = str(ROOT / "examples" / name)
        return here(lambda: runpy.run_path(file, run_name="__main__"), [file, *arguments], **options)

    return run
