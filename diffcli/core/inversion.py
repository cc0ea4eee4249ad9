"""DDIM inversion with eta, guidance and class prompts on masks (method sections 1.1 to 1.3).

Shapes: B images, G prompt groups of one image, R rows of one U-Net batch, h,w the latent grid.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.unet import FeatureLayer, Maps
from diffcli.config.settings import CustomSchedule, InversionConfig

Noise = Callable[[int, tuple[int, ...]], Tensor]
"""(index of the image in the batch, shape) -> float32 Gaussian; each image has a sequence of its own."""


@dataclass(frozen=True)
class InversionSchedule:
    """Steps from the clean latent towards noise: step i goes from timesteps[i] to next_timesteps[i]."""

    timesteps: tuple[int, ...]
    next_timesteps: tuple[int, ...]
    save_steps: tuple[int, ...]
    one_step: bool = False

    @classmethod
    def from_config(cls, config: CustomSchedule) -> "InversionSchedule":
        """The first step starts at `config.start` (one-step mode: at its timestep); each goes to the next one."""
        targets = tuple(sorted(config.timesteps))
        starts = targets if config.one_step else (config.start, *targets[:-1])
        return cls(starts, targets, config.save_steps, config.one_step)

    @property
    def evaluated_steps(self) -> int:
        """Steps that the saved features need: none after the last saved one."""
        return max(self.save_steps) + 1


@dataclass(frozen=True)
class StepCoefficients:
    """The numbers of one step: alphabar at both ends, and the noise coefficient sigma."""

    alpha: float
    alpha_next: float
    sigma: float

    @property
    def direction(self) -> float:
        """Coefficient of eps in the next latent; the floor is really reached (method section 1.1)."""
        return math.sqrt(max(1 - self.alpha_next - self.sigma**2, 1e-10))


def step_coefficients(
    alphas_cumprod: Tensor, timestep: int, next_timestep: int, *, eta: float, s_tmin: float, s_tmax: float
) -> StepCoefficients:
    """Coefficients of one inversion step (method section 1.1)."""
    alpha, alpha_next = float(alphas_cumprod[timestep]), float(alphas_cumprod[next_timestep])
    stochastic = s_tmin < timestep < s_tmax
    variance = (1 - alpha_next / alpha) * (1 - alpha_next) / (1 - alpha)
    return StepCoefficients(alpha, alpha_next, eta * math.sqrt(variance) if stochastic else 0.0)


def ddim_inversion_step(latent: Tensor, eps: Tensor, noise: Tensor, step: StepCoefficients) -> Tensor:
    """z_t' = sqrt(a') x0hat + sigma n + sqrt(max(1 - a' - sigma^2, 1e-10)) eps, all float32 (method section 1.1)."""
    x0_hat = (latent - math.sqrt(1 - step.alpha) * eps) / math.sqrt(step.alpha)
    return math.sqrt(step.alpha_next) * x0_hat + step.sigma * noise + step.direction * eps


@dataclass(frozen=True)
class PromptGroups:
    """Prompts of one image and where each acts; group 0 is the plain prompt everywhere (method section 1.3)."""

    prompts: tuple[str, ...]
    masks: Tensor
    """G,h,w float32, the first all ones."""


def prompt_groups(
    reference: Tensor | None,
    *,
    prompt: str,
    class_prompts: Mapping[int, str],
    latent_size: tuple[int, int],
) -> PromptGroups:
    """Groups of one image from its reference segmentation (H,W train ids; None: the plain prompt alone).

    One pixel of a prompted class is enough to add its group; its mask takes the top-left pixel of each
    latent cell, and may be empty (method section 1.3).
    """
    h, w = latent_size
    plain = torch.ones(1, h, w)
    if reference is None:
        return PromptGroups((prompt,), plain)
    present = set(torch.unique(reference).tolist())
    classes = sorted(present & class_prompts.keys())
    coarse = resize_nearest(reference, (h, w))
    masks = [(coarse == train_id).float().cpu()[None] for train_id in classes]
    return PromptGroups((prompt, *(class_prompts[i] for i in classes)), torch.cat([plain, *masks]))


def resize_nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """...,H,W labels sampled at the top-left pixel of each target cell, any dtype."""
    height, width = labels.shape[-2:]
    rows = torch.arange(size[0], device=labels.device) * height // size[0]
    columns = torch.arange(size[1], device=labels.device) * width // size[1]
    return labels[..., rows[:, None], columns[None, :]]


def noise_seed(seed: int, identity: str) -> int:
    """A 63-bit seed from (seed, the image's own identity), equal on every machine."""
    return (
        int.from_bytes(
            blake2b(f"{seed}:{identity}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        )
        >> 1
    )


def seeded_noise(seed: int, identities: Sequence[str]) -> Noise:
    """Independent Gaussians per image, drawn on the CPU so that every device sees the same (method section 1.1)."""
    generators = [torch.Generator().manual_seed(noise_seed(seed, identity)) for identity in identities]
    return lambda image, shape: torch.randn(shape, generator=generators[image])


@dataclass(frozen=True)
class Rows:
    """One U-Net batch: each image's distinct prompts, evaluated once each."""

    images: tuple[int, ...]
    prompts: tuple[str, ...]
    counts: tuple[int, ...]
    """How often the reference sums the row's attention features: once a group, and once for the negative prompt."""

    def of(self, image: int) -> slice:
        """The rows of one image; the first is its negative prompt."""
        first = self.images.index(image)
        return slice(first, first + self.images.count(image))


def plan_rows(groups: Sequence[PromptGroups], negative_prompt: str) -> Rows:
    """The distinct prompts each image needs, its negative prompt first (method section 1.2)."""
    rows: list[tuple[int, str, int]] = []
    for image, group in enumerate(groups):
        needed = (negative_prompt, *group.prompts)
        rows += [(image, prompt, needed.count(prompt)) for prompt in dict.fromkeys(needed)]
    images, prompts, counts = zip(*rows, strict=True)
    return Rows(images, prompts, counts)


@dataclass(frozen=True)
class ImagePlan:
    """How one image moves from step to step, on the device."""

    rows: slice
    """Its rows of a U-Net batch; the first is its negative prompt."""
    conditional: Tensor
    """G: each group's row among them."""
    masks: Tensor
    """G,1,h,w."""
    total: Tensor
    """1,h,w: the sum of the masks."""


@dataclass(frozen=True)
class BatchPlan:
    """What the steps of a batch have in common: rows, indices and masks, moved to the device once."""

    rows: Rows
    image_of_row: Tensor
    """R."""
    first_rows: Tensor
    """B: the row of each image's negative prompt."""
    counts: Tensor
    """R,1,1,1 float32: `Rows.counts`."""
    images: tuple[ImagePlan, ...]


def plan_batch(groups: Sequence[PromptGroups], negative_prompt: str, *, device: torch.device) -> BatchPlan:
    """The plan for a batch's prompt groups (method sections 1.2 and 1.3)."""
    rows = plan_rows(groups, negative_prompt)
    images = []
    for image, group in enumerate(groups):
        of_image = rows.of(image)
        prompts = rows.prompts[of_image]
        masks = group.masks.to(device)[:, None]
        conditional = torch.tensor([prompts.index(prompt) for prompt in group.prompts]).to(device)
        images.append(ImagePlan(of_image, conditional, masks, masks.sum(0)))
    return BatchPlan(
        rows,
        image_of_row=torch.tensor(rows.images).to(device),
        first_rows=torch.tensor([rows.of(image).start for image in range(len(groups))]).to(device),
        counts=torch.tensor(rows.counts, dtype=torch.float32)[:, None, None, None].to(device),
        images=tuple(images),
    )


def draw_ahead(noise: Noise, plans: Sequence[BatchPlan], latent: Tensor) -> list[list[Tensor]]:
    """The draws of all steps, for each step and image G,4,h,w, in one copy to the device of `latent`.

    A copy waits for the GPU, so one for each step would leave it idle between the steps.
    """
    shape = latent.shape[1:]
    counts = [len(image.conditional) for plan in plans for image in plan.images]
    if not counts:
        return []
    draws = [
        noise(image, (len(one.conditional), *shape))
        for plan in plans
        for image, one in enumerate(plan.images)
    ]
    together = torch.cat(draws)
    if latent.device.type == "cuda":
        together = together.pin_memory()
    parts = iter(torch.split(together.to(latent.device, non_blocking=True), counts))
    return [[next(parts) for _ in plan.images] for plan in plans]


@dataclass(frozen=True)
class InversionStep:
    """What one step read and computed."""

    index: int
    plan: BatchPlan
    eps: Tensor | None
    """R,4,h,w: the noise prediction of every row; None where it was left out."""
    maps: Maps
    """R,C,H,W of the tapped layers, empty where none is saved; valid until the next step is asked for."""
    latent: Tensor
    """B,4,h,w before the step."""
    next_latent: Tensor | None
    """B,4,h,w after it; None after the last step that is needed."""

    @property
    def rows(self) -> Rows:
        """The rows of `eps` and `maps`."""
        return self.plan.rows


@torch.no_grad()
def invert(
    latent: Tensor,
    *,
    backbone: DiffusionBackbone,
    schedule: InversionSchedule,
    groups: Sequence[PromptGroups],
    config: InversionConfig,
    noise: Noise,
    layers: Collection[FeatureLayer] = (),
    max_unet_batch: int | None = None,
    steps: int | None = None,
) -> Iterator[InversionStep]:
    """Invert B,4,h,w float32 latents step by step, yielding after each step's evaluation (method sections 1.1 to 1.3).

    Each image is evaluated with its own prompts alone, so its result does not depend on its batch. All that the steps
    need reaches the device before the first one; between the steps nothing waits for it.

    Args:
        layers: what is tapped at the schedule's saved steps.
        max_unet_batch: most rows of one U-Net call; None evaluates all rows of a step at once.
        steps: how many to take; None stops at the last saved one, whose noise prediction nobody needs and which
            therefore ends after its last tapped layer, with neither eps nor next latent.
    """
    if schedule.one_step:
        latent = add_noise(latent, schedule.timesteps[0], alphas_cumprod=backbone.alphas_cumprod, noise=noise)
    count = steps or schedule.evaluated_steps
    inside = [config.mask_min <= timestep <= config.mask_max for timestep in schedule.timesteps[:count]]
    plain = [PromptGroups(group.prompts[:1], group.masks[:1]) for group in groups]
    plan_of = {
        masked: plan_batch(groups if masked else plain, config.negative_prompt, device=latent.device)
        for masked in set(inside)
    }
    plans = [plan_of[masked] for masked in inside]
    leaves_eps_out = steps is None and bool(layers)
    draws = draw_ahead(noise, plans[:-1] if leaves_eps_out else plans, latent)
    for index, plan in enumerate(plans):
        timestep = schedule.timesteps[index]
        eps, maps = evaluate_rows(
            backbone,
            latent[plan.image_of_row],
            timestep,
            plan.rows.prompts,
            layers=layers if index in schedule.save_steps else (),
            noise=not leaves_eps_out or index < count - 1,
            max_unet_batch=max_unet_batch,
        )
        if eps is None or index == len(draws):
            yield InversionStep(index, plan, eps, maps, latent, None)
            return
        step = step_coefficients(
            backbone.alphas_cumprod,
            timestep,
            schedule.next_timesteps[index],
            eta=config.eta,
            s_tmin=config.s_tmin,
            s_tmax=config.s_tmax,
        )
        moved = []
        for image, (one, draw) in enumerate(zip(plan.images, draws[index], strict=True)):
            guided = guide(eps[one.rows], one.conditional, guidance_scale=config.guidance_scale)
            stepped = ddim_inversion_step(latent[image], guided, draw, step)
            moved.append((one.masks * stepped).sum(0) / one.total)
        next_latent = torch.stack(moved)
        yield InversionStep(index, plan, eps, maps, latent, next_latent)
        latent = next_latent


def evaluate_rows(
    backbone: DiffusionBackbone,
    latents: Tensor,
    timestep: int,
    prompts: Sequence[str],
    *,
    layers: Collection[FeatureLayer],
    noise: bool,
    max_unet_batch: int | None,
) -> tuple[Tensor | None, Maps]:
    """eps of R,4,h,w latents with a prompt each (None without `noise`), and R,C,H,W maps of the layers."""
    limit = max_unet_batch or len(latents)
    if len(latents) <= limit:
        return backbone.evaluate(latents, timestep, prompts, layers=layers, noise=noise)
    parts: list[Tensor] = []
    whole: Maps = {}
    for start in range(0, len(latents), limit):
        rows = slice(start, start + limit)
        eps, maps = backbone.evaluate(latents[rows], timestep, prompts[rows], layers=layers, noise=noise)
        if eps is not None:
            parts.append(eps)
        for (
            layer,
            found,
        ) in maps.items():  # copied at once: the next call may write over what this one returned
            if layer not in whole:
                size = (len(latents), *found.shape[1:])
                whole[layer] = torch.empty(
                    size, dtype=found.dtype, device=found.device, memory_format=torch.channels_last
                )
            whole[layer][rows] = found
    return torch.cat(parts) if parts else None, whole


def guide(eps: Tensor, conditional: Tensor, *, guidance_scale: float) -> Tensor:
    """Classifier-free guidance of every group, G,4,h,w (method section 1.2).

    Args:
        eps: R,4,h,w, the first row for the negative prompt.
        conditional: G, each group's row.
    """
    unconditional = eps[:1]
    return unconditional + guidance_scale * (eps[conditional] - unconditional)


def add_noise(latent: Tensor, timestep: int, *, alphas_cumprod: Tensor, noise: Noise) -> Tensor:
    """One-step mode: z_t = sqrt(a) z_0 + sqrt(1 - a) n, one draw an image shared by its prompt groups."""
    alpha = float(alphas_cumprod[timestep])
    draws = torch.cat([noise(image, (1, *latent.shape[1:])) for image in range(len(latent))]).to(
        latent.device
    )
    return math.sqrt(alpha) * latent + math.sqrt(1 - alpha) * draws
