"""The trained weights and the ModelConfig that built them, in one safetensors file; nothing frozen inside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from diffcli import __version__
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import BackboneConfig, ModelConfig
from diffcli.core.model import SegmentationModel
from diffcli.errors import CheckpointError
from diffcli.runs.tensor_file import read_tensors, write_tensors

_KEY = "diffcli"
_FIRST_LAYER, _UNET, _VAE = 16, 48, 16
"""Weights of a fingerprint: of the U-Net's first layer, of all its layers, of the VAE's encoder."""


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds."""

    config: ModelConfig
    state: dict[str, Tensor]
    """Parameters and buffers of the SegmentationDecoder."""
    info: dict[str, Any]
    """diffcli's version, iteration, scores, and the backbone's fingerprint."""


def fingerprint(backbone: DiffusionBackbone) -> list[float]:
    """A few weights of U-Net and VAE: enough to tell two diffusion models apart in any precision.

    The first `_FIRST_LAYER` are the U-Net's first layer's; then one of every few layers, by which a fine-tuned network
    differs from the one that it came from.
    """
    first = backbone.unet.conv_in.weight.flatten()[:_FIRST_LAYER]
    sampled = [*_sample(backbone.unet, _UNET), *_sample(backbone.vae.encoder, _VAE)]
    return [round(float(x), 5) for x in first] + [float(f"{x:.4g}") for x in sampled]


def _sample(network: nn.Module, count: int) -> list[float]:
    """The first weight of every few layers."""
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    return [float(weight[(0,) * weight.ndim]) for weight in weights[:: max(1, len(weights) // count)][:count]]


def save_checkpoint(path: Path, model: SegmentationModel, *, info: Mapping[str, Any] | None = None) -> None:
    """Write the decoder's weights (float32) with the model's config, whole and flushed to the disk.

    Raises:
        DiffError: the disk is full, or the folder cannot be written to.
    """
    header = {
        "config": model.config.model_dump(mode="json"),
        "info": {
            "version": __version__,
            "fingerprint": fingerprint(model.extractor.backbone),
            **(info or {}),
        },
    }
    write_tensors(path, model.decoder.state_dict(), kind=_KEY, header=header)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `save_checkpoint` wrote.

    Raises:
        CheckpointError: missing, damaged, not ours, of a newer format, or its config does not validate any more.
    """
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=str(path), hint="train one: diff train cfg.yaml")
    found = read_tensors(path, kind=_KEY, hint="use another checkpoint")
    if found is None:
        raise CheckpointError(
            "a safetensors file, but not one of ours",
            where=str(path),
            hint="weights trained with the published code: diff import CKPT -o RUN",
        )
    state, header = found
    try:
        settings, info = dict(header["config"]), dict(header["info"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            "its header is damaged", where=str(path), hint="use another checkpoint, or train again"
        ) from error
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
    if len(stored) != len(here) or any(
        not _close(i, a, b) for i, (a, b) in enumerate(zip(stored, here, strict=True))
    ):
        raise CheckpointError(
            f"it was trained on another diffusion model than {_named(model.config.backbone)} holds now",
            where=where,
            hint="use the diffusion model that it was trained on (model.backbone.source, unet_weights and vae), "
            "or train again",
        )


def _close(index: int, stored: float, here: float) -> bool:
    """Whether one number of a fingerprint is the same weight, in whatever precision it was read."""
    rounding = 2e-3 if index < _FIRST_LAYER else 1e-6  # of fp16's smallest numbers
    return abs(stored - here) <= rounding + 1e-2 * abs(stored)


def _named(config: BackboneConfig) -> str:
    """The diffusion model as the settings name it."""
    others = [str(path) for path in (config.unet_weights, config.vae) if path is not None]
    return f"{config.source!r}" + (f" with {', '.join(map(repr, others))}" if others else "")
