"""Weights under the published code's parameter names: one map to the names of our SegmentationDecoder.

The published code numbers strides from the coarsest (64), whose fusion nothing uses and ours does not build; ours
begin at stride 32. Only `direct` fusion computes the same here and there (method section 1.5).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor

from diffcli.backbone.pickles import check_dense, read_pickle, state_dict
from diffcli.backbone.weight_files import read_header
from diffcli.config.settings import DecoderConfig
from diffcli.errors import BackboneError, CheckpointError

FusionKind = Literal["direct", "vanilla", "mixing"]

LAYERS = 3
"""Layers j of a stride in the published code."""

_PREFIX = re.compile(r"^(module\.)?(backbone\.)?(diff_model\.)?(aggregation_network\.)?")
"""What the published code wraps around the trained part."""
_FROZEN = re.compile(
    r"(^|\.)(diffusion_extractor|unet|vae|clip|clip_model|text_encoder|text_model)\."
    r"|(^|\.)(down_blocks|up_blocks|mid_block|time_embedding|quant_conv|post_quant_conv)\."
)
"""A frozen network somewhere in the path, or a part that only U-Net and VAE have."""

_BOTTLENECK = (
    (r"conv(\d)\.norm\.(.+)", r"norm\1.\2"),
    (r"conv(\d)\.(weight)", r"conv\1.\2"),
    (r"shortcut\.norm\.(.+)", r"shortcut.1.\1"),
    (r"shortcut\.(weight)", r"shortcut.0.\1"),
)
_PYRAMID = (
    (r"finecoder\.gn_x32\.(.+)", r"pyramid.norms.0.\1"),
    (r"finecoder\.gn_x16\.(.+)", r"pyramid.norms.1.\1"),
    (r"finecoder\.gn_x8\.(.+)", r"pyramid.norms.2.\1"),
    (r"finecoder\.fusion_net\.fusion([123])\.deconv\.(.+)", r"pyramid.up\1.deconv.\2"),
    (r"finecoder\.fusion_net\.fusion([123])\.resblock\.conv(\d)\.(.+)", r"pyramid.up\1.block.conv\2.\3"),
    (r"finecoder\.fusion_net\.fusion([123])\.resblock\.gn(\d)\.(.+)", r"pyramid.up\1.block.norm\2.\3"),
)
_HEAD = (
    (r"decode_head\.embed_layers\.(\d)\.proj\.(.+)", r"head.embed.\1.\2"),
    (r"decode_head\.fuse_layer\.aspp_modules\.0\.conv\.(.+)", r"head.aspp.0.0.\1"),
    (r"decode_head\.fuse_layer\.aspp_modules\.0\.bn\.(.+)", r"head.aspp.0.1.\1"),
    (r"decode_head\.fuse_layer\.aspp_modules\.([123])\.depthwise_conv\.conv\.(.+)", r"head.aspp.\1.0.0.\2"),
    (r"decode_head\.fuse_layer\.aspp_modules\.([123])\.depthwise_conv\.bn\.(.+)", r"head.aspp.\1.0.1.\2"),
    (r"decode_head\.fuse_layer\.aspp_modules\.([123])\.pointwise_conv\.conv\.(.+)", r"head.aspp.\1.1.0.\2"),
    (r"decode_head\.fuse_layer\.aspp_modules\.([123])\.pointwise_conv\.bn\.(.+)", r"head.aspp.\1.1.1.\2"),
    (r"decode_head\.fuse_layer\.bottleneck\.conv\.(.+)", r"head.bottleneck.0.\1"),
    (r"decode_head\.fuse_layer\.bottleneck\.bn\.(.+)", r"head.bottleneck.1.\1"),
    (r"decode_head\.conv_seg\.(.+)", r"head.classifier.\1"),
)


def read_published(path: Path) -> dict[str, Any]:
    """The tensors (or the training checkpoint around them) of a .safetensors, .pth, .pt or .ckpt file.

    Raises:
        CheckpointError: missing, damaged, or holding code besides tensors, which is not executed.
    """
    if not path.is_file():
        raise CheckpointError(
            "no such file", where=str(path), hint="give the checkpoint that the published code saved"
        )
    if path.suffix == ".safetensors":
        read_header(path, error=CheckpointError)
        return dict(load_file(path))
    try:
        return state_dict(read_pickle(path), where=str(path), error=CheckpointError)
    except BackboneError as error:
        raise CheckpointError(error.message, where=error.where, hint=error.hint) from error


def convert_state(state: Mapping[str, Any], *, where: str = "the checkpoint") -> dict[str, Tensor]:
    """Tensors of the published code as (part of) the state of our decoder, in float32.

    With or without the prefixes `module.`, `backbone.diff_model.` and `aggregation_network.`, bare or as the
    `state_dict` of a training checkpoint. Dropped: frozen networks, `in_gn` (never applied), the stride-64 fusion.

    Raises:
        CheckpointError: a tensor that the published code does not have, or none of its own.
    """
    state = state_dict(state, where=where, error=CheckpointError)
    tensors = {name: value for name, value in state.items() if not _FROZEN.search(name)}
    originals = {_PREFIX.sub("", name): name for name in tensors}
    kind = _fusion_kind(originals)
    converted, unknown = {}, []
    for name, original in originals.items():
        ours, tensor = _rename(name, kind), tensors[original]
        if ours is None or not isinstance(tensor, Tensor):
            unknown.append(original)
        elif ours:
            dense = check_dense(original, tensor, where=where, error=CheckpointError)
            converted[ours] = dense.float() if dense.is_floating_point() else dense
    if unknown:
        shown = ", ".join(sorted(unknown)[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        hint = "bring a checkpoint trained with the published DIFF code and its DAFormer head"
        raise CheckpointError(f"not parameters of the published code: {shown}", hint=hint)
    if not converted:
        raise CheckpointError(
            "nothing that the published code trains is in it",
            hint="bring the checkpoint that its training saved",
        )
    return converted


def _fusion_kind(names: Mapping[str, str]) -> FusionKind:
    if any(name.startswith("in_stride.") for name in names):
        return "vanilla"
    return "mixing" if any(name.startswith("mixing_weights_stride.") for name in names) else "direct"


def _rename(name: str, kind: FusionKind) -> str | None:
    """Our name of a parameter; empty if it is not needed, None if it is not one of the published code's."""
    for pattern, ours in (*_PYRAMID, *_HEAD):
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return _rename_fusion(name, kind)


def _rename_fusion(name: str, kind: FusionKind) -> str | None:
    weights = re.fullmatch(r"mixing_weights_stride\.([0-3])", name)
    if weights:
        return f"fusion.strides.{int(weights[1]) - 1}.mixing_weights" if weights[1] != "0" else ""
    module = r"in_stride\.(\d+)" if kind == "vanilla" else r"bottleneck_layers\.(\d+)\.0"
    part = re.fullmatch(rf"{module}\.(.+)", name)
    if part is None:
        return None
    number, rest = int(part[1]), part[2]
    stride, layer = (number, None) if kind == "direct" else divmod(number, LAYERS)
    if stride > 3:
        return None
    if stride == 0 or rest.startswith("in_gn."):
        return ""
    ours = f"fusion.strides.{stride - 1}." + ("bottleneck." if layer is None else f"transforms.{layer}.")
    if kind == "vanilla":
        return ours + rest if rest in ("weight", "bias") else None
    for pattern, part_of_ours in _BOTTLENECK:
        match = re.fullmatch(pattern, rest)
        if match:
            return ours + match.expand(part_of_ours)
    return None


@dataclass(frozen=True)
class PublishedDecoder:
    """What a converted state says about the decoder that it belongs to."""

    fusion: FusionKind
    channels: tuple[int, int, int, int]
    """Widths of the pyramid, finest first."""
    head_channels: int
    classes: int
    inputs: tuple[int, ...]
    """Channels of the features that it fuses, coarsest stride (32) first."""

    def config(self, base: DecoderConfig) -> DecoderConfig:
        """`base` with these widths and this fusion (vanilla has no widths of its own but the finest)."""
        widths = (self.channels[0], *base.channels[1:]) if self.fusion == "vanilla" else self.channels
        values = {
            "fusion": self.fusion,
            "channels": widths,
            "head_channels": self.head_channels,
            "features": "all",
        }
        return DecoderConfig.model_validate({**base.model_dump(), **values})


def infer_decoder(state: Mapping[str, Tensor]) -> PublishedDecoder:
    """Read widths, fusion and number of classes off a converted state.

    Raises:
        CheckpointError: fusion, pyramid or head is missing.
    """
    try:
        coarse, middle, fine = (state[f"pyramid.norms.{i}.weight"].shape[0] for i in range(3))
        finest = state["pyramid.up3.deconv.weight"].shape[1]
        classes, head_channels = state["head.classifier.weight"].shape[:2]
        kind: FusionKind = "direct" if "fusion.strides.0.bottleneck.conv1.weight" in state else "mixing"
        if "fusion.strides.0.transforms.0.bias" in state:
            kind = "vanilla"
        inputs = tuple(_inputs(state, f"fusion.strides.{i}.", kind) for i in range(3))
    except KeyError as error:
        raise CheckpointError(
            f"incomplete: it lacks the parameter {error.args[0]} (our name)",
            hint="give the whole checkpoint, with its decode head",
        ) from error
    except (IndexError, ValueError) as error:
        raise CheckpointError(
            "a parameter of the published code has another number of dimensions in it",
            hint="give a checkpoint trained with the published DIFF code and its DAFormer head",
        ) from error
    return PublishedDecoder(kind, (finest, fine, middle, coarse), head_channels, classes, inputs)


def _inputs(state: Mapping[str, Tensor], stride: str, kind: FusionKind) -> int:
    """Channels of one stride's features: every kept step has one map pair a layer."""
    if kind == "direct":
        return state[f"{stride}bottleneck.conv1.weight"].shape[1]
    leaf, axis = ("weight", 0) if kind == "vanilla" else ("conv1.weight", 1)
    widths = [state[f"{stride}transforms.{j}.{leaf}"].shape[axis] for j in range(LAYERS)]
    return sum(widths) * (len(state[f"{stride}mixing_weights"]) // LAYERS)


def check_inputs(found: PublishedDecoder, *, channels: Sequence[int], steps: int) -> None:
    """The features that the checkpoint fuses are those that the configured model gives.

    Args:
        channels: of the configured features, coarsest stride first.
        steps: kept steps of the configured schedule.

    Raises:
        CheckpointError: says both, and which of backbone and schedule it is.
    """
    if found.inputs == tuple(channels):
        return
    ratios = {given * steps / own for given, own in zip(found.inputs, channels, strict=True)}
    kept = ratios.pop()
    if not ratios and kept.is_integer():
        hint = f"it keeps {int(kept)} steps, the configured schedule {steps}: set model.inversion.schedule to its own"
    else:
        hint = "it belongs to another diffusion model: set model.backbone.source to the one it was trained on"
    raise CheckpointError(
        f"it fuses {_listed(found.inputs)} channels at strides 32, 16, 8; the configured model has {_listed(channels)}",
        hint=f"{hint} (--config CONFIG.yaml)",
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
