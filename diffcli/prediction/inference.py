"""From a trained run to masks: finding its checkpoint, building the model, segmenting images of any size.

A RUN is a run folder, a folder that `diff export` wrote, or a checkpoint file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcli.config.file import load_config, override
from diffcli.config.settings import (
    BackboneConfig,
    DomainConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    Size,
    TrainConfig,
)
from diffcli.core.model import (
    SegmentationModel,
    build_model,
    content_identity,
    segment,
    to_model_range,
)
from diffcli.data.roots import expand_domains
from diffcli.data.transforms import resize_image
from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.prediction.any_image import any_image
from diffcli.runs.checkpoint import Checkpoint, check_fingerprint, load_state, read_checkpoint
from diffcli.runs.exported import EXPORT_BACKBONE, EXPORT_CONFIG, EXPORT_WEIGHTS
from diffcli.runs.folder import CONFIG, LAST
from diffcli.runs.hub import run_path, short_name
from diffcli.runtime import console
from diffcli.runtime.device import resolve_device, resolve_precision
from diffcli.runtime.memory import is_out_of_memory


@dataclass(frozen=True)
class OpenRun:
    """A trained run, read but not yet built."""

    path: Path
    """As the user named it."""
    weights: Path
    """The checkpoint file."""
    checkpoint: Checkpoint
    config: RunConfig
    """The run's settings with the checkpoint's model in them, overrides applied."""

    @property
    def folder(self) -> Path | None:
        """The run's own folder; None for an export or a lone checkpoint file."""
        return self.path if (self.path / CONFIG).is_file() else None

    @property
    def name(self) -> str:
        """What tables call it."""
        path = self.path.resolve()
        return path.stem if path.is_file() else short_name(path) or path.name

    def load_model(self, *, device: str | None = None, precision: str | None = None) -> SegmentationModel:
        """Build the model and load its weights; None takes the settings' own choice (auto, unless overridden).

        Raises:
            ConfigError: the device is not there.
            BackboneError: the diffusion model cannot be loaded.
            CheckpointError: the weights do not fit the (overridden) model settings.
        """
        train = self.config.train
        place = resolve_device(device or train.device)
        chosen = resolve_precision(precision or train.precision, place)
        model = build_model(self.config.model, device=place, precision=chosen, seed=train.seed)
        load_state(model, self.checkpoint.state, where=str(self.weights))
        check_fingerprint(model, self.checkpoint, where=str(self.weights))
        if train.compile:
            compile_unet(model)
        return model


def compile_unet(model: SegmentationModel) -> None:
    """Have the U-Net compiled at its first use, and say so: it is waited for."""
    console.say("the U-Net is compiled at its first use, which takes a minute or more")
    model.compile()


def open_run(path: Path, *, overrides: Sequence[str] = ()) -> OpenRun:
    """Read a run's settings and weights.

    Its training device and precision are forgotten: it may have been trained on another machine. An exported folder
    that holds the frozen model uses that one.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
        ConfigError: an override does not fit.
    """
    path = Path(path)
    weights = locate_checkpoint(path)
    checkpoint = read_checkpoint(weights)
    settings = next((path / name for name in (CONFIG, EXPORT_CONFIG) if (path / name).is_file()), None)
    config = load_config(settings) if settings is not None else RunConfig()
    model = _with_own_backbone(checkpoint.config, path)
    config = config.model_copy(update={"model": model, "train": TrainConfig(seed=config.train.seed)})
    return OpenRun(path, weights, checkpoint, override(config, overrides))


def wanted_domains(
    trained: OpenRun, domains: str | None, root: Path | None, *, otherwise: Sequence[DomainConfig]
) -> list[DomainConfig]:
    """What to evaluate on: names of the run's own domains mean these, any other name the known domain."""
    own = trained.config.data.eval or otherwise
    if domains is None:
        if not own:
            raise ConfigError(
                "no domain is named", where=str(trained.path), hint="--domain NAME, or --domain all"
            )
        return list(own)
    if root is not None:
        return expand_domains(domains, root=root)
    entries: list[DomainConfig] = []
    for name in (part.strip() for part in domains.split(",")):
        meant = [entry for entry in own if name in (entry.name, entry.domain)]
        entries += meant or expand_domains(name)
    return list({(entry.name, entry.domain, entry.root): entry for entry in entries}.values())


def locate_checkpoint(path: Path) -> Path:
    """The last checkpoint of a run, that of an exported folder, or `path` itself.

    Never the best one by itself: that was chosen by the domains it would be scored on. RUN/checkpoints/best.safetensors
    names it where it is wanted.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    for name in (LAST, EXPORT_WEIGHTS):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        "no checkpoint in this folder" if path.is_dir() else "no such run",
        where=str(path),
        hint="give a run folder (diff train makes one under runs/) or a folder that diff export wrote",
    )


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


def network_image(image: NDArray[np.uint8], size: Size | None) -> NDArray[np.uint8]:
    """An image (H,W,3) at the size that the network sees."""
    return image if size is None else resize_image(image, size)


def segment_images(
    model: SegmentationModel,
    images: Sequence[NDArray[np.uint8]],
    *,
    sizes: Sequence[tuple[int, int]],
    identities: Sequence[str],
    config: EvalConfig,
    references: Sequence[NDArray[np.uint8]] | None = None,
) -> list[Tensor]:
    """Masks of images (h,w,3) of one size: train ids, uint8, at `sizes` (H,W), on the model's device.

    Args:
        identities: what seeds each image's noise.
        references: train ids of the conditional branch, of any size; None leaves it to `config.reference`.

    Raises:
        DiffError: the network's output is not finite, or memory ran out.
    """
    own = None if references is None else [torch.from_numpy(reference) for reference in references]
    try:
        batch = to_model_range(torch.from_numpy(np.stack(images)).to(model.device))
        output = segment(model, batch, config=config, identities=identities, references=own)
        refuse_not_finite(output, model=model, where=identities[0])
        return [predicted_ids(one, size) for one, size in zip(output, sizes, strict=True)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise not_enough_memory(model, images[0], count=len(images), where=identities[0]) from error


def refuse_not_finite(output: Tensor, *, model: SegmentationModel, where: str) -> None:
    """Raise a DiffError where an output holds what is no number."""
    if not torch.isfinite(output).all():
        raise DiffError(
            f"the network's output is not finite in {model.precision}",
            where=where,
            hint="compute more precisely: --set train.precision=float32 (or bf16, where the GPU has it)",
        )


def not_enough_memory(
    model: SegmentationModel, image: NDArray[np.uint8], *, count: int, where: str
) -> DiffError:
    """The error for `count` images (h,w,3) of a size that memory does not hold."""
    height, width = image.shape[:2]
    return DiffError(
        f"not enough memory on {model.device} for {count} x {width}x{height} pixels",
        where=where,
        hint="--set eval.batch_size=1, a smaller eval.size (--set eval.size=1024x512), or --set eval.mode=slide",
    )


def predicted_ids(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """classes,h,w logits to H,W uint8: the argmax of the logits resized bilinearly.

    One class is resized at a time: all of them at a photograph's full size would take gigabytes.
    """
    best, ids = None, torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for train_id, plane in enumerate(logits):
        full = F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        if best is None:
            best = full
        else:
            ids.masked_fill_(full > best, train_id)
            best = torch.maximum(best, full)
    return ids


def _with_own_backbone(model: ModelConfig, folder: Path) -> ModelConfig:
    """The settings of a model whose exported folder holds the frozen part: it is taken from there."""
    for source in (folder / EXPORT_BACKBONE, folder / f"{EXPORT_BACKBONE}.safetensors"):
        if source.exists():
            own = {"source": str(source), "revision": None, "unet_weights": None}
            backbone = model.backbone.model_copy(update=own)
            return model.model_copy(update={"backbone": BackboneConfig.model_validate(backbone.model_dump())})
    return model
