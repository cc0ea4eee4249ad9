"""`diff export`: a folder that diffcli loads anywhere offline, or networks that run without it (ONNX, torch.export)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffcli.config.size import size_option
from diffcli.errors import ConfigError
from diffcli.export.folder import refuse_foreign, write_folder
from diffcli.export.networks import AGREEMENT, export_networks
from diffcli.runs.opening import open_run
from diffcli.runtime import console
from diffcli.runtime.words import counted


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff export` is asked for."""

    run: Path
    """A run folder, an exported folder or a checkpoint file."""
    output: Path
    """The folder to write; an earlier export there is replaced, anything else refused."""
    format: Literal["folder", "onnx", "pt2"] = "folder"
    """"folder" for diffcli; "onnx" or "pt2" for other runtimes, which are compared with the model first."""
    with_backbone: bool = False
    """Of a folder: put the frozen diffusion model in, in its precision, so that nothing is downloaded later. Networks
    hold it anyway."""
    size: str | None = None
    """Of networks: the size that images are resized to, "1024x512"; None takes eval.size."""
    agreement: float = AGREEMENT
    """Of networks: the least share of pixels whose label equals the model's."""


def run(request: Request) -> None:
    """Write the exported folder of a run, whole or not at all.

    Raises:
        CheckpointError: no trained weights there.
        BackboneError: the diffusion model to put in is not there, or incomplete.
        ConfigError: the options do not go together.
        DiffError: the folder holds something else, or cannot be written; the networks do not agree with the model.
    """
    _check_options(request)
    size = None if request.size is None else size_option("--size", request.size)
    trained, output = open_run(request.run), request.output
    refuse_foreign(output)
    if request.format == "folder":
        facts = write_folder(trained, output, with_backbone=request.with_backbone)
    else:
        facts = export_networks(trained, output, kind=request.format, size=size, agreement=request.agreement)
    files = [path for path in output.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    console.say(f"exported {request.run} to {output}: {counted(len(files), 'file')}, {total / 1e6:.1f} MB")
    console.print_record({"output": output, "bytes": total, **facts})


def _check_options(request: Request) -> None:
    """Raises ConfigError where an option does not belong to the format."""
    if request.format != "folder" and request.with_backbone:
        raise ConfigError(
            "--with-backbone is for --format folder", hint="networks hold the diffusion model anyway"
        )
    if request.format == "folder" and request.size is not None:
        raise ConfigError("--size is for --format onnx and pt2", hint="a folder takes images of any size")
