"""All that resuming needs, in one file: weights, AdamW's moments, position; no code, and under a checksum."""

from typing import Any

import torch
from torch import Tensor

from diffcli.config.settings import RunConfig
from diffcli.errors import CheckpointError, DataError, DiffError
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import CHANGEABLE, CONFIG, LAST, RESUME, flat_settings
from diffcli.runs.tensor_file import read_tensors, write_tensors
from diffcli.runtime import console, distributed
from diffcli.training.run_folder import count_metrics, cut_metrics, write_settings
from diffcli.training.trainer import Trainer

_KIND = "diffcli-resume"
_DAMAGED = "start over without --resume, or from the weights of the last checkpoint"


def save(trainer: Trainer) -> None:
    """Write the file that `restore` reads, then the last checkpoint; all processes wait for the main one.

    Raises:
        DiffError: the disk is full, or the folder cannot be written to; the files from before are whole.
    """
    seconds, evaluations = trainer.since_logged()
    with distributed.raise_together():
        if not trainer.accelerator.is_main_process:
            return
        folder, scaler = trainer.folder, trainer.accelerator.scaler
        header = {
            "iteration": trainer.iteration,
            "best": trainer.best,
            "validated": trainer.validated,
            "settings": changeable(trainer.config),
            "changes": trainer.changes,
            "metrics_lines": count_metrics(folder),
            "since_logged": {"seconds": seconds, "evaluations": evaluations},
            "skipped": {
                "draws": trainer.skipped.draws,
                "faults": {
                    where: [fault.message, fault.hint] for where, fault in trainer.skipped.faults.items()
                },
            },
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        tensors = {f"decoder/{name}": value for name, value in trainer.model.decoder.state_dict().items()}
        for index, state in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
        if not (folder / CONFIG).is_file():  # somebody removed the folder
            write_settings(folder, trainer.config)
        write_tensors(folder / RESUME, tensors, kind=_KIND, header=header)
        save_checkpoint(folder / LAST, trainer.model, info={"iteration": trainer.iteration})


def restore(trainer: Trainer) -> None:
    """Continue from what `save` wrote, and drop metrics that will be logged again.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    with distributed.raise_together():
        path = trainer.folder / RESUME
        found = read_tensors(path, kind=_KIND, hint=_DAMAGED)
        if found is None:
            raise CheckpointError("not written by `diff train`", where=str(path), hint=_DAMAGED)
        tensors, header = found
        try:
            _restore(trainer, tensors, header)
            lines = int(header["metrics_lines"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise CheckpointError(
                f"it does not fit this run ({str(error).splitlines()[0]})", where=str(path), hint=_DAMAGED
            ) from error
        if trainer.iteration > trainer.config.train.iterations:
            raise CheckpointError(
                f"iteration {trainer.iteration} is reached, and train.iterations is "
                f"{trainer.config.train.iterations}",
                where=str(trainer.folder),
                hint="set train.iterations to what the run shall reach",
            )
        if trainer.accelerator.is_main_process:
            cut_metrics(trainer.folder, lines=lines)
    for change in trainer.changes[-1:]:
        if change["iteration"] == trainer.iteration:
            listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in change["settings"].items())
            console.say(f"changed from here on: {listed}")
    console.say(
        f"resuming {trainer.folder} at iteration {trainer.iteration} of {trainer.config.train.iterations}"
    )


def _restore(trainer: Trainer, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    trainer.iteration, trainer.validated = int(header["iteration"]), int(header["validated"])
    if min(trainer.iteration, trainer.validated) < 0:
        raise ValueError("iterations are counted from 0")
    trainer.best = dict(header["best"])
    trainer.changes = [
        {
            "iteration": change["iteration"],
            "settings": {key: [old, new] for key, (old, new) in change["settings"].items()},
        }
        for change in header["changes"]
    ]
    before, now = header["settings"], changeable(trainer.config)
    if changed := {key: [before.get(key), value] for key, value in now.items() if before.get(key) != value}:
        trainer.changes.append({"iteration": trainer.iteration, "settings": changed})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    trainer.model.decoder.load_state_dict(
        {key.removeprefix("decoder/"): value for key, value in tensors.items() if key.startswith("decoder/")}
    )
    groups = trainer.optimizer.state_dict()["param_groups"]  # the schedule sets their rates at each iteration
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if trainer.accelerator.scaler is not None and header["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(header["scaler"])
    trainer.skipped.draws = header["skipped"]["draws"]
    trainer.skipped.faults |= {
        where: DataError(message, where=where, hint=hint)
        for where, (message, hint) in header["skipped"]["faults"].items()
    }
    trainer.start_interval(**header["since_logged"])


def changeable(config: RunConfig) -> dict[str, Any]:
    """The settings that a resumed run may change, as in YAML."""
    return {key: value for key, value in flat_settings(config).items() if key in CHANGEABLE}


def saved(trainer: Trainer, error: DiffError) -> DiffError:
    """Save the work done before an error, and say so in it."""
    if trainer.iteration > 0:
        save(trainer)
        remedy = error.hint or "fix or remove the file"
        error.hint = f"{remedy}; iterations up to {trainer.iteration} are saved: --resume continues"
    return error
