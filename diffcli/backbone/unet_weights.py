"""Another state dict for the U-Net than its source holds: `backbone.unet_weights`, fine-tuned weights for example.

It has diffusers' names and fits strictly: every tensor of the U-Net is in it, in its shape, and no other. Names and
shapes are compared by the file's header alone, with a U-Net that is built without memory, before weights are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from diffcli.backbone.components import misfits
from diffcli.backbone.locate import check_unet_file
from diffcli.backbone.pickles import read_tensors
from diffcli.backbone.weight_files import PICKLES, read_header
from diffcli.errors import BackboneError

Shapes = dict[str, tuple[int, ...]]


def empty_unet(settings: Mapping[str, Any]) -> UNet2DConditionModel:
    """The U-Net of a component's settings, without weights (on the meta device)."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(settings))


def count_unet_parameters(settings: Mapping[str, Any]) -> int:
    """Numbers in the weights of a U-Net with these settings."""
    return sum(parameter.numel() for parameter in empty_unet(settings).parameters())


def check_unet_weights(path: Path, settings: Mapping[str, Any], *, allow_pickle: bool = False) -> None:
    """The file is whole and its names and shapes are those of the U-Net; no weights are read.

    Raises:
        BackboneError: no such file, another format, damaged, or another network's; names the first few misfits.
    """
    path = check_unet_file(path, allow_pickle=allow_pickle)
    if path.suffix in PICKLES:
        found = {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    else:
        header = read_header(path)
        found = {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_unet(settings).state_dict().items()}
    faults = _misfits(found, wanted)
    if faults:
        raise BackboneError(
            f"not the weights of this U-Net: {'; '.join(faults)}",
            where=str(path),
            hint="model.backbone.unet_weights is a state dict in diffusers' names, of a U-Net fine-tuned from "
            "the one that model.backbone.source names",
        )


def _misfits(found: Shapes, wanted: Shapes) -> list[str]:
    """How the names and shapes of a file differ from the U-Net's: each kind in one clause."""
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    differing = [
        f"{name} is {_text(found[name])}, not {_text(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    kinds = ((missing, "missing"), (unknown, "unexpected"), (differing, "of another shape"))
    return [
        f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {what} ({', '.join(names[:3])}"
        + (", ...)" if len(names) > 3 else ")")
        for names, what in kinds
        if names
    ]


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def load_unet_weights(
    path: Path, settings: Mapping[str, Any], *, dtype: torch.dtype, allow_pickle: bool = False
) -> UNet2DConditionModel:
    """The U-Net of these settings with the weights of the file, strictly, in `dtype` on the CPU.

    Raises:
        BackboneError: see `check_unet_weights`.
    """
    check_unet_weights(path, settings, allow_pickle=allow_pickle)
    path = path.expanduser()
    unet = empty_unet(settings)
    with misfits("the U-Net's state dict", where=str(path)):
        tensors = read_tensors(path) if path.suffix in PICKLES else load_file(path)
        state = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        unet.load_state_dict(state, strict=True, assign=True)
    return unet
