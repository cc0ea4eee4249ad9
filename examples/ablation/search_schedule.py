"""Search for a good schedule of few steps, on the source domain alone: how well does a linear map read its features?

    python examples/ablation/search_schedule.py

For every candidate a ridge regression from the frozen features to the classes is solved in closed form on training
scenes of the source, and scored on other scenes of it: a minute a candidate instead of a training each, and no unseen
domain is looked at. What it finds is reported on the unseen domains by the rows `schedule_*` of run.py.
"""

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.classes import CITYSCAPES_CLASSES, IGNORE_ID
from diffcli.config.domain import domain_config
from diffcli.config.settings import BackboneConfig, CustomSchedule, InversionConfig
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise
from diffcli.core.metrics import ConfusionMatrix
from diffcli.core.model import to_model_range
from diffcli.data.dataset import Domain, open_domain
from diffcli.runtime import console

CLASSES, PIXELS, RIDGE = len(CITYSCAPES_CLASSES), 30_000, 3e-3


def _noised(timestep: int) -> CustomSchedule:
    return CustomSchedule(timesteps=(timestep,), save_steps=(0,), one_step=True)


def _visits(*timesteps: int) -> CustomSchedule:
    """One evaluation at each of these timesteps, the first of the clean latent; all are read, the noisiest first."""
    count = len(timesteps)
    return CustomSchedule(
        start=timesteps[0],
        timesteps=(*timesteps[1:], timesteps[-1] + 1),
        save_steps=tuple(reversed(range(count))),
    )


CANDIDATES: dict[str, InversionConfig] = {
    **{name: InversionConfig(schedule=name) for name in ("one", "clean", "five", "visit9")},  # type: ignore[arg-type]
    **{f"noised to {t}": InversionConfig(schedule=_noised(t)) for t in (20, 50, 200)},
    **{
        f"visits {' '.join(map(str, timesteps))}": InversionConfig(schedule=_visits(*timesteps))
        for timesteps in ((20,), (60,), (150,), (0, 60), (0, 100), (20, 60), (60, 200), (0, 60, 150))
    },
}


def main() -> None:
    """Score every candidate, the best first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default="miniworld/clean", help="the labelled source domain")
    parser.add_argument(
        "--backbone", default="embedded", help="diffusion model, as model.backbone.source takes it"
    )
    parser.add_argument("--train", type=int, default=96, help="scenes to fit on")
    parser.add_argument("--val", type=int, default=48, help="scenes to score on")
    parser.add_argument("--only", nargs="+", choices=[*CANDIDATES], default=[*CANDIDATES], metavar="NAME")
    options = parser.parse_args()
    backbone = load_backbone(
        BackboneConfig(source=options.backbone), prompts=[""], device=torch.device("cpu"), dtype=torch.float32
    )
    domains = [
        open_domain(domain_config(options.source, count=count), purpose=purpose, classes=CITYSCAPES_CLASSES)
        for purpose, count in (("train", options.train), ("eval", options.val))
    ]
    rows: list[list[object]] = []
    with console.progress("probe", len(options.only), unit="schedules") as bar:
        for name in options.only:
            extractor = DiffusionFeatureExtractor(backbone, CANDIDATES[name])
            score = probe(extractor, *domains)
            rows.append([name, extractor.schedule.evaluated_steps, 100 * score])
            bar.update(schedule=name)
    console.table(
        "mean IoU of a linear probe on the source, in percent",
        ["schedule", "U-Net evaluations", "mIoU"],
        sorted(rows, key=lambda row: -float(str(row[2]))),
    )


@torch.no_grad()
def probe(extractor: DiffusionFeatureExtractor, train: Domain, val: Domain) -> float:
    """mIoU (0..1, classes present) of a ridge regression on features, from `train` to `val`.

    Features are standardised channel by channel; a class counts by the square root of its rarity.
    """
    features, labels = _pixels(extractor, train)
    mean, deviation = features.mean(0), features.std(0) + 1e-5
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:PIXELS]
    x, y = _with_bias((features[chosen] - mean) / deviation), labels[chosen]
    counts = torch.bincount(y, minlength=CLASSES).float()
    weighted = x * (len(y) / (counts + 50)).sqrt()[y][:, None]
    gram = weighted.T @ x + RIDGE * len(y) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, weighted.T @ F.one_hot(y, CLASSES).float())
    matrix = ConfusionMatrix(CLASSES)
    for maps, label in _maps(extractor, val):
        channels, height, width = maps.shape
        pixels = (maps.reshape(channels, -1).T - mean) / deviation
        logits = (_with_bias(pixels) @ weights).T.reshape(1, CLASSES, height, width)
        resized = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        matrix.update(resized.argmax(1)[0], label)
    return matrix.scores().mean_iou_present


def _maps(extractor: DiffusionFeatureExtractor, domain: Domain) -> Iterator[tuple[Tensor, Tensor]]:
    """Features C,h,w of each image, all strides resized to the latent's size; and its label H,W."""
    backbone: DiffusionBackbone = extractor.backbone
    for index in range(len(domain)):
        image, label = domain.load(index)
        size = [side // backbone.downsample for side in image.shape[:2]]
        noise = seeded_noise(0, [domain.identity(index)])
        maps = extractor.extract(to_model_range(torch.from_numpy(image)[None]), noise=noise)
        resized = [F.interpolate(x, size, mode="bilinear", align_corners=False)[0] for x in maps]
        yield torch.cat(resized), torch.from_numpy(label).long()


def _pixels(extractor: DiffusionFeatureExtractor, domain: Domain) -> tuple[Tensor, Tensor]:
    """Features N,C and train ids N of every labelled latent point, read at its middle."""
    features, labels = [], []
    middle = extractor.backbone.downsample // 2
    for maps, label in _maps(extractor, domain):
        coarse = label[middle :: 2 * middle, middle :: 2 * middle]
        kept = coarse != IGNORE_ID
        features.append(maps.movedim(0, -1)[kept])
        labels.append(coarse[kept])
    return torch.cat(features), torch.cat(labels)


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


if __name__ == "__main__":
    main()
