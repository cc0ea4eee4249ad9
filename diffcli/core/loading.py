"""Load the diffusion model from a hub id, a local diffusers folder, a single file, or the embedded one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffcli.config import EMBEDDED, BackboneConfig
from diffcli.core.backbone import DiffusionBackbone

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "miniworld-sd"


def load_backbone(
    config: BackboneConfig, *, prompts: Iterable[str], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> DiffusionBackbone:
    """Load VAE, U-Net and scheduler facts, encode every distinct prompt once, and release the text encoder.

    Raises:
        BackboneError: nothing usable there; the message names the remedy.
    """
    source = str(EMBEDDED_FOLDER) if config.source == EMBEDDED else config.source
    where: dict[str, Any] = {"revision": config.revision}
    weights: dict[str, Any] = {**where, "variant": config.variant, "torch_dtype": dtype}
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae", **weights)
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", **weights)
    scheduler = DDIMScheduler.from_pretrained(source, subfolder="scheduler", **where)
    tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **where)
    text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", revision=config.revision, dtype=dtype)
    embeddings = encode_prompts(prompts, tokenizer=tokenizer, text_encoder=text_encoder.to(device))
    return DiffusionBackbone(
        vae=vae.to(device),
        unet=unet.to(device),
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction_type="epsilon" if config.prediction_type == "as_epsilon" else scheduler.config["prediction_type"],
        prompt_embeddings=embeddings,
    )


@torch.no_grad()
def encode_prompts(
    prompts: Iterable[str], *, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> dict[str, torch.Tensor]:
    """Distinct prompt -> (tokens, width) last hidden state; padded to the model's length, no attention mask."""
    distinct = list(dict.fromkeys(prompts))
    tokens = tokenizer(
        distinct, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    states = text_encoder(tokens.to(text_encoder.device)).last_hidden_state
    return dict(zip(distinct, states, strict=True))
