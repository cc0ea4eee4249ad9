"""The segmenter: images to masks, for predict, eval, compare, submit and the Python call alike.

A `Network` turns images of one size into class maps: a trained run (`diffcli.prediction.trained`) or exported networks
(`diffcli.export.runner`). The layers around it are the same for both: batches that fit memory, overlapping tiles of
large images, refinement, and the maps' argmax at the size of the file. This module needs no PyTorch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.data.transforms import resize_image
from diffcli.drawing.pictures import Pixels
from diffcli.errors import ConfigError, DiffError
from diffcli.prediction.planes import Arrays, NumpyArrays, Plane, Planes, planes_of, stack_bands
from diffcli.prediction.tiles import blended_bands

TILE_ABOVE = 2048 * 1024
"""Images of more pixels (at the network's size) are segmented in tiles."""
TILE, SMALL_TILE = Size(1024, 1024), Size(512, 512)
"""Tiles of large images; tiles of an image that memory does not hold in one piece."""
MIN_TILE = 128
OVERLAP = 4
"""Tiles overlap by this part of their sides, where no stride is set."""


class Maps(NamedTuple):
    """Class maps of a batch, in the network's own arrays."""

    output: Any
    """B,classes,h,w logits, or probabilities (`Network.gives_probabilities`)."""
    uncertainty: Any | None = None
    """B,h,w disagreement of several draws of noise, 0..1."""


class OutOfMemory(Exception):
    """A network's device or the host does not hold this batch."""


class Network(Protocol):
    """Images of one size to class maps."""

    classes: int
    multiple: int
    """The sides of tiles are multiples of this; 0 for a network of one fixed size, which takes no tiles."""
    gives_probabilities: bool
    """Maps are means of softmax maps, not logits."""

    @property
    def arrays(self) -> Arrays:
        """What computes with its maps."""

    @property
    def device(self) -> object:
        """Where it runs, for messages."""

    @property
    def evaluations(self) -> int:
        """U-Net evaluations so far."""

    def batch_for(self, pixels: int) -> int:
        """Images of so many pixels to begin with where the batch size is found by trying."""

    def maps(
        self,
        images: Sequence[Pixels],
        *,
        identities: Sequence[str],
        references: Sequence[Pixels | None] | None,
        origin: tuple[int, int] | None,
    ) -> Maps:
        """Class maps of images (h,w,3) of one size.

        Args:
            identities: what seeds the noise of each image.
            references: train ids that turn the conditional branch on, of any size.
            origin: first row and column of a tile in its image; None: whole images.

        Raises:
            OutOfMemory: the batch does not fit.
            DiffError: the output is not finite, or the network cannot do this.
        """


class Source(Protocol):
    """What masks come from, opened but not yet loaded: a trained run or exported networks."""

    @property
    def path(self) -> Path:
        """As the user named it."""

    @property
    def description(self) -> str:
        """What made the masks, in words."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by train id."""

    @property
    def palette(self) -> Pixels:
        """Colours (256, 3) by train id."""

    @property
    def settings(self) -> EvalConfig:
        """How it segments."""

    def load(self, *, device: str | None, samples: int = 1, images: int = 0) -> Network:
        """The network for so many images; with `samples` draws of noise averaged where there can be several."""


class NetworkImage(Protocol):
    """An image as the network sees it, and what its mask needs."""

    @property
    def image(self) -> Pixels:
        """(h,w,3) at the network's size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the mask."""

    @property
    def identity(self) -> str:
        """What seeds its noise."""

    @property
    def reference(self) -> Pixels | None:
        """Train ids that turn the conditional branch on, of any size."""


def at_network_size(image: Pixels, size: Size | None) -> Pixels:
    """An image (H,W,3) at the size at which the network sees it; None: its own."""
    return image if size is None else resize_image(image, size)


class Segmenter:
    """Images to masks, and what else the outputs need.

    Args:
        network: what turns images into class maps.
        settings: mode, window and stride (tiles), reference; the network has followed flip and scales.
        batch: images a call; None finds the largest number that fits.
        tile: segment in tiles of this size; None: in those of eval.mode slide, or where an image has more than
            TILE_ABOVE pixels.
        refine: how often the prediction is fed back as the reference of the conditional branch.
        confidence: fill `Planes.confidence`.
        score_of: fill `Planes.score` with the probability of this class.
        probabilities: fill `Planes.probabilities`, those of every class.
        on_retile: called with a message when an image that memory does not hold is segmented in tiles instead;
            None: that is an error.

    Raises:
        ConfigError: a tile is too small.
    """

    def __init__(
        self,
        network: Network,
        settings: EvalConfig,
        *,
        batch: int | None = 1,
        tile: Size | None = None,
        refine: int = 0,
        confidence: bool = False,
        score_of: int | None = None,
        probabilities: bool = False,
        on_retile: Callable[[str], None] | None = None,
    ) -> None:
        self.network, self.settings = network, settings
        self.refine = max(refine, int(settings.reference == "prediction"))
        self.refines_given = refine > 0
        """Whether a prediction replaces references that are given."""
        self.confidence, self.score_of, self.probabilities = confidence, score_of, probabilities
        self.on_retile = on_retile
        self.finds_batch = batch is None
        self.batch_size = batch or network.batch_for(1)
        """Images a call; halved when memory runs out, where it is found by trying."""
        slide = settings.mode == "slide"
        if tile is not None and min(tile) < MIN_TILE:
            raise ConfigError(
                f"tiles of {tile} are too small to see anything in",
                hint=f"at least {MIN_TILE}x{MIN_TILE}, and better as large as memory holds: {TILE}",
            )
        self.tile = self._fitted(tile or (settings.window if slide else TILE))
        self.overlap = self._overlap(settings.stride if slide and tile is None else None)
        self.tile_is_default = tile is None and not slide
        self.tile_above = TILE_ABOVE if self.tile_is_default else 0
        """Images of at most this many pixels are segmented in one piece."""

    def segment(self, images: Sequence[NetworkImage]) -> Iterator[Planes]:
        """Planes of images whose pixels are of one size, in order, each at its own `size`.

        Raises:
            DiffError: the network's output is not finite, or memory does not hold a single image (or tile).
        """
        start = 0
        while start < len(images):
            if self._is_tiled(images[start]):
                yield self._in_tiles(images[start])
                start += 1
                continue
            pixels = math.prod(images[start].image.shape[:2])
            count = (
                min(self.batch_size, self.network.batch_for(pixels)) if self.finds_batch else self.batch_size
            )
            batch = images[start : start + count]
            try:
                done = self._in_one_piece(batch)
            except OutOfMemory:
                done = None  # what the failed pass held is released with the exception
            if done is None:
                self._take_less(batch)
                continue
            output, uncertainty = done
            start += len(batch)
            for i, image in enumerate(batch):
                yield self._finish(output[i], image.size, None if uncertainty is None else uncertainty[i])

    # ---------------------------------------------------------------------------------------- in one piece

    def _in_one_piece(self, images: Sequence[NetworkImage]) -> Maps:
        pixels, names = [image.image for image in images], [image.identity for image in images]
        references = _references([image.reference for image in images])
        for _ in range(self._rounds(references)):
            first = self.network.maps(pixels, identities=names, references=references, origin=None)
            size = pixels[0].shape[0], pixels[0].shape[1]
            references = [planes_of(one, size, arrays=self.network.arrays).mask for one in first.output]
            del first  # two passes' maps need not be held at once
        return self.network.maps(pixels, identities=names, references=references, origin=None)

    def _rounds(self, references: Sequence[Pixels | None] | None) -> int:
        """How often the prediction is fed back; eval.reference prediction leaves given references as they are."""
        return self.refine if references is None or self.refines_given else 0

    def _finish(self, output: Any, size: tuple[int, int], uncertainty: Any | None) -> Planes:
        return planes_of(
            output,
            size,
            arrays=NumpyArrays() if isinstance(output, np.ndarray) else self.network.arrays,
            is_probability=self.network.gives_probabilities,
            uncertainty=uncertainty,
            confidence=self.confidence,
            score_of=self.score_of,
            every=self.probabilities,
        )

    def _take_less(self, images: Sequence[NetworkImage]) -> None:
        """After memory ran out: half the batch, or tiles. Raises where neither helps."""
        height, width = images[0].image.shape[:2]
        if self.finds_batch and len(images) > 1:
            self.batch_size = len(images) // 2
            return
        pixels, small = height * width, self._fitted(SMALL_TILE)
        may_tile = self.network.multiple and self.tile_is_default and pixels > math.prod(small)
        if len(images) > 1 or not may_tile or self.on_retile is None:
            raise self._not_enough_memory(images)
        self.tile, self.tile_above = small, pixels - 1
        self.overlap = self._overlap(None)
        self.on_retile(f"memory does not hold {width}x{height} pixels: in tiles of {small} from here on")

    def _not_enough_memory(self, images: Sequence[NetworkImage]) -> DiffError:
        height, width = images[0].image.shape[:2]
        return DiffError(
            f"not enough memory on {self.network.device} for {len(images)} x {width}x{height} pixels",
            where=images[0].identity,
            hint="--set eval.batch_size=1, a smaller eval.size (--set eval.size=1024x512), "
            "or --set eval.mode=slide",
        )

    # -------------------------------------------------------------------------------------------- in tiles

    def _is_tiled(self, image: NetworkImage) -> bool:
        height, width = image.image.shape[:2]
        larger = height > self.tile.height or width > self.tile.width
        return bool(self.network.multiple) and larger and height * width > self.tile_above

    def _in_tiles(self, image: NetworkImage) -> Planes:
        try:
            reference = image.reference
            for _ in range(self._rounds(_references([reference]))):
                reference = self._tiled(image, reference).mask
            return self._tiled(image, reference).resized(image.size)
        except OutOfMemory:
            pass
        raise self._not_enough_memory([image])

    def _tiled(self, image: NetworkImage, reference: Pixels | None) -> Planes:
        """Planes at the network's size, a band of rows at a time: all classes are held for one row of tiles only."""
        height, width = image.image.shape[:2]
        numpy = self.network.arrays.numpy

        def evaluate(rows: slice, columns: slice) -> Plane:
            part = None if reference is None else _part(reference, rows, columns, size=(height, width))
            output, uncertainty = self.network.maps(
                [image.image[rows, columns]],
                identities=[image.identity],
                references=_references([part]),
                origin=(rows.start, columns.start),
            )
            maps = numpy(output[0])
            return maps if uncertainty is None else np.concatenate([maps, numpy(uncertainty)])

        bands = blended_bands(
            (height, width),
            evaluate,
            tile=(self.tile.height, self.tile.width),
            overlap=self.overlap,
            multiple=self.network.multiple,
        )
        classes, done = self.network.classes, []
        for band in bands:
            uncertainty = band[classes] if len(band) > classes else None
            done.append(self._finish(band[:classes], (band.shape[1], width), uncertainty))
        return stack_bands(done)

    def _fitted(self, tile: Size) -> Size:
        """The tile, its sides rounded up to what the network divides."""
        multiple = self.network.multiple or 1
        return Size(*(math.ceil(side / multiple) * multiple for side in tile))

    def _overlap(self, stride: Size | None) -> tuple[int, int]:
        """Rows and columns that neighbouring tiles share: what the stride leaves, else the usual part of a tile."""
        multiple = self.network.multiple or 1

        def along(tile: int, step: int | None) -> int:
            wanted = tile // OVERLAP if step is None else tile - step
            return max(multiple, min(wanted // multiple * multiple, tile - multiple))

        steps = (None, None) if stride is None else (stride.height, stride.width)
        return along(self.tile.height, steps[0]), along(self.tile.width, steps[1])


def _references(references: Sequence[Pixels | None]) -> Sequence[Pixels | None] | None:
    return None if all(reference is None for reference in references) else references


def _part(reference: Pixels, rows: slice, columns: slice, *, size: tuple[int, int]) -> Pixels:
    """A tile's part of an image's reference, which may be of another size: each pixel takes the nearest to its left."""
    down = np.arange(rows.start, rows.stop) * reference.shape[0] // size[0]
    across = np.arange(columns.start, columns.stop) * reference.shape[1] // size[1]
    return np.asarray(reference[down[:, None], across], dtype=np.uint8)
