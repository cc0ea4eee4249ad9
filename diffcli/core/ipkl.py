"""IPKL: the conditional branch, which sees the labels, and the unconditional one teach each other (method 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.classes import IGNORE_ID
from diffcli.config.settings import LossConfig
from diffcli.core.decoder import SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise


def pixels_to_average(labels: Tensor, *, average: Literal["all", "labelled"]) -> int:
    """How many pixels of B,H,W labels the cross-entropy is averaged over.

    "all": every pixel, as in the published code; "labelled": those with a class.
    """
    return labels.numel() if average == "all" else int((labels != IGNORE_ID).sum())


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    average: Literal["all", "labelled"] = "all",
    pixels: float | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of B,C,h,w logits, resized bilinearly to B,H,W labels; 255 counts zero (method section 2).

    The sum is divided by `pixels`; None takes `pixels_to_average`. Without labelled pixels the loss is 0.
    `class_weights` (C,) float32 multiply each pixel's term; None counts all classes alike, as published.
    """
    resized = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(resized, labels, weight=class_weights, ignore_index=IGNORE_ID, reduction="sum")
    return total / ((pixels_to_average(labels, average=average) if pixels is None else pixels) or 1)


def mse_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of B,C,h,w logits."""
    return F.mse_loss(student, teacher)


def kl_consistency(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over pixels."""
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(1).mean()


def ce_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the student to the teacher's argmax."""
    return F.cross_entropy(student, teacher.argmax(1))


def dice_consistency(student: Tensor, teacher: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - Dice of the softmax maps, sums over pixels, mean over images and classes."""
    p, q = student.softmax(1), teacher.softmax(1)
    overlap = 2 * (p * q).sum((-2, -1)) + smooth
    return 1 - (overlap / (p.sum((-2, -1)) + q.sum((-2, -1)) + smooth)).mean()


def consistency_loss(student: Tensor, teacher: Tensor, config: LossConfig) -> Tensor:
    """D(L_u, L_c) as configured, without its weight; B,C,h,w float32 logits at the network's stride."""
    if config.detach_teacher:
        teacher = teacher.detach()
    match config.consistency:
        case "mse":
            return mse_consistency(student, teacher)
        case "kl":
            return kl_consistency(student, teacher, temperature=config.temperature)
        case "ce":
            return ce_consistency(student, teacher)
        case "dice":
            return dice_consistency(student, teacher)
        case other:
            assert_never(other)


@dataclass(frozen=True)
class IPKLFeatures:
    """Frozen features of one training batch."""

    conditional: list[Tensor] | None
    """None when IPKL is off."""
    unconditional: list[Tensor]


def extract_pair(
    extractor: DiffusionFeatureExtractor,
    images: Tensor,
    labels: Tensor,
    *,
    identities: Sequence[str],
    seed: int,
    ipkl: bool = True,
) -> IPKLFeatures:
    """Features with the labels as reference, then without: each pass draws its own noise (method section 2).

    Both passes go through the U-Net together, step by step.

    Args:
        images: B,3,H,W float32 in [-1,1].
        labels: B,H,W int64 train ids.
        identities: seed each image's noise together with `seed`.
    """
    names = [f"{identity}/unconditional" for identity in identities]
    if not ipkl:
        return IPKLFeatures(None, extractor.extract(images, noise=seeded_noise(seed, names)))
    batch = len(images)
    names = [*(f"{identity}/conditional" for identity in identities), *names]
    features = extractor.extract(
        images, noise=seeded_noise(seed, names), references=[*labels, *[None] * batch], passes=2
    )
    return IPKLFeatures([x[:batch] for x in features], [x[batch:] for x in features])


@dataclass(frozen=True)
class IPKLLosses:
    """Loss terms of one batch; `total` carries the gradient."""

    total: Tensor
    unconditional: Tensor
    conditional: Tensor | None
    consistency: Tensor | None


def ipkl_loss(
    unconditional_logits: Tensor,
    conditional_logits: Tensor | None,
    labels: Tensor,
    config: LossConfig,
    *,
    pixels: float | None = None,
    class_weights: Tensor | None = None,
) -> IPKLLosses:
    """CE(L_c, y) + CE(L_u, y) + lambda D(L_u, L_c); without conditional logits CE(L_u, y) (method section 2).

    `pixels` and `class_weights` are those of `segmentation_loss`, for both cross-entropies. Where processes share
    a batch, `pixels` is the mean of their `pixels_to_average`: then the mean of their losses is the loss of the batch.
    """

    def cross_entropy(logits: Tensor) -> Tensor:
        return segmentation_loss(
            logits, labels, average=config.average, pixels=pixels, class_weights=class_weights
        )

    unconditional = cross_entropy(unconditional_logits)
    if conditional_logits is None:
        return IPKLLosses(unconditional, unconditional, None, None)
    conditional = cross_entropy(conditional_logits)
    consistency = consistency_loss(unconditional_logits, conditional_logits, config)
    total = conditional + unconditional + config.weight * consistency
    return IPKLLosses(total, unconditional, conditional, consistency)


class PairedDecoder(nn.Module):
    """Both branches through one decoder in one forward, the conditional one first.

    One forward, because data-parallel training synchronises BatchNorm's buffers at each; both passes move them.
    """

    def __init__(self, decoder: SegmentationDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, conditional: list[Tensor] | None, unconditional: list[Tensor]
    ) -> tuple[Tensor | None, Tensor]:
        """Logits of the conditional branch (None without it) and of the unconditional one."""
        labelled = None if conditional is None else self.decoder(conditional)
        return labelled, self.decoder(unconditional)
