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
from diffcli.config import ModelConfig
from diffcli.core.backbone import DiffusionBackbone
from diffcli.core.model import Precision, SegmentationModel, build_model
from diffcli.errors import CheckpointError
from diffcli.files import write_atomically

_KEY = "diffcli"


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds."""

    config: ModelConfig
    state: dict[str, Tensor]
    """Parameters and buffers of the SegmentationDecoder."""
    info: dict[str, Any]
    """diffcli's version, iteration, scores, and the backbone's fingerprint."""


def fingerprint(backbone: DiffusionBackbone) -> list[float]:
    """A few weights of the U-Net's first layer: enough to tell two diffusion models apart in any precision."""
    return [round(float(x), 5) for x in backbone.unet.conv_in.weight.detach().float().flatten()[:16]]


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
    if len(stored) != len(here) or any(
        abs(a - b) > 2e-3 + 1e-2 * abs(a) for a, b in zip(stored, here, strict=False)
    ):
        raise CheckpointError(
            f"it was trained on another diffusion model than {model.config.backbone.source!r} holds now",
            where=where,
            hint="use the diffusion model that it was trained on (model.backbone.source), or train again",
        )
