"""`diffcli.load(RUN)`: a trained model, or exported networks, that segment whatever shows an image."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcli.api.any_image import any_image
from diffcli.config.settings import EvalConfig
from diffcli.core.model import SegmentationModel, content_identity
from diffcli.drawing.pictures import Pixels
from diffcli.errors import ConfigError
from diffcli.export.runner import ExportedNetwork, ExportSource, Floats, is_export
from diffcli.prediction.segmenter import Segmenter, at_network_size
from diffcli.prediction.trained import TrainedNetwork
from diffcli.runs.hub import run_path
from diffcli.runs.opening import open_run

AnyImage = str | Path | PIL.Image.Image | NDArray[np.uint8] | Tensor


class TrainedModel(SegmentationModel):
    """A trained model that knows how its run evaluates: size, window, flips, scales, reference."""

    def __init__(self, model: SegmentationModel, settings: EvalConfig) -> None:
        super().__init__(
            model.config, extractor=model.extractor, decoder=model.decoder, precision=model.precision
        )
        self.settings = settings

    def predict(
        self, image: AnyImage, *, identity: str | None = None, reference: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Train ids (H,W) uint8 of one image at its size: of a file, the mask that `diff predict` writes.

        Images of more than 2048x1024 pixels at the network's size are segmented in overlapping tiles, as there.

        Args:
            image: a file's path, a PIL image, an array or uint8 tensor (H,W,3 or H,W; a tensor 3,H,W too), or a float
                tensor 3,H,W in [-1,1].
            identity: what seeds the noise, with the run's seed; None: a file's stem, else a hash of the pixels.
            reference: train ids of the conditional branch, of any size; None takes the settings' choice.

        Raises:
            DataError: unreadable, or nothing that shows an image.
            ConfigError: the settings want true labels as the reference, and none are given.
            DiffError: the network's output is not finite, or memory ran out.
        """
        if reference is None and self.settings.reference == "labels":
            raise ConfigError(
                "eval.reference is labels, but no reference is given",
                hint="predict(image, reference=mask), or a run with eval.reference: none",
            )
        segmenter = Segmenter(TrainedNetwork(self, self.settings), self.settings, on_retile=warnings.warn)
        return _mask(segmenter, image, identity=identity, reference=reference)


class ExportedModel:
    """Networks that `diff export --format onnx|pt2` wrote."""

    def __init__(self, network: ExportedNetwork, settings: EvalConfig) -> None:
        self.network, self.settings = network, settings

    def predict(self, image: AnyImage) -> NDArray[np.uint8]:
        """Train ids (H,W) uint8 of one image at its size: of a file, the mask that `diff predict --model` writes.

        Raises:
            DataError: unreadable, or nothing that shows an image.
            DiffError: the networks failed.
        """
        return _mask(Segmenter(self.network, self.settings), image)

    def logits(self, images: Floats, noise: Floats | None = None) -> Floats:
        """See `ExportedNetwork.logits`."""
        return self.network.logits(images, noise)


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
        return ExportedModel(source.load(device=device), source.settings)
    trained = open_run(place)
    return TrainedModel(trained.load_model(device=device, precision=precision), trained.config.eval)


@dataclass(frozen=True)
class _Image:
    """A `NetworkImage`."""

    image: Pixels
    size: tuple[int, int]
    identity: str
    reference: Pixels | None


def _mask(
    segmenter: Segmenter, image: AnyImage, *, identity: str | None = None, reference: Pixels | None = None
) -> Pixels:
    pixels = any_image(image)
    if identity is None:
        is_file = isinstance(image, str | Path)
        identity = Path(str(image)).stem if is_file else content_identity(torch.from_numpy(pixels))
    seen = at_network_size(pixels, segmenter.settings.size)
    [planes] = segmenter.segment([_Image(seen, (pixels.shape[0], pixels.shape[1]), identity, reference)])
    return planes.mask
