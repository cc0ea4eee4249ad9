"""What weight files hold, read off their headers alone: damaged downloads are found before anything is loaded."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from diffcli.errors import BackboneError
from diffcli.runtime.memory import is_out_of_memory

_MAX_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""


def read_header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file: tensor name -> {dtype, shape, data_offsets}, and "__metadata__".

    Raises:
        BackboneError: a Git LFS pointer, another format, or cut off.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        text = file.read(length) if len(start) == 8 and length <= _MAX_HEADER else b""
    if start.startswith(b"version "):
        raise BackboneError(
            "a Git LFS pointer, not the weights", where=str(path), hint="fetch the weights: git lfs pull"
        )
    try:
        header: dict[str, Any] = json.loads(text)
        end = max(
            (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"),
            default=0,
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BackboneError(
            "not a safetensors file",
            where=str(path),
            hint="weights must be in the .safetensors format, completely downloaded",
        ) from error
    size = path.stat().st_size
    if size < 8 + length + end:
        raise BackboneError(
            f"cut off: {size} of {8 + length + end} bytes are there",
            where=str(path),
            hint="delete it and download it again",
        )
    return header


def count_parameters(paths: Iterable[Path], *, prefix: str = "") -> int:
    """Numbers in the tensors whose names begin with `prefix`."""
    return sum(
        prod(tensor["shape"])
        for path in paths
        for name, tensor in read_header(path).items()
        if name != "__metadata__" and name.startswith(prefix)
    )


def choose_weights(
    names: Iterable[str], *, stem: str, variant: str | None, where: str
) -> tuple[str | None, list[str]]:
    """The variant to read and its files, out of the file names in one component's folder.

    Args:
        stem: what the files are called: STEM.safetensors, STEM.VARIANT.safetensors, or numbered shards of these.
        variant: None takes the plain files, or another variant if it is the only one there.

    Raises:
        BackboneError: that variant is not there (says which are), a shard is missing, or all are pickled.
    """
    names = sorted(names)
    have: dict[str | None, list[str]] = {}
    pattern = re.compile(rf"{stem}(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-(?P<shards>\d+))?\.safetensors")
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None:
            have.setdefault(match["variant"], []).append(name)
    if variant is None and len(have) == 1:
        variant = next(iter(have))
    if variant in have:
        shards = pattern.fullmatch(have[variant][0])
        if shards and shards["shards"] and len(have[variant]) != int(shards["shards"]):
            raise BackboneError(
                f"{len(have[variant])} of {shards['shards']} weight files are there",
                where=where,
                hint="the download is incomplete: download the model again",
            )
        return variant, have[variant]
    if have:
        listed = ", ".join(name or "plain" for name in sorted(have, key=lambda name: name or ""))
        asked = "plain weights" if variant is None else f"weight variant {variant!r}"
        hint = "set model.backbone.variant to one that is there (null is plain)"
        raise BackboneError(f"no {asked} here; there are: {listed}", where=where, hint=hint)
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        raise BackboneError(
            "only pickled weights (.bin) here, which are not read",
            where=where,
            hint="convert them with diffusers: DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)",
        )
    raise BackboneError(
        "the weights are missing", where=where, hint="the download is incomplete: download the model again"
    )


@contextmanager
def misfits(what: str, *, where: str) -> Iterator[None]:
    """Turn what the libraries raise over contents that do not fit together into a BackboneError."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # each library has its own kinds
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(
            f"{what} is damaged or incomplete ({reason})",
            where=where,
            hint="download the model again, in one piece",
        ) from error
