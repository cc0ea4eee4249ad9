"""`diff doctor`: what this machine has to run with, what is missing, and what differs from where a run was trained."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffcli.backbone.locate import find_on_disk
from diffcli.config.file import load_config
from diffcli.config.settings import DEFAULT_BACKBONE, EMBEDDED, RunConfig
from diffcli.errors import CheckpointError, DiffError
from diffcli.runs.folder import CONFIG, VERSIONS, versions
from diffcli.runtime import console
from diffcli.runtime.words import counted

HUB_MODELS = (DEFAULT_BACKBONE, "stable-diffusion-v1-5/stable-diffusion-v1-5")
"""Diffusion models that people use by their hub id."""


@dataclass(frozen=True)
class Request:
    """What `diff doctor` is asked for."""

    run: Path | None = None
    """A run folder, or a checkpoint in it, to compare this machine with; None: only this machine."""


def run(request: Request) -> None:
    """Print device, precisions, memory, versions and weights; advice goes to stderr. Or what differs from a run's.

    Raises:
        CheckpointError: that is no run folder, or its files are damaged.
    """
    if request.run is not None:
        _compare(request.run)
        return
    facts = {
        "versions": versions(),
        **_devices(),
        "memory_gib": _memory(),
        "weights": _weights(),
        "extras": _extras(),
    }
    console.print_record(facts)
    console.table("versions", ["", ""], facts["versions"].items())
    console.table("\ndevices", ["device", "what", "GiB", "precisions"], _device_rows(facts))
    weights = [[one["model"], _short(one["path"])] for one in facts["weights"]]
    console.table("\nweights", ["model", "on this disk"], weights)
    installed = [[name, "yes" if there else "-"] for name, there in facts["extras"].items()]
    console.table("\ntrackers", ["package", "installed"], installed)
    for line in _advice(facts):
        console.say(line)


# ----------------------------------------------------------------------------------------- what differs from a run


def _compare(run: Path) -> None:
    folder = run.parents[1] if run.is_file() and run.parent.name == "checkpoints" else run
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"no run folder: it holds no {CONFIG}",
            where=str(folder),
            hint="give a folder that `diff train` wrote",
        )
    rows = [row for row in _facts_of(folder) if row[1] != row[2]]
    console.print_record(
        {"run": folder, "differs": [dict(zip(("what", "run", "here"), row, strict=True)) for row in rows]}
    )
    if rows:
        shown = [[_shortened(cell) for cell in row] for row in rows]
        console.table(f"what differs from {folder}", ["what", "in the run", "here"], shown)
        console.say('"The same numbers again" in README says which of these change results')
    else:
        console.say(f"nothing differs from what {folder} records")


def _facts_of(folder: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """What the run records, and the same of this machine; None: not known, or not there."""
    from diffcli.runs import provenance  # imports torch, which takes seconds

    recorded, here = _recorded_versions(folder), versions()
    for name in dict.fromkeys([*recorded, *here]):
        yield name, recorded.get(name), here.get(name)
    try:
        config = load_config(folder / CONFIG)
    except DiffError as error:
        config = None
        yield "settings", "valid", f"no longer read: {error}"
    then = provenance.read_provenance(folder)
    if then is None:
        console.say(f"{folder} holds no {provenance.PROVENANCE}: versions and settings alone are compared")
        return
    for name, state, now in (
        ("git", then.git, provenance.git_state(Path.cwd())),
        ("git of diffcli", then.diffcli_git, provenance.own_git_state()),
    ):
        yield name, _text(state), _text(now)
    if config is None:
        return
    machine = provenance.resolved_machine(config.runtime)
    for name in ("device", "precision", "backbone_precision", "threads"):
        yield name.replace("_", " "), _text(getattr(then.machine, name)), _text(getattr(machine, name))
    for name, seed in provenance.seeds(config).items():
        yield name, _text(then.seeds.get(name)), _text(seed)
    yield from _weights_of(config, then.weights)


def _weights_of(config: RunConfig, recorded: dict[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
    from diffcli.runs.provenance import weight_hashes

    try:
        found = weight_hashes(config.model.backbone)
    except DiffError as error:
        yield "weights", f"of {config.model.backbone.source}", str(error)
        return
    for name in dict.fromkeys([*recorded, *found]):
        yield name, _text(recorded.get(name)), _text(found.get(name))


def _recorded_versions(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / VERSIONS).read_bytes())
        return {str(name): str(version) for name, version in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError("damaged", where=str(folder / VERSIONS)) from error


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _shortened(cell: str | None) -> str | None:
    """Of a SHA-256, as much as people compare; the record holds all of it."""
    return cell[:12] if cell is not None and re.fullmatch("[0-9a-f]{64}", cell) else cell


# ----------------------------------------------------------------------------------------------------- this machine


def _short(path: Path | None) -> str:
    """A folder as people write it: from the home folder, if it is in there."""
    if path is None:
        return "-"
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _devices() -> dict[str, Any]:
    """Every device that PyTorch computes on, with its precisions; none and the fault where PyTorch is broken."""
    try:
        import torch
    except ImportError as error:
        return {"devices": [], "fault": f"torch cannot be imported: {error}"}
    except OSError as error:
        return {"devices": [], "fault": f"torch is broken: {error}"}
    devices: list[dict[str, Any]] = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(i)
        bf16 = (facts.major, facts.minor) >= (8, 0) or torch.version.hip is not None
        devices.append(
            {
                "device": f"cuda:{i}",
                "what": facts.name,
                "memory_gib": facts.total_memory / 2**30,
                "precisions": ["fp16", *(["bf16"] if bf16 else []), "float32"],
            }
        )
    if torch.backends.mps.is_available():
        devices.append(
            {"device": "mps", "what": "Apple GPU", "memory_gib": None, "precisions": ["fp16", "float32"]}
        )
    what = f"{counted(torch.get_num_threads(), 'thread')}, {torch.backends.cpu.get_cpu_capability()}"
    devices.append(
        {"device": "cpu", "what": what, "memory_gib": _memory()["total"], "precisions": ["float32", "bf16"]}
    )
    return {"devices": devices, "gpu_build": torch.version.cuda or torch.version.hip}


def _device_rows(facts: dict[str, Any]) -> list[list[object]]:
    return [[d["device"], d["what"], d["memory_gib"], ", ".join(d["precisions"])] for d in facts["devices"]]


def _memory() -> dict[str, float | None]:
    """Main memory in GiB, in all and free for a new process; None where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page / 2**30, os.sysconf("SC_AVPHYS_PAGES") * page / 2**30
    except (ValueError, OSError, AttributeError):
        return {"total": None, "available": None}
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        available = free
    return {"total": total, "available": available}


def _weights() -> list[dict[str, Any]]:
    """The embedded model and those of the hub cache."""
    return [{"model": name, "path": find_on_disk(name)} for name in (EMBEDDED, *HUB_MODELS)]


def _extras() -> dict[str, bool]:
    return {name: find_spec(name) is not None for name in ("tensorboard", "wandb", "mlflow")}


def _advice(facts: dict[str, Any]) -> list[str]:
    """What to do, a line each."""
    lines = []
    if "fault" in facts:
        lines.append(f"{facts['fault']}; install it again: pip install --force-reinstall torch")
    elif not any(device["device"].startswith(("cuda", "mps")) for device in facts["devices"]):
        why = "this PyTorch is built without it" if facts["gpu_build"] is None else "no driver or no device"
        lines.append(f"no GPU ({why}): fine for the embedded model, slow for a full-size one")
    if facts["weights"][0]["path"] is None:
        lines.append("the embedded model is missing: install diffcli again")
    if facts["weights"][1]["path"] is None:
        lines.append(
            f"{DEFAULT_BACKBONE} (5 GB) is fetched on first use; before: hf download {DEFAULT_BACKBONE}"
        )
    available = facts["memory_gib"]["available"]
    if available is not None and available < 4:
        lines.append(
            f"only {available:.1f} GiB of memory are free: full-size models need 8, the embedded one 2"
        )
    return lines or ["everything is in place"]
