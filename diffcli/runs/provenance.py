"""Where the numbers of a run come from: code, machine, seeds and frozen weights, as `provenance.json` records them."""

import hashlib
import os
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from diffcli.backbone.locate import weight_files
from diffcli.config.settings import BackboneConfig, RunConfig, RuntimeConfig
from diffcli.data.statistics import cache_folder, file_state
from diffcli.errors import CheckpointError, DiffError
from diffcli.files import write_text
from diffcli.runs.folder import flat_settings
from diffcli.runtime import console
from diffcli.runtime.device import resolve_backbone_precision, resolve_device, resolve_precision

PROVENANCE = "provenance.json"
"""In a run folder, written anew whenever training starts or resumes."""

_KEPT_FROM = 64 * 2**20
"""Bytes. The hash of a smaller file takes no time worth keeping it for."""


class GitState(BaseModel):
    """A git checkout as it stood."""

    model_config = ConfigDict(frozen=True)

    commit: str
    changed: bool
    """Whether tracked files differ from the commit."""

    def __str__(self) -> str:
        return self.commit[:12] + (" with changes" if self.changed else "")


class Machine(BaseModel):
    """What computed. Other values of these may change the last bits of a result."""

    model_config = ConfigDict(frozen=True)

    device: str
    """Its name: "NVIDIA A100-SXM4-40GB", or what PyTorch calls the CPU's vector instructions."""
    precision: str
    backbone_precision: str
    threads: int
    processes: int


class Provenance(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    """A change that breaks readers of the file counts it up."""
    time: str
    git: GitState | None
    """Of the working directory; None where it is in no checkout, or git is not installed."""
    diffcli_git: GitState | None
    """Of the checkout that diffcli itself runs from, if it does."""
    machine: Machine
    seeds: dict[str, int | None]
    """Every setting that is a seed."""
    weights: dict[str, str]
    """File of the frozen model, as in "unet/diffusion_pytorch_model.safetensors" -> SHA-256."""


def write_provenance(folder: Path, config: RunConfig, *, processes: int) -> None:
    """Record where the numbers of this run come from.

    Raises:
        DiffError: the folder cannot be written to, or a weight file cannot be read.
    """
    found = Provenance(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        git=git_state(Path.cwd()),
        diffcli_git=own_git_state(),
        machine=resolved_machine(config.runtime, processes=processes),
        seeds=seeds(config),
        weights=weight_hashes(config.model.backbone),
    )
    write_text(folder / PROVENANCE, found.model_dump_json(indent=2) + "\n")


def resolved_machine(settings: RuntimeConfig, *, processes: int = 1) -> Machine:
    """What these settings mean on this machine.

    Raises:
        ConfigError: it has no such device or precision.
    """
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    return Machine(
        device=device_name(device),
        precision=precision,
        backbone_precision=resolve_backbone_precision(
            settings.backbone_precision, precision=precision, device=device
        ),
        threads=torch.get_num_threads(),
        processes=processes,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name; of a CPU its vector instructions, as PyTorch calls them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def read_provenance(folder: Path) -> Provenance | None:
    """What the run's folder records; None where an older version trained it.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / PROVENANCE
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise CheckpointError("damaged, or of a newer version", where=str(path)) from error


def seeds(config: RunConfig) -> dict[str, int | None]:
    """Dotted key -> value of every setting that is a seed."""
    return {key: value for key, value in flat_settings(config).items() if key.endswith("seed")}


# ------------------------------------------------------------------------------------------------ weights


def weight_hashes(config: BackboneConfig) -> dict[str, str]:
    """File of the frozen model -> SHA-256 of its bytes.

    Large files are hashed once: the result is kept in the user's cache folder under the file's path, size and time of
    change.

    Raises:
        BackboneError: a file is not on this disk.
        DiffError: a file cannot be read.
    """
    files = weight_files(config)
    large = [path for path in dict.fromkeys(files.values()) if path.stat().st_size >= _KEPT_FROM]
    known = {}
    if large:
        with console.progress("hash the diffusion model", len(large), unit="files") as bar:
            for path in large:
                known[path] = _kept_hash(path)
                bar.update()
    return {name: known.get(path) or _hash(path) for name, path in files.items()}


def _kept_hash(path: Path) -> str:
    key = hashlib.sha256(file_state(path.resolve())).hexdigest()[:40]
    kept = cache_folder() / "hashes" / f"{key}.txt"
    try:
        text = kept.read_text(encoding="ascii")
        if len(bytes.fromhex(text)) == hashlib.sha256().digest_size:
            return text
    except (OSError, ValueError):
        pass  # not there, or damaged
    found = _hash(path)
    with suppress(DiffError):  # a cache that cannot be written costs time, never the run
        write_text(kept, found)
    return found


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DiffError(f"cannot be read: {error.strerror}", where=str(path)) from error


# ---------------------------------------------------------------------------------------------------- git


def git_state(folder: Path) -> GitState | None:
    """The commit of the checkout around `folder`, and whether tracked files were changed; None where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return None
    return GitState(commit=commit, changed=bool(changes))


def own_git_state() -> GitState | None:
    """The state of diffcli's own checkout; None where it is installed as a package, even inside somebody's checkout."""
    package = Path(__file__).parent.parent
    return git_state(package) if _git(package, "ls-files", "--error-unmatch", "__init__.py") else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, takes too long or is not installed. No hook of the checkout is run."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
