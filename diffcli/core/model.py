"""The model: frozen extractor and trained decoder joined; images to logits."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.backbone.capture import cuda_graphs
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.classes import IGNORE_ID
from diffcli.config.settings import DEFAULT_UNET_BATCH, ModelConfig
from diffcli.core.decoder import SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import Noise, resize_nearest, seeded_noise
from diffcli.data.images import PIXEL_MEAN, PIXEL_SCALE
from diffcli.runtime.device import Precision

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NoiseSource = Callable[[int, Sequence[str]], Noise]
"""(seed, identities of a batch) -> the Gaussians of one pass over it; `seeded_noise` is the usual one."""


class SegmentationModel:
    """Images to logits. The extractor is frozen; `decoder` is the trained nn.Module.

    Args:
        config: what was built.
        extractor: the frozen half.
        decoder: the trained half, on the extractor's device.
        precision: of the trained part's inference; "float32", or autocast to "bf16" or "fp16".
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        extractor: DiffusionFeatureExtractor,
        decoder: SegmentationDecoder,
        precision: Precision = "float32",
    ) -> None:
        self.config = config
        self.extractor = extractor
        self.decoder = decoder
        self.precision = precision

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.extractor.backbone.device

    def compile(self) -> None:
        """Compile the U-Net (torch.compile) at its first use, which takes minutes; the same numbers to rounding."""
        self.extractor.backbone.network.compile()

    def capture(self) -> None:
        """Launch the U-Net's steps as CUDA graphs from now on; the same numbers. Needs a CUDA device."""
        self.extractor.backbone.network.capture(cuda_graphs())

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the decoder runs."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    @torch.no_grad()
    def logits(
        self,
        images: Tensor,
        *,
        identities: Sequence[str] | None = None,
        references: Sequence[Tensor | None] | None = None,
        noise_source: NoiseSource = seeded_noise,
    ) -> Tensor:
        """B,3,H,W float32 images in [-1,1], any H and W, to B,classes,H,W float32 logits.

        Images are padded right and bottom (0, references 255) to a multiple of 64 and the logits cropped back
        (method section 1).

        Args:
            identities: what seeds each image's noise, with config.inversion.seed; None takes a hash of its pixels.
            references: H,W train ids an image that turn the conditional branch on, of any size; None leaves it off.
            noise_source: what makes the noise of these identities.
        """
        height, width = images.shape[-2:]
        images = images.to(self.device)
        names = list(identities) if identities is not None else [content_identity(image) for image in images]
        noise = noise_source(self.config.inversion.seed, names)
        multiple = self.extractor.backbone.multiple
        padded = pad_to_multiple(images, multiple, value=0.0)
        if references is not None:
            fitted = (
                r if r is None else resize_nearest(r.to(self.device), (height, width)) for r in references
            )
            references = [r if r is None else pad_to_multiple(r, multiple, value=IGNORE_ID) for r in fitted]
        totals: dict[int, Tensor] = {}
        for piece in self.extractor.stream(padded, noise=noise, references=references):
            with self.autocast():
                self.decoder.add(totals, piece)
        with self.autocast():
            coarse = self.decoder.decode(self.decoder.fusion.finish(totals))
        full = F.interpolate(coarse, padded.shape[-2:], mode="bilinear", align_corners=False)
        return full[..., :height, :width]


def build_model(
    config: ModelConfig,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    backbone_precision: Precision | None = None,
    seed: int = 0,
    max_unet_batch: int = DEFAULT_UNET_BATCH,
) -> SegmentationModel:
    """Load the frozen diffusion model and initialise a fresh decoder on top of it.

    Args:
        precision: the autocast dtype of the decoder (whose weights stay float32).
        backbone_precision: the diffusion model's dtype; None takes `precision`.
        seed: of the decoder's initial weights.
        max_unet_batch: most rows of one U-Net call.

    Raises:
        BackboneError: the diffusion model cannot be loaded.
    """
    inversion = config.inversion
    backbone = load_backbone(
        config.backbone,
        prompts=(inversion.prompt, inversion.negative_prompt, *inversion.class_prompts.values()),
        device=torch.device(device),
        dtype=DTYPES[backbone_precision or precision],
        last_timestep=inversion.last_timestep,
    )
    return join(config, backbone, precision=precision, seed=seed, max_unet_batch=max_unet_batch)


def join(
    config: ModelConfig,
    backbone: DiffusionBackbone,
    *,
    precision: Precision = "float32",
    seed: int = 0,
    max_unet_batch: int = DEFAULT_UNET_BATCH,
) -> SegmentationModel:
    """A model on an already loaded backbone, its decoder freshly initialised from `seed`."""
    extractor = DiffusionFeatureExtractor(
        backbone, config.inversion, kinds=config.decoder.features, max_unet_batch=max_unet_batch
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = SegmentationDecoder(
            config.decoder,
            widths=extractor.stage_widths,
            steps=extractor.steps,
            classes=len(config.classes),
        )
    return SegmentationModel(
        config, extractor=extractor, decoder=decoder.to(backbone.device).eval(), precision=precision
    )


def to_model_range(images: Tensor) -> Tensor:
    """B,H,W,3 uint8 to B,3,H,W float32 in [-1,1]."""
    return (images.movedim(-1, 1).float() - PIXEL_MEAN) / PIXEL_SCALE


def pad_to_multiple(x: Tensor, multiple: int, *, value: float) -> Tensor:
    """...,H,W padded right and bottom to the next multiple."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), value=value)


def content_identity(image: Tensor) -> str:
    """An identity for an image without a name: a hash of its pixels."""
    return blake2b(image.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
