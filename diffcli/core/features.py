"""Multi-timestep features of the frozen U-Net (method section 1.4).

Stages s = 0..3 are the U-Net's "up" blocks, at strides 64, 32, 16, 8 in Stable Diffusion; layers j = 0..2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.family import check_timesteps
from diffcli.backbone.unet import FeatureKinds, FeatureLayer, feature_layers
from diffcli.classes import IGNORE_ID
from diffcli.config.settings import DEFAULT_UNET_BATCH, InversionConfig
from diffcli.core.inversion import (
    BatchPlan,
    InversionSchedule,
    InversionStep,
    Noise,
    invert,
    prompt_groups,
    seeded_noise,
)

DECODED_STAGES = (1, 2, 3)
"""Stages whose features the decoder uses; the published code fuses stage 0 as well and drops the result."""


class StepMaps(NamedTuple):
    """What one saved step gives one stage: a piece of that stage's stack."""

    stride: int
    """Position of the stage among those read, coarsest first."""
    step: int
    """Position in saved order."""
    maps: list[Tensor]
    """B,C,h,w of every layer in order of concatenation."""


def _tapped_module(unet: UNet2DConditionModel, layer: FeatureLayer) -> nn.Module:
    """Second convolution of the residual layer (before the skip), or the first transformer block."""
    block = unet.up_blocks[layer.stage]
    if layer.kind == "resnet":
        return cast(nn.Module, block.resnets[layer.layer].conv2)
    return cast(nn.Module, block.attentions[layer.layer].transformer_blocks[0])


def layer_channels(unet: UNet2DConditionModel, layer: FeatureLayer) -> int:
    """Channels of one tapped map."""
    module: Any = _tapped_module(unet, layer)
    return int(module.out_channels if layer.kind == "resnet" else module.norm1.normalized_shape[0])


@dataclass
class FeatureTaps:
    """Context manager of forward hooks: after the library's own forward, `maps` holds R,C,H,W of every tapped layer."""

    unet: UNet2DConditionModel
    layers: Sequence[FeatureLayer]
    maps: dict[FeatureLayer, Tensor] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def __enter__(self) -> Self:
        for layer in self.layers:

            def record(
                _module: nn.Module, _inputs: object, output: Tensor, layer: FeatureLayer = layer
            ) -> None:
                self.maps[layer] = output if layer.kind == "resnet" else self._as_map(output, layer)

            self._handles.append(_tapped_module(self.unet, layer).register_forward_hook(record))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _as_map(self, tokens: Tensor, layer: FeatureLayer) -> Tensor:
        """R,(H W),C tokens as an R,C,H,W map; the resnet of the same layer ran just before at the same size."""
        height, width = self.maps[FeatureLayer("resnet", layer.stage, layer.layer)].shape[-2:]
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


class DiffusionFeatureExtractor:
    """Images to one stack of maps a stride; frozen, and no part of anything trained.

    Args:
        backbone: the diffusion model.
        config: how the latent is inverted and guided.
        kinds: "all", "resnet" (no attention maps) or "latent" (the VAE latent alone, no U-Net evaluation).
        stages: U-Net decoder blocks to read.
        max_unet_batch: most rows (an image with one of its prompts) of one U-Net call; no result depends on it.
    """

    def __init__(
        self,
        backbone: DiffusionBackbone,
        config: InversionConfig,
        *,
        kinds: FeatureKinds = "all",
        stages: Sequence[int] = DECODED_STAGES,
        max_unet_batch: int = DEFAULT_UNET_BATCH,
    ) -> None:
        self.backbone = backbone
        self.max_unet_batch = max_unet_batch
        self.config = config
        self.kinds = kinds
        self.stages = tuple(stages)
        self.schedule = InversionSchedule.from_config(config.resolved_schedule())
        check_timesteps(len(backbone.alphas_cumprod), config.last_timestep, where="model.inversion.schedule")
        self.layers = feature_layers(backbone.unet, stages=stages, kinds=kinds)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each returned map, coarsest stage first."""
        return tuple(self.steps * sum(widths) for widths in self.stage_widths)

    @property
    def steps(self) -> int:
        """Saved steps."""
        return 1 if self.kinds == "latent" else len(self.schedule.save_steps)

    @property
    def stage_widths(self) -> list[list[int]]:
        """Channels of every layer in order of concatenation, per stage."""
        if self.kinds == "latent":
            return [[self.backbone.latent_channels]] * len(self.stages)
        return [self.widths(stage) for stage in self.stages]

    def widths(self, stage: int) -> list[int]:
        """Channels of a stage's layers in order of concatenation."""
        return [layer_channels(self.backbone.unet, layer) for layer in self.layers if layer.stage == stage]

    @torch.no_grad()
    def extract(
        self,
        images: Tensor,
        *,
        noise: Noise,
        references: Sequence[Tensor | None] | None = None,
        passes: int = 1,
    ) -> list[Tensor]:
        """Features of B,3,H,W float32 images in [-1,1], H and W multiples of `backbone.multiple`.

        Args:
            noise: explicit Gaussians; per image first the VAE posterior's, then (one-step) the noising draw, then a
                draw of G,4,h,w at every step; none of a step behind the last one whose noise prediction is used.
            references: H,W train ids an image, turning on its class prompts; None runs the plain prompt alone.
            passes: each image is inverted that often in the same U-Net calls, every time with draws and a reference
                of its own: pass p of image i is row p B + i of noise, references and features.

        Returns:
            One B,C,h,w map a stage in the backbone's precision, coarsest first; channels are, for every layer in
            order, all saved steps in saved order.
        """
        features: dict[int, Tensor] = {}
        for stage, step, maps in self.stream(images, noise=noise, references=references, passes=passes):
            if stage not in features:  # concatenating in the end would hold everything twice
                first = maps[0]
                features[stage] = first.new_empty(len(first), self.channels[stage], *first.shape[-2:])
            start = 0
            for x in maps:
                features[stage][:, start + step * x.shape[1] :][:, : x.shape[1]] = x
                start += self.steps * x.shape[1]
        return [features[stage] for stage in range(len(self.stages))]

    @torch.no_grad()
    def stream(
        self,
        images: Tensor,
        *,
        noise: Noise,
        references: Sequence[Tensor | None] | None = None,
        passes: int = 1,
    ) -> Iterator[StepMaps]:
        """What `extract` returns, piece by piece as the U-Net gives it, so that the whole need not be held."""
        latent = self.encode(images, noise=noise, passes=passes)
        if self.kinds == "latent":
            for position, stage in enumerate(self.stages):
                yield StepMaps(position, 0, [self._shrink(latent, stage)])
            return
        config, size = self.config, (latent.shape[-2], latent.shape[-1])
        groups = [
            prompt_groups(
                reference, prompt=config.prompt, class_prompts=config.class_prompts, latent_size=size
            )
            for reference in references or [None] * len(latent)
        ]
        for step in invert(
            latent,
            backbone=self.backbone,
            schedule=self.schedule,
            groups=groups,
            config=config,
            noise=noise,
            layers=self.layers,
            max_unet_batch=self.max_unet_batch,
        ):
            if step.index in self.schedule.save_steps:
                yield from self._reduced(step)

    def is_finite(self) -> bool:
        """Whether a test image of noise has finite features in the backbone's precision, under every prompt."""
        prompted = torch.tensor(sorted(self.config.class_prompts) or [IGNORE_ID], dtype=torch.uint8)
        side = 8 * self.backbone.multiple
        images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        labels = prompted.repeat_interleave(-(-side // len(prompted)))[:side].expand(side, side)
        maps = self.extract(
            images.to(self.backbone.device),
            noise=seeded_noise(0, ["test image"]),
            references=[labels.to(self.backbone.device)],
        )
        return all(bool(torch.isfinite(one).all()) for one in maps)

    def encode(self, images: Tensor, *, noise: Noise, passes: int = 1) -> Tensor:
        """Scaled latent, B,4,h,w float32: a posterior sample (one draw an image) or the mean, as configured.

        With several passes all latents of the first, then all of the second, and so on: the VAE runs once.
        """
        posterior = self.backbone.encode(images)
        mean, std = (x.repeat(passes, 1, 1, 1) for x in (posterior.mean, posterior.std))
        if self.config.latent == "mean":
            return mean
        draws = torch.cat([noise(row, (1, *mean.shape[1:])) for row in range(len(mean))])
        return mean + std * draws.to(mean.device)

    def _reduced(self, step: InversionStep) -> Iterator[StepMaps]:
        """A saved step's rows reduced to one map an image, stage by stage; each is released once it is used."""
        saved = self.schedule.save_steps.index(step.index)
        for position, stage in enumerate(self.stages):
            layers = [layer for layer in self.layers if layer.stage == stage]
            reduced = [_reduce(step.maps.pop(layer), layer.kind, step.plan) for layer in layers]
            yield StepMaps(position, saved, reduced)

    def _shrink(self, latent: Tensor, stage: int) -> Tensor:
        """The latent averaged down to a stage's size."""
        factor = 2 ** (len(self.backbone.unet.up_blocks) - 1 - stage)
        return F.avg_pool2d(latent, factor)


def _reduce(maps: Tensor, kind: str, plan: BatchPlan) -> Tensor:
    """R,C,H,W rows to B,C,H,W: the negative prompt's row for resnets, the counted sum for attention (method 1.4)."""
    if kind == "resnet":
        return maps[plan.first_rows]
    weighted = maps.float() * plan.counts
    return torch.stack([weighted[image.rows].sum(0) for image in plan.images]).to(maps.dtype)
