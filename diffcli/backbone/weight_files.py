"""What weight files hold, read from their headers alone: a damaged download is found before anything is loaded.

Imports no torch, so that `diff check` answers at once.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from diffcli.errors import BackboneError, DiffError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Suffixes of weights in Python's pickle format, which may hold code as well."""

STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}
"""Component -> what its weight files are called."""

_MAX_HEADER = 25_000_000
"""Bytes. A whole Stable Diffusion file has a header of 0.2 MB; reading a larger one would take memory for nothing."""
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


class DamagedFile(BackboneError):
    """A file of the diffusion model is missing or damaged: downloading it again would help."""


def check_readable(path: Path, *, error: type[DiffError] = DamagedFile) -> None:
    """The path is a regular file that can be opened.

    Raises:
        DiffError: missing, a dangling link, no file, or no permission; of the kind `error`.
    """
    if path.is_symlink() and not path.exists():
        raise error(
            f"a link to {path.readlink()}, which does not exist",
            where=str(path),
            hint="the download or copy is incomplete: fetch the file again",
        )
    if not path.exists():
        raise error("this file is missing", where=str(path), hint=AGAIN)
    if not path.is_file():
        raise error("not a regular file", where=str(path), hint="put the file itself there")
    try:
        path.open("rb").close()
    except OSError as reason:
        raise error(
            f"cannot be read: {reason.strerror}", where=str(path), hint="check the file's permissions"
        ) from reason


def read_header(
    path: Path, *, error: type[DiffError] = DamagedFile, hint: str | None = None
) -> dict[str, Any]:
    """Header of a safetensors file: tensor name -> {dtype, shape, data_offsets}, and "__metadata__".

    The sizes that it states are checked against the file's before anything of these sizes is read.

    Args:
        hint: what to do about a damaged file; None: to download it again.

    Raises:
        DiffError: unreadable, a Git LFS pointer, another format, or cut off; of the kind `error`.
    """
    check_readable(path, error=error)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith(b"version "):
            raise error(
                "a Git LFS pointer, not the weights", where=str(path), hint="fetch the weights: git lfs pull"
            )
        if len(start) == 8 and length > min(_MAX_HEADER, size - 8):
            raise error(
                f"damaged, or not a safetensors file: it states a header of {length:,} bytes",
                where=str(path),
                hint=hint or _FORMAT,
            )
        text = file.read(length) if len(start) == 8 else b""
    try:
        header: dict[str, Any] = json.loads(text)
        end = max((_end(tensor) for name, tensor in header.items() if name != "__metadata__"), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as reason:
        raise error("damaged, or not a safetensors file", where=str(path), hint=hint or _FORMAT) from reason
    if size < 8 + length + end:
        raise error(
            f"damaged: cut off, {size} of {8 + length + end} bytes are there",
            where=str(path),
            hint=hint or "delete it and download it again",
        )
    return header


def _end(tensor: dict[str, Any]) -> int:
    """Where a tensor's bytes end, if they are as many as its shape needs.

    Raises:
        ValueError, KeyError, TypeError: they are not.
    """
    begin, end = tensor["data_offsets"]
    shape: Sequence[int] = tensor["shape"]
    sizes = (begin, end, *shape)
    if any(type(number) is not int or number < 0 for number in sizes):
        raise ValueError("sizes are whole numbers")
    bytes_each = _BYTES.get(tensor["dtype"])
    if begin > end or (bytes_each is not None and prod(shape) * bytes_each != end - begin):
        raise ValueError("the shape does not fit the bytes")
    return int(end)


def check_pickle(path: Path) -> None:
    """A pickled weight file is there and, as far as its archive tells, whole; nothing is unpickled.

    Raises:
        DamagedFile: it is not.
    """
    check_readable(path)
    with path.open("rb") as file:
        start = file.read(16)
    damaged = not start
    if start.startswith(b"version https://"):
        raise DamagedFile(
            "a Git LFS pointer, not the weights", where=str(path), hint="fetch the weights: git lfs pull"
        )
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                stated = sum(member.file_size for member in archive.infolist())
            damaged = stated > path.stat().st_size  # torch stores tensors as they are; more would be a bomb
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # names that are no text, too
            damaged = True
    if damaged:
        raise DamagedFile("not a whole weight file", where=str(path), hint="delete it and download it again")


def count_parameters(paths: Iterable[Path], *, prefix: str = "") -> int:
    """Numbers in the tensors whose names begin with `prefix`, in safetensors files."""
    return sum(
        prod(tensor["shape"])
        for path in paths
        for name, tensor in read_header(path).items()
        if name != "__metadata__" and name.startswith(prefix)
    )


def variants(names: Iterable[str], *, stems: Sequence[str], pickled: bool) -> dict[str | None, list[str]]:
    """Weight variant (None: plain) -> its files, out of the file names in one component's folder.

    Args:
        stems: what the files are called: STEM.SUFFIX, STEM.VARIANT.SUFFIX, or numbered shards of these.
        pickled: look for .bin files instead of .safetensors.
    """
    pattern = _pattern(stems, pickled=pickled)
    found: dict[str | None, list[str]] = {}
    for name in sorted(names):
        if match := pattern.fullmatch(name):
            found.setdefault(match["variant"], []).append(name)
    return found


def check_variant(components: Mapping[str, Sequence[str]], *, variant: str | None, where: str) -> None:
    """At least one component has the variant that was asked for.

    Args:
        components: component -> the names of the files in its folder.

    Raises:
        BackboneError: none has; says which variants there are.
    """
    there: set[str | None] = set()
    for component, names in components.items():
        for pickled in (False, True):
            there |= variants(names, stems=STEMS[component], pickled=pickled).keys()
    if variant is not None and there and variant not in there:
        listed = ", ".join(sorted(name or "plain" for name in there))
        raise BackboneError(
            f"no weight variant {variant!r} here; there are: {listed}",
            where=where,
            hint="set model.backbone.variant to one that is there (null is plain)",
        )


def choose_weights(
    names: Iterable[str], *, stems: Sequence[str], variant: str | None, where: str, allow_pickle: bool = False
) -> tuple[str | None, list[str]]:
    """The variant to read and its files, out of the file names in one component's folder.

    Args:
        stems: what the files are called: STEM.SUFFIX, STEM.VARIANT.SUFFIX, or numbered shards of these.
        variant: taken where it exists, as diffusers does; else the plain files, or another variant if it is the only
            one there.
        allow_pickle: take .bin files where there is no .safetensors file.

    Raises:
        BackboneError: neither the variant nor plain weights are there (says what is), a shard is missing, or all
            files are pickled and may not be read.
    """
    names = list(names)
    have = variants(names, stems=stems, pickled=False)
    pickled = variants(names, stems=stems, pickled=True)
    if not have and pickled and not allow_pickle:
        raise BackboneError(
            "only pickled weights (.bin) here, which may hold code as well",
            where=where,
            hint="model.backbone.allow_pickle: true reads their tensors and runs none of that code; "
            "or convert the model once, with diffusers: DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)",
        )
    is_pickled, have = not have, have or pickled
    if not have:
        raise DamagedFile("the weights are missing", where=where, hint=AGAIN)
    chosen = variant if variant in have else None if None in have else variant
    if chosen not in have and variant is None and len(have) == 1:
        chosen = next(iter(have))
    if chosen not in have:
        listed = ", ".join(name or "plain" for name in sorted(have, key=lambda name: name or ""))
        asked = "plain weights" if variant is None else f"weight variant {variant!r} and no plain weights"
        hint = "set model.backbone.variant to one that is there (null is plain)"
        raise BackboneError(f"no {asked} here; there are: {listed}", where=where, hint=hint)
    shards = _pattern(stems, pickled=is_pickled).fullmatch(have[chosen][0])
    if shards and shards["shards"] and len(have[chosen]) != int(shards["shards"]):
        raise DamagedFile(
            f"{len(have[chosen])} of {shards['shards']} weight files are there", where=where, hint=AGAIN
        )
    return chosen, have[chosen]


def _pattern(stems: Sequence[str], *, pickled: bool) -> re.Pattern[str]:
    stem = "|".join(map(re.escape, stems))
    suffix = "bin" if pickled else "safetensors"
    return re.compile(rf"(?:{stem})(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-(?P<shards>\d+))?\.{suffix}")


AGAIN = "the download is incomplete: download the model again"
_FORMAT = "weights must be in the .safetensors format, completely downloaded"
