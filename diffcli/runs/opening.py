"""A trained run from what names it: its checkpoint, its settings, and the model built from them.

A RUN is a run folder, a folder that `diff export` wrote, or a checkpoint file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffcli.config.file import load_config, override
from diffcli.config.settings import BackboneConfig, ModelConfig, RunConfig, RuntimeConfig
from diffcli.core.model import DTYPES, SegmentationModel, build_model
from diffcli.errors import CheckpointError, ConfigError
from diffcli.runs.checkpoint import Checkpoint, check_fingerprint, load_state, read_checkpoint
from diffcli.runs.exported import EXPORT_BACKBONE, EXPORT_CONFIG, EXPORT_FACTS, EXPORT_WEIGHTS, check_files
from diffcli.runs.folder import CONFIG, LAST
from diffcli.runs.hub import short_name
from diffcli.runtime import console
from diffcli.runtime.device import resolve_backbone_precision, resolve_device, resolve_precision


@dataclass(frozen=True)
class OpenRun:
    """A trained run, read but not yet built."""

    path: Path
    """As the user named it; of a checkpoint in a run folder, that folder."""
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
        name = path.stem if path.is_file() else short_name(path) or path.name
        is_last = self.folder is None or self.weights == self.path / LAST
        return name if is_last else f"{name} ({self.weights.stem})"

    @property
    def description(self) -> str:
        """The run, its checkpoint and iteration, as in "runs/city (last, iteration 400)"."""
        iteration = self.checkpoint.info.get("iteration")
        facts = [] if self.folder is None else [self.weights.stem]
        facts += [] if iteration is None else [f"iteration {iteration}"]
        return f"{self.path} ({', '.join(facts)})" if facts else str(self.path)

    def load_model(
        self, *, device: str | None = None, precision: str | None = None, images: int = 0
    ) -> SegmentationModel:
        """Build the model and load its weights; None takes the settings' own choice (auto, unless overridden).

        Args:
            images: how many it is going to segment, as far as that is known; `runtime.compile: auto` depends on it.

        Raises:
            ConfigError: the device is not there.
            BackboneError: the diffusion model cannot be loaded.
            CheckpointError: the weights do not fit the (overridden) model settings.
        """
        runtime = self.config.runtime
        place = resolve_device(device or runtime.device)
        chosen = resolve_precision(precision or runtime.precision, place)
        model = build_model(
            self.config.model,
            device=place,
            precision=chosen,
            backbone_precision=resolve_backbone_precision(
                runtime.backbone_precision, precision=chosen, device=place
            ),
            seed=self.config.train.seed,
            max_unet_batch=runtime.max_unet_batch,
        )
        load_state(model, self.checkpoint.state, where=str(self.weights))
        check_fingerprint(model, self.checkpoint, where=str(self.weights))
        prepare_unet(model, runtime, images=images)
        return model


COMPILE_REPAYS = 100_000
"""U-Net evaluations from which compiling repays itself on a GPU: it takes minutes, and saves about 2 ms of each
evaluation of Stable Diffusion 2.1 at 512x512 (6.3 ms against 4.4 ms on an H200)."""


def prepare_unet(model: SegmentationModel, runtime: RuntimeConfig, *, images: int) -> None:
    """Check the backbone's precision, then capture and compile the U-Net as the settings say.

    What is waited for, or differs from what was expected, is reported.

    Args:
        images: how many the model is going to see.

    Raises:
        ConfigError: CUDA graphs are asked for on another device.
    """
    on_cuda = model.device.type == "cuda"
    backbone = model.extractor.backbone
    if runtime.backbone_precision == "auto" and DTYPES[model.precision] != backbone.dtype:
        settle_precision(model)
    if runtime.cuda_graphs is True and not on_cuda:
        raise ConfigError(
            f"runtime.cuda_graphs is true, but the device is {model.device}",
            hint="auto uses CUDA graphs wherever the device is a CUDA GPU",
        )
    if runtime.cuda_graphs and on_cuda:
        model.capture()
    evaluations = images * model.extractor.schedule.evaluated_steps
    if wants_compile(runtime.compile, device=model.device, evaluations=evaluations):
        console.say("the U-Net is compiled at its first use, which takes a minute or more")
        model.compile()


def wants_compile(setting: bool | str, *, device: torch.device, evaluations: int) -> bool:
    """Whether `runtime.compile` means to compile for so many U-Net evaluations; auto does on a CUDA GPU alone."""
    if setting == "auto":
        return device.type == "cuda" and evaluations >= COMPILE_REPAYS
    return bool(setting)


def settle_precision(model: SegmentationModel) -> None:
    """Keep the backbone's precision where a test image stays finite in it; else take the trained half's."""
    if not model.extractor.is_finite():
        console.say(f"features overflow in fp16: the diffusion model runs in {model.precision}")
        model.extractor.backbone.cast(DTYPES[model.precision])


def open_run(path: Path, *, overrides: Sequence[str] = ()) -> OpenRun:
    """Read a run's settings and weights.

    Its `runtime` settings are not read: it may have been trained on another machine. An exported folder that holds
    the frozen model uses that one.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
        ConfigError: an override does not fit.
    """
    path = Path(path)
    weights = locate_checkpoint(path)
    checkpoint = read_checkpoint(weights)
    if path.is_file() and path.parent.name == Path(LAST).parent.name and (path.parents[1] / CONFIG).is_file():
        path = path.parents[1]  # a checkpoint of a run has the run's settings
    _check_exported(path)
    settings = next((path / name for name in (CONFIG, EXPORT_CONFIG) if (path / name).is_file()), None)
    config = load_config(settings) if settings is not None else RunConfig()
    model = _with_own_backbone(checkpoint.config, path)
    config = config.model_copy(update={"model": model, "runtime": RuntimeConfig()})
    return OpenRun(path, weights, checkpoint, override(config, overrides))


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


def _check_exported(path: Path) -> None:
    """An exported folder holds what was written into it.

    Raises:
        CheckpointError: its facts are damaged, or a file does not match its checksum.
    """
    facts = path / EXPORT_FACTS
    if not facts.is_file():
        return
    try:
        checksums = dict(json.loads(facts.read_text(encoding="utf-8")).get("checksums", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError("damaged", where=str(facts), hint="export the run again") from error
    check_files(path, checksums)


def _with_own_backbone(model: ModelConfig, folder: Path) -> ModelConfig:
    """The settings of a model whose exported folder holds the frozen part: it is taken from there."""
    for source in (folder / EXPORT_BACKBONE, folder / f"{EXPORT_BACKBONE}.safetensors"):
        if source.exists():
            moved = {"source": str(source), "revision": None, "allow_pickle": False}
            moved |= dict.fromkeys(("unet_weights", "vae", "text_encoder"))
            backbone = model.backbone.model_copy(update=moved)
            return model.model_copy(update={"backbone": BackboneConfig.model_validate(backbone.model_dump())})
    return model
