"""Scores of every target domain while the weights change, and the best checkpoint so far."""

from collections.abc import Sequence

import numpy as np

from diffcli.data.dataset import Domain
from diffcli.errors import DataError
from diffcli.evaluation.evaluator import DomainScores, evaluate_domain
from diffcli.evaluation.parts import score_all
from diffcli.evaluation.report import counted, write_picture
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import BEST, CURVES, VALIDATION
from diffcli.runtime import console, words
from diffcli.runtime.device import resolve_data_workers
from diffcli.training.history import write_history
from diffcli.training.trackers import track_pictures
from diffcli.training.trainer import Trainer

Validation = tuple[list[DomainScores], list[str]]
"""Scores of the domains that could be scored, and what was left out."""


def validate(trainer: Trainer) -> Validation:
    """Evaluate on every target domain, log the scores and keep the best checkpoint (`Selection`).

    A domain or sample that cannot be read costs no training: it is left out and reported in the second value.
    """
    model, config = trainer.model, trainer.config
    segmenter = trained_segmenter(model, config.eval)
    problems: list[str] = []

    def score(domain: Domain) -> DomainScores | None:
        with console.progress(f"evaluate {domain.name}", len(domain)) as bar:
            try:
                found = evaluate_domain(
                    segmenter,
                    domain,
                    workers=resolve_data_workers(config.runtime.data_workers),
                    progress=bar.update,
                )
            except DataError as error:
                problems.append(f"{domain.name}: {error.message} ({error.where})")
                return None
        if found.skipped:
            problems.append(
                f"{domain.name}: {words.counted(found.skipped, 'sample')} left out, first {found.problems[0]}"
            )
        return found

    model.decoder.eval()
    scores = [found for found in score_all(trainer.targets, score) if found is not None]
    model.decoder.train()
    for problem in problems:
        console.warn(problem)
    if scores:
        _log_scores(trainer, scores)
        _draw(trainer, scores)
    return scores, problems


def _log_scores(trainer: Trainer, scores: Sequence[DomainScores]) -> None:
    """Log and print the mIoU of every domain, and keep the checkpoint if it is the best so far."""
    means = {one.name: one.scores.mean_iou for one in scores}
    mean = _mean(means, [*means])
    classes = trainer.config.model.classes
    class_iou = {
        one.name: {
            name: None if np.isnan(value) else value
            for name, value in zip(classes, one.scores.iou.tolist(), strict=True)
        }
        for one in scores
    }
    trainer.log(
        {
            "mean_iou": mean,
            **{f"mean_iou/{name}": value for name, value in means.items()},
            "class_iou": class_iou,
        }
    )
    listed = ", ".join(f"{name} {100 * value:.1f}" for name, value in means.items())
    console.say(f"iteration {trainer.iteration}: mIoU {listed}")
    chosen = _mean(means, trainer.selection.domains)
    if chosen > trainer.best.get("mean_iou", -1.0):
        trainer.best = {"iteration": trainer.iteration, "mean_iou": chosen}
        if trainer.accelerator.is_main_process:
            save_checkpoint(trainer.folder / BEST, trainer.model, info=trainer.best)


def is_stale(trainer: Trainer) -> bool:
    """Whether `train.patience` is spent: so many validations have brought no better score."""
    train = trainer.config.train
    if train.patience is None or not train.validate_interval or not trainer.best:
        return False
    return trainer.validated - int(trainer.best["iteration"]) >= train.patience * train.validate_interval


def _draw(trainer: Trainer, scores: Sequence[DomainScores]) -> None:
    """Write the curves so far, and what the model predicts for the same image of each domain as at every validation."""
    if not trainer.accelerator.is_main_process:
        return
    write_history(trainer.folder)
    picture = trainer.folder / VALIDATION / f"{trainer.iteration:06d}.png"
    write_picture(picture, scores, model=trainer.config.model)
    track_pictures(trainer.accelerator.trackers, [picture, trainer.folder / CURVES], step=trainer.iteration)


def _mean(means: dict[str, float], names: Sequence[str]) -> float:
    """Mean over the domains of these names that were scored; not a number where there are none."""
    values = [means[name] for name in counted([name for name in names if name in means])]
    return float(np.nanmean(values)) if values else float("nan")
