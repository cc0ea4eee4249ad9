"""How `diff predict` runs the model: batches that fit, tiles of large images, refinement, several draws of noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.core.inversion import Noise, seeded_noise
from diffcli.core.model import NoiseSource, SegmentationModel, segment, to_model_range
from diffcli.core.tiling import blended_bands, field_noise
from diffcli.data.transforms import resize_label
from diffcli.drawing.pictures import Pixels
from diffcli.errors import ConfigError
from diffcli.prediction.inference import not_enough_memory, predicted_ids, refuse_not_finite
from diffcli.prediction.inputs import Read
from diffcli.prediction.outputs import Planes, Scores
from diffcli.runtime import console
from diffcli.runtime.memory import is_out_of_memory

TILE_ABOVE = 2048 * 1024
"""Images of more pixels (at the network's size) are segmented in tiles."""
TILE, SMALL_TILE = Size(1024, 1024), Size(512, 512)
"""Tiles of large images; and where memory does not hold an image that would go in one piece."""
MIN_TILE = 128
OVERLAP = 4
"""Tiles overlap by this part of their sides."""
LARGEST_BATCH = 32
"""Where --batch auto begins on a GPU."""
CPU_BATCH_PIXELS = 256 * 256
"""Pixels of a batch of --batch auto on a CPU: larger ones only take more memory there."""


class Predictor:
    """Images to masks, and what else the outputs need.

    Args:
        model: the model.
        settings: how an image is segmented; its reference is "none" or "prediction".
        batch: images a forward pass; None finds the largest number that fits.
        tile: segment in tiles of this size; None does so where an image has more than TILE_ABOVE pixels.
        refine: how often the prediction is fed back as the reference of the conditional branch.
        samples: draws of noise whose softmax maps are averaged; from 2 on with their disagreement.
        confidence: give `Planes.confidence`.
        score_of: give `Planes.score` of this class.

    Raises:
        ConfigError: a tile is too small.
    """

    def __init__(
        self,
        model: SegmentationModel,
        settings: EvalConfig,
        *,
        batch: int | None = 1,
        tile: Size | None = None,
        refine: int = 0,
        samples: int = 1,
        confidence: bool = False,
        score_of: int | None = None,
    ) -> None:
        self.model, self.samples = model, samples
        self.refine = max(refine, int(settings.reference == "prediction"))
        self.settings = settings.model_copy(update={"reference": "none"})
        self.confidence, self.score_of = confidence, score_of
        self.tile = None if tile is None else self._checked(tile)
        self.whole_pixels = 0 if tile is not None else TILE_ABOVE
        """Images of at most this many pixels go in one piece."""
        self.finds_batch = batch is None
        self.batch_size = batch or LARGEST_BATCH
        """Images a forward pass; --batch auto halves it when memory runs out."""

    def predict(self, reads: Sequence[Read]) -> Iterator[Planes]:
        """What the model makes of images of one size, in order, each at its file's size.

        Raises:
            DiffError: the network's output is not finite, or memory does not hold a single image (or tile).
        """
        if self._is_tiled(reads[0]):
            yield from (self._in_tiles(read) for read in reads)
            return
        start = 0
        while start < len(reads):
            batch = reads[start : start + self._batch_for(reads[0])]
            found = self._in_one_piece(batch)
            if found is None:
                self._take_less(batch)
                if self._is_tiled(batch[0]):
                    yield from self.predict(reads[start:])
                    return
                continue
            start += len(batch)
            outputs, uncertain = found
            for read, output, doubt in zip(batch, outputs, uncertain, strict=True):
                yield self._finish(output, doubt, read.size)

    # ---------------------------------------------------------------------------------------- in one piece

    def _in_one_piece(self, reads: Sequence[Read]) -> tuple[Tensor, Sequence[Tensor | None]] | None:
        """(B,classes,h,w output, each image's h,w disagreement) of a batch; None where memory ran out."""
        names = [read.identity for read in reads]
        try:
            images = to_model_range(
                torch.from_numpy(np.stack([read.image for read in reads])).to(self.model.device)
            )
            references = _as_tensors([read.reference for read in reads])
            for _ in range(self.refine):
                output, _ = self._pass(images, names, references)
                references = list(output.argmax(1))
            output, uncertain = self._pass(images, names, references)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None  # what the failed pass held is let go of with the exception
        return output, [None] * len(reads) if uncertain is None else list(uncertain)

    def _pass(
        self,
        images: Tensor,
        names: Sequence[str],
        references: Sequence[Tensor | None] | None,
        tile_noise: NoiseSource | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(output B,classes,h,w, disagreement B,h,w or None): one pass, or the mean of several draws of noise.

        The disagreement is the mutual information of class and draw, entropy of the mean minus mean of the entropies,
        as a share of the largest it can be: 0 where all draws say the same, 1 where each is sure of another class.

        Args:
            tile_noise: the images are tiles, and this is their noise.
        """
        settings = self.settings
        source: NoiseSource = seeded_noise
        if tile_noise is not None:
            settings, source = settings.model_copy(update={"mode": "whole"}), tile_noise

        def one(drawn: Sequence[str]) -> Tensor:
            output = segment(
                self.model,
                images,
                config=settings,
                identities=drawn,
                references=references,
                noise_source=source,
            )
            refuse_not_finite(output, model=self.model, where=names[0])
            return output

        if self.samples == 1:
            return one(names), None
        total, entropies = torch.zeros(()), torch.zeros(())
        for draw in range(self.samples):
            output = one([name if draw == 0 else f"{name}#{draw}" for name in names])
            probabilities = output if self._averaged else output.softmax(1)
            total = total.to(output.device) + probabilities
            entropies = entropies.to(output.device) + _entropy(probabilities)
        mean = total / self.samples
        largest = math.log(min(self.samples, mean.shape[1]))
        return mean, ((_entropy(mean) - entropies / self.samples) / largest).clamp(0, 1)

    @property
    def _averaged(self) -> bool:
        """Whether one pass already gives a mean of softmax maps."""
        return self.settings.flip or self.settings.scales != (1.0,)

    def _batch_for(self, read: Read) -> int:
        if self.finds_batch and self.model.device.type == "cpu":
            return max(1, min(self.batch_size, CPU_BATCH_PIXELS // math.prod(_size(read))))
        return self.batch_size

    def _take_less(self, reads: Sequence[Read]) -> None:
        """After memory ran out: half the batch, or tiles. Raises where neither is left."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        pixels = math.prod(_size(reads[0]))
        if self.finds_batch and len(reads) > 1:
            self.batch_size = len(reads) // 2
        elif len(reads) == 1 and pixels > math.prod(SMALL_TILE):
            self.tile, self.whole_pixels = self.tile or SMALL_TILE, pixels - 1
            height, width = _size(reads[0])
            console.warn(
                f"memory does not hold {width}x{height} pixels: in tiles of {self.tile} from here on"
            )
        else:
            raise not_enough_memory(self.model, reads[0].image, count=len(reads), where=reads[0].identity)

    # -------------------------------------------------------------------------------------------- in tiles

    def _is_tiled(self, read: Read) -> bool:
        tile, (height, width) = self._tile_of(read), _size(read)
        return height * width > self.whole_pixels and (height > tile.height or width > tile.width)

    def _in_tiles(self, read: Read) -> Planes:
        try:
            for _ in range(self.refine):
                read = replace(read, reference=self._tiled(read).mask)
            planes = self._tiled(read)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise not_enough_memory(self.model, read.image, count=1, where=read.identity) from error
        return planes if _size(read) == read.size else _resized(planes, read.size)

    def _tiled(self, read: Read) -> Planes:
        """Planes at the network's size, a band of rows at a time: all classes are held for one row of tiles only."""
        tile, multiple = self._tile_of(read), self.model.extractor.backbone.multiple
        overlap = [
            max(multiple, side // OVERLAP // multiple * multiple) for side in (tile.height, tile.width)
        ]
        bands = blended_bands(
            _size(read),
            lambda rows, columns: self._tile(read, rows, columns),
            tile=(tile.height, tile.width),
            overlap=(overlap[0], overlap[1]),
            multiple=multiple,
        )
        classes, width = len(self.model.config.classes), _size(read)[1]

        def finish(band: Tensor) -> Planes:
            doubt = band[classes] if self.samples > 1 else None
            return self._finish(band[:classes], doubt, (band.shape[1], width))

        return _joined([finish(band) for _, band in bands])

    def _tile(self, read: Read, rows: slice, columns: slice) -> Tensor:
        """classes,h,w output of one tile, its disagreement behind it; its noise is a part of the image's field."""
        cell = self.model.extractor.backbone.downsample

        def noise(seed: int, names: Sequence[str]) -> Noise:
            return field_noise(seed, names, origin=(rows.start // cell, columns.start // cell))

        images = to_model_range(torch.from_numpy(read.image[rows, columns][None]).to(self.model.device))
        reference = read.reference
        if reference is not None:
            reference = _cut(reference, rows, columns, size=_size(read))
        output, doubt = self._pass(images, [read.identity], _as_tensors([reference]), noise)
        return output[0] if doubt is None else torch.cat([output[0], doubt])

    def _tile_of(self, read: Read) -> Size:
        return self.tile or self._checked(self.settings.window if self.settings.mode == "slide" else TILE)

    def _checked(self, tile: Size) -> Size:
        """The tile, its sides rounded up to what the network divides."""
        if min(tile) < MIN_TILE:
            raise ConfigError(
                f"tiles of {tile} are too small to see anything in",
                hint=f"at least {MIN_TILE}x{MIN_TILE}, and better as large as memory holds: {TILE}",
            )
        multiple = self.model.extractor.backbone.multiple
        return Size(*(math.ceil(side / multiple) * multiple for side in tile))

    # ------------------------------------------------------------------------------------------- finishing

    def _finish(self, output: Tensor, doubt: Tensor | None, size: tuple[int, int]) -> Planes:
        """classes,h,w output to planes of `size`; one class is resized at a time."""
        ids = predicted_ids(output, size)
        confidence = score = None
        if self.confidence or self.score_of is not None:
            averaged = self._averaged or self.samples > 1
            probabilities = output if averaged else output.softmax(0)
            if self.score_of is not None:
                score = _resize(probabilities[self.score_of], size)
            if self.confidence:
                confidence = torch.zeros(size, device=output.device)
                for train_id in torch.unique(ids).tolist():
                    confidence = torch.where(
                        ids == train_id, _resize(probabilities[train_id], size), confidence
                    )
        uncertainty = None if doubt is None else _resize(doubt, size)
        return Planes(ids.cpu().numpy(), *(_array(plane) for plane in (confidence, score, uncertainty)))


def _entropy(probabilities: Tensor) -> Tensor:
    """B,classes,h,w to B,h,w, in nats."""
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy


def _resize(plane: Tensor, size: tuple[int, int]) -> Tensor:
    resized: Tensor = F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return resized


def _array(plane: Tensor | None) -> Scores | None:
    return None if plane is None else plane.float().cpu().numpy()


def _as_tensors(references: Sequence[Pixels | None]) -> list[Tensor | None] | None:
    if all(reference is None for reference in references):
        return None
    return [None if reference is None else torch.from_numpy(reference) for reference in references]


def _cut(reference: Pixels, rows: slice, columns: slice, *, size: tuple[int, int]) -> Pixels:
    """A tile's part of an image's reference, which may be of another size; each pixel takes the nearest to its left."""
    down = np.arange(rows.start, rows.stop) * reference.shape[0] // size[0]
    across = np.arange(columns.start, columns.stop) * reference.shape[1] // size[1]
    return np.asarray(reference[down[:, None], across], dtype=np.uint8)


def _joined(bands: Sequence[Planes]) -> Planes:
    """The planes of an image from those of its bands, from top to bottom."""

    def join(parts: Sequence[Scores | None]) -> Scores | None:
        found = [part for part in parts if part is not None]
        return np.concatenate(found) if found else None

    return Planes(
        np.concatenate([band.mask for band in bands]),
        confidence=join([band.confidence for band in bands]),
        score=join([band.score for band in bands]),
        uncertainty=join([band.uncertainty for band in bands]),
    )


def _resized(planes: Planes, size: tuple[int, int]) -> Planes:
    """Planes at another size: the mask by nearest neighbour, the others bilinearly."""
    target = Size(size[1], size[0])

    def resize(plane: Scores | None) -> Scores | None:
        return None if plane is None else _array(_resize(torch.from_numpy(plane), size))

    return Planes(
        resize_label(planes.mask, target),
        confidence=resize(planes.confidence),
        score=resize(planes.score),
        uncertainty=resize(planes.uncertainty),
    )


def _size(read: Read) -> tuple[int, int]:
    """Height and width at which the network sees an image."""
    return read.image.shape[0], read.image.shape[1]
