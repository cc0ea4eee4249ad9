"""What every test shares: the command line as a real process, one compute thread, tests/fixtures."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
INTEGRATION = ROOT / "tests" / "integration"

pytest_plugins = ("tests.fixtures.models", "tests.fixtures.runs", "tests.fixtures.datasets")

CLI = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure() -> None:
    """One thread a process: machines are shared, and results do not depend on the number of cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests/integration; run `nightly` tests only when -m names them; skip `cuda` tests without a GPU."""
    import torch

    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker("integration")
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    if "nightly" not in config.option.markexpr:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


def run_cli(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """`diff ...` as its own process, in a pipe of 80 columns."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:diffcli", "-m", "diffcli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def cli_in() -> CLI:
    """Run `diff ...` in a folder of the caller's: cli_in("check", file, cwd=folder)."""
    return run_cli


@pytest.fixture
def cli(tmp_path: Path) -> CLI:
    """Run `diff ...` in an empty folder as its own process, in a pipe: cli("check", file, env={...}, cwd=...)."""

    def run(
        *arguments: object, cwd: Path | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        return run_cli(*arguments, cwd=cwd or tmp_path, **options)

    return run
