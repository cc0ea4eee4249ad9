"""Scores from one confusion matrix over the whole set, never a mean of batch means (method section 0)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.classes import IGNORE_ID


@dataclass(frozen=True)
class Scores:
    """Per class (classes,) float64, nan where undefined (0/0), and their means over defined classes."""

    iou: Tensor
    accuracy: Tensor
    precision: Tensor
    dice: Tensor
    pixel_accuracy: float
    present: Tensor
    """(classes,) bool: the class occurs in the labels."""

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in labels or predictions."""
        return float(self.iou.nanmean())

    @property
    def mean_iou_all(self) -> float:
        """Mean IoU over all classes; one that never occurs counts 0."""
        return float(self.iou.nan_to_num(0.0).mean())

    @property
    def mean_iou_present(self) -> float:
        """Mean IoU over the classes that occur in the labels (nan with none)."""
        return float(self.iou[self.present].mean())

    @property
    def mean_accuracy(self) -> float:
        """Mean per-class accuracy over the classes that occur."""
        return float(self.accuracy.nanmean())


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of images; memory does not grow with the set.

    Args:
        classes: number of classes; labels of 255 are dropped.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add integer maps of one shape: predictions in 0..classes-1, labels likewise or 255."""
        kept = labels != IGNORE_ID
        cells = (labels.long() * self.classes + predictions.long())[kept]
        counts = torch.bincount(cells, minlength=self.classes**2).reshape(self.classes, self.classes)
        self.counts += counts.cpu()

    def scores(self) -> Scores:
        """IoU = TP/(TP+FP+FN), accuracy = recall = TP/(TP+FN), precision, Dice; 0/0 is nan."""
        counts = self.counts.double()
        hit, labelled, predicted = counts.diag(), counts.sum(1), counts.sum(0)
        return Scores(
            iou=hit / (labelled + predicted - hit),
            accuracy=hit / labelled,
            precision=hit / predicted,
            dice=2 * hit / (labelled + predicted),
            pixel_accuracy=float(hit.sum() / counts.sum()),
            present=labelled > 0,
        )
