"""AdamW's parameter groups and learning rate (method section 3)."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from diffcli.core.decoder import SegmentationDecoder

BETAS = (0.9, 0.999)
"""AdamW's betas (method section 3)."""
WARMUP_RATIO = 1e-6
"""Share of the rate at which the warm-up starts (method section 3)."""


def learning_rate_factor(iteration: int, *, iterations: int, warmup_iterations: int) -> float:
    """Share of the base rate at a 0-based iteration: linear warm-up multiplied onto a linear decay to zero.

    Both start at iteration 0 (method section 3).
    """
    decay = 1 - iteration / iterations
    if iteration >= warmup_iterations:
        return decay
    return decay * (1 - (1 - iteration / warmup_iterations) * (1 - WARMUP_RATIO))


def set_learning_rate(
    optimizer: Optimizer, iteration: int, *, iterations: int, warmup_iterations: int
) -> float:
    """Set every group to its `base_lr` times `learning_rate_factor`, which is returned."""
    factor = learning_rate_factor(iteration, iterations=iterations, warmup_iterations=warmup_iterations)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return factor


def parameter_groups(
    decoder: SegmentationDecoder, *, learning_rate: float, head_multiplier: float
) -> list[dict[str, Any]]:
    """Fusion and pyramid at the base rate, the head at a multiple; `base_lr` keeps the rate that the schedule scales.

    Built from modules, never from names: a multiplier that matches nothing would go unnoticed.
    """

    def group(*modules: nn.Module, rate: float) -> dict[str, Any]:
        return {"params": [p for m in modules for p in m.parameters()], "lr": rate, "base_lr": rate}

    return [
        group(decoder.fusion, decoder.pyramid, rate=learning_rate),
        group(decoder.head, rate=learning_rate * head_multiplier),
    ]
