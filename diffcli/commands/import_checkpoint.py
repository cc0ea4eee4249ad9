"""`diff import`: a checkpoint that was trained with the published code, as a run that eval, predict and export take."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffcli.config.file import dump_config
from diffcli.config.settings import ModelConfig, RunConfig
from diffcli.core.model import SegmentationModel, build_model
from diffcli.errors import CheckpointError
from diffcli.files import write_text
from diffcli.runs.checkpoint import load_state, save_checkpoint
from diffcli.runs.folder import BEST, CONFIG, LAST, REPORT, VERSIONS, versions
from diffcli.runs.published import (
    PublishedDecoder,
    check_inputs,
    convert_state,
    infer_decoder,
    read_published,
)
from diffcli.runtime import console


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff import` is asked for."""

    checkpoint: Path
    """A checkpoint file of the published code."""
    output: Path
    """The run folder to write."""
    config: RunConfig = field(default_factory=RunConfig)
    """The settings that it was trained with; by default the published ones."""


def run(request: Request) -> Path:
    """Write a finished run folder without scores, and return it.

    Widths, fusion and number of classes are read off the tensors; diffusion model, schedule and class names come from
    the settings.

    Raises:
        CheckpointError: this is not a checkpoint of the published code, or not one of the configured model; or the
            output exists.
        BackboneError: the diffusion model cannot be loaded.
    """
    checkpoint, output, settings = request.checkpoint, request.output, request.config
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            "there is something already", where=str(output), hint="choose another folder: -o RUN"
        )
    try:
        state = convert_state(read_published(checkpoint), where=str(checkpoint))
        found = infer_decoder(state)
        model_config = resolve_model(settings.model, found)
        model = build_model(model_config, precision="fp16")
        check_inputs(found, channels=model.extractor.channels, steps=model.extractor.steps)
    except CheckpointError as error:
        error.where = error.where or str(checkpoint)
        raise
    load_state(model, state, where=str(checkpoint))
    _write(output, settings.model_copy(update={"model": model_config}), model, origin=checkpoint)
    explain(model_config, found, output)
    return output


def resolve_model(config: ModelConfig, found: PublishedDecoder) -> ModelConfig:
    """`config` with the checkpoint's decoder; v is read as noise, as the published code did, unless `config` sets it.

    Raises:
        CheckpointError: another number of classes.
    """
    if found.classes != len(config.classes):
        raise CheckpointError(
            f"it segments {found.classes} classes, the settings name {len(config.classes)}",
            hint="name them in model.classes (and model.inversion.class_prompts): --config CONFIG.yaml",
        )
    backbone = config.backbone
    if "prediction_type" not in backbone.model_fields_set:
        backbone = backbone.model_copy(update={"prediction_type": "as_epsilon"})
    return config.model_copy(update={"backbone": backbone, "decoder": found.config(config.decoder)})


def _write(folder: Path, config: RunConfig, model: SegmentationModel, *, origin: Path) -> None:
    """The files of a finished run; the report last, for it is what makes the run count as finished."""
    info = {"imported_from": origin.name}
    for name in (LAST, BEST):
        save_checkpoint(folder / name, model, info=info)
    write_text(folder / CONFIG, dump_config(config))
    write_text(folder / VERSIONS, json.dumps(versions(), indent=2))
    report: dict[str, Any] = {
        "classes": list(config.model.classes),
        "domains": [],
        "mean_over_domains": {},
        **info,
    }
    write_text(folder / REPORT, json.dumps(report, indent=2))


def explain(config: ModelConfig, found: PublishedDecoder, folder: Path) -> None:
    """Say what was found, and what is not as in the published code."""
    console.say(f"run folder: {folder}")
    console.say(
        f"{found.fusion} fusion of {', '.join(map(str, found.inputs))} channels, {found.classes} classes"
    )
    if config.backbone.prediction_type == "as_epsilon":
        console.say(
            "prediction_type is as_epsilon: the published code read a v-prediction model's output as noise, "
            "and these weights were trained on that"
        )
    if found.fusion != "direct":
        console.warn(
            f"the published {found.fusion} fusion read other channels than it was meant to, ours reads them all: "
            "predictions will differ from those of the published code, so train these weights further"
        )
