"""A trained run as the segmenter's network: a plain pass, and test-time variants and draws of noise around it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcli.config.settings import EvalConfig
from diffcli.core.inversion import Noise, seeded_noise
from diffcli.core.model import SegmentationModel, to_model_range
from diffcli.core.noise_field import field_noise
from diffcli.drawing.pictures import Pixels, class_palette
from diffcli.errors import DiffError
from diffcli.prediction.segmenter import Maps, OutOfMemory, Segmenter
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime.memory import is_out_of_memory

LARGEST_BATCH = 32
"""Where `--batch auto` begins on a GPU."""
CPU_BATCH_PIXELS = 256 * 256
"""Pixels of a batch of `--batch auto` on a CPU: larger ones only take more memory there."""

References = Sequence[Tensor | None] | None
Pass = Callable[[Tensor, Sequence[str], References], Tensor]
"""B,3,H,W images in [-1,1], their identities and references to B,classes,H,W."""


class TorchArrays:
    """`diffcli.prediction.planes.Arrays` of PyTorch, on the maps' own device."""

    @staticmethod
    def resize(plane: Tensor, size: tuple[int, int]) -> Tensor:
        resized: Tensor = F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        return resized

    @staticmethod
    def softmax(maps: Tensor) -> Tensor:
        return maps.softmax(0)

    @staticmethod
    def largest(maps: Tensor) -> Tensor:
        return maps.amax(0)

    @staticmethod
    def where(chosen: Tensor, yes: Any, no: Any) -> Tensor:
        return torch.where(chosen, yes, no)

    @staticmethod
    def zeros(like: Tensor) -> Tensor:
        return torch.zeros_like(like, dtype=torch.uint8)

    @staticmethod
    def numpy(plane: Tensor) -> NDArray[Any]:
        plane = plane.float() if plane.is_floating_point() else plane
        return np.asarray(plane.cpu().numpy())


class TrainedNetwork:
    """A trained model as `diffcli.prediction.segmenter.Network`.

    Args:
        model: the model.
        settings: flip and scales, whose softmax maps are averaged.
        samples: draws of noise whose softmax maps are averaged; from 2 on with their disagreement.
    """

    arrays = TorchArrays()

    def __init__(self, model: SegmentationModel, settings: EvalConfig, *, samples: int = 1) -> None:
        self.model, self.settings, self.samples = model, settings, samples
        self.classes = len(model.config.classes)
        self.multiple = model.extractor.backbone.multiple
        self.averages_variants = settings.flip or settings.scales != (1.0,)
        self.gives_probabilities = self.averages_variants or samples > 1

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def evaluations(self) -> int:
        """U-Net evaluations so far."""
        return self.model.extractor.backbone.evaluations

    def batch_for(self, pixels: int) -> int:
        """Images of so many pixels to begin with where the batch size is found by trying."""
        if self.device.type != "cpu":
            return LARGEST_BATCH
        return max(1, min(LARGEST_BATCH, CPU_BATCH_PIXELS // pixels))

    def maps(
        self,
        images: Sequence[Pixels],
        *,
        identities: Sequence[str],
        references: Sequence[Pixels | None] | None,
        origin: tuple[int, int] | None,
    ) -> Maps:
        """See `Network.maps`; the tiles of one image see parts of one field of noise."""
        given = None
        if references is not None:
            given = [None if one is None else torch.from_numpy(one) for one in references]
        try:
            batch = to_model_range(torch.from_numpy(np.stack(images)).to(self.device))
            return self._draws(batch, identities, given, origin)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory

    def _draws(
        self, images: Tensor, names: Sequence[str], references: References, origin: tuple[int, int] | None
    ) -> Maps:
        """One pass, or the mean of the softmax maps of several draws of noise, with their disagreement.

        The disagreement is the mutual information of class and draw, entropy of the mean minus mean of the entropies,
        as a share of the largest it can be: 0 where all draws say the same, 1 where each is sure of another class.
        """
        if self.samples == 1:
            return Maps(self._variants(images, names, references, origin))
        total, entropies = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for draw in range(self.samples):
            drawn = [name if draw == 0 else f"{name}#{draw}" for name in names]
            output = self._variants(images, drawn, references, origin)
            probabilities = output if self.averages_variants else output.softmax(1)
            total = total + probabilities
            entropies = entropies + torch.special.entr(probabilities).sum(1)
        mean = total / self.samples
        largest = math.log(min(self.samples, self.classes))
        gained = torch.special.entr(mean).sum(1) - entropies / self.samples
        return Maps(mean, (gained / largest).clamp(0, 1))

    def _variants(
        self, images: Tensor, names: Sequence[str], references: References, origin: tuple[int, int] | None
    ) -> Tensor:
        """Logits of one pass, or the mean of the softmax maps of all scales and the mirrored image."""
        settings = self.settings
        once = self._plain(origin)
        if self.averages_variants:
            mirrors = (False, True) if settings.flip else (False,)
            variants = [(scale, mirrored) for scale in settings.scales for mirrored in mirrors]
            total = torch.zeros((), device=self.device)
            for scale, mirrored in variants:
                total = total + varied(
                    once, images, names, references, scale=scale, mirrored=mirrored
                ).softmax(1)
            output = total / len(variants)
        else:
            output = once(images, names, references)
        if not torch.isfinite(output).all():
            raise DiffError(
                f"the network's output is not finite in {self.model.precision}",
                where=names[0],
                hint="compute more precisely: --set runtime.precision=float32 (or bf16, where the GPU has it)",
            )
        return output

    def _plain(self, origin: tuple[int, int] | None) -> Pass:
        """One pass of the model; `origin` places its images in the noise field of a larger one."""
        cell = self.model.extractor.backbone.downsample

        def noise(seed: int, names: Sequence[str]) -> Noise:
            if origin is None:
                return seeded_noise(seed, names)
            return field_noise(seed, names, origin=(origin[0] // cell, origin[1] // cell))

        return lambda images, names, references: self.model.logits(
            images, identities=names, references=references, noise_source=noise
        )


@dataclass(frozen=True)
class RunSource:
    """A trained run as `diffcli.prediction.segmenter.Source`."""

    run: OpenRun

    @property
    def path(self) -> Path:
        """As the user named it."""
        return self.run.path

    @property
    def description(self) -> str:
        """The run, its checkpoint and iteration."""
        return self.run.description

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by train id."""
        return self.run.config.model.classes

    @property
    def palette(self) -> Pixels:
        """Colours (256, 3) by train id."""
        return class_palette(self.run.config.model)

    @property
    def settings(self) -> EvalConfig:
        """How it segments."""
        return self.run.config.eval

    def load(self, *, device: str | None, samples: int = 1, images: int = 0) -> TrainedNetwork:
        """The network for so many images, with `samples` draws of noise averaged."""
        model = self.run.load_model(device=device, images=images * samples)
        return TrainedNetwork(model, self.settings, samples=samples)


def open_source(path: Path, *, overrides: Sequence[str] = ()) -> RunSource:
    """A run folder, an exported folder for diffcli or a checkpoint file. Raises: see `open_run`."""
    return RunSource(open_run(path, overrides=overrides))


def trained_segmenter(model: SegmentationModel, settings: EvalConfig) -> Segmenter:
    """The segmenter of a trained model with its run's settings, as eval, compare, submit and training use it."""
    return Segmenter(TrainedNetwork(model, settings), settings, batch=settings.batch_size)


def varied(
    once: Pass,
    images: Tensor,
    names: Sequence[str],
    references: References,
    *,
    scale: float,
    mirrored: bool,
) -> Tensor:
    """One test-time variant: scaled and mirrored on the way in, back on the way out."""
    size = images.shape[-2:]
    if scale != 1.0:
        target = [max(1, round(side * scale)) for side in size]
        images = F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=scale < 1)
    if mirrored:
        images = images.flip(-1)
        references = None if references is None else [r if r is None else r.flip(-1) for r in references]
    output = once(images, names, references)
    output = output.flip(-1) if mirrored else output
    return F.interpolate(output, size, mode="bilinear", align_corners=False) if scale != 1.0 else output
