"""Stable-Diffusion-shaped pipelines with random weights, at any size, as folders and as single files.

The single file is written under the original (latent diffusion) names: the inverse of what the loader does.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

SHIPPED = Path(__file__).parent.parent / "diffcli" / "assets" / "configs"
TINY_TOKENIZER = Path(__file__).parent / "parity_data" / "tiny-sd" / "tokenizer"

_TINY: dict[str, dict[str, dict[str, Any]]] = {
    name: {
        "unet": {
            "block_out_channels": [32, 64, 64, 64],
            "cross_attention_dim": text,
            "attention_head_dim": heads,
            "sample_size": 8,
        },
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
        "text_encoder": {
            "hidden_size": text,
            "intermediate_size": 2 * text,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 674,
            "bos_token_id": 672,
            "eos_token_id": 673,
        },
    }
    for name, text, heads in (("sd-1", 24, 8), ("sd-2", 32, [2, 4, 4, 4]))
}


def shrink_layouts(folder: Path) -> Path:
    """The shipped layouts at toy widths."""
    for name, changes in _TINY.items():
        shutil.copytree(SHIPPED / name, folder / name)
        for component, values in changes.items():
            path = folder / name / component / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def write_pipeline(
    folder: Path,
    *,
    layout: Path,
    prediction_type: str,
    tokenizer: Path = TINY_TOKENIZER,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    seed: int = 0,
) -> Path:
    """Save a pipeline with random weights, one component after the other, in diffusers' layout."""
    torch.manual_seed(seed)
    shutil.copytree(layout, folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer, folder / "tokenizer")
    pad = json.loads((layout / "tokenizer" / "tokenizer_config.json").read_text())["pad_token"]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit_json(folder / "tokenizer" / name, pad_token=pad)
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type=prediction_type)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for cls, component in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
            cls.from_config(cls.load_config(layout / component)).save_pretrained(
                folder / component, variant=variant
            )
        text_config = CLIPTextConfig.from_pretrained(layout / "text_encoder")
        CLIPTextModel(text_config).to(dtype).save_pretrained(folder / "text_encoder", variant=variant)
    finally:
        torch.set_default_dtype(before)
    return folder


def edit_json(path: Path, **values: object) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_single_file(
    pipeline: Path, path: Path, *, variant: str = "", metadata: dict[str, str] | None = None
) -> Path:
    """The same weights in one file under the original names, with the tokenizer beside it."""
    suffix = f".{variant}.safetensors" if variant else ".safetensors"
    state: dict[str, Tensor] = {}
    for component, stem, rename in (
        ("unet", "diffusion_pytorch_model", original_unet),
        ("vae", "diffusion_pytorch_model", original_vae),
        ("text_encoder", "model", original_text_encoder),
    ):
        state |= rename(load_file(pipeline / component / (stem + suffix)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata=metadata)
    shutil.copytree(pipeline / "tokenizer", path.parent / "tokenizer", dirs_exist_ok=True)
    return path


def _replace(name: str, pairs: Mapping[str, str]) -> str:
    for new, old in pairs.items():
        name = name.replace(new, old)
    return name


_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's tensors under the original names."""

    def place(name: str) -> str:
        side = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
        )
        if side:
            kind, layer, rest = side[3], int(side[4]), side[5]
            first = 3 * int(side[2]) + (1 if side[1] == "down" else 0)
            blocks = "input_blocks" if side[1] == "down" else "output_blocks"
            if kind == "downsamplers":
                return f"{blocks}.{first + 2}.0.{rest.replace('conv.', 'op.')}"
            if kind == "upsamplers":
                return f"{blocks}.{first + 2}.{1 if side[2] == '0' else 2}.{rest}"
            position = f"{blocks}.{first + layer}"
            return f"{position}.0.{_replace(rest, _RESNET)}" if kind == "resnets" else f"{position}.1.{rest}"
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
        if middle:
            resnet = middle[1] == "resnets"
            position = 2 * int(middle[2]) if resnet else 1
            return f"middle_block.{position}.{_replace(middle[3], _RESNET) if resnet else middle[3]}"
        module, _, leaf = name.rpartition(".")
        return f"{_UNET_ENDS[module]}.{leaf}"

    return {f"model.diffusion_model.{place(name)}": tensor for name, tensor in state.items()}


_VAE = {
    ".resnets.": ".block.",
    "downsamplers.0.": "downsample.",
    "upsamplers.0.": "upsample.",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "mid_block.block.0": "mid.block_1",
    "mid_block.block.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "down_blocks": "down",
}


def original_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under the original names; attention projections are 1x1 convolutions there."""
    out = {}
    for name, tensor in state.items():
        old = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}", _replace(name, _VAE))
        if ".attn_1." in old and old.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        out[f"first_stage_model.{old}"] = tensor
    return out


_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn": "attn",
}


def original_text_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's tensors as SD 1.x has them, or OpenCLIP's as SD 2.x has them (one more layer, joined projections).

    Told apart by the width: CLIP's is not divisible by 32 at toy size, and 768 in full.
    """
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    width = state["final_layer_norm.bias"].shape[0]
    if width in (24, 768):
        clip = {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in state.items()}
        positions = torch.arange(len(state["embeddings.position_embedding.weight"]))[None]
        return {**clip, "cond_stage_model.transformer.text_model.embeddings.position_ids": positions}
    prefix = "cond_stage_model.model."
    out: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        old = _replace(name, _OPEN_CLIP)
        part = re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", old)
        if part:
            joined.setdefault(f"{prefix}{part[1]}.in_proj_{part[3]}", {})[part[2]] = tensor
        else:
            out[prefix + old] = tensor
    out |= {name: torch.cat([parts[p] for p in "qkv"]) for name, parts in joined.items()}
    last = max(int(match[1]) for name in out if (match := re.search(r"resblocks\.(\d+)\.", name)))
    unused = {
        name.replace(f"resblocks.{last}.", f"resblocks.{last + 1}."): torch.randn_like(tensor)
        for name, tensor in out.items()
        if f"resblocks.{last}." in name
    }
    extras = {
        f"{prefix}text_projection": torch.zeros(width, width),
        f"{prefix}logit_scale": torch.tensor(1.0),
    }
    return {**out, **unused, **extras}
