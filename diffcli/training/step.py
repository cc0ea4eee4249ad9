"""One optimizer step of the IPKL recipe (method sections 2 and 3)."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffcli.core.inversion import noise_seed
from diffcli.core.ipkl import IPKLLosses, extract_pair, ipkl_loss, pixels_to_average
from diffcli.core.model import to_model_range
from diffcli.data.batches import Batch
from diffcli.errors import TrainingError
from diffcli.runs.folder import LAST
from diffcli.runtime import distributed
from diffcli.training.optimizer import set_learning_rate
from diffcli.training.samples import note_faults
from diffcli.training.trainer import Trainer


def training_step(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, Any]:
    """One optimizer step: gradient accumulation, clipping, the schedule's rate. Returns what metrics.jsonl records.

    Raises:
        TrainingError: a loss or gradient is not finite.
        DataError: a sample cannot be used.
    """
    train, accelerator = trainer.config.train, trainer.accelerator
    factor = set_learning_rate(
        trainer.optimizer,
        trainer.iteration,
        iterations=train.iterations,
        warmup_iterations=train.warmup_iterations,
    )
    total: dict[str, float] = {}
    files: list[str] = []
    for micro in range(train.gradient_accumulation):
        with distributed.raise_together():
            batch = next(batches).to(trainer.model.device)
            features = extract_pair(
                trainer.model.extractor,
                to_model_range(batch.images),
                batch.labels,
                identities=batch.identities,
                seed=train.seed,
                ipkl=train.loss.ipkl,
            )
        note_faults(trainer, batch.faults)
        files += batch.files
        is_last = micro == train.gradient_accumulation - 1
        with nullcontext() if is_last else accelerator.no_sync(trainer.paired):
            # keyed, and after the loader, which draws from the same generator when it starts: resuming repeats dropout
            key = f"dropout/{trainer.iteration}/{micro}/{accelerator.process_index}"
            torch.manual_seed(noise_seed(train.seed, key))
            with accelerator.autocast():
                conditional, unconditional = trainer.paired(features.conditional, features.unconditional)
            losses = _losses(trainer, unconditional, conditional, batch.labels)
            for name, value in _checked_means(losses, trainer, files).items():
                total[name] = total.get(name, 0.0) + value / train.gradient_accumulation
            accelerator.backward(losses.total / train.gradient_accumulation)
    norm = accelerator.clip_grad_norm_(
        trainer.paired.parameters(), float("inf") if train.clip_norm is None else train.clip_norm
    )
    gradient_norm = float(norm) if norm is not None else 0.0
    if accelerator.scaler is None and not np.isfinite(gradient_norm):  # the same in every process
        every = [file for listed in distributed.all_gather(lambda: files) for file in listed]
        raise _not_finite("gradient", trainer, every)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return {**total, "gradient_norm": gradient_norm, "learning_rate": train.learning_rate * factor}


def _losses(
    trainer: Trainer, unconditional: Tensor, conditional: Tensor | None, labels: Tensor
) -> IPKLLosses:
    """The loss of one micro-batch; its mean over the processes is that of all their images together.

    Data-parallel training averages the gradients of the processes evenly, so each divides by the mean of their pixels.
    """
    config = trainer.config.train.loss
    [pixels] = distributed.all_reduce([pixels_to_average(labels, average=config.average)])
    return ipkl_loss(
        unconditional,
        conditional,
        labels,
        config,
        pixels=pixels / distributed.world_size(),
        class_weights=trainer.class_weights,
    )


def _checked_means(losses: IPKLLosses, trainer: Trainer, files: Sequence[str]) -> dict[str, float]:
    """Each loss term's mean over the processes; one transfer from the device.

    Raises:
        TrainingError: the loss is not finite in some process.
    """
    terms = {
        "loss": losses.total,
        "loss_unconditional": losses.unconditional,
        "loss_conditional": losses.conditional,
        "consistency": losses.consistency,
    }
    present = {name: value.detach().float() for name, value in terms.items() if value is not None}
    values = torch.stack(list(present.values())).tolist()
    with distributed.raise_together():
        if not np.isfinite(values[0]):
            raise _not_finite("loss", trainer, files)
    totals = distributed.all_reduce(values)
    return {name: total / distributed.world_size() for name, total in zip(present, totals, strict=True)}


def _not_finite(what: str, trainer: Trainer, files: Sequence[str]) -> TrainingError:
    last = trainer.folder / LAST
    kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint was written yet"
    return TrainingError(
        f"the {what} is not finite at iteration {trainer.iteration}, on {', '.join(files)}",
        where=str(trainer.folder),
        hint=f"{kept}; lower train.learning_rate or set runtime.precision to float32 or bf16",
    )
