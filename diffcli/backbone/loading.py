"""Load the diffusion model from a hub id, a local diffusers folder, a single file, or the embedded one.

Whatever is wrong is found from settings and file headers before weights are read, and reported in one BackboneError.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from diffcli.backbone import components
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.locate import Source, find_sources
from diffcli.backbone.unet_weights import check_unet_weights, count_unet_parameters, load_unet_weights
from diffcli.config.settings import BackboneConfig
from diffcli.errors import BackboneError
from diffcli.runtime.memory import check_memory, memory_errors


def load_backbone(
    config: BackboneConfig,
    *,
    prompts: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    last_timestep: int = 0,
) -> DiffusionBackbone:
    """Load VAE, U-Net and noise schedule, encode every distinct prompt once, and release the text encoder.

    The text encoder runs in float32 whatever `dtype` is. A local source is read without touching the network,
    and so is a hub id that is whole in the cache.

    Args:
        seed: of the U-Net's weights with `config.random_weights`; models leave it at 0, so that a checkpoint finds the
            same network again whatever its training seed was.
        last_timestep: the largest one that the inversion asks for.

    Raises:
        BackboneError: nothing usable there, or not enough memory; the message names the remedy.
    """
    sources = find_sources(config, last_timestep=last_timestep)
    unet_config = sources.unet.config("unet")
    with quiet(), memory_errors(config.source):
        prediction_type = resolve_prediction_type(config, sources.unet)
        if config.unet_weights is not None:
            check_unet_weights(config.unet_weights, unet_config, allow_pickle=config.allow_pickle)
        check_memory(
            unet=components.parameters(sources.unet, "unet")
            if config.needs_source_unet
            else count_unet_parameters(unet_config),
            vae=components.parameters(sources.vae, "vae"),
            text_encoder=components.parameters(sources.text_encoder, "text_encoder"),
            device=device,
            dtype=dtype,
        )
        text_encoder = components.load_text_encoder(sources.text_encoder).float().to(device)
        embeddings = encode_prompts(
            prompts, tokenizer=components.load_tokenizer(sources), text_encoder=text_encoder
        )
        del text_encoder
        unet = load_unet(config, sources.unet, dtype=dtype, seed=seed)
        return DiffusionBackbone(
            vae=components.load_vae(sources.vae, dtype).to(device),
            unet=unet.to(device),
            alphas_cumprod=components.load_scheduler(sources.unet).alphas_cumprod,
            prediction_type=prediction_type,
            prompt_embeddings=embeddings,
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
            f"its scheduler states prediction_type {stated!r}; epsilon and v_prediction can be read",
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
        return load_unet_weights(
            config.unet_weights, source.config("unet"), dtype=dtype, allow_pickle=config.allow_pickle
        )
    return components.load_unet(source, dtype)


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
