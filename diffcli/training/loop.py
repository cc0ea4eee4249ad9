"""From the current iteration to the last: steps, metrics, validations, checkpoints, and stopping well."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from typing import Any

from diffcli.data.batches import Batch
from diffcli.errors import DiffError, TrainingError
from diffcli.runtime import console, distributed
from diffcli.runtime.console import Bar
from diffcli.runtime.signals import Stop, Stopped, interruptible
from diffcli.runtime.words import counted
from diffcli.training.resume import save, saved
from diffcli.training.run_folder import require_folder
from diffcli.training.samples import batches
from diffcli.training.step import training_step
from diffcli.training.trainer import Trainer
from diffcli.training.validation import Validation, is_stale, validate


def fit(trainer: Trainer, stop: Stop) -> Validation | None:
    """Train to the last iteration, with checkpoints and validations on the way.

    Returns the validation after which it stopped early, where it did.

    Raises:
        TrainingError: a loss or gradient is not finite; the last checkpoint stays as it is.
        DiffError: a bad sample, a dead worker, a full disk; everything up to it is saved where that is possible.
        Stopped: a signal; everything up to it is saved.
    """
    train = trainer.config.train
    per_iteration = train.batch_size * train.gradient_accumulation * trainer.accelerator.num_processes
    with (
        console.progress(
            "train", train.iterations, completed=trainer.iteration, per_step=per_iteration
        ) as bar,
        closing(batches(trainer)) as source,
    ):
        while trainer.iteration < train.iterations:
            if _validation_is_due(trainer) and trainer.validated < trainer.iteration:
                found = _validate(trainer, stop, bar)
                if is_stale(trainer):
                    console.say(
                        f"stopped early: no better score than at iteration {trainer.best['iteration']} in "
                        f"{counted(train.patience or 0, 'validation')}"
                    )
                    return found
            try:
                _iterate(trainer, source, bar)
            except TrainingError:
                raise
            except DiffError as error:
                if not _is_stopping(stop):  # a signal may have killed a worker before it reached this process
                    raise saved(trainer, error) from error
            due = trainer.iteration % train.checkpoint_interval == 0 or _validation_is_due(trainer)
            if due or trainer.iteration == train.iterations or _is_stopping(stop):
                save(trainer)
                if _is_stopping(stop):  # a request that came while it was written counts too
                    console.say(
                        f"stopped at iteration {trainer.iteration}; continue with --resume ({trainer.folder})"
                    )
                    raise Stopped(stop.number)
    return None


def _validate(trainer: Trainer, stop: Stop, bar: Bar) -> Validation:
    """A validation on the way. The run was saved before, so one process may stop in the middle; several cannot."""
    started = time.monotonic()
    with interruptible(stop) if distributed.world_size() == 1 else nullcontext():
        found = validate(trainer)
    trainer.validated = trainer.iteration
    seconds = time.monotonic() - started
    bar.interrupted(seconds, later=seconds * _validations_left(trainer))
    return found


def _iterate(trainer: Trainer, source: Iterator[Batch], bar: Bar) -> None:
    """One iteration, and a line of losses where one is due."""
    record = training_step(trainer, source)
    trainer.iteration += 1
    bar.update(loss=record["loss"])
    train = trainer.config.train
    if trainer.iteration == train.iterations or trainer.iteration % train.log_interval == 0:
        seconds, evaluations = trainer.since_logged()
        trainer.log({**record, "seconds": seconds, "unet_evaluations": evaluations})
        console.say_in_terminal(_losses_line(trainer, record))
        trainer.start_interval()
    with distributed.raise_together():
        if distributed.is_main_process():
            require_folder(trainer.folder)


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether the current iteration is one after which to validate; the last validation is not the loop's."""
    interval, iteration = trainer.config.train.validate_interval, trainer.iteration
    return (
        bool(interval and iteration and iteration % interval == 0)
        and iteration < trainer.config.train.iterations
    )


def _validations_left(trainer: Trainer) -> int:
    """Validations from now to the end, the last one included."""
    train = trainer.config.train
    interval = train.validate_interval or train.iterations
    return max(1, -(-(train.iterations - trainer.iteration) // interval))


def _losses_line(trainer: Trainer, record: Mapping[str, Any]) -> str:
    """Iteration, losses and learning rate, each with the same number of digits in every line."""
    total = trainer.config.train.iterations
    parts = [f"iteration {trainer.iteration:>{len(str(total))}}/{total}"]
    parts += [f"{name} {record[key]:.4f}" for key, name in _SHOWN.items() if key in record]
    return "  ".join([*parts, f"learning rate {record['learning_rate']:.2e}"])


_SHOWN = {
    "loss": "loss",
    "loss_unconditional": "unconditional",
    "loss_conditional": "conditional",
    "consistency": "consistency",
}


def _is_stopping(stop: Stop) -> bool:
    """Whether any process was asked to stop: a signal may reach one before another."""
    return bool(distributed.all_reduce([stop.requested])[0])
