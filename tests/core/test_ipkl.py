"""The training objective: each distance, where gradients go, and what is averaged."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffcli.config.settings import LossConfig
from diffcli.core.ipkl import (
    PairedDecoder,
    ce_consistency,
    consistency_loss,
    dice_consistency,
    extract_pair,
    ipkl_loss,
    kl_consistency,
    mse_consistency,
    pixels_to_average,
    segmentation_loss,
)
from diffcli.core.model import SegmentationModel

KINDS = ["mse", "kl", "ce", "dice"]
SEEDS = st.integers(0, 2**16)


def logits(seed: int, *, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 2, classes, 4, 6, generator=generator, dtype=torch.float64)
    return student, teacher


# --- distances -----------------------------------------------------------------------------------------------------


@given(seed=SEEDS, kind=st.sampled_from(KINDS), temperature=st.floats(0.5, 8))
def test_distances_are_not_negative(seed: int, kind: str, temperature: float) -> None:
    student, teacher = logits(seed)
    config = LossConfig(consistency=kind, temperature=temperature)
    assert consistency_loss(student, teacher, config) >= 0


@given(seed=SEEDS, temperature=st.floats(0.5, 8))
def test_equal_logits_are_at_no_distance(seed: int, temperature: float) -> None:
    student, _ = logits(seed)
    assert mse_consistency(student, student) == 0
    assert kl_consistency(student, student, temperature=temperature) == pytest.approx(0, abs=1e-12)
    certain = 1e4 * F.one_hot(student.argmax(1), student.shape[1]).movedim(-1, 1).double()
    assert ce_consistency(certain, certain) == 0
    assert dice_consistency(certain, certain) == pytest.approx(0, abs=1e-12)


@given(seed=SEEDS, temperature=st.floats(0.5, 8))
def test_kl_is_torchs_averaged_over_pixels(seed: int, temperature: float) -> None:
    student, teacher = logits(seed)
    log_p, log_q = ((x / temperature).log_softmax(1) for x in (student, teacher))
    summed = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    expected = temperature**2 * summed / (student.numel() / student.shape[1])
    torch.testing.assert_close(kl_consistency(student, teacher, temperature=temperature), expected)


@given(seed=SEEDS, smooth=st.floats(1e-3, 10))
def test_dice_lies_between_0_and_1_and_is_symmetric(seed: int, smooth: float) -> None:
    student, teacher = logits(seed)
    value = dice_consistency(student, teacher, smooth=smooth)
    assert 0 <= value <= 1
    torch.testing.assert_close(value, dice_consistency(teacher, student, smooth=smooth))


@given(seed=SEEDS)
def test_the_teachers_argmax_is_the_label_of_ce(seed: int) -> None:
    student, teacher = logits(seed)
    assert ce_consistency(student, teacher) == ce_consistency(student, 100 * teacher)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detached", [False, True])
def test_who_gets_the_gradient(kind: str, detached: bool) -> None:
    student, teacher = (x.requires_grad_() for x in logits(0))
    value = consistency_loss(student, teacher, LossConfig(consistency=kind, detach_teacher=detached))
    value.backward()
    assert student.grad is not None
    assert student.grad.any()
    reaches_teacher = teacher.grad is not None and bool(teacher.grad.any())
    assert reaches_teacher == (not detached and kind != "ce")  # an argmax has no gradient


@given(seed=SEEDS, kind=st.sampled_from(KINDS))
def test_distances_are_finite_at_the_extremes(seed: int, kind: str) -> None:
    student, teacher = logits(seed, scale=1e3)
    student.requires_grad_()
    value = consistency_loss(student.float(), teacher.float(), LossConfig(consistency=kind))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


# --- cross-entropy and the sum -------------------------------------------------------------------------------------


def labels_with_ignored(seed: int = 0) -> Tensor:
    labels = torch.randint(0, 5, (2, 16, 24), generator=torch.Generator().manual_seed(seed))
    labels[:, :, :6] = 255
    return labels


def test_ignored_pixels_count_zero_of_all_or_not_at_all() -> None:
    student, _ = logits(0)
    labels = labels_with_ignored()
    resized = F.interpolate(student, labels.shape[-2:], mode="bilinear", align_corners=False)
    over_labelled = F.cross_entropy(resized, labels, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(student, labels, average="labelled"), over_labelled)
    torch.testing.assert_close(segmentation_loss(student, labels), over_labelled * 18 / 24)


def test_nothing_labelled_costs_nothing() -> None:
    student, _ = logits(0)
    for average in ("all", "labelled"):
        loss = segmentation_loss(student, torch.full((2, 16, 24), 255), average=average)
        assert loss == 0


def test_weighted_classes_count_by_their_weights() -> None:
    student, teacher = logits(0)
    labels, weights = labels_with_ignored(), torch.tensor([1.0, 2.0, 0.5, 0.0, 4.0], dtype=student.dtype)
    resized = F.interpolate(student, labels.shape[-2:], mode="bilinear", align_corners=False)
    terms = F.cross_entropy(resized, labels, ignore_index=255, reduction="none")
    counted = torch.where(labels == 255, 0.0, weights[labels.clamp(max=4)])
    own = (terms * counted).sum() / labels.numel()
    torch.testing.assert_close(segmentation_loss(student, labels, class_weights=weights), own)
    losses = ipkl_loss(student, teacher, labels, LossConfig(), class_weights=weights)
    torch.testing.assert_close(losses.unconditional, own)
    torch.testing.assert_close(losses.conditional, segmentation_loss(teacher, labels, class_weights=weights))


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_of_its_terms(kind: str) -> None:
    student, teacher = logits(0)
    labels, config = labels_with_ignored(), LossConfig(consistency=kind, weight=0.3)
    losses = ipkl_loss(student, teacher, labels, config)
    assert losses.conditional is not None
    assert losses.consistency is not None
    torch.testing.assert_close(losses.unconditional, segmentation_loss(student, labels))
    torch.testing.assert_close(losses.conditional, segmentation_loss(teacher, labels))
    torch.testing.assert_close(losses.consistency, consistency_loss(student, teacher, config))
    torch.testing.assert_close(
        losses.total, losses.unconditional + losses.conditional + 0.3 * losses.consistency
    )


def test_without_ipkl_one_branch_trains_alone() -> None:
    student, _ = logits(0)
    losses = ipkl_loss(student, None, labels_with_ignored(), LossConfig(ipkl=False))
    assert losses.conditional is None
    assert losses.consistency is None
    assert losses.total is losses.unconditional


# --- features and the two passes -----------------------------------------------------------------------------------


def test_the_two_passes_draw_their_own_noise(model: SegmentationModel, images: Tensor) -> None:
    """Without a prompted class both branches compute the same, and only their draws differ."""
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    pair = extract_pair(model.extractor, images, labels, identities=["a", "b"], seed=0)
    again = extract_pair(model.extractor, images, labels, identities=["a", "b"], seed=0)
    assert pair.conditional is not None
    assert again.conditional is not None
    assert not torch.equal(pair.conditional[0], pair.unconditional[0])
    assert torch.equal(pair.conditional[0], again.conditional[0])
    assert torch.equal(pair.unconditional[0], again.unconditional[0])


def test_one_training_step_costs_both_branches(model: SegmentationModel, images: Tensor) -> None:
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, :32], labels[1, :32, :32], labels[1, 32:] = 1, 3, 4
    backbone = model.extractor.backbone
    extract_pair(model.extractor, images, labels, identities=["a", "b"], seed=0)
    assert backbone.evaluations == (1 + 1) + (2 + 1) + 2
    backbone.evaluations = 0
    alone = extract_pair(model.extractor, images, labels, identities=["a", "b"], seed=0, ipkl=False)
    assert backbone.evaluations == 2
    assert alone.conditional is None


def test_both_passes_move_the_running_statistics_the_labelled_one_first(model: SegmentationModel) -> None:
    labelled, plain = (
        [
            torch.randn(2, channels, size, size)
            for channels, size in zip(model.extractor.channels, (2, 4, 8), strict=True)
        ]
        for _ in range(2)
    )
    before = {name: x.clone() for name, x in model.decoder.state_dict().items()}
    paired = PairedDecoder(model.decoder).train()
    with torch.no_grad():
        paired(labelled, plain)
        together = {name: x.clone() for name, x in model.decoder.state_dict().items()}
        model.decoder.load_state_dict(before)
        model.decoder(labelled)
        model.decoder(plain)
    assert int(together["head.bottleneck.1.num_batches_tracked"]) == 2
    assert all(torch.equal(together[name], x) for name, x in model.decoder.state_dict().items())


@pytest.mark.parametrize("average", ["all", "labelled"])
def test_the_mean_over_processes_is_the_loss_of_their_whole_batch(average: str) -> None:
    """Also where one process holds few labelled pixels, and gradients alike."""
    student, teacher = (x.requires_grad_() for x in logits(3))
    labels = torch.randint(0, 5, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    labels[1, 1:] = 255
    config = LossConfig(average=average)
    whole = ipkl_loss(student, teacher, labels, config)
    counts = [pixels_to_average(labels[i : i + 1], average=config.average) for i in range(2)]
    parts = [
        ipkl_loss(
            student[i : i + 1],
            teacher[i : i + 1],
            labels[i : i + 1],
            config,
            pixels=sum(counts) / len(counts),
        )
        for i in range(2)
    ]
    for name in ("total", "unconditional", "conditional", "consistency"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean()
        torch.testing.assert_close(mean, getattr(whole, name), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(whole.total, student, retain_graph=True)
    (split,) = torch.autograd.grad(sum(part.total for part in parts) / 2, student)
    torch.testing.assert_close(split, gradient, rtol=1e-12, atol=1e-15)
