"""From the current iteration to the last: steps, metrics, validations, checkpoints, and stopping well."""

import time

from diffcli.errors import DiffError, TrainingError
from diffcli.runtime import console, distributed
from diffcli.runtime.signals import Stop
from diffcli.training.samples import batches
from diffcli.training.step import training_step
from diffcli.training.trainer import Trainer
from diffcli.training.validation import validate


def fit(trainer: Trainer, stop: Stop) -> None:
    """Train to the last iteration, with checkpoints and validations on the way.

    Raises:
        TrainingError: a loss or gradient is not finite.
        DataError: a bad sample; everything up to it is saved.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything up to it is saved.
    """
    train = trainer.config.train
    source = batches(trainer)
    per_iteration = train.batch_size * train.gradient_accumulation * trainer.accelerator.num_processes
    with console.progress(
        "train", train.iterations, completed=trainer.iteration, per_step=per_iteration
    ) as bar:
        mark = (time.monotonic(), trainer.model.extractor.backbone.evaluations)
        while trainer.iteration < train.iterations:
            try:
                record = training_step(trainer, source)
            except DiffError as error:
                raise _kept(trainer, error) from error
            trainer.iteration += 1
            bar.update(loss=record["loss"])
            if trainer.iteration % train.log_interval == 0 or trainer.iteration == train.iterations:
                now = (time.monotonic(), trainer.model.extractor.backbone.evaluations)
                [evaluations] = distributed.all_reduce([now[1] - mark[1]])
                trainer.log({**record, "seconds": now[0] - mark[0], "unet_evaluations": int(evaluations)})
                mark = now
            last = trainer.iteration == train.iterations
            if train.validate_interval and trainer.iteration % train.validate_interval == 0 and not last:
                validate(trainer)
            [stopping] = distributed.all_reduce(
                [stop.requested]
            )  # a signal may reach one process before another
            if last or stopping or trainer.iteration % train.checkpoint_interval == 0:
                trainer.save()
            if stopping:
                console.say(
                    f"stopped at iteration {trainer.iteration}; continue with --resume ({trainer.folder})"
                )
                raise KeyboardInterrupt


def _kept(trainer: Trainer, error: DiffError) -> DiffError:
    """Save the work done before an error in the data, and say so; a loss that is not finite saves nothing."""
    if isinstance(error, TrainingError) or trainer.iteration == 0:
        return error
    trainer.save()
    remedy = error.hint or "fix or remove the file"
    error.hint = f"{remedy}; iterations up to {trainer.iteration} are saved: --resume continues"
    return error
