"""The frozen text-to-image diffusion model: VAE encoder, U-Net and text embeddings, and the facts read off them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from diffcli.backbone.unet import FeatureLayer, FrozenUNet, Maps


@dataclass(frozen=True)
class LatentPosterior:
    """The VAE's posterior in the U-Net's units: mean and standard deviation, B,4,h,w float32, already scaled."""

    mean: Tensor
    std: Tensor


class DiffusionBackbone:
    """VAE, U-Net and encoded prompts, frozen; deliberately no nn.Module, so that nothing trained can hold it.

    Args:
        vae: encodes B,3,H,W in [-1,1].
        unet: predicts noise (or v) for B,4,h,w latents.
        alphas_cumprod: (num_train_timesteps,) float32, alphabar[t].
        prediction_type: what the network's output means: "epsilon" or "v_prediction".
        prompt_embeddings: prompt -> (tokens, width); the text encoder itself is not kept.
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        alphas_cumprod: Tensor,
        prediction_type: str,
        prompt_embeddings: Mapping[str, Tensor],
    ) -> None:
        # channels last: convolutions and the transformer's tokens share one layout, so that nothing is rearranged
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.network = FrozenUNet(self.unet)
        self.alphas_cumprod = alphas_cumprod.float().cpu()
        self.prediction_type = prediction_type
        self.prompt_embeddings = {
            prompt: e.to(self.device, self.dtype) for prompt, e in prompt_embeddings.items()
        }
        self.evaluations = 0
        """U-Net evaluations so far, one a batch element."""

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    def to(self, device: torch.device) -> None:
        """Move networks and prompt embeddings to another device."""
        if device == self.device:
            return
        self.vae.to(device)
        self.unet.to(device)
        self.network.reset()
        self.prompt_embeddings = {prompt: e.to(device) for prompt, e in self.prompt_embeddings.items()}

    def cast(self, dtype: torch.dtype) -> None:
        """Convert networks and prompt embeddings to another precision."""
        self.vae.to(dtype)
        self.unet.to(dtype)
        self.network.reset()
        self.prompt_embeddings = {prompt: e.to(dtype) for prompt, e in self.prompt_embeddings.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks; everything returned here is float32 all the same."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the latent (4)."""
        return int(self.unet.config["in_channels"])

    @property
    def downsample(self) -> int:
        """Pixels a latent cell covers on each side (8 in Stable Diffusion)."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def multiple(self) -> int:
        """Image sides must be multiples of this (64 in Stable Diffusion), or the decoder's skips do not line up."""
        return int(self.downsample * 2 ** (len(self.unet.up_blocks) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> LatentPosterior:
        """Posterior of the scaled latent of B,3,H,W images in [-1,1] (method section 1)."""
        posterior = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        scale = float(self.vae.config["scaling_factor"])
        return LatentPosterior(mean=scale * posterior.mean.float(), std=scale * posterior.std.float())

    def predict_noise(self, latents: Tensor, timestep: int, prompts: Sequence[str]) -> Tensor:
        """eps of B,4,h,w float32 latents at one timestep, a prompt each, float32 (method section 1.1)."""
        eps, _ = self.evaluate(latents, timestep, prompts)
        assert eps is not None
        return eps

    @torch.no_grad()
    def evaluate(
        self,
        latents: Tensor,
        timestep: int,
        prompts: Sequence[str],
        *,
        layers: Collection[FeatureLayer] = (),
        noise: bool = True,
    ) -> tuple[Tensor | None, Maps]:
        """What `predict_noise` gives, and B,C,H,W maps of the tapped `layers` in the backbone's precision.

        Without `noise` no eps, and nothing behind the last of the layers is computed; an evaluation all the same.
        """
        self.evaluations += len(latents)
        texts = [(prompt, self.prompt_embeddings[prompt]) for prompt in prompts]
        output, maps = self.network(latents.to(self.dtype), timestep, texts, layers=layers, output=noise)
        return None if output is None else self.as_noise(output, latents, timestep), maps

    def as_noise(self, output: Tensor, latents: Tensor, timestep: int) -> Tensor:
        """eps, float32, from what the network said of these latents (method section 1.1)."""
        if self.prediction_type == "epsilon":
            return output.float()
        alpha = float(self.alphas_cumprod[timestep])
        return math.sqrt(alpha) * output.float() + math.sqrt(1 - alpha) * latents
