"""`diffcli.load(RUN)`: a trained model that segments whatever shows an image."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcli.api.any_image import any_image
from diffcli.config.settings import EvalConfig
from diffcli.core.model import SegmentationModel, content_identity
from diffcli.errors import ConfigError
from diffcli.prediction.inference import network_image, segment_images
from diffcli.runs.hub import run_path
from diffcli.runs.opening import open_run


class TrainedModel(SegmentationModel):
    """A trained model that knows how its run evaluates: size, window, flips, scales, reference."""

    def __init__(self, model: SegmentationModel, settings: EvalConfig) -> None:
        super().__init__(
            model.config, extractor=model.extractor, decoder=model.decoder, precision=model.precision
        )
        self.settings = settings

    def predict(
        self,
        image: str | Path | PIL.Image.Image | NDArray[np.uint8] | Tensor,
        *,
        identity: str | None = None,
        reference: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Train ids (H,W) uint8 of one image at its own size: of a file, the very mask that `diff predict` writes.

        Args:
            image: a file's path, a PIL image, an array or uint8 tensor (H,W,3 or H,W; a tensor 3,H,W too), or a float
                tensor 3,H,W in [-1,1].
            identity: what seeds the noise, with the run's own seed; None: a file's stem, else a hash of the pixels.
            reference: train ids of the conditional branch, of any size; None takes the settings' choice.

        Raises:
            DataError: unreadable, or nothing that shows an image.
            ConfigError: the settings want true labels as the reference, and none are given.
            DiffError: see `segment_images`.
        """
        if reference is None and self.settings.reference == "labels":
            raise ConfigError(
                "eval.reference is labels, but no reference is given",
                hint="predict(image, reference=mask), or a run with eval.reference: none",
            )
        pixels = any_image(image)
        if identity is None and isinstance(image, str | Path):
            identity = Path(image).stem
        elif identity is None:
            identity = content_identity(torch.from_numpy(pixels))
        (mask,) = segment_images(
            self,
            [network_image(pixels, self.settings.size)],
            sizes=[(pixels.shape[0], pixels.shape[1])],
            identities=[identity],
            config=self.settings,
            references=None if reference is None else [reference],
        )
        return mask.cpu().numpy()


def load(path: str | Path, *, device: str = "auto", precision: str = "auto") -> TrainedModel:
    """The trained model of a run folder, an exported folder or a checkpoint file, ready to segment.

    Args:
        path: where it lies; or hub:owner/name, as `diff push` published it.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, float32, bf16 or fp16.

    Raises:
        DiffError: see `open_run` and `OpenRun.load_model`.
    """
    trained = open_run(run_path(path))
    return TrainedModel(trained.load_model(device=device, precision=precision), trained.config.eval)
