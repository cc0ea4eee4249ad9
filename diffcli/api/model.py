"""`diffcli.load(RUN)`: a trained model, or exported networks, that segment whatever shows an image."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffcli.api.any_image import AnyImage
from diffcli.api.segmentation import Segmentation, named_image, segmentations
from diffcli.config.settings import EvalConfig
from diffcli.core.model import SegmentationModel
from diffcli.drawing.pictures import class_palette
from diffcli.errors import ConfigError
from diffcli.export.runner import ExportedNetwork, ExportSource, Floats, is_export
from diffcli.prediction.segmenter import Segmenter
from diffcli.prediction.trained import TrainedNetwork
from diffcli.runs.hub import run_path
from diffcli.runs.opening import open_run
from diffcli.runtime.words import counted


class TrainedModel(SegmentationModel):
    """A trained model that knows how its run evaluates: size, window, flips, scales, reference.

    Images of more than 2048x1024 pixels at the network's size are segmented in overlapping tiles, as by `diff predict`.
    """

    def __init__(self, model: SegmentationModel, settings: EvalConfig, *, description: str = "a run") -> None:
        """Take a model and how it evaluates.

        Args:
            description: the run and its checkpoint, for the repr.
        """
        super().__init__(
            model.config, extractor=model.extractor, decoder=model.decoder, precision=model.precision
        )
        self.settings, self.description = settings, description

    def __call__(
        self,
        image: AnyImage,
        *,
        identity: str | None = None,
        reference: NDArray[np.uint8] | None = None,
        probabilities: bool = False,
    ) -> Segmentation:
        """Mask, confidence and overlay of one image at its size.

        Args:
            image: a file's path, a PIL image, an array or uint8 tensor (H,W,3 or H,W; a tensor 3,H,W too), or a float
                tensor 3,H,W in [-1,1].
            identity: what seeds the noise, with the run's seed; None: a file's stem, else a hash of the pixels.
            reference: train ids of the conditional branch, of any size; None takes the settings' choice.
            probabilities: keep those of every class, too: 4 bytes for each class and pixel.

        Raises:
            DataError: unreadable, or nothing that shows an image.
            ConfigError: the settings want true labels as the reference, and none are given.
            DiffError: the network's output is not finite, or memory ran out.
        """
        segmenter = self._segmenter(reference is not None, confidence=True, probabilities=probabilities)
        given = named_image(image, segmenter, identity=identity, reference=reference)
        [found] = segmentations(segmenter, [given], classes=self.classes, palette=self.palette)
        return found

    def segment(
        self, images: Sequence[AnyImage], *, batch: int | None = None, probabilities: bool = False
    ) -> list[Segmentation]:
        """`model(image)` of several images, in batches; all of them and their results are held in memory.

        Args:
            images: as `model(image)` takes them, of any sizes; those of one size beside each other share a batch.
            batch: most images of a forward pass; None takes eval.batch_size.
            probabilities: as in `model(image)`.

        Raises:
            DiffError: see `model(image)`.
        """
        batch = batch or self.settings.batch_size
        segmenter = self._segmenter(False, batch=batch, confidence=True, probabilities=probabilities)
        return segmentations(
            segmenter,
            [named_image(image, segmenter) for image in images],
            classes=self.classes,
            palette=self.palette,
        )

    def predict(
        self, image: AnyImage, *, identity: str | None = None, reference: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Train ids (H,W) uint8 of one image at its size: of a file, the mask that `diff predict` writes.

        Arguments and errors are those of `model(image)`, whose mask this is.
        """
        segmenter = self._segmenter(reference is not None)
        given = named_image(image, segmenter, identity=identity, reference=reference)
        [planes] = segmenter.segment([given])
        return planes.mask

    def _segmenter(
        self, has_reference: bool, *, batch: int = 1, confidence: bool = False, probabilities: bool = False
    ) -> Segmenter:
        if self.settings.reference == "labels" and not has_reference:
            raise ConfigError(
                "eval.reference is labels, but no reference is given",
                hint="model(image, reference=mask), or a run with eval.reference: none",
            )
        return Segmenter(
            TrainedNetwork(self, self.settings),
            self.settings,
            batch=batch,
            confidence=confidence,
            probabilities=probabilities,
            on_retile=warnings.warn,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by train id."""
        return self.config.classes

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours (256, 3) by train id."""
        return class_palette(self.config)

    def __repr__(self) -> str:
        inversion, steps = self.config.inversion, self.extractor.schedule.evaluated_steps
        schedule = inversion.schedule if isinstance(inversion.schedule, str) else "of its own"
        facts = [
            counted(len(self.classes), "class", "classes"),
            f"backbone {self.config.backbone.source}",
            f"schedule {schedule} ({counted(steps, 'U-Net evaluation')} an image)",
            f"on {self.device} in {self.precision}",
        ]
        return f"<TrainedModel of {self.description}: {', '.join(facts)}>"


class ExportedModel:
    """Networks that `diff export --format onnx|pt2` wrote: every image is seen at the exported size."""

    def __init__(self, network: ExportedNetwork, source: ExportSource) -> None:
        self.network, self.settings = network, source.settings
        self.classes, self.palette, self.description = source.classes, source.palette, source.description

    def __call__(self, image: AnyImage, *, probabilities: bool = False) -> Segmentation:
        """See `TrainedModel.__call__`; the noise is stored, and there is no conditional branch.

        Raises:
            DataError: unreadable, or nothing that shows an image.
            DiffError: the networks failed.
        """
        [found] = self.segment([image], probabilities=probabilities)
        return found

    def segment(
        self, images: Sequence[AnyImage], *, batch: int | None = None, probabilities: bool = False
    ) -> list[Segmentation]:
        """See `TrainedModel.segment`. Raises: see `model(image)`."""
        batch = batch or self.settings.batch_size
        segmenter = Segmenter(
            self.network, self.settings, batch=batch, confidence=True, probabilities=probabilities
        )
        read = [named_image(image, segmenter) for image in images]
        return segmentations(segmenter, read, classes=self.classes, palette=self.palette)

    def predict(self, image: AnyImage) -> NDArray[np.uint8]:
        """Train ids (H,W) uint8 of one image at its size: of a file, the mask that `diff predict --model` writes.

        Raises:
            DataError: unreadable, or nothing that shows an image.
            DiffError: the networks failed.
        """
        segmenter = Segmenter(self.network, self.settings)
        [planes] = segmenter.segment([named_image(image, segmenter)])
        return planes.mask

    def logits(self, images: Floats, noise: Floats | None = None) -> Floats:
        """See `ExportedNetwork.logits`."""
        return self.network.logits(images, noise)

    def __repr__(self) -> str:
        facts = [
            counted(len(self.classes), "class", "classes"),
            f"images at {self.settings.size}",
            f"by {self.network.device}",
        ]
        return f"<ExportedModel of {self.description}: {', '.join(facts)}>"


def load(path: str | Path, *, device: str = "auto", precision: str = "auto") -> TrainedModel | ExportedModel:
    """The model of a run folder, an exported folder or a checkpoint file, ready to segment.

    Args:
        path: where it is; or hub:owner/name, as `diff push` published it. A folder of exported networks (onnx, pt2)
            gives an `ExportedModel`.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, float32, bf16 or fp16; exported networks are float32.

    Raises:
        ConfigError: another precision than float32 for exported networks.
        DiffError: see `open_run`, `OpenRun.load_model` and `open_exported`.
    """
    place = run_path(path)
    if is_export(place):
        if precision not in ("auto", "float32"):
            raise ConfigError(f"exported networks are float32, not {precision}", where=str(path))
        source = ExportSource(place)
        return ExportedModel(source.load(device=device), source)
    trained = open_run(place)
    model = trained.load_model(device=device, precision=precision)
    return TrainedModel(model, trained.config.eval, description=trained.description)
