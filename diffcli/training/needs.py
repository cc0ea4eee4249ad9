"""What a run takes: time, memory and disk, estimated from the networks' settings. Loads no network, and no PyTorch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffcli.backbone.locate import network_settings
from diffcli.config.settings import RunConfig
from diffcli.config.size import Size
from diffcli.core.costs import count_costs, validations
from diffcli.core.flops import Layer, networks

BYTES = 4
"""Of a number in float32."""
COPIES_TRAINING, COPIES_KEPT = 8, 2
"""Times the trained weights on disk: last and best; while training also AdamW's state, and its next file beside it."""
LIBRARIES = 600 << 20
"""Bytes of a process that has imported PyTorch and diffusers."""
SHARE_OF_MATMUL = 0.2
"""Of the speed of large matrix products that the networks reach on a CPU; small ones 0.15, large ones 0.4."""
BACKWARD = 3
"""Forward and backward pass take this many times the forward pass."""
MASK_BYTES = 1 / 12
"""Of a mask's PNG, for each pixel."""


@dataclass(frozen=True)
class Needs:
    """Time, memory and disk. Times are ranges: prompts cost, and how many an image needs depends on its classes."""

    measured: bool
    """On this machine, and not estimated from FLOPs."""
    device: str
    seconds_per_iteration: tuple[float, float]
    seconds_per_image: tuple[float, float]
    """Of an evaluated one."""
    seconds: tuple[float, float]
    """Of the whole run."""
    memory: int
    """Bytes at the peak: of the process on a CPU, of tensors on a GPU."""
    disk_training: int
    """Bytes of the run's checkpoints while it trains."""
    disk_kept: int
    """Bytes of them afterwards."""
    cache: int
    """Bytes of the counted classes in the cache."""
    mask: int
    """Bytes of a mask that `diff predict` writes."""


def estimate_needs(config: RunConfig, *, images: int, samples: int) -> Needs:
    """What a run takes on this machine's CPU, good to a factor of about 3.

    Args:
        images: of all domains to evaluate on.
        samples: of the source.

    Raises:
        BackboneError: the diffusion model cannot be used.
    """
    unet, vae = network_settings(config.model.backbone)
    train, size = config.train, config.eval.size or Size(1024, 512)
    crop = networks(config.model, unet=unet, vae=vae, size=config.augmentation.crop)
    image = networks(config.model, unet=unet, vae=vae, size=size)
    costs, rate = count_costs(config, images=images), SHARE_OF_MATMUL * matmul_rate()
    crops, branches = train.batch_size * train.gradient_accumulation, 2 if train.loss.ipkl else 1

    def seconds(evaluations: int, *, of_image: bool) -> float:
        parts = image if of_image else crop
        trained = _flop(parts.decoder) * (1 if of_image else BACKWARD * branches)
        return (_flop(parts.encoder) + evaluations * _flop(parts.unet) + trained) / rate

    iteration = [crops * seconds(count, of_image=False) for count in costs["training_sample"]]
    each = [seconds(count, of_image=True) for count in costs["evaluated_image"]]
    frozen = sum(layer.weights for layer in (*crop.unet, *crop.encoder))
    trained = sum(layer.weights for layer in crop.decoder)
    in_training = 4 * trained + 3 * branches * train.batch_size * crop.features
    memory = LIBRARIES + BYTES * (frozen + max(in_training, trained + 2 * image.features))
    return needs_of(
        config,
        measured=False,
        device="cpu",
        iteration=(iteration[0], iteration[1]),
        image=(each[0], each[1]),
        images=images,
        samples=samples,
        memory=memory,
        weights=trained,
    )


def needs_of(
    config: RunConfig,
    *,
    measured: bool,
    device: str,
    iteration: tuple[float, float],
    image: tuple[float, float],
    images: int,
    samples: int,
    memory: int,
    weights: int,
) -> Needs:
    """What follows for the whole run from the seconds of an iteration and of an image.

    Args:
        memory: bytes at the peak.
        weights: numbers in the trained half.
    """
    count = validations(config.train) * images
    size = config.eval.size or Size(1024, 512)
    total = [config.train.iterations * a + count * b for a, b in zip(iteration, image, strict=True)]
    counted = config.train.rare_class_sampling is not None or config.train.loss.class_balance
    return Needs(
        measured=measured,
        device=device,
        seconds_per_iteration=iteration,
        seconds_per_image=image,
        seconds=(total[0], total[1]),
        memory=memory,
        disk_training=COPIES_TRAINING * BYTES * weights,
        disk_kept=COPIES_KEPT * BYTES * weights,
        cache=samples * (len(config.model.classes) + 1) * 8 if counted else 0,
        mask=round(size.width * size.height * MASK_BYTES),
    )


def matmul_rate() -> float:
    """FLOP/s of the fastest of four large matrix products on this CPU, a tenth of a second in all."""
    size = 1024
    matrix = np.ones((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _flop(layers: Sequence[Layer]) -> int:
    return sum(layer.flop for layer in layers)
