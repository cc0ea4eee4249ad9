"""The work that the published code does for the same features: what `diff bench` compares with (method section 5).

The arithmetic is the method's, and under the same noise the logits equal those of `SegmentationModel.logits`. Only the
work differs: every step of the schedule is evaluated, also those after the last saved one; prompt and negative prompt
are both evaluated, even if they are equal; features of stride 64 are kept, concatenated and fused, then dropped; each
branch of a training step is inverted separately; the U-Net runs through diffusers' own forward. It is built from public
parts of core and is never used to compute a result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.backbone.unet import FeatureLayer, feature_layers
from diffcli.config.settings import LossConfig, ModelConfig
from diffcli.core.decoder import DirectAggregation, SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor, FeatureTaps
from diffcli.core.inversion import (
    InversionSchedule,
    Noise,
    PromptGroups,
    add_noise,
    ddim_inversion_step,
    guide,
    prompt_groups,
    seeded_noise,
    step_coefficients,
)
from diffcli.core.ipkl import IPKLLosses, ipkl_loss

STAGES = (0, 1, 2, 3)


class Baseline(nn.Module):
    """The published amount of work on an extractor and a decoder.

    Args:
        config: what both were built from; `decoder.features` must be "all" and its fusion "direct".
        extractor: the frozen part.
        decoder: the trained part.
    """

    def __init__(
        self, config: ModelConfig, *, extractor: DiffusionFeatureExtractor, decoder: SegmentationDecoder
    ) -> None:
        super().__init__()
        self.config = config.inversion
        self.backbone = extractor.backbone
        self.extractor = extractor
        self.schedule = InversionSchedule.from_config(config.inversion.resolved_schedule())
        self.layers = feature_layers(self.backbone.unet, stages=STAGES, kinds="all")
        coarsest = DiffusionFeatureExtractor(self.backbone, config.inversion, stages=STAGES[:1])
        self.dropped = DirectAggregation(
            coarsest.stage_widths[0], steps=coarsest.steps, out_channels=config.decoder.channels[-1]
        ).to(self.backbone.device)
        self.decoder = decoder

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """B,C,h,w stacks of all four strides, coarsest first, to logits at stride 4; the coarsest has no effect."""
        coarsest, *used = features
        self.dropped(coarsest.to(next(self.dropped.parameters()).dtype))
        logits: Tensor = self.decoder(used)
        return logits

    @torch.no_grad()
    def logits(self, images: Tensor, *, identities: Sequence[str], seed: int = 0) -> Tensor:
        """B,classes,H,W logits of images whose sides are multiples of `backbone.multiple`."""
        coarse = self(self.extract(images, noise=seeded_noise(seed, identities)))
        return F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)

    def training_losses(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        identities: Sequence[str],
        seed: int,
        loss: LossConfig,
    ) -> IPKLLosses:
        """The IPKL losses of a batch, one branch after the other (method section 2)."""
        logits = []
        for branch, references in (("conditional", list(labels)), ("unconditional", None)):
            noise = seeded_noise(seed, [f"{identity}/{branch}" for identity in identities])
            logits.append(self(self.extract(images, noise=noise, references=references)))
        return ipkl_loss(logits[1], logits[0], labels, loss)

    @torch.no_grad()
    def extract(
        self, images: Tensor, *, noise: Noise, references: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """One B,C,h,w stack for each stride, 64 first, in the order of `DiffusionFeatureExtractor.extract`."""
        latent = self.extractor.encode(images, noise=noise)
        alphas, schedule = self.backbone.alphas_cumprod, self.schedule
        groups = self._groups(latent, references)
        if schedule.one_step:
            latent = add_noise(latent, schedule.timesteps[0], alphas_cumprod=alphas, noise=noise)
        saved: dict[int, dict[FeatureLayer, Tensor]] = {}
        with FeatureTaps(self.backbone.unet, self.layers) as taps:
            for index, timestep in enumerate(schedule.timesteps):
                eps = self._evaluate(latent, timestep, groups)
                if index in schedule.save_steps:
                    counts = [len(group.prompts) + 1 for group in groups]
                    saved[index] = {
                        layer: _reduce(taps.maps[layer], layer.kind, counts) for layer in self.layers
                    }
                latent = self._step(latent, eps, groups, index, noise=noise)
        return [
            torch.cat(
                [
                    saved[index][layer]
                    for layer in self.layers
                    if layer.stage == stage
                    for index in schedule.save_steps
                ],
                dim=1,
            )
            for stage in STAGES
        ]

    def _groups(self, latent: Tensor, references: Sequence[Tensor] | None) -> list[PromptGroups]:
        size = (latent.shape[-2], latent.shape[-1])
        given: Sequence[Tensor | None] = references if references is not None else [None] * len(latent)
        return [
            prompt_groups(
                reference,
                prompt=self.config.prompt,
                class_prompts=self.config.class_prompts,
                latent_size=size,
            )
            for reference in given
        ]

    def _evaluate(self, latent: Tensor, timestep: int, groups: Sequence[PromptGroups]) -> list[Tensor]:
        """eps of each image's negative prompt and of each of its groups, equal or not, in one batch."""
        prompts = [[self.config.negative_prompt, *group.prompts] for group in groups]
        rows = [image for image, texts in enumerate(prompts) for _ in texts]
        backbone, latents = self.backbone, latent[rows]
        text = torch.stack([backbone.prompt_embeddings[prompt] for texts in prompts for prompt in texts])
        output = backbone.unet(latents.to(backbone.dtype), timestep, encoder_hidden_states=text).sample
        backbone.evaluations += len(rows)
        eps = backbone.as_noise(output, latents, timestep)
        return list(torch.split(eps, [len(texts) for texts in prompts]))

    def _step(
        self,
        latent: Tensor,
        eps: Sequence[Tensor],
        groups: Sequence[PromptGroups],
        index: int,
        *,
        noise: Noise,
    ) -> Tensor:
        """The next latent (method sections 1.1 to 1.3)."""
        step = step_coefficients(
            self.backbone.alphas_cumprod,
            self.schedule.timesteps[index],
            self.schedule.next_timesteps[index],
            eta=self.config.eta,
            s_tmin=self.config.s_tmin,
            s_tmax=self.config.s_tmax,
        )
        moved = []
        for image, (predictions, group) in enumerate(zip(eps, groups, strict=True)):
            # each group has a row of its own, whatever its prompt
            rows = torch.arange(1, len(predictions), device=predictions.device)
            guided = guide(predictions, rows, guidance_scale=self.config.guidance_scale)
            draw = noise(image, tuple(guided.shape)).to(latent.device)
            stepped = ddim_inversion_step(latent[image], guided, draw, step)
            mask = group.masks.to(latent.device)[:, None]
            moved.append((mask * stepped).sum(0) / mask.sum(0))
        return torch.stack(moved)


def _reduce(maps: Tensor, kind: str, counts: Sequence[int]) -> Tensor:
    """From rows to images: the negative prompt's resnet map, the sum of all attention maps."""
    images = torch.split(maps, list(counts))
    return torch.stack(
        [rows[0] if kind == "resnet" else rows.float().sum(0).to(maps.dtype) for rows in images]
    )
