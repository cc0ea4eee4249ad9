"""A domain that has been opened: its samples by name, and image and label of each as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffcli.classes import IGNORE_ID
from diffcli.config.size import Size
from diffcli.data.domains import TRAIN_IDS
from diffcli.data.images import Image, read_image
from diffcli.data.labels import Label, LabelReader, train_ids_by_name
from diffcli.data.listing import Missing
from diffcli.data.miniworld import render
from diffcli.data.transforms import resize_image, resize_label
from diffcli.errors import DataError


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene of the miniature world: `render(seed, index, appearance)`."""

    seed: int
    index: int
    appearance: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a domain, by name."""

    id: str
    """Relative path without suffixes, for example val/frankfurt/frankfurt_000000_000294; unique in its domain."""
    image: Path | None
    """The image file; None for a rendered scene."""
    label: Path | None
    """The label file; None where there is none (a rendered scene has its label all the same)."""
    reader: int = -1
    """Which of the domain's label readers understands the label file."""
    scene: Scene | None = None
    """The scene that is rendered, if it is."""


class Domain:
    """The samples of one domain and how to read them. Made by `open_domain`; small, and safe to send to a worker.

    Attributes:
        name: as in tables, for example camvid_day, acdc/night, miniworld/fog.
        samples: in a fixed order.
        missing: images without label and labels without image, found while listing.
        split: train, val, test, the name of another split's folder, or empty for an undivided set.
        archives: archives among the images and labels that have not been unpacked.
        classes: names of the train ids that labels come in.
        eval_size: the network sees its images at this size; None leaves it to eval.size.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        *,
        classes: Sequence[str],
        readers: Sequence[LabelReader] = (),
        missing: Missing = Missing(),  # noqa: B008 (frozen)
        split: str = "",
        resize: Size | None = None,
        eval_size: Size | None = None,
        aspect_tolerance: float = 0.01,
        archives: Sequence[Path] = (),
    ) -> None:
        self.name = name
        self.samples = tuple(samples)
        self.classes = tuple(classes)
        self.readers = tuple(readers)
        self.missing = missing
        self.split = split
        self.archives = tuple(archives)
        self.resize = resize
        self.eval_size = eval_size
        self._aspect_tolerance = aspect_tolerance
        self._rendered_ids = LabelReader(TRAIN_IDS, train_ids_by_name(classes))

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> tuple[Image, Label]:
        """Image (H, W, 3) RGB and label (H, W) of train ids (255 = ignore, everywhere where there is no label).

        Both are resized where the config says so, the label by nearest neighbour.

        Raises:
            DataError: a file is missing or damaged, sizes do not belong together, or the label holds values outside
                the mapping; it names the file (and the values).
        """
        sample = self.samples[index]
        if sample.scene is not None:
            return self._render(sample.scene)
        assert sample.image is not None
        image = read_image(sample.image)
        if sample.label is None:
            label = np.full(image.shape[:2], IGNORE_ID, dtype=np.uint8)
        else:
            image, label = self._fitted(sample, image, self.read_label(index))
        if self.resize is None:
            return image, label
        return resize_image(image, self.resize), resize_label(label, self.resize)

    def read_label(self, index: int) -> Label:
        """The label (H, W) of train ids as the file holds it, before any resizing. Raises like `load`.

        A sample without label is a DataError.
        """
        sample = self.samples[index]
        if sample.scene is not None:
            return self._render(sample.scene)[1]
        if sample.label is None:
            raise DataError("there is no label", where=str(sample.image))
        return self.readers[sample.reader].read(sample.label)

    def identity(self, index: int) -> str:
        """The name that seeds the image's noise: the file's stem, or miniworld_<seed>_<index>."""
        sample = self.samples[index]
        if sample.scene is not None:
            return f"miniworld_{sample.scene.seed}_{sample.scene.index}"
        assert sample.image is not None
        return sample.image.stem

    def file(self, index: int) -> str:
        """What an error calls the sample: its image file, or the rendered scene."""
        sample = self.samples[index]
        return self.identity(index) if sample.image is None else str(sample.image)

    def same_shape(self, image: Size, label: Size) -> bool:
        """Whether a label of one size belongs to an image of the other: the sides have the same ratio."""
        product = image.height * label.width
        return abs(product - image.width * label.height) <= self._aspect_tolerance * product

    def _render(self, scene: Scene) -> tuple[Image, Label]:
        size = self.resize
        if size is None:
            image, label = render(scene.seed, scene.index, scene.appearance)
        else:
            drawn = (-(-size.height // 64) * 64, -(-size.width // 64) * 64)
            image, label = render(scene.seed, scene.index, scene.appearance, size=drawn)
            image, label = resize_image(image, size), resize_label(label, size)
        return image, self._rendered_ids.convert(label)

    def _fitted(self, sample: Sample, image: Image, label: Label) -> tuple[Image, Label]:
        """The pair at one size: a label made on the image as stored undoes the EXIF rotation, a label of another scale
        follows its image.
        """
        height, width = image.shape[:2]
        if label.shape == (height, width):
            return image, label
        if label.shape == (width, height):
            assert sample.image is not None
            stored = read_image(sample.image, upright=False)
            if stored.shape[:2] == label.shape:
                return stored, label
        if not self.same_shape(Size(width, height), Size(label.shape[1], label.shape[0])):
            raise DataError(
                f"the image is {width}x{height}, but its label {label.shape[1]}x{label.shape[0]}",
                where=f"{sample.image} and {sample.label}",
                hint="a label must have its image's size, or at least its shape",
            )
        return image, resize_label(label, Size(width, height))
