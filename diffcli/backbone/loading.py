"""Load the diffusion model from a hub id, a local diffusers folder, a single file, or the embedded one.

Whatever is wrong is found from settings and file headers before weights are read, and said in one BackboneError.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from diffcli.backbone import hub
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.locate import PICKLES
from diffcli.backbone.pipeline_folder import SUITABLE, PipelineFolder
from diffcli.backbone.single_file import SingleFile
from diffcli.backbone.unet_weights import check_unet_weights, count_unet_parameters, load_unet_weights
from diffcli.config.settings import EMBEDDED, BackboneConfig
from diffcli.errors import BackboneError
from diffcli.runtime.memory import check_memory, memory_errors

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "miniworld-sd"

Source = PipelineFolder | SingleFile


def load_backbone(
    config: BackboneConfig, *, prompts: Iterable[str], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> DiffusionBackbone:
    """Load VAE, U-Net and scheduler facts, encode every distinct prompt once, and release the text encoder.

    The text encoder runs in float32 whatever `dtype` is. A local source is read without touching the network,
    and so is a hub id that is complete in the cache.

    Args:
        seed: of the U-Net's weights with `config.random_weights`; models leave it at 0, so that a checkpoint finds the
            same network again whatever its training seed was.

    Raises:
        BackboneError: nothing usable there, or not enough memory; the message names the remedy.
    """
    source = open_source(config)
    with quiet(), memory_errors(config.source):
        source.check(skip_unet_weights=not config.own_unet_weights)
        check_unet(
            source.config("unet"),
            text=source.config("text_encoder"),
            vae=source.config("vae"),
            where=config.source,
        )
        prediction_type = resolve_prediction_type(config, source)
        if config.unet_weights is not None:
            check_unet_weights(config.unet_weights, source.config("unet"))
        other_unet = None if config.own_unet_weights else count_unet_parameters(source.config("unet"))
        check_memory(source, device=device, dtype=dtype, unet_parameters=other_unet)
        text_encoder = source.load_text_encoder().float().to(device)
        embeddings = encode_prompts(prompts, tokenizer=source.load_tokenizer(), text_encoder=text_encoder)
        del text_encoder
        unet = load_unet(config, source, dtype=dtype, seed=seed)
        return DiffusionBackbone(
            vae=source.load_vae(dtype).to(device),
            unet=unet.to(device),
            alphas_cumprod=source.load_scheduler().alphas_cumprod,
            prediction_type=prediction_type,
            prompt_embeddings=embeddings,
        )


def open_source(config: BackboneConfig) -> Source:
    """The folder or file that `config.source` means; a hub id is downloaded unless it is in the cache.

    Raises:
        BackboneError: no such folder or file, or the hub cannot give it.
    """
    if config.source == EMBEDDED:
        if not EMBEDDED_FOLDER.is_dir():
            raise BackboneError(
                "the embedded model is not part of this installation",
                where=EMBEDDED,
                hint="install diffcli again",
            )
        return PipelineFolder(EMBEDDED_FOLDER)
    path = Path(config.source).expanduser()
    if path.is_dir():
        return PipelineFolder(path, config.variant)
    if path.suffix in PICKLES:
        raise BackboneError(
            "a pickled checkpoint, which is not read", where=str(path), hint="use its .safetensors version"
        )
    if path.is_file():
        return SingleFile(path)
    if (
        path.suffix == ".safetensors"
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.source)
        or config.source[0] == "."
    ):
        raise BackboneError("no such file or folder", where=config.source, hint=SUITABLE)
    return hub.fetch(
        config.source,
        revision=config.revision,
        variant=config.variant,
        unet_weights=config.own_unet_weights,
    )


_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_USUAL = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "mid_block_scale_factor": 1,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
}
"""What `diffcli.backbone.unet` takes for granted of a U-Net: the library's defaults, which Stable Diffusion has."""


def check_unet(
    unet: Mapping[str, Any], *, text: Mapping[str, Any], vae: Mapping[str, Any], where: str
) -> None:
    """The U-Net is one whose features the method reads: four levels, text through cross-attention in the upper three.

    Raises:
        BackboneError: another kind of network; says what differs.
    """
    faults = []
    if unet.get("addition_embed_type") or unet.get("class_embed_type") or unet.get("encoder_hid_dim_type"):
        faults.append("needs conditions besides the prompt (as SDXL and upscalers do)")
    if unet.get("in_channels") != vae.get("latent_channels", 4):
        given, taken = vae.get("latent_channels", 4), unet.get("in_channels")
        faults.append(f"takes {taken} channels where the VAE gives {given} (as inpainting models do)")
    blocks = list(unet.get("up_block_types", ()))
    if len(blocks) != 4 or any("CrossAttn" not in block for block in blocks[1:]):
        faults.append(f"has the decoder blocks {blocks}, not four with cross-attention in the last three")
    other = set(unet.get("down_block_types", ())).union(blocks) - _BLOCKS
    if other:
        faults.append(f"has blocks of the kind {', '.join(sorted(other))}")
    for key, usual in _USUAL.items():
        if unet.get(key, usual) not in (usual, None):
            faults.append(f"has {key} {unet[key]!r}, not {usual!r}")
    if unet.get("cross_attention_dim") != text.get("hidden_size"):
        given, taken = text.get("hidden_size"), unet.get("cross_attention_dim")
        faults.append(f"attends to {taken} text channels where the text encoder gives {given}")
    if faults:
        raise BackboneError(
            "not a Stable Diffusion 1.x or 2.x model: its U-Net " + "; it ".join(faults),
            where=where,
            hint=SUITABLE,
        )


def resolve_prediction_type(config: BackboneConfig, source: Source) -> str:
    """How the U-Net's output is read: "epsilon" or "v_prediction" (method section 1.1).

    Raises:
        BackboneError: the model predicts something else, or does not say.
    """
    if config.prediction_type == "as_epsilon":
        return "epsilon"
    if config.prediction_type != "auto":
        return config.prediction_type
    stated = source.prediction_type()
    if stated not in ("epsilon", "v_prediction"):
        raise BackboneError(
            f"its scheduler says prediction_type {stated!r}; epsilon and v_prediction can be read",
            where=config.source,
            hint="if that is wrong, set model.backbone.prediction_type to epsilon or v_prediction",
        )
    return stated


def load_unet(
    config: BackboneConfig, source: Source, *, dtype: torch.dtype, seed: int
) -> UNet2DConditionModel:
    """The U-Net with the weights that `config` names: random ones, those of a file, or the source's own."""
    if config.random_weights:
        return random_unet(source.config("unet"), dtype=dtype, seed=seed)
    if config.unet_weights is not None:
        return load_unet_weights(config.unet_weights, source.config("unet"), dtype=dtype)
    return source.load_unet(dtype)


def random_unet(settings: Mapping[str, Any], *, dtype: torch.dtype, seed: int) -> UNet2DConditionModel:
    """The architecture with fresh weights: the control that asks what the U-Net's pretraining brings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel.from_config(dict(settings)).to(dtype)


@torch.no_grad()
def encode_prompts(
    prompts: Iterable[str], *, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> dict[str, torch.Tensor]:
    """Distinct prompt -> (tokens, width) last hidden state; padded to the model's length, no attention mask."""
    distinct = list(dict.fromkeys(prompts))
    length = text_encoder.config.max_position_embeddings
    tokens = tokenizer(
        distinct, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    states = text_encoder(tokens.to(text_encoder.device)).last_hidden_state
    return dict(zip(distinct, states, strict=True))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings of diffusers and transformers; their settings come back afterwards."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for library in libraries:
                library.set_verbosity_error()
                library.disable_progress_bar()
            yield
        finally:
            for library, (verbosity, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()
