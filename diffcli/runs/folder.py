"""Run folders: what lies where in one, how one is made, and which one is meant."""

import difflib
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from diffcli.config.file import load_config
from diffcli.config.settings import RunConfig
from diffcli.config.yaml_tree import RUN_CONFIG
from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.runs.hub import PREFIX, run_path

RUNS = Path("runs")
"""Folder of all runs, in the working directory."""

CONFIG = RUN_CONFIG
"""The resolved settings."""
VERSIONS = "versions.json"
"""What it ran with."""
METRICS, RESULTS, CURVES = "metrics.jsonl", "results.csv", "curves.png"
"""A line of JSON every few iterations, the same as a table, and its picture."""
VALIDATION = "validation"
"""Folder of the pictures that each validation leaves."""
LAST = "checkpoints/last.safetensors"
"""The trained weights as they stand."""
BEST = "checkpoints/best.safetensors"
"""The trained weights of the best validation."""
RESUME = "checkpoints/resume.safetensors"
"""Optimizer and position, while the run is unfinished."""
REPORT = "report.json"
"""The scores; a run that holds it is finished."""
REPORT_TABLE, REPORT_TEXT, REPORT_PAGE = "report.csv", "report.md", "report.html"
"""The scores in other formats."""
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
            raise DiffError(
                f"the run folder cannot be made: {error.strerror}",
                where=str(folder),
                hint="choose a folder that you may write to and a short name (--name NAME)",
            ) from error


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


def choose_checkpoint(run: Path, name: str) -> Path:
    """The run itself for "last", the file of its best checkpoint for "best".

    Raises:
        CheckpointError: it has no best checkpoint.
    """
    if name == "last":
        return run
    if not (run / BEST).is_file():
        raise CheckpointError(
            "there is no best checkpoint here", where=str(run), hint="--checkpoint last takes the last one"
        )
    return run / BEST


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
        config: the resolved settings; those outside `CHANGEABLE` and `runtime` must be what the run was started with.

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
    before = load_config(folder / CONFIG)
    fixed = [key for key in changed_settings(before, config) if key not in CHANGEABLE]
    if fixed:
        old, new = flat_settings(before), flat_settings(config)
        shown = "; ".join(f"{key} was {old.get(key)}, and is {new.get(key)} now" for key in fixed[:3])
        raise CheckpointError(
            f"the settings changed since the run started: {shown}",
            where=str(folder / CONFIG),
            hint="start a new run without --resume; a resumed one may only change "
            f"{', '.join(CHANGEABLE)} and runtime",
        )
    return folder


CHANGEABLE = (
    *("train.iterations", "train.learning_rate", "train.head_multiplier", "train.weight_decay"),
    *("train.clip_norm", "train.patience", "train.log_interval", "train.validate_interval"),
    *("train.checkpoint_interval", "train.trackers", "data.on_error"),
)
"""Settings that a resumed run may change: from there on they mean what they mean in a new run."""


def changed_settings(before: RunConfig, now: RunConfig) -> list[str]:
    """Dotted keys whose values differ; `runtime` is the machine's, and never counts."""
    old, new = flat_settings(before), flat_settings(now)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def flat_settings(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value as in YAML, of every setting outside `runtime`."""

    def flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(flat(config.model_dump(mode="json", exclude={"runtime", "name"}), ""))


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
