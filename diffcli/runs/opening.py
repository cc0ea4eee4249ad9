"""A trained run from what names it: its checkpoint, its settings, and the model built from them.

A RUN is a run folder, a folder that `diff export` wrote, or a checkpoint file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcli.config.file import load_config, override
from diffcli.config.settings import BackboneConfig, ModelConfig, RunConfig, TrainConfig
from diffcli.core.model import SegmentationModel, build_model
from diffcli.errors import CheckpointError
from diffcli.runs.checkpoint import Checkpoint, check_fingerprint, load_state, read_checkpoint
from diffcli.runs.exported import EXPORT_BACKBONE, EXPORT_CONFIG, EXPORT_WEIGHTS
from diffcli.runs.folder import CONFIG, LAST
from diffcli.runs.hub import short_name
from diffcli.runtime import console
from diffcli.runtime.device import resolve_device, resolve_precision


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


def _with_own_backbone(model: ModelConfig, folder: Path) -> ModelConfig:
    """The settings of a model whose exported folder holds the frozen part: it is taken from there."""
    for source in (folder / EXPORT_BACKBONE, folder / f"{EXPORT_BACKBONE}.safetensors"):
        if source.exists():
            own = {"source": str(source), "revision": None, "unet_weights": None}
            backbone = model.backbone.model_copy(update=own)
            return model.model_copy(update={"backbone": BackboneConfig.model_validate(backbone.model_dump())})
    return model
