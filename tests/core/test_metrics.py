"""Scores from one confusion matrix."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from diffcli.core.metrics import ConfusionMatrix, Scores

CLASSES = 4
PIXELS = arrays(np.int64, 24, elements=st.integers(0, CLASSES - 1))
LABELS = arrays(np.int64, 24, elements=st.sampled_from([*range(CLASSES), 255]))


def scores_of(predictions: Tensor, labels: Tensor, classes: int = CLASSES) -> Scores:
    matrix = ConfusionMatrix(classes)
    matrix.update(predictions, labels)
    return matrix.scores()


def share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


@given(predictions=PIXELS, labels=LABELS)
def test_scores_by_counting(predictions: np.ndarray, labels: np.ndarray) -> None:
    scores = scores_of(torch.from_numpy(predictions), torch.from_numpy(labels))
    kept = [(p, y) for p, y in zip(predictions, labels, strict=True) if y != 255]
    for c in range(CLASSES):
        hit = sum(p == y == c for p, y in kept)
        predicted, labelled = sum(p == c for p, _ in kept), sum(y == c for _, y in kept)
        expected = [
            (scores.iou, share(hit, predicted + labelled - hit)),
            (scores.accuracy, share(hit, labelled)),
            (scores.precision, share(hit, predicted)),
            (scores.dice, share(2 * hit, predicted + labelled)),
        ]
        for ours, theirs in expected:
            assert float(ours[c]) == pytest.approx(theirs, nan_ok=True)
        assert bool(scores.present[c]) == (labelled > 0)
    assert scores.pixel_accuracy == pytest.approx(share(sum(p == y for p, y in kept), len(kept)), nan_ok=True)


@given(predictions=PIXELS, labels=LABELS, cut=st.integers(0, 24))
def test_scores_do_not_depend_on_how_the_set_is_cut(
    predictions: np.ndarray, labels: np.ndarray, cut: int
) -> None:
    p, y = torch.from_numpy(predictions), torch.from_numpy(labels)
    whole, parts = ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)
    whole.update(p, y)
    parts.update(p[:cut], y[:cut])
    parts.update(p[cut:], y[cut:])
    assert torch.equal(whole.counts, parts.counts)


def test_the_three_means_differ_where_classes_are_missing() -> None:
    labels = torch.tensor([0, 0, 1, 1, 255])
    predictions = torch.tensor([0, 0, 1, 2, 3])  # 2 only predicted; 3 nowhere, its pixel is ignored
    scores = scores_of(predictions, labels)
    assert scores.iou.tolist() == pytest.approx([1, 0.5, 0, math.nan], nan_ok=True)
    assert scores.mean_iou == pytest.approx(0.5)
    assert scores.mean_iou_all == pytest.approx(1.5 / 4)
    assert scores.mean_iou_present == pytest.approx(0.75)
    assert scores.mean_accuracy == pytest.approx(0.75)


def test_nothing_labelled_is_undefined_and_no_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = scores_of(torch.zeros(3, dtype=torch.int64), torch.full((3,), 255))
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.mean_iou_present)
    assert math.isnan(scores.pixel_accuracy)


def test_any_integer_type_counts() -> None:
    labels = torch.tensor([[0, 1], [255, 3]])
    wanted = scores_of(labels.clamp(max=3), labels)
    small = scores_of(labels.clamp(max=3).to(torch.uint8), labels.to(torch.uint8))
    assert torch.equal(wanted.iou, small.iou) or torch.equal(wanted.iou.isnan(), small.iou.isnan())
    assert wanted.pixel_accuracy == small.pixel_accuracy == 1


def test_torchmetrics_agrees() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of importing it
        classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 19, (3, 32, 32), generator=generator)
    labels = torch.where(torch.rand(3, 32, 32, generator=generator) < 0.3, predictions, 18 - predictions)
    labels[:, :4] = 255
    scores = scores_of(predictions, labels, 19)
    theirs = classification.MulticlassJaccardIndex(19, ignore_index=255, average=None)
    torch.testing.assert_close(scores.iou.float(), theirs(predictions, labels))
    confusion = classification.MulticlassConfusionMatrix(19, ignore_index=255)
    matrix = ConfusionMatrix(19)
    matrix.update(predictions, labels)
    assert torch.equal(matrix.counts, confusion(predictions, labels))
