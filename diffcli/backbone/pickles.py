"""Tensors out of pickled weight files (.bin, .ckpt, .pt, .pth), without running any code that is in them.

PyTorch's restricted unpickler (`weights_only=True`) does the reading. Training checkpoints also hold objects of the
trainer that wrote them; each becomes an inert placeholder here, and modules that can reach the system stay refused.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from diffcli.backbone.weight_files import DamagedFile, check_pickle
from diffcli.errors import BackboneError, DiffError

_NESTING = 8
"""How deep a state dict may be nested; training checkpoints nest it once or twice."""


class Placeholder:
    """Stands for an object that is not read: takes whatever a pickle gives it, and does nothing."""

    def __init__(self, *_arguments: object, **_named: object) -> None:
        pass

    def __new__(cls, *_arguments: object, **_named: object) -> "Placeholder":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


def read_pickle(path: Path) -> Any:
    """Whatever a pickled file holds, its tensors on the CPU and read from the file when they are used.

    Raises:
        DamagedFile: missing, cut off, or no such file.
        BackboneError: it needs code of a kind that is never run.
    """
    check_pickle(path)
    mapped = zipfile.is_zipfile(path)
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except UnpicklingError:
            if not mapped:
                raise
            strangers = [(Placeholder, name) for name in get_unsafe_globals_in_checkpoint(path)]
            with safe_globals(list(strangers)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise anything
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
        if named is not None or "Can only" in str(error):
            what = f" ({named[1]})" if named else ""
            raise BackboneError(
                f"it holds code or objects besides tensors, which are not executed{what}",
                where=str(path),
                hint="use a .safetensors version of it, or one that holds the state dict alone",
            ) from error
        raise DamagedFile(
            f"no readable weights: damaged, or of another kind ({type(error).__name__})",
            where=str(path),
            hint="download or copy the file again",
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a pickled state dict, bare or as the `state_dict` of a training checkpoint.

    Raises:
        DamagedFile: missing or damaged.
        BackboneError: no named tensors in it.
    """
    state = state_dict(read_pickle(path), where=str(path))
    tensors = {
        name: check_dense(name, x, where=str(path)) for name, x in state.items() if isinstance(x, Tensor)
    }
    if not tensors:
        raise BackboneError("no named tensors in it", where=str(path), hint="give a model's weights")
    return tensors


def state_dict(loaded: Any, *, where: str, error: type[DiffError] = BackboneError) -> dict[str, Any]:
    """The innermost `state_dict` of a training checkpoint, or the mapping itself.

    Raises:
        DiffError: not a mapping of names, or nested without an end; of the kind `error`.
    """
    for _ in range(_NESTING):
        if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
            raise error(
                "no named tensors in it", where=where, hint="give a state dict or a training checkpoint"
            )
        if not isinstance(loaded.get("state_dict"), Mapping):
            return dict(loaded)
        loaded = loaded["state_dict"]
    raise error("its state_dict holds itself", where=where, hint="give a state dict or a training checkpoint")


def check_dense(name: str, tensor: Tensor, *, where: str, error: type[DiffError] = BackboneError) -> Tensor:
    """The tensor, if it is an ordinary one whose numbers are all stored: nothing grows when it is copied.

    Raises:
        DiffError: sparse, quantized, or larger than what is stored of it; of the kind `error`.
    """
    fault = None
    if (
        tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.device.type != "cpu"
        or tensor.is_nested
    ):
        fault = "is not a dense tensor"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        fault = f"states a shape of {'x'.join(map(str, tensor.shape))}, more than is stored of it"
    if fault is not None:
        raise error(f"its tensor {name[:80]} {fault}", where=where, hint="use another file")
    return tensor
