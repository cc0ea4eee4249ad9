"""What a model made of one image: `model(image)` and `model.segment([...])` give it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffcli.api.any_image import AnyImage, any_image
from diffcli.core.model import content_identity
from diffcli.drawing.pictures import Pixels, blend
from diffcli.errors import ConfigError
from diffcli.prediction.inputs import Job, Read
from diffcli.prediction.outputs import VIDEO_KIND, Outputs, parse_kinds
from diffcli.prediction.planes import Plane, Planes
from diffcli.prediction.segmenter import Segmenter, at_network_size

LARGEST_NAMES = 4
"""Classes that the repr names."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """Mask, confidence and, where asked for, probabilities of one image, at its own size (H,W)."""

    name: str
    """The file as it was given; a hash of the pixels where there is none."""
    image: Pixels
    """H,W,3 RGB, upright."""
    mask: Pixels
    """H,W train ids, uint8: the mask that `diff predict` writes."""
    confidence: Plane
    """H,W probability of the mask's class, float32, 0..1."""
    probabilities: Plane | None
    """classes,H,W probability of every class, float32, 0..1. None unless asked for (`probabilities=True`): at 2048x1024
    pixels, those of 19 classes take 160 MB."""
    classes: tuple[str, ...]
    """Names by train id."""
    palette: Pixels
    """Colours (256, 3) by train id."""

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of the pixels, 0..1, of every class that occurs, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        found = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return {self.classes[i]: int(counts[i]) / self.mask.size for i in found}

    def overlay(self, *, legend: bool = True) -> Image.Image:
        """The colours laid over the image, with names and shares of the classes below, as `--overlay` writes them."""
        shown = blend(self.image, self.mask, self.palette)
        return self._outputs((), legend=legend).shown(shown, self.mask)

    def save(self, target: str | Path, write: str = "mask", *, legend: bool = True) -> dict[str, Path]:
        """Write the files that `diff predict --write` writes; what is written, kind -> file.

        Args:
            target: a folder, where files are named after the image; or the mask's PNG, beside which the others go.
            write: comma list of mask, label-ids, color, overlay, confidence, confidence-map, stats and rle.
            legend: put names and shares of the classes under overlays and colour masks.

        Raises:
            ConfigError: an unknown kind, or one that a single pass of an image does not have.
            DiffError: a file cannot be written.
        """
        kinds = parse_kinds(write)
        if refused := [kind for kind in kinds if kind in (VIDEO_KIND, "uncertainty")]:
            raise ConfigError(f"one image has no {' or '.join(refused)}", hint="diff predict writes them")
        target = Path(target)
        if target.suffix.lower() != ".png":
            target = target / f"{Path(self.name).stem}.png"
        size = (self.mask.shape[0], self.mask.shape[1])
        read = Read(Job(Path(self.name), target), self.image, size, self.image, None)
        return self._outputs(kinds, legend=legend).write(read, Planes(self.mask, self.confidence))

    def _outputs(self, kinds: tuple[str, ...], *, legend: bool) -> Outputs:
        return Outputs(kinds, (), classes=self.classes, palette=self.palette, legend=legend)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        shares = self.shares
        largest = [f"{name} {100 * share:.0f} %" for name, share in [*shares.items()][:LARGEST_NAMES]]
        more = [f"and {len(shares) - LARGEST_NAMES} more"] if len(shares) > LARGEST_NAMES else []
        sure = f"mean confidence {self.confidence.mean():.2f}"
        return f"<Segmentation of {self.name}, {width}x{height}: {', '.join([*largest, *more])}; {sure}>"


@dataclass(frozen=True)
class NamedImage:
    """An image as the segmenter takes it (`NetworkImage`), at its own size and under its name, too."""

    name: str
    full: Pixels
    image: Pixels
    identity: str
    reference: Pixels | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the mask."""
        return self.full.shape[0], self.full.shape[1]


def named_image(
    image: AnyImage, segmenter: Segmenter, *, identity: str | None = None, reference: Pixels | None = None
) -> NamedImage:
    """Read an image and bring it to the network's size.

    Args:
        identity: what seeds its noise; None: a file's stem, else a hash of the pixels.
        reference: train ids that turn the conditional branch on.

    Raises:
        DataError: unreadable, or nothing that shows an image.
    """
    pixels = any_image(image)
    if isinstance(image, str | Path):
        name, own = str(image), Path(image).stem
    else:
        name = own = content_identity(torch.tensor(pixels))  # a copy: an array of PIL's is read-only
    seen = at_network_size(pixels, segmenter.settings.size)
    return NamedImage(name, pixels, seen, own if identity is None else identity, reference)


def segmentations(
    segmenter: Segmenter, images: Sequence[NamedImage], *, classes: tuple[str, ...], palette: Pixels
) -> list[Segmentation]:
    """Results in the order of the images; neighbours of one size share the network's batches.

    Raises:
        DiffError: see `Segmenter.segment`.
    """
    found = []
    for _, group in groupby(images, key=lambda one: one.image.shape):
        batch = list(group)
        for one, planes in zip(batch, segmenter.segment(batch), strict=True):
            assert planes.confidence is not None
            found.append(
                Segmentation(
                    name=one.name,
                    image=one.full,
                    mask=planes.mask,
                    confidence=planes.confidence,
                    probabilities=planes.probabilities,
                    classes=classes,
                    palette=palette,
                )
            )
    return found
