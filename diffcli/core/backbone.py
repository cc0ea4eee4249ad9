"""The frozen text-to-image diffusion model: VAE encoder, U-Net and text embeddings, and the facts read off them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn


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
        self.prompt_embeddings = {prompt: e.to(device) for prompt, e in self.prompt_embeddings.items()}

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

    @torch.no_grad()
    def predict_noise(self, latents: Tensor, timestep: int, prompts: Sequence[str]) -> Tensor:
        """eps of B,4,h,w float32 latents at one timestep, a prompt each, float32 (method section 1.1)."""
        output = self._unet(latents, timestep, prompts).float()
        if self.prediction_type == "epsilon":
            return output
        alpha = float(self.alphas_cumprod[timestep])
        return math.sqrt(alpha) * output + math.sqrt(1 - alpha) * latents

    @torch.no_grad()
    def run_until(self, module: nn.Module, latents: Tensor, timestep: int, prompts: Sequence[str]) -> None:
        """Evaluate the U-Net as `predict_noise` does, but nothing behind `module`, one of its parts.

        For who reads features with hooks and needs no noise prediction: hooks registered before this call have seen
        the module's output when it ends. Counts as an evaluation.
        """

        def stop(_module: nn.Module, _inputs: object, _output: object) -> None:
            raise _Reached

        handle = module.register_forward_hook(stop)
        try:
            self._unet(latents, timestep, prompts)
        except _Reached:
            return
        finally:
            handle.remove()
        raise AssertionError("the module is no part of what the U-Net runs")

    def _unet(self, latents: Tensor, timestep: int, prompts: Sequence[str]) -> Tensor:
        """The network's own output."""
        self.evaluations += len(latents)
        text = torch.stack([self.prompt_embeddings[prompt] for prompt in prompts])
        output: Tensor = self.unet(latents.to(self.dtype), timestep, encoder_hidden_states=text).sample
        return output


class _Reached(Exception):
    """The module after which nothing is wanted has run."""
