"""`diff train`: the IPKL recipe (method sections 2 and 3) from a config to a finished run folder.

A run is a function of its config: sampling, augmentation, dropout and noise are all keyed by (seed, iteration), so that
resuming needs only the weights, the optimizer and the iteration, and continues as if nothing had happened.

Several processes (`torchrun`, `accelerate launch`) share an iteration as one process would a batch as many times as
large: draws are dealt out in order, gradients and logged losses are means over all images, BatchNorm sees all of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffcli.commands.tables import print_table
from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.errors import DataError
from diffcli.evaluation.evaluator import DomainScores
from diffcli.evaluation.report import build_report, counted, write_picture
from diffcli.evaluation.tables import summary_table
from diffcli.files import write_text
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import (
    BEST,
    CONFIG,
    PICTURE,
    REPORT,
    RESUME,
    RUNS,
    VERSIONS,
    create_run,
    find_unfinished,
    versions,
)
from diffcli.runtime import console, distributed
from diffcli.runtime.signals import graceful_stop
from diffcli.training.accelerator import build_accelerator
from diffcli.training.loop import fit
from diffcli.training.prompts import prompts_unheard
from diffcli.training.samples import check_samples, open_domains, training_set
from diffcli.training.selection import select, with_held_out
from diffcli.training.trainer import Trainer, build_trainer, load_model
from diffcli.training.validation import validate


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff train` is asked for."""

    config: RunConfig
    config_name: str
    """Name of the YAML, which names the run where `config.name` does not."""
    resume: bool = False
    """Continue the newest unfinished run of that name."""
    runs: Path = RUNS
    """Folder of all runs."""


def run(request: Request) -> None:
    """Train, evaluate on every domain of data.eval, and leave a finished run folder.

    Raises:
        DataError, BackboneError, CheckpointError, TrainingError: say what is wrong and what is kept.
    """
    config, resume, runs = with_held_out(request.config), request.resume, request.runs
    name = config.name or request.config_name
    unfinished = (
        distributed.broadcast(lambda: find_unfinished(name, runs=runs, config=config)) if resume else None
    )
    accelerator = build_accelerator(config, runs=runs)
    source, targets = open_domains(config)
    selection = select(config, source, targets)
    checked = distributed.broadcast(lambda: check_samples(config, source, targets))
    samples = training_set(config, source, checked.statistics)
    for line in selection.overlaps():
        console.warn(line)
    if targets:
        console.say(f"best checkpoint: {selection.describe()}")
    with distributed.raise_together():
        model = load_model(config, accelerator)
    if config.train.loss.ipkl and accelerator.is_main_process:
        unheard = prompts_unheard(samples, model.extractor)
        if unheard:
            console.warn(unheard)
    # last: what fails before leaves no folder
    folder = unfinished or distributed.broadcast(lambda: create_run(name, runs=runs))
    trainer = build_trainer(
        config,
        folder=folder,
        accelerator=accelerator,
        model=model,
        samples=samples,
        targets=targets,
        selection=selection,
        skipped=checked.skipped,
    )
    if accelerator.is_main_process:
        write_text(folder / CONFIG, dump_config(config))
        write_text(folder / VERSIONS, json.dumps(versions(), indent=2))
    if resume:
        with distributed.raise_together():
            trainer.restore()
    with graceful_stop() as stop:
        fit(trainer, stop)
    _finish(trainer)


def _finish(trainer: Trainer) -> None:
    """The last validation, the report, the picture and the table.

    Raises:
        DataError: some samples or domains could not be scored; the report holds the others.
    """
    scores, problems = validate(trainer)
    if not trainer.accelerator.is_main_process:
        return
    for tracker in trainer.accelerator.trackers:
        tracker.finish()
    model = trainer.config.model
    if not (trainer.folder / BEST).is_file():
        save_checkpoint(trainer.folder / BEST, trainer.model, info={"iteration": trainer.iteration})
    if scores:
        write_picture(trainer.folder / PICTURE, scores, model=model)
    training = {
        "iterations": trainer.iteration,
        "best": trainer.best,
        "selected_on": list(trainer.selection.domains),
        "shared_images": trainer.selection.shared,
        "skipped_samples": len(trainer.skipped.faults),
        **_unseen(trainer, scores),
    }
    report = build_report(scores, model=model, settings=trainer.config.eval, training=training)
    write_text(trainer.folder / REPORT, json.dumps(report.as_json(), indent=2))
    (trainer.folder / RESUME).unlink(missing_ok=True)
    console.print_record({"run": trainer.folder, **report.as_json()})
    if scores:
        print_table(summary_table(report))
        _say_unseen(training)
    for line in [*trainer.selection.overlaps(), *filter(None, [trainer.skipped.summary()])]:
        console.warn(line)
    console.say(f"run folder: {trainer.folder}")
    if problems:
        raise DataError(
            f"not everything could be scored: {'; '.join(problems)}",
            where=str(trainer.folder / REPORT),
            hint="training is complete; fix the files and score again: diff eval",
        )


def _unseen(trainer: Trainer, scores: Sequence[DomainScores]) -> dict[str, Any]:
    """The source, and the mean mIoU over the domains of which training has seen nothing."""
    names = counted([one.name for one in scores if one.name not in trainer.selection.seen])
    unseen = [one.scores.mean_iou for one in scores if one.name in names]
    mean = float(np.nanmean(unseen)) if unseen else None
    return {
        "source": trainer.config.data.train.domain,
        "unseen_domains": len(unseen),
        "mean_iou_unseen": mean,
    }


def _say_unseen(training: dict[str, Any]) -> None:
    if training["unseen_domains"]:
        mean, count = 100 * training["mean_iou_unseen"], training["unseen_domains"]
        console.print_text(f"mean mIoU over {count} domains never seen in training: {mean:.2f}")
