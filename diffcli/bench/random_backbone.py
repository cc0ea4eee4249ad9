"""Full-size architectures with random weights, for measuring: speed and memory do not depend on the weights' values."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.single_file import LAYOUTS

Architecture = Literal["sd15", "sd21", "tiny"]
_FOLDERS: dict[Architecture, str] = {"sd15": "sd-1", "sd21": "sd-2", "tiny": "sd-2"}
_TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64, 64, 64],
        "cross_attention_dim": 32,
        "attention_head_dim": [2, 4, 4, 4],
    },
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
}
TOKENS = 77
"""Length of a prompt in both."""


def random_backbone(
    architecture: Architecture,
    *,
    prompts: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> DiffusionBackbone:
    """Stable Diffusion 1.5 or 2.1 with weights drawn at random; "tiny" is 2.1 at toy widths.

    There is no text encoder: embeddings of prompts are random too. Networks are built in `dtype` on `device`, so that
    no weight is held twice.
    """
    layout = LAYOUTS / _FOLDERS[architecture]
    changes = _TINY if architecture == "tiny" else {}
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            unet = _build(UNet2DConditionModel, layout / "unet", changes.get("unet", {}))
            vae = _build(AutoencoderKL, layout / "vae", changes.get("vae", {}))
        finally:
            torch.set_default_dtype(before)
        width = int(unet.config["cross_attention_dim"])
        embeddings = {prompt: torch.randn(TOKENS, width) for prompt in dict.fromkeys(prompts)}
    scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(layout / "scheduler"))
    return DiffusionBackbone(
        vae=vae,
        unet=unet,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction_type="epsilon" if architecture == "sd15" else "v_prediction",
        prompt_embeddings=embeddings,
    )


def _build(cls: Any, folder: Any, changes: Mapping[str, Any]) -> Any:
    return cls.from_config({**cls.load_config(folder), **changes})
