"""Named tensors with a JSON header in one safetensors file, under a checksum; written whole and flushed to the disk."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffcli.backbone.weight_files import read_header
from diffcli.errors import CheckpointError
from diffcli.files import write_atomically

FORMAT = 1
"""Version of the layout of these files; it grows with every change that older versions cannot read."""
_CHECKSUM = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, kind: str, header: Mapping[str, Any]) -> None:
    """Write tensors and header; the old file stays until the new one is on the disk.

    Args:
        kind: key of the header in the file's metadata, by which `read_tensors` recognises it.

    Raises:
        DiffError: the disk is full, or the folder cannot be written to.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"format": FORMAT, **header}
    text = json.dumps({_CHECKSUM: _checksum(plain, facts), **facts})
    with write_atomically(path, durable=True) as temporary:
        save_file(plain, temporary, metadata={kind: text})  # one key: several are written in a random order


def read_tensors(path: Path, *, kind: str, hint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and header of a file that `write_tensors` wrote; None for a sound safetensors file of another kind.

    Args:
        hint: what to do about a damaged file.

    Raises:
        CheckpointError: damaged, or written by a newer version.
    """
    read_header(path, error=CheckpointError, hint=hint)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"damaged or incomplete ({reason})", where=str(path), hint=hint) from error
    if kind not in metadata:
        return None
    try:
        header = dict(json.loads(metadata[kind]))
    except (ValueError, TypeError) as error:
        raise CheckpointError("its header is damaged", where=str(path), hint=hint) from error
    version = header.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"format {version}, and this version of diffcli reads up to {FORMAT}",
            where=str(path),
            hint="install the version of diffcli that wrote it, or a newer one",
        )
    recorded = header.pop(_CHECKSUM, "" if "format" in header else None)  # the earliest files have neither
    if recorded is not None and recorded != _checksum(tensors, header):
        raise CheckpointError(
            "damaged: its checksum is not the one that was written with it", where=str(path), hint=hint
        )
    header.pop("format", None)
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of the header and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
