"""The diffusion features as a backbone for other tasks: a detector, a depth head, whatever takes four maps.

from diffcli import DIFFBackbone
backbone = DIFFBackbone.from_source("embedded", schedule="one")   # or .from_run("runs/quickstart")
maps = backbone(images)                                           # B,3,H,W in [-1,1] -> four maps, finest first
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffcli.config.settings import (
    DEFAULT_UNET_BATCH,
    BackboneConfig,
    DecoderConfig,
    InversionConfig,
    ModelConfig,
)
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import SegmentationModel, build_model, content_identity, pad_to_multiple
from diffcli.runs.hub import run_path
from diffcli.runs.opening import open_run
from diffcli.runtime.device import Precision

_FROZEN = "extractor"


class DIFFBackbone(nn.Module):
    """Frozen diffusion features, and the trained fusion and pyramid that make four maps of them (method 1.1 to 1.5).

    Only fusion and pyramid are parameters, in `state_dict()` and trained. The frozen diffusion model is no submodule:
    it follows `.to(device)`, keeps its precision, and is loaded again where a pickle of this module is opened; deep
    copies share it. The noise in an evaluation depends on the image and the seed alone; in training it is new in every
    pass, in the same order after the same seed.

    Attributes:
        out_channels: channels of the four maps, finest first.
        out_strides: pixels a cell of each map covers: 4, 8, 16, 32 with Stable Diffusion's VAE, half as many with
            the embedded one, whose latents are finer.
    """

    passes: Tensor
    """Passes in training so far; counted in the state dict, so that a resumed training draws on."""

    def __init__(self, model: SegmentationModel) -> None:
        """Take a model's extractor, fusion and pyramid; its head is left."""
        super().__init__()
        self.config, self.precision = model.config, model.precision
        self.extractor, self.max_unet_batch = model.extractor, model.extractor.max_unet_batch
        self.fusion, self.pyramid = model.decoder.fusion, model.decoder.pyramid
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        coarse_first = self.fusion.out_channels
        self.out_channels = (model.config.decoder.channels[0], *reversed(coarse_first))
        self.out_strides = _strides(model.extractor)

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        seed: int = 0,
        max_unet_batch: int = DEFAULT_UNET_BATCH,
    ) -> Self:
        """Fresh fusion and pyramid, initialised from `seed`, on the diffusion model that the settings name.

        Args:
            config: `model` of a YAML; its class names matter to no map.
            precision: of the frozen model; fusion and pyramid stay float32 (run them under autocast as you like).
            max_unet_batch: most rows (an image with one of its prompts) of one U-Net call; limits memory.

        Raises:
            BackboneError: the diffusion model cannot be loaded.
        """
        model = build_model(
            config, device=device, precision=precision, seed=seed, max_unet_batch=max_unet_batch
        )
        return cls(model)

    @classmethod
    def from_source(
        cls,
        source: str,
        *,
        schedule: str | Mapping[str, Any] = "one",
        channels: Sequence[int] = (256, 512, 1024, 2048),
        fusion: str = "direct",
        device: str = "cpu",
        precision: Precision = "float32",
        seed: int = 0,
    ) -> Self:
        """`from_config` with the settings that matter most.

        Args:
            source: a hub id, a diffusers folder, a .safetensors file, or "embedded".
            schedule: its name (one, five, visit9, paper, clean) or its fields: how often the U-Net is evaluated.
            channels: of the four maps, finest first.
            fusion: direct, vanilla (whose three coarser maps have the U-Net's own widths) or mixing.

        Raises:
            BackboneError: the diffusion model cannot be loaded.
        """
        config = ModelConfig(
            backbone=BackboneConfig(source=source),
            inversion=InversionConfig.model_validate({"schedule": schedule}),
            decoder=DecoderConfig.model_validate({"channels": tuple(channels), "fusion": fusion}),
        )
        return cls.from_config(config, device=device, precision=precision, seed=seed)

    @classmethod
    def from_run(cls, run: str | Path, *, device: str = "auto", precision: str = "auto") -> Self:
        """Fusion and pyramid as a run trained them.

        Args:
            run: what `diffcli.load` takes.

        Raises:
            DiffError: see `diffcli.load`.
        """
        return cls(open_run(run_path(run)).load_model(device=device, precision=precision))

    @property
    def device(self) -> torch.device:
        """Where the trained part lives."""
        return next(self.fusion.parameters()).device

    def forward(self, images: Tensor, *, identities: Sequence[str] | None = None) -> list[Tensor]:
        """B,3,H,W images in [-1,1], any H and W, to four maps B,out_channels[i],ceil(H/out_strides[i]),ceil(W/...).

        Images are padded right and bottom to what the U-Net needs, and the maps cropped back.

        Args:
            identities: what seeds each image's noise, with config.inversion.seed; None takes a hash of its pixels.
        """
        features = self._extract(images, self._identities(images, identities))
        if not torch.is_autocast_enabled(self.device.type):
            dtype = next(self.fusion.parameters()).dtype
            features = [stack.to(dtype) for stack in features]
        height, width = images.shape[-2:]
        maps = self.pyramid(self.fusion(features))
        return [
            one[..., : -(-height // stride), : -(-width // stride)]
            for one, stride in zip(maps, self.out_strides, strict=True)
        ]

    def _identities(self, images: Tensor, given: Sequence[str] | None) -> list[str]:
        """What seeds each image's noise in this pass; counts the passes of training."""
        names = list(given) if given is not None else [content_identity(image) for image in images]
        if not self.training:
            return names
        self.passes += 1
        count = int(self.passes)
        return [f"pass {count}: {name}" for name in names]

    def _extract(self, images: Tensor, identities: Sequence[str]) -> list[Tensor]:
        """The frozen features, on the trained part's device, whatever autocast the caller is under."""
        place = self.extractor.backbone.device
        noise = seeded_noise(self.config.inversion.seed, identities)
        padded = pad_to_multiple(
            images.detach().to(place, torch.float32), self.extractor.backbone.multiple, value=0.0
        )
        with torch.autocast(place.type, enabled=False):
            stacks = self.extractor.extract(padded, noise=noise)
        return [stack.to(self.device) for stack in stacks]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Behind `.to()`, `.cuda()` and `.cpu()`, the parents' too: the frozen model follows to the device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.extractor.backbone.to(self.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the frozen model, which is gigabytes and stays on the disk."""
        return {name: value for name, value in self.__dict__.items() if name != _FROZEN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        model = build_model(
            self.config,
            device=self.device,
            precision=self.precision,
            max_unet_batch=self.max_unet_batch,
        )
        self.extractor = model.extractor

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of the trained weights on the same frozen model."""
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        for name, value in self.__dict__.items():
            copy.__dict__[name] = value if name == _FROZEN else deepcopy(value, memo)
        return copy


def _strides(extractor: DiffusionFeatureExtractor) -> tuple[int, ...]:
    """Pixels a cell of each map covers, finest first: the read stages', and half the finest one of these."""
    levels = len(extractor.backbone.unet.up_blocks)
    read = sorted(extractor.backbone.downsample * 2 ** (levels - 1 - stage) for stage in extractor.stages)
    return (read[0] // 2, *read)
