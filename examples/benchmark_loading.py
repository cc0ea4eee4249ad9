"""How many training samples per second one worker loads from 1914x1052 PNG pairs, and where the time goes.

    python examples/benchmark_loading.py [--samples N] [--jpeg]

Pairs like GTA5's are drawn into a temporary folder (a rendered street with photographic texture; 8-bit palette labels
of ids), and one process loads them by the published recipe: resize to 1280x720, 512x512 crops, rare class sampling,
photometric distortion. The baseline is the same recipe, written in the most obvious way. Times are CPU times of this
process, so that other programs do not disturb them; the files come from the system's cache.
"""

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcli.classes import CITYSCAPES_ID_OF_TRAIN_ID, IGNORE_ID
from diffcli.config.domain import domain_config
from diffcli.config.settings import AugmentationConfig, RareClassConfig
from diffcli.config.size import Size
from diffcli.data.batches import training_batches
from diffcli.data.dataset import TrainingSet, open_domain
from diffcli.data.domains import LABEL_IDS
from diffcli.data.miniworld import render
from diffcli.data.statistics import class_statistics

SIZE = Size(1914, 1052)
PAIRS = 12

STAGES = {
    "decode image": ("read_image",),
    "decode label": ("read_pixels",),
    "map": ("_from_values",),
    "resize": ("resize_image", "resize_label"),
    "crop search": ("draw_crop",),
    "flip": ("flip_horizontally",),
    "photometric": ("photometric_distortion",),
    "pad": ("pad",),
    "collate": ("_collate",),
}
"""Stage -> the functions of diffcli/data that do it."""

Pixels = NDArray[np.uint8]


def main() -> None:
    """Load with the baseline and with diffcli, and print both rates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=60, help="samples of a round")
    parser.add_argument("--jpeg", action="store_true", help="images as JPEG instead of PNG")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIFFCLI_CACHE"] = folder
        root = Path(folder) / "gta5"
        write_pairs(root, suffix=".jpg" if options.jpeg else ".png")
        samples = training_set(root)
        obvious = clock(lambda: sum(1 for _ in baseline(root, options.samples)), options.samples)
        print(
            f"baseline: PIL, one mask per id, colours of the whole image  {obvious:6.1f} samples/s per worker"
        )
        ours = clock(lambda: load(samples, options.samples), options.samples)
        print(f"diffcli                                                     {ours:6.1f} samples/s per worker")
        print(f"factor                                                      {ours / obvious:6.2f}\n")
        print_stages(samples, options.samples)


def clock(work: Callable[[], object], count: int) -> float:
    """Samples per second of CPU time, after a first round that fills the caches."""
    work()
    start = time.process_time()
    work()
    return count / (time.process_time() - start)


def load(samples: TrainingSet, count: int) -> None:
    """Load `count` samples as training does, in this process."""
    for _ in training_batches(samples, draws=range(count), batch_size=1, workers=0):
        pass


def print_stages(samples: TrainingSet, count: int) -> None:
    """Milliseconds per sample of each stage, and its part of the whole in percent."""
    profile = cProfile.Profile(time.process_time)
    start = time.process_time()
    profile.runcall(load, samples, count)
    total = (time.process_time() - start) / count
    seconds: dict[str, float] = {}
    for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if Path(file).parent.name == "data":
            seconds[function] = seconds.get(function, 0) + cumulative / count
    rest = total
    for stage, functions in STAGES.items():
        spent = sum(seconds.get(function, 0) for function in functions)
        rest -= spent
        print(f"{stage:14}{1000 * spent:7.2f} ms {100 * spent / total:6.1f} %")
    print(f"{'the rest':14}{1000 * rest:7.2f} ms {100 * rest / total:6.1f} %")


def training_set(root: Path) -> TrainingSet:
    """The pairs under the published recipe."""
    domain = open_domain(domain_config("gta5", root=root, resize=Size(1280, 720)), purpose="train")
    return TrainingSet(
        domain,
        augmentation=AugmentationConfig(),
        rare_classes=RareClassConfig(),
        statistics=class_statistics(domain),
        seed=0,
    )


def write_pairs(root: Path, *, suffix: str) -> None:
    """Write images/ and labels/ as they are in GTA5's archives."""
    ids = np.zeros(256, dtype=np.uint8)
    for train_id, label_id in CITYSCAPES_ID_OF_TRAIN_ID.items():
        ids[train_id] = label_id
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for index in range(PAIRS):
        scene, label = render(0, index, "photo", size=(1088, 1920))
        image = textured(scene[: SIZE.height, : SIZE.width], np.random.default_rng(index))
        Image.fromarray(image).save(root / f"images/{index:05}{suffix}")
        palette = Image.fromarray(ids[label[: SIZE.height, : SIZE.width]])
        palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        palette.save(root / f"labels/{index:05}.png")


def textured(image: Pixels, rng: np.random.Generator) -> Pixels:
    """The image with structure at each scale and some noise: its PNG is as large as that of a frame of the game."""
    height, width = image.shape[:2]
    result = image.astype(np.float32)
    for scale in (4, 8, 16, 32, 64):
        coarse = rng.standard_normal((height // scale + 2, width // scale + 2)).astype(np.float32)
        result += (1.2 * scale**0.5) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[
            ..., None
        ]
    result += rng.standard_normal((height, width, 1)).astype(np.float32)
    return np.clip(result, 0, 255).astype(np.uint8)


def baseline(root: Path, count: int) -> Iterator[tuple[Pixels, Pixels]]:
    """The recipe written in the most obvious way; all images are equally likely."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"{number % PAIRS:05}"
        (path,) = (root / "images").glob(f"{name}.*")
        image = np.array(Image.open(path).convert("RGB"))
        stored = np.array(Image.open(root / f"labels/{name}.png"))
        label = np.full(stored.shape, IGNORE_ID, np.uint8)
        for value, train_id in LABEL_IDS.ids.items():
            label[stored == value] = train_id
        image = cv2.resize(image, (1280, 720), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (1280, 720), interpolation=cv2.INTER_NEAREST)
        image = distorted(image, rng)
        wanted = int(rng.choice(label[label != IGNORE_ID]))
        for _ in range(10):
            top, left = int(rng.integers(720 - 512 + 1)), int(rng.integers(1280 - 512 + 1))
            crop = label[top : top + 512, left : left + 512]
            values, counts = np.unique(crop[crop != IGNORE_ID], return_counts=True)
            if counts.max() / counts.sum() <= 0.75 and counts[values == wanted].sum() > 1500:
                break
        image = image[top : top + 512, left : left + 512]
        if rng.random() < 0.5:
            image, crop = image[:, ::-1], crop[:, ::-1]
        yield np.ascontiguousarray(image), np.ascontiguousarray(crop)


def distorted(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue, each with probability 1/2, in float32."""
    result = image.astype(np.float32)
    if rng.random() < 0.5:
        result = np.clip(result + rng.uniform(-32, 32), 0, 255)
    if rng.random() < 0.5:
        result = np.clip(result * rng.uniform(0.5, 1.5), 0, 255)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(result.astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 1.5), 0, 255)
        result = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(result.astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + rng.integers(-18, 19)) % 180
        result = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    return result.astype(np.uint8)


if __name__ == "__main__":
    main()
