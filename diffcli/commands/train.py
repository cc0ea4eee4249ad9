"""`diff train`: the IPKL recipe (method sections 2 and 3) from a config to a finished run folder.

A run is a function of its config: sampling, augmentation, dropout and noise are all keyed by (seed, iteration), so that
resuming needs only the weights, the optimizer and the iteration, and continues as if nothing had happened.

Several processes (`torchrun`, `accelerate launch`) share an iteration as one process would a batch as many times as
large: draws are dealt out in order, gradients and logged losses are means over all images, BatchNorm sees all of them.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from diffcli import __version__
from diffcli.commands.tables import print_table
from diffcli.config.settings import RunConfig
from diffcli.errors import ConfigError, DataError
from diffcli.evaluation.evaluator import DomainScores
from diffcli.evaluation.files import choose_examples, write_reports
from diffcli.evaluation.html import Examples
from diffcli.evaluation.report import build_report, counted
from diffcli.evaluation.tables import summary_table
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import (
    BEST,
    CURVES,
    LAST,
    PICTURE,
    REPORT,
    REPORT_PAGE,
    RESUME,
    RUNS,
)
from diffcli.runs.provenance import write_provenance
from diffcli.runtime import console, distributed, words
from diffcli.runtime.signals import graceful_stop
from diffcli.training.accelerator import build_accelerator
from diffcli.training.init_from import initialise
from diffcli.training.loop import fit
from diffcli.training.prompts import prompts_unheard
from diffcli.training.resume import restore
from diffcli.training.run_folder import check_space, locked_run, removed_on_failure
from diffcli.training.samples import check_samples, open_domains, training_set
from diffcli.training.selection import select, with_held_out
from diffcli.training.trackers import track_report
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


def run(request: Request) -> Path:
    """Train, evaluate on every domain of data.eval, and leave a finished run folder, which is returned.

    Raises:
        DataError, BackboneError, CheckpointError, TrainingError: say what is wrong and what is kept.
    """
    config, name = with_held_out(request.config), request.config.name or request.config_name
    accelerator = build_accelerator(config, runs=request.runs)
    with locked_run(name, config=config, resume=request.resume, runs=request.runs) as folder:
        with nullcontext() if request.resume else removed_on_failure(folder):
            trainer = _prepare(config, folder, accelerator, resume=request.resume)
        if request.resume:
            restore(trainer)
        with graceful_stop() as stop:
            stopped_early = fit(trainer, stop)
        _finish(trainer, *(stopped_early or validate(trainer)))
    return folder


def _prepare(config: RunConfig, folder: Path, accelerator: Accelerator, *, resume: bool) -> Trainer:
    """Open the data, load the model, and check that there is room for the checkpoints."""
    source, targets = open_domains(config)
    selection = select(config, source, targets)
    if config.train.patience and not (config.train.validate_interval and selection.domains):
        raise ConfigError(
            "train.patience counts validations, and there are none to choose the best checkpoint by",
            hint="set train.validate_interval and data.eval, or train.patience: null",
        )
    checked = distributed.broadcast(lambda: check_samples(config, source, targets))
    samples = training_set(config, source, checked.statistics)
    for line in selection.overlaps():
        console.warn(line)
    if targets:
        console.say(f"best checkpoint: {selection.describe()}")
    with distributed.raise_together():
        model = load_model(config, accelerator)
        state = model.decoder.state_dict().values()
        if config.train.init_from is not None and not resume:
            initialise(model, config.train.init_from, runs=folder.parent)
        if accelerator.is_main_process:
            write_provenance(folder, config, processes=distributed.world_size())
        check_space(folder, weights=sum(tensor.numel() * tensor.element_size() for tensor in state))
        if config.train.loss.ipkl and accelerator.is_main_process:
            unheard = prompts_unheard(samples, model.extractor)
            if unheard:
                console.warn(unheard)
    return build_trainer(
        config,
        folder=folder,
        accelerator=accelerator,
        model=model,
        samples=samples,
        targets=targets,
        selection=selection,
        skipped=checked.skipped,
    )


def _finish(trainer: Trainer, scores: list[DomainScores], problems: list[str]) -> None:
    """The report, the picture and the table of the last validation.

    Raises:
        DataError: some samples or domains could not be scored; the report holds the others.
    """
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.config.model
    if not (trainer.folder / BEST).is_file():
        save_checkpoint(trainer.folder / BEST, trainer.model, info={"iteration": trainer.iteration})
    training = {
        "iterations": trainer.iteration,
        "best": trainer.best,
        "selected_on": list(trainer.selection.domains),
        "shared_images": trainer.selection.shared,
        "changed_settings": trainer.changes,
        "skipped_samples": len(trainer.skipped.faults),
        **_unseen(trainer, scores),
    }
    report = build_report(
        scores,
        model=model,
        settings=trainer.config.eval,
        training=training,
        diffcli=__version__,
        run=str(trainer.folder),
        checkpoint=Path(LAST).name,
        iteration=trainer.iteration,
        backbone=model.backbone.source,
        device=str(trainer.model.device),
        precision=trainer.model.precision,
    )
    write_reports(trainer.folder, report, scores, model=model, examples=_examples(trainer, scores))
    track_report(trainer.accelerator.trackers, trainer.folder, step=trainer.iteration)
    for tracker in trainer.accelerator.trackers:
        tracker.finish()
    (trainer.folder / RESUME).unlink(missing_ok=True)
    console.print_record({"run": trainer.folder, **report.as_json()})
    if scores:
        print_table(summary_table(report))
        _say_unseen(training)
    for line in [*trainer.selection.overlaps(), *filter(None, [trainer.skipped.summary()])]:
        console.warn(line)
    for file in (REPORT_PAGE, PICTURE, CURVES):
        if (trainer.folder / file).is_file():
            console.say(f"see {trainer.folder / file}")
    console.say(f"next: diff predict IMAGES --run {trainer.folder}")
    if problems:
        raise DataError(
            f"not everything could be scored: {'; '.join(problems)}",
            where=str(trainer.folder / REPORT),
            hint="training is complete; fix the files and score again: diff eval",
        )


def _examples(trainer: Trainer, scores: Sequence[DomainScores]) -> list[Examples]:
    """The worst images and the median one of each domain that was scored."""
    segmenter = trained_segmenter(trainer.model, trainer.config.eval)
    opened = {target.name: target for target in trainer.targets}
    trainer.model.decoder.eval()
    return [choose_examples(segmenter, opened[one.name], one) if one.name in opened else [] for one in scores]


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
        console.print_text(
            f"mean mIoU over {words.counted(count, 'domain')} never seen in training: {mean:.2f}"
        )
