"""What is known of one image after it was segmented, and how class maps become it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from diffcli.config.size import Size
from diffcli.data.transforms import resize_label
from diffcli.drawing.pictures import Pixels

Plane = NDArray[np.float32]
"""H,W values of one image, 0..1."""


@dataclass(frozen=True)
class Planes:
    """The mask of one image and what else was asked for, all at one size (H,W)."""

    mask: Pixels
    """Train ids."""
    confidence: Plane | None = None
    """Probability of the predicted class, 0..1."""
    score: Plane | None = None
    """Probability of one chosen class, 0..1."""
    uncertainty: Plane | None = None
    """Disagreement of several draws of noise, 0..1."""
    probabilities: Plane | None = None
    """Probability of every class (classes,H,W), 0..1."""
    mean_confidence: float = math.nan
    """Probability of the most likely class, 0..1, averaged over the pixels of the class maps."""

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        planes = (self.mask, self.confidence, self.score, self.uncertainty, self.probabilities)
        return sum(plane.nbytes for plane in planes if plane is not None)

    def resized(self, size: tuple[int, int]) -> "Planes":
        """These planes at another size (H,W): the mask by nearest neighbour, the others bilinearly."""
        if self.mask.shape == size:
            return self

        def resize(plane: Plane | None) -> Plane | None:
            return None if plane is None else NumpyArrays.resize(plane, size)

        return replace(
            self,
            mask=resize_label(self.mask, Size(size[1], size[0])),
            confidence=resize(self.confidence),
            score=resize(self.score),
            uncertainty=resize(self.uncertainty),
            probabilities=None
            if self.probabilities is None
            else np.stack([NumpyArrays.resize(plane, size) for plane in self.probabilities]),
        )


class Arrays(Protocol):
    """The few operations on maps that NumPy and PyTorch do not share."""

    def resize(self, plane: Any, size: tuple[int, int]) -> Any:
        """h,w to `size` (H,W), bilinearly between pixel centres."""

    def softmax(self, maps: Any) -> Any:
        """classes,h,w logits to probabilities."""

    def largest(self, maps: Any) -> Any:
        """classes,h,w to h,w: the largest of each pixel."""

    def where(self, chosen: Any, yes: Any, no: Any) -> Any:
        """`yes` where `chosen`, else `no`."""

    def zeros(self, like: Any) -> Any:
        """uint8 zeros of the shape (and on the device) of `like`."""

    def numpy(self, plane: Any) -> NDArray[Any]:
        """On the host; floats as float32."""


class NumpyArrays:
    """`Arrays` of NumPy, for networks that run without PyTorch and for blended tiles."""

    @staticmethod
    def resize(plane: Plane, size: tuple[int, int]) -> Plane:
        if plane.shape == size:
            return plane
        return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    @staticmethod
    def softmax(maps: Plane) -> Plane:
        powers = np.exp(maps - maps.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), dtype=np.float32)

    @staticmethod
    def largest(maps: Plane) -> Plane:
        return np.asarray(maps.max(axis=0), dtype=np.float32)

    @staticmethod
    def where(chosen: Any, yes: Any, no: Any) -> Any:
        return np.where(chosen, yes, no)

    @staticmethod
    def zeros(like: Any) -> Pixels:
        return np.zeros(like.shape, dtype=np.uint8)

    @staticmethod
    def numpy(plane: NDArray[Any]) -> NDArray[Any]:
        return plane


def planes_of(
    output: Any,
    size: tuple[int, int],
    *,
    arrays: Arrays,
    is_probability: bool = False,
    uncertainty: Any | None = None,
    confidence: bool = False,
    score_of: int | None = None,
    every: bool = False,
) -> Planes:
    """Planes of `size` (H,W) from one image's class maps: the argmax of the maps resized bilinearly.

    One class is resized at a time, since all of them at a photograph's full size would take gigabytes; they are kept
    only where `every` asks for them.

    Args:
        output: classes,h,w logits, or probabilities.
        arrays: what computes with them.
        uncertainty: h,w.
        confidence: fill `Planes.confidence`.
        score_of: fill `Planes.score` with this class's probability.
        every: fill `Planes.probabilities`.
    """
    best = arrays.resize(output[0], size)
    ids = arrays.zeros(best)
    for train_id in range(1, len(output)):
        plane = arrays.resize(output[train_id], size)
        larger = plane > best
        ids, best = arrays.where(larger, train_id, ids), arrays.where(larger, plane, best)
    mask = arrays.numpy(ids).astype(np.uint8, copy=False)
    certainty = score = None
    probabilities = output if is_probability else arrays.softmax(output)
    mean_confidence = float(arrays.largest(probabilities).mean())
    if confidence or score_of is not None:
        if score_of is not None:
            score = arrays.numpy(arrays.resize(probabilities[score_of], size))
        if confidence:
            certainty = arrays.resize(probabilities[0], size)
            for train_id in np.unique(mask[mask > 0]).tolist():
                plane = arrays.resize(probabilities[train_id], size)
                certainty = arrays.where(ids == train_id, plane, certainty)
            certainty = arrays.numpy(certainty)
    doubt = None if uncertainty is None else arrays.numpy(arrays.resize(uncertainty, size))
    all_classes = None
    if every:
        all_classes = np.stack([arrays.numpy(arrays.resize(plane, size)) for plane in probabilities])
    return Planes(
        mask,
        confidence=certainty,
        score=score,
        uncertainty=doubt,
        probabilities=all_classes,
        mean_confidence=mean_confidence,
    )


def stack_bands(bands: Sequence[Planes]) -> Planes:
    """The planes of an image from those of its bands, from top to bottom."""

    def stack(planes: Sequence[Plane | None]) -> Plane | None:
        given = [plane for plane in planes if plane is not None]
        return np.concatenate(given, axis=-2) if given else None

    return Planes(
        np.concatenate([band.mask for band in bands]),
        confidence=stack([band.confidence for band in bands]),
        score=stack([band.score for band in bands]),
        uncertainty=stack([band.uncertainty for band in bands]),
        probabilities=stack([band.probabilities for band in bands]),
        mean_confidence=float(
            np.average([band.mean_confidence for band in bands], weights=[len(band.mask) for band in bands])
        ),
    )
