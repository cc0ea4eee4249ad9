"""Does a diffusion model listen to its prompts, and does a word act where its class is?

    python examples/prompt_effect.py [--backbone embedded] [--domain miniworld/clean] [--images 16] [--crop 64] [--json]

IPKL (method section 1.3) tells the model class words on the classes' masks, so it can do nothing where words do
nothing. This prints, for any backbone that `model.backbone.source` takes and any labelled domain:

- how far the text states of a class word are from those of the empty prompt and from the nearest other word;
- how much a word changes the noise prediction of images that show its class;
- the denoising loss with a true caption (classes that fill at least 1 % of the image), the empty one and a wrong one
  (as many classes that are not there);
- where a word acts: the area under the ROC curve of |eps(word) - eps("")| against the mask of its class on the latent
  grid, averaged over images. 0.5 is chance.

Latents are noised to each timestep with one draw an image. Nothing is trained. Large images cost much: Stable Diffusion
is best asked with `--crop 512`.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.config.domain import DomainConfig, domain_config
from diffcli.config.settings import BackboneConfig, InversionConfig
from diffcli.core.inversion import InversionSchedule, add_noise, resize_nearest, seeded_noise
from diffcli.core.model import to_model_range
from diffcli.data.dataset import open_domain
from diffcli.runtime import console
from diffcli.runtime.device import resolve_device

CLASSES = len(CITYSCAPES_CLASSES)
PRESENT = 0.01
"""Share of an image that a class fills at least to be called present; absent means no pixel at all."""
CAPTION_WORDS = 8
MULTIPLE = 64
"""Sides of an image that the U-Net takes; what is beyond is cut off."""
LOSS_TIMESTEPS = (20, 100, 250, 400, 500, 600, 700, 800)
ROWS = 16
"""Prompts in one call of the U-Net."""


@dataclass(frozen=True)
class Picture:
    """One image with what its labels say."""

    identity: str
    pixels: Tensor
    """1,3,H,W float32 in [-1,1]."""
    label: Tensor
    """H,W train ids."""
    present: list[int]
    """Classes that fill at least PRESENT of it, the largest first."""
    absent: list[int]

    @property
    def captions(self) -> dict[str, str]:
        """Caption by kind: true, empty, wrong."""
        true, wrong = self.present[:CAPTION_WORDS], self.absent[:CAPTION_WORDS]
        named = {"true": true, "empty": [], "wrong": wrong[: len(true)]}
        return {kind: " ".join(CITYSCAPES_CLASSES[c] for c in classes) for kind, classes in named.items()}


@dataclass
class Effect:
    """What was measured, in shares (0..1); NaN where no image shows a class."""

    timesteps: tuple[int, ...]
    visited: tuple[int, ...]
    """Those of them whose features schedule `paper` keeps."""
    states: dict[str, dict[str, float]] = field(default_factory=dict)
    noise: dict[str, dict[int, float]] = field(default_factory=dict)
    area: dict[str, dict[int, float]] = field(default_factory=dict)
    loss: dict[int, dict[str, float]] = field(default_factory=dict)
    frequent: list[str] = field(default_factory=list)

    @property
    def mean_area(self) -> float:
        """The mean area over the ten most frequent classes at the timesteps that `paper` keeps."""
        return float(np.nanmean([[self.area[word][t] for t in self.visited] for word in self.frequent]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="embedded", help="as model.backbone.source takes it")
    parser.add_argument("--domain", default="miniworld/clean", help="a labelled domain")
    parser.add_argument("--root", type=Path, help="folder that holds it")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--crop", type=int, help="take one random square of this side of each image")
    parser.add_argument(
        "--timesteps", type=int, nargs="+", default=[300, 500, 700], help="beside the visited"
    )
    parser.add_argument("--seed", type=int, default=0, help="of crops and noise")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.domain.startswith("miniworld"):
        entry = domain_config(options.domain, count=options.images)
    else:
        entry = domain_config(options.domain, root=options.root, limit=options.images)
    pictures = open_pictures(entry, crop=options.crop, seed=options.seed)
    captions = {caption for picture in pictures for caption in picture.captions.values()}
    backbone = load_backbone(
        BackboneConfig(source=options.backbone),
        prompts=["", *CITYSCAPES_CLASSES, *sorted(captions)],
        device=resolve_device("auto"),
        dtype=torch.float32,
    )
    effect = measure(backbone, pictures, timesteps=options.timesteps, seed=options.seed)
    with console.json_only(options.json):
        print_tables(effect)
        console.print_record({**vars(effect), "mean_area": effect.mean_area})


def open_pictures(entry: DomainConfig, *, crop: int | None, seed: int) -> list[Picture]:
    """The labelled images of a domain, or a random square of each, with sides that the U-Net takes."""
    domain = open_domain(entry, purpose="eval", classes=CITYSCAPES_CLASSES)
    pictures = []
    for index in range(len(domain)):
        image, label = domain.load(index)
        if crop:
            rng = np.random.default_rng([seed, index])
            y, x = (int(rng.integers(0, side - crop + 1)) for side in label.shape)
            image, label = image[y : y + crop, x : x + crop], label[y : y + crop, x : x + crop]
        height, width = (side - side % MULTIPLE for side in label.shape)
        image, label = image[:height, :width], label[:height, :width]
        counts = np.bincount(label.ravel(), minlength=256)[:CLASSES]
        order = [int(c) for c in np.argsort(-counts)]
        pictures.append(
            Picture(
                domain.identity(index),
                to_model_range(torch.from_numpy(np.array(image))[None]),
                torch.from_numpy(np.array(label)).long(),
                [c for c in order if counts[c] >= PRESENT * label.size],
                [c for c in range(CLASSES) if counts[c] == 0],
            )
        )
    return pictures


def measure(
    backbone: DiffusionBackbone, pictures: Sequence[Picture], *, timesteps: Iterable[int], seed: int
) -> Effect:
    """All of it, image by image."""
    schedule = InversionSchedule.from_config(InversionConfig(schedule="paper").resolved_schedule())
    visited = tuple(sorted(schedule.timesteps[step] for step in schedule.save_steps))
    effect = Effect(tuple(sorted({*visited, *timesteps})), visited, states=state_differences(backbone))
    pixels = sum(torch.bincount(p.label.flatten(), minlength=256)[:CLASSES] for p in pictures)
    effect.frequent = [
        CITYSCAPES_CLASSES[int(c)] for c in torch.as_tensor(pixels).argsort(descending=True)[:10]
    ]
    found: dict[tuple[str, int, str], list[float]] = {}
    losses: dict[tuple[int, str], list[float]] = {}
    with console.progress("images", len(pictures), unit="images") as bar:
        for picture in pictures:
            latent = backbone.encode(picture.pixels).mean
            for timestep in sorted({*effect.timesteps, *LOSS_TIMESTEPS}):
                noise = seeded_noise(seed, [f"{picture.identity}/{timestep}"])
                drawn = noise(0, tuple(latent.shape)).to(latent.device)
                noisy = add_noise(
                    latent, timestep, alphas_cumprod=backbone.alphas_cumprod, noise=lambda _, __, n=drawn: n
                )
                if timestep in LOSS_TIMESTEPS:
                    eps = predict(backbone, noisy, timestep, [*picture.captions.values()])
                    for kind, error in zip(
                        picture.captions, (eps - drawn).square().mean((1, 2, 3)), strict=True
                    ):
                        losses.setdefault((timestep, kind), []).append(float(error))
                if timestep in effect.timesteps:
                    words = [CITYSCAPES_CLASSES[c] for c in picture.present]
                    eps = predict(backbone, noisy, timestep, ["", *words])
                    change = (eps[1:] - eps[:1]).square().sum(1).sqrt().cpu()
                    grid = resize_nearest(picture.label, (change.shape[-2], change.shape[-1]))
                    for word, c, map_ in zip(words, picture.present, change, strict=True):
                        relative = map_.square().sum().sqrt() / eps[0].square().sum().sqrt().cpu()
                        found.setdefault((word, timestep, "noise"), []).append(float(relative))
                        found.setdefault((word, timestep, "area"), []).append(area_under_roc(map_, grid == c))
            bar.update()
    for word in CITYSCAPES_CLASSES:
        for name, table in (("noise", effect.noise), ("area", effect.area)):
            table[word] = {t: _mean(found.get((word, t, name), [])) for t in effect.timesteps}
    for timestep in LOSS_TIMESTEPS:
        effect.loss[timestep] = {kind: _mean(losses[timestep, kind]) for kind in ("true", "empty", "wrong")}
    return effect


def state_differences(backbone: DiffusionBackbone) -> dict[str, dict[str, float]]:
    """Of each class word: |S(word) - S("")| / |S("")| over all tokens, and so for the nearest other word."""
    states = torch.stack(
        [backbone.prompt_embeddings[word].float() for word in ("", *CITYSCAPES_CLASSES)]
    ).flatten(1)
    distances = torch.cdist(states, states) / states[0].norm()
    others = distances[1:, 1:] + torch.diag(torch.full((CLASSES,), torch.inf, device=distances.device))
    return {
        word: {"empty": float(distances[0, 1 + c]), "nearest": float(others[c].min())}
        for c, word in enumerate(CITYSCAPES_CLASSES)
    }


def predict(backbone: DiffusionBackbone, noisy: Tensor, timestep: int, prompts: Sequence[str]) -> Tensor:
    """eps (P,4,h,w) of one latent (1,4,h,w) with each prompt."""
    parts = [prompts[start : start + ROWS] for start in range(0, len(prompts), ROWS)]
    return torch.cat(
        [backbone.predict_noise(noisy.expand(len(part), -1, -1, -1), timestep, part) for part in parts]
    )


def area_under_roc(score: Tensor, mask: Tensor) -> float:
    """Chance that a point of the mask (h,w) scores (h,w) higher than one outside; NaN where one side is empty."""
    inside = mask.flatten().numpy()
    values: NDArray[np.float32] = score.flatten().numpy()
    ranks = np.empty(len(values))
    ranks[values.argsort()] = np.arange(1, len(values) + 1)
    count, rest = int(inside.sum()), int((~inside).sum())
    if not count or not rest:
        return float("nan")
    return float((ranks[inside].sum() - count * (count + 1) / 2) / (count * rest))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def print_tables(effect: Effect) -> None:
    """Four tables, and the mean area below the last."""
    percent = [
        [
            word,
            *(100 * value for value in row.values()),
            *(100 * effect.noise[word][t] for t in effect.timesteps),
        ]
        for word, row in effect.states.items()
    ]
    console.table(
        "text states: difference to the empty prompt and to the nearest other word; then change of the noise\n"
        "prediction by timestep, on images that show the class; in percent",
        ["word", "empty", "nearest", *map(str, effect.timesteps)],
        [[None if cell != cell else cell for cell in row] for row in percent],
        footer=[["mean", *(_mean([float(row[i]) for row in percent]) for i in range(1, len(percent[0])))]],
        digits=1,
    )
    console.table(
        "denoising loss by timestep; change against the empty prompt in percent",
        ["timestep", "true", "empty", "wrong", "true %", "wrong %"],
        [
            [t, *row.values(), *(100 * (row[kind] / row["empty"] - 1) for kind in ("true", "wrong"))]
            for t, row in effect.loss.items()
        ],
        digits=4,
    )
    console.table(
        'where a word acts: area under the ROC curve of |eps(word) - eps("")| against its class',
        ["word", *map(str, effect.timesteps)],
        [
            [word, *(None if value != value else value for value in row.values())]
            for word, row in effect.area.items()
        ],
        footer=[
            [
                "ten most frequent",
                *(_mean([effect.area[word][t] for word in effect.frequent]) for t in effect.timesteps),
            ]
        ],
    )
    console.print_text(
        f"mean over the ten most frequent classes at the timesteps of `paper`: {effect.mean_area:.3f}"
    )


if __name__ == "__main__":
    main()
