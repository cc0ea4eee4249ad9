"""Run folders: what lies where in one, how one is made, and which one is meant."""

import difflib
import platform
import re
from importlib import metadata
from pathlib import Path

from diffcli.config.file import dump_config, load_config
from diffcli.config.settings import RunConfig, RuntimeConfig
from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.runs.hub import PREFIX, run_path

RUNS = Path("runs")
"""Folder of all runs, in the working directory."""

CONFIG = "config.yaml"
"""The resolved settings."""
VERSIONS = "versions.json"
"""What it ran with."""
METRICS, RESULTS, CURVES = "metrics.jsonl", "results.csv", "curves.png"
VALIDATION = "validation"
"""Folder of the pictures that each validation leaves."""
"""A line of JSON every few iterations."""
LAST = "checkpoints/last.safetensors"
"""The trained weights as they stand."""
BEST = "checkpoints/best.safetensors"
"""The trained weights of the best validation."""
RESUME = "checkpoints/resume.pt"
"""Optimizer and position, while the run is unfinished."""
REPORT = "report.json"
"""The scores; a run that holds it is finished."""
PICTURE = "picture.png"
"""Image | truth | prediction, a row for each domain."""

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "opencv-python",
    "pydantic",
    "typer",
    "rich",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


def create_run(name: str, *, runs: Path = RUNS) -> Path:
    """Make a fresh folder under `runs`; a taken name gets -2, -3 ...

    Raises:
        ConfigError: the name cannot be that of a folder.
        DiffError: the folder cannot be made.
    """
    if not re.fullmatch(r"[^\s/\\:*?\"<>|.-][^/\\:*?\"<>|\x00-\x1f]*", name):
        raise ConfigError(
            f"{name!r} cannot name a run folder",
            hint="choose a name of letters, digits, - and _ (--name NAME)",
        )
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            if runs.exists() and not runs.is_dir():
                raise DiffError("this is a file, so it cannot hold runs", where=str(runs)) from None
        except OSError as error:
            raise DiffError(f"the run folder cannot be made: {error.strerror}", where=str(folder)) from error


def find_run(name: str | None = None, *, runs: Path = RUNS) -> Path:
    """The path that `name` means: a run or exported folder, a run's name under `runs`, or a checkpoint file.

    `hub:owner/name` is a published model, fetched into the cache. Without a name, the newest finished run.

    Raises:
        CheckpointError: there is none; says how to get one.
    """
    if name is None:
        return _newest_finished(runs)
    if name.startswith(PREFIX):
        return run_path(name)
    for folder in (Path(name).expanduser(), runs / name):
        if folder.is_dir():
            return _checked(folder)
        if folder.is_file():
            return folder
    names = [folder.name for folder in _finished(runs)]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else _how_to_get_one(names)
    raise CheckpointError(f"there is no run {name}", where=str(runs), hint=hint)


def _checked(folder: Path) -> Path:
    """The folder, if it holds trained weights."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("checkpoints/*.safetensors")):
        return folder
    raise CheckpointError(
        "this folder holds no trained weights",
        where=str(folder),
        hint="give a run folder, or a folder that `diff export` wrote",
    )


def _finished(runs: Path) -> list[Path]:
    """Finished runs, newest first."""
    reports = sorted(runs.glob(f"*/{REPORT}"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    return [path.parent for path in reversed(reports)]


def _newest_finished(runs: Path) -> Path:
    finished = _finished(runs)
    if finished:
        return finished[0]
    started = sorted(path.parent.name for path in runs.glob(f"*/{CONFIG}"))
    if started:
        raise CheckpointError(
            "no run is finished yet",
            where=str(runs),
            hint=f"finish one with `diff train CONFIG.yaml --resume`, or name one: --run {started[-1]}",
        )
    raise CheckpointError("there is no run here", where=str(runs), hint=_how_to_get_one([]))


def _how_to_get_one(names: list[str]) -> str:
    if names:
        return f"runs there: {', '.join(names)}"
    return "train one with `diff train examples/quickstart.yaml`, or give a run folder with --run"


def find_unfinished(name: str, *, runs: Path = RUNS, config: RunConfig) -> Path:
    """The newest run of that name that `--resume` can continue.

    Args:
        config: the resolved settings, which must be those that the run was started with; `runtime` may differ.

    Raises:
        CheckpointError: there is none, or it was started with other settings.
        ConfigError: its settings cannot be read.
    """
    numbered = re.compile(rf"{re.escape(name)}(-\d+)?")
    candidates = [path for path in runs.glob(f"*/{RESUME}") if numbered.fullmatch(path.parent.parent.name)]
    if not candidates:
        raise CheckpointError(
            f"no unfinished run named {name} to resume", where=str(runs), hint="start it without --resume"
        )
    folder = max(candidates, key=lambda path: path.stat().st_mtime).parent.parent
    before, now = (
        dump_config(settings.model_copy(update={"runtime": RuntimeConfig()})).splitlines()
        for settings in (load_config(folder / CONFIG), config)
    )
    if before != now:
        changed = [line.strip() for line in now if line not in before]
        raise CheckpointError(
            f"the settings changed since ({'; '.join(changed[:3])})",
            where=str(folder / CONFIG),
            hint="resume with the same settings, or start a new run without --resume",
        )
    return folder


def versions() -> dict[str, str]:
    """Versions of this program, of Python, of the packages that results depend on, and the platform."""
    from diffcli import __version__

    return {
        "diffcli": __version__,
        "python": platform.python_version(),
        **{package: version for package in PACKAGES if (version := _installed(package))},
        "platform": platform.platform(),
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
