"""TensorBoard, Weights & Biases and MLflow: numbers, pictures and the report, besides the files of the run folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from diffcli.config.base import as_plain, flat
from diffcli.config.settings import RunConfig
from diffcli.errors import ConfigError
from diffcli.runs.folder import REPORT_PAGE, REPORT_TEXT


def start_trackers(accelerator: Accelerator, config: RunConfig, *, name: str) -> None:
    """Open a run called `name` in each tracker, with the settings as dotted keys.

    Raises:
        ConfigError: a tracker cannot be started: no server, no login, a setting of its own.
    """
    plain = flat(as_plain(config))
    settings = {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in plain.items()
    }
    kwargs = {"wandb": {"name": name}, "mlflow": {"run_name": name}}
    try:
        accelerator.init_trackers(name, config=settings, init_kwargs=kwargs)
    except Exception as error:  # each tracker has its own, and those of its network and database
        words = " ".join(str(error).split())
        raise ConfigError(
            f"the trackers ({', '.join(config.train.trackers)}) cannot be started: {words[:300]}",
            hint="follow that, or leave it out of train.trackers",
        ) from error


def flat_numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line of metrics.jsonl under names with slashes: class_iou/night/road."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = value
    return numbers


def track_pictures(trackers: Sequence[Any], pictures: Sequence[Path], *, step: int) -> None:
    """Send pictures to the trackers, each under its name (validation pictures under the name of their folder)."""
    for picture in pictures:
        name = picture.parent.name if picture.stem.isdigit() else picture.stem
        for tracker in trackers:
            match tracker.name:
                case "tensorboard":
                    pixels = np.asarray(Image.open(picture).convert("RGB"))[None]
                    tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
                case "wandb":
                    tracker.log_images({name: [Image.open(picture)]}, step=step)
                case "mlflow":
                    tracker.log_artifact(str(picture), name)


def track_report(trackers: Sequence[Any], folder: Path, *, step: int) -> None:
    """Send the final report, as Markdown to TensorBoard, as the page to the others."""
    for tracker in trackers:
        match tracker.name:
            case "tensorboard":
                text = (folder / REPORT_TEXT).read_text(encoding="utf-8")
                tracker.writer.add_text("report", text, global_step=step)
            case "wandb":
                import wandb

                page = (folder / REPORT_PAGE).read_text(encoding="utf-8")
                tracker.log({"report": wandb.Html(page)}, step=step)
            case "mlflow":
                tracker.log_artifact(str(folder / REPORT_PAGE), "report")
