"""The trained weights and the ModelConfig that built them, in one safetensors file; nothing frozen inside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffcli import __version__
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import BackboneConfig, ModelConfig
from diffcli.core.model import SegmentationModel, build_model
from diffcli.errors import CheckpointError
from diffcli.files import write_atomically
from diffcli.runtime.device import Precision

_KEY = "diffcli"
_FIRST_LAYER, _LAYERS = 16, 48
"""Weights of a fingerprint; early checkpoints hold those of the first layer alone."""


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds."""

    config: ModelConfig
    state: dict[str, Tensor]
    """Parameters and buffers of the SegmentationDecoder."""
    info: dict[str, Any]
    """diffcli's version, iteration, scores, and the backbone's fingerprint."""


def fingerprint(backbone: DiffusionBackbone) -> list[float]:
    """A few weights of the U-Net: enough to tell two diffusion models apart in any precision.

    The first `_FIRST_LAYER` are its first layer's; then one of every few layers, by which a fine-tuned U-Net differs
    from the one that it came from.
    """
    weights = [weight for weight in backbone.unet.parameters() if weight.ndim > 1]
    sampled = [weight[(0,) * weight.ndim] for weight in weights[:: max(1, len(weights) // _LAYERS)][:_LAYERS]]
    first = backbone.unet.conv_in.weight.flatten()[:_FIRST_LAYER]
    return [round(float(x), 5) for x in first] + [float(f"{float(x):.4g}") for x in sampled]


def save_checkpoint(path: Path, model: SegmentationModel, *, info: Mapping[str, Any] | None = None) -> None:
    """Write the decoder's weights (float32) with the model's config, atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.decoder.state_dict().items()}
    header = {
        "config": model.config.model_dump(mode="json"),
        "info": {
            "version": __version__,
            "fingerprint": fingerprint(model.extractor.backbone),
            **(info or {}),
        },
    }
    with write_atomically(path) as temporary:
        save_file(state, temporary, metadata={_KEY: json.dumps(header)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `save_checkpoint` wrote.

    Raises:
        CheckpointError: missing, damaged, not ours, or its config does not validate any more.
    """
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=str(path), hint="train one: diff train cfg.yaml")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"not a readable safetensors file ({error})",
            where=str(path),
            hint="the file is damaged: use another checkpoint",
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(
            "a safetensors file, but none of ours",
            where=str(path),
            hint="weights trained with the published code: diff import CKPT -o RUN",
        )
    settings, info = _parse_header(metadata[_KEY], where=str(path))
    try:
        config = ModelConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"its model settings do not validate: {key}: {first['msg']}",
            where=str(path),
            hint=f"it was written by diffcli {info.get('version', '?')}, this is {__version__}",
        ) from error
    return Checkpoint(config, state, info)


def _parse_header(text: str, *, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and info as they were written.

    Raises:
        CheckpointError: not what `save_checkpoint` writes.
    """
    try:
        header = json.loads(text)
        return dict(header["config"]), dict(header["info"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            "its header is damaged", where=where, hint="use another checkpoint, or train again"
        ) from error


def load_model(
    path: Path,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    config: ModelConfig | None = None,
) -> SegmentationModel:
    """Build the model that a checkpoint holds and load its weights, strictly.

    Args:
        config: replaces the stored settings (say, another backbone folder or inference seed); shapes must agree.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights or diffusion model do not fit.
        BackboneError: the diffusion model cannot be loaded.
    """
    checkpoint = read_checkpoint(path)
    model = build_model(config or checkpoint.config, device=device, precision=precision)
    load_state(model, checkpoint.state, where=str(path))
    check_fingerprint(model, checkpoint, where=str(path))
    return model


def load_state(model: SegmentationModel, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load decoder weights strictly.

    Raises:
        CheckpointError: names the first keys and shapes that do not fit.
    """
    own = model.decoder.state_dict()
    wrong = [f"missing {name}" for name in own.keys() - state.keys()]
    wrong += [f"unknown {name}" for name in state.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"the weights do not fit this model: {shown}",
            where=where,
            hint="the model's settings (decoder, schedule, backbone, classes) must be those it was trained with",
        )
    model.decoder.load_state_dict(dict(state))


def check_fingerprint(model: SegmentationModel, checkpoint: Checkpoint, *, where: str) -> None:
    """Refuse a decoder on another diffusion model than it was trained on: it would predict nonsense silently."""
    stored = checkpoint.info.get("fingerprint")
    if stored is None:
        return
    here = fingerprint(model.extractor.backbone)
    known = len(stored) in (_FIRST_LAYER, len(here))
    if not known or any(not _close(i, a, b) for i, (a, b) in enumerate(zip(stored, here, strict=False))):
        raise CheckpointError(
            f"it was trained on another diffusion model than {_named(model.config.backbone)} holds now",
            where=where,
            hint="use the diffusion model that it was trained on (model.backbone.source and unet_weights), "
            "or train again",
        )


def _close(index: int, stored: float, here: float) -> bool:
    """Whether one number of a fingerprint is the same weight, in whatever precision it was read."""
    rounding = 2e-3 if index < _FIRST_LAYER else 1e-6  # of fp16's smallest numbers
    return abs(stored - here) <= rounding + 1e-2 * abs(stored)


def _named(config: BackboneConfig) -> str:
    """The diffusion model as the settings name it."""
    return f"{config.source!r}" + (f" with {str(config.unet_weights)!r}" if config.unet_weights else "")
