"""The model as three plain nn.Modules that torch.export can trace: encoder, one step, decoder.

Only the unconditional branch (method section 1.1): every image sees the prompt and the negative prompt alone, so that
no tensor's shape depends on what an image shows. The schedule is not unrolled: one step module takes its index, and a
few lines around it are the loop (`diffcli.export.runner`).

Shapes: B images, S saved steps, C channels of all layers of a stage, h,w the latent grid.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.backbone.unet import FeatureLayer
from diffcli.core.decoder import SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor, FeatureTaps
from diffcli.core.inversion import PromptGroups, plan_rows, step_coefficients
from diffcli.core.model import SegmentationModel


class ExportableParts(NamedTuple):
    """What an export holds."""

    encoder: "Encoder"
    step: "Step | None"
    """None where the features are the VAE latent alone."""
    decoder: "Decoder"


def exportable_parts(model: SegmentationModel) -> ExportableParts:
    """The parts of a float32 model; they share its weights."""
    extractor = model.extractor
    latent_alone = extractor.kinds == "latent"
    return ExportableParts(
        Encoder(extractor).eval(),
        None if latent_alone else Step(extractor).eval(),
        Decoder(extractor, model.decoder).eval(),
    )


def encoder_draws(extractor: DiffusionFeatureExtractor) -> int:
    """Noise draws of an image before the first step: the VAE posterior's, and one-step mode's (method section 1.1)."""
    one_step = extractor.schedule.one_step and extractor.kinds != "latent"
    return int(extractor.config.latent == "sample") + int(one_step)


def step_count(extractor: DiffusionFeatureExtractor) -> int:
    """U-Net evaluations of an image, a noise draw each."""
    return 0 if extractor.kinds == "latent" else extractor.schedule.evaluated_steps


class Encoder(nn.Module):
    """B,3,H,W images in [-1,1] to the latent of the first step, B,4,h,w (method sections 1 and 1.1)."""

    def __init__(self, extractor: DiffusionFeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        vae = extractor.backbone.vae
        self.encoder, self.quant_conv = (
            vae.encoder,
            vae.quant_conv,
        )  # registered: the VAE's own decoder is not
        self.channels = extractor.backbone.latent_channels
        schedule = extractor.schedule
        self.draws = encoder_draws(extractor)
        noised = schedule.one_step and extractor.kinds != "latent"
        self.alpha = float(extractor.backbone.alphas_cumprod[schedule.timesteps[0]]) if noised else 1.0

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: B,E,4,h,w, one draw for the posterior, then one for one-step mode, as far as they are used."""
        posterior = self.extractor.backbone.encode(images)
        latent, used = posterior.mean, 0
        if noise is not None and self.extractor.config.latent == "sample":
            latent, used = latent + posterior.std * noise[:, 0], 1
        if noise is not None and used < self.draws:
            latent = math.sqrt(self.alpha) * latent + math.sqrt(1 - self.alpha) * noise[:, used]
        return latent


class Step(nn.Module):
    """One step of the inversion and the maps it reads (method sections 1.1, 1.2 and 1.4).

    The schedule is a table of one row a step, taken by its index: timestep, and the five numbers of
    `eps = output_scale * output + latent_scale * z` and `z' = keep * z + move * eps + sigma * noise`.
    """

    timesteps: Tensor
    numbers: Tensor
    text: Tensor

    def __init__(self, extractor: DiffusionFeatureExtractor) -> None:
        super().__init__()
        backbone, config = extractor.backbone, extractor.config
        self.unet, self.layers, self.stages = backbone.unet, extractor.layers, extractor.stages
        self.guidance_scale = config.guidance_scale
        alone = PromptGroups((config.prompt,), torch.ones(1, 1, 1))
        rows = plan_rows([alone], config.negative_prompt)
        self.counts = rows.counts
        text = torch.stack([backbone.prompt_embeddings[prompt] for prompt in rows.prompts])
        self.register_buffer("text", text.float())
        count = extractor.schedule.evaluated_steps
        self.register_buffer("timesteps", torch.tensor(extractor.schedule.timesteps[:count]))
        table = [_numbers(extractor, index) for index in range(count)]
        self.register_buffer("numbers", torch.tensor(table, dtype=torch.float32))

    def forward(self, latent: Tensor, noise: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """B,4,h,w latent and noise, and the step's index (int64), to the next latent and B,C,h,w a stage."""
        rows, batch = len(self.counts), latent.shape[0]
        timestep = self.timesteps.index_select(0, index.reshape(1))
        output_scale, latent_scale, keep, move, sigma = self.numbers.index_select(0, index.reshape(1))[0]
        latents = latent.repeat(rows, 1, 1, 1)
        text = self.text.repeat_interleave(batch, dim=0)
        with FeatureTaps(self.unet, self.layers) as taps:
            output = self.unet(latents, timestep, encoder_hidden_states=text).sample
        eps = output_scale * output + latent_scale * latents
        guided = eps[:batch]
        if rows > 1:
            guided = guided + self.guidance_scale * (eps[batch:] - guided)
        following = keep * latent + move * guided + sigma * noise
        return following, *(self._stage(taps, stage, batch) for stage in self.stages)

    def _stage(self, taps: FeatureTaps, stage: int, batch: int) -> Tensor:
        """All layers of a stage: the negative prompt's row of a resnet, the counted sum of attention maps."""
        maps = [
            self._reduced(layer, taps.maps[layer], batch) for layer in self.layers if layer.stage == stage
        ]
        return torch.cat(maps, dim=1)

    def _reduced(self, layer: FeatureLayer, maps: Tensor, batch: int) -> Tensor:
        if layer.kind == "resnet":
            return maps[:batch]
        total = self.counts[0] * maps[:batch]
        return total if len(self.counts) == 1 else total + self.counts[1] * maps[batch:]


def _numbers(extractor: DiffusionFeatureExtractor, index: int) -> list[float]:
    """The five numbers of one step, in double precision until they are stored."""
    schedule, config, backbone = extractor.schedule, extractor.config, extractor.backbone
    step = step_coefficients(
        backbone.alphas_cumprod,
        schedule.timesteps[index],
        schedule.next_timesteps[index],
        eta=config.eta,
        s_tmin=config.s_tmin,
        s_tmax=config.s_tmax,
    )
    alpha = step.alpha
    velocity = backbone.prediction_type == "v_prediction"
    keep = math.sqrt(step.alpha_next / alpha)
    return [
        math.sqrt(alpha) if velocity else 1.0,
        math.sqrt(1 - alpha) if velocity else 0.0,
        keep,
        step.direction - keep * math.sqrt(1 - alpha),
        step.sigma,
    ]


class Decoder(nn.Module):
    """The maps of all saved steps, or the latent, to logits B,classes,H,W of the (padded) image's size."""

    def __init__(self, extractor: DiffusionFeatureExtractor, decoder: SegmentationDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.latent_alone = extractor.kinds == "latent"
        self.widths, self.steps = extractor.stage_widths, extractor.steps
        self.downsample = extractor.backbone.downsample
        last = len(extractor.backbone.unet.up_blocks) - 1
        self.factors = [2 ** (last - stage) for stage in extractor.stages]

    def forward(self, *stacks: Tensor) -> Tensor:
        """stacks: B,S*C,h,w a stage, coarsest first, steps in saved order; the latent B,4,h,w where it is all."""
        if self.latent_alone:
            features = [F.avg_pool2d(stacks[0], factor) for factor in self.factors]
        else:
            features = [self._by_layer(x, widths) for x, widths in zip(stacks, self.widths, strict=True)]
        coarse = self.decoder(features)
        height, width = (self.downsample * side for side in stacks[-1].shape[-2:])
        return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)

    def _by_layer(self, stack: Tensor, widths: Sequence[int]) -> Tensor:
        """Step after step, as the loop makes them, to layer after layer, as the decoder was trained."""
        batch, _, height, width = stack.shape
        layers = torch.split(
            stack.reshape(batch, self.steps, sum(widths), height, width), list(widths), dim=2
        )
        return torch.cat([x.reshape(batch, -1, height, width) for x in layers], dim=1)
