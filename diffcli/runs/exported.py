"""An exported folder, as `diff export` writes it and `diff push` publishes it: names of its files, their checksums."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from diffcli.errors import CheckpointError

EXPORT_WEIGHTS = "model.safetensors"
"""The trained weights."""
EXPORT_CONFIG = "config.json"
"""The settings of the model."""
EXPORT_FACTS = "export.json"
"""What else is known of it; the file by which an exported or published folder is recognised."""
EXPORT_BACKBONE = "backbone"
"""The frozen model, where it is included: a diffusers folder, or a single file with this stem."""

_TENSORS = (".safetensors", ".onnx", ".data", ".pt2", ".npy")
"""Suffixes of files that hold tensors."""


def file_checksums(folder: Path) -> dict[str, str]:
    """Path in the folder -> SHA-256, of every file that holds tensors; what `export.json` records."""
    return {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TENSORS and path.is_file()
    }


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Every recorded file is in the folder and holds what was written.

    Raises:
        CheckpointError: one is missing or differs; names it.
    """
    for name, recorded in checksums.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{EXPORT_FACTS} names a file outside of the folder: {name}", where=str(folder)
            )
        try:
            found = _sha256(path)
        except OSError as error:
            raise CheckpointError(
                f"a file of this export cannot be read: {error.strerror}", where=str(path), hint=_AGAIN
            ) from error
        if found != recorded:
            raise CheckpointError(
                "damaged: its checksum is not the one that was recorded when it was exported",
                where=str(path),
                hint=_AGAIN,
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_AGAIN = "copy or download the folder again, or export the run again"
