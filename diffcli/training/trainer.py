"""The state of one training run: built once, saved to its folder, restored from it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.core.ipkl import PairedDecoder
from diffcli.core.model import SegmentationModel, build_model
from diffcli.data.dataset import Domain, TrainingSet
from diffcli.data.skipped import Skipped
from diffcli.data.statistics import class_weights
from diffcli.errors import CheckpointError
from diffcli.files import write_atomically, write_text
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import LAST, METRICS, RESUME
from diffcli.runs.opening import prepare_unet
from diffcli.runtime import console, distributed
from diffcli.runtime.device import resolve_backbone_precision, resolve_precision
from diffcli.training.batchnorm import synchronise_batchnorm
from diffcli.training.optimizer import BETAS, parameter_groups
from diffcli.training.selection import Selection


@dataclass
class Trainer:
    """Everything one training run holds."""

    config: RunConfig
    folder: Path
    accelerator: Accelerator
    model: SegmentationModel
    paired: torch.nn.Module
    """The decoder for both branches, wrapped for data-parallel training."""
    optimizer: torch.optim.Optimizer
    samples: TrainingSet
    targets: list[Domain]
    selection: Selection
    """Which of the targets the best checkpoint is chosen on."""
    skipped: Skipped
    """Samples that could not be used."""
    iteration: int = 0
    """Optimizer steps done."""
    best: dict[str, Any] = field(default_factory=dict)
    """Iteration and score of the best checkpoint so far."""
    class_weights: torch.Tensor | None = None
    """(classes,) float32 on the model's device: what a pixel of each class counts; None: all alike."""

    def save(self) -> None:
        """Write the last checkpoint and, in a file of its own, all that resuming needs; the processes wait for it."""
        with distributed.raise_together():
            if self.accelerator.is_main_process:
                self._write()

    def _write(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "iteration": self.iteration,
            "best": self.best,
            "decoder": self.model.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        with write_atomically(self.folder / RESUME) as temporary:
            torch.save(state, temporary)
        save_checkpoint(self.folder / LAST, self.model, info={"iteration": self.iteration})

    def restore(self) -> None:
        """Continue from what `save` wrote, and drop metrics of iterations that will run again."""
        path = self.folder / RESUME
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(
                f"cannot be read ({error})", where=str(path), hint="start over without --resume"
            ) from error
        self.iteration, self.best = state["iteration"], state["best"]
        self.model.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        metrics = self.folder / METRICS
        if self.accelerator.is_main_process and metrics.is_file():
            lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["iteration"] <= self.iteration]
            write_text(metrics, "".join(f"{line}\n" for line in kept))
        console.say(f"resuming {self.folder} at iteration {self.iteration} of {self.config.train.iterations}")

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl and report to the trackers."""
        if self.accelerator.is_main_process:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps({"iteration": self.iteration, **record}) + "\n")
        self.accelerator.log(record, step=self.iteration)


def load_model(config: RunConfig, accelerator: Accelerator) -> SegmentationModel:
    """The model with a fresh decoder, on the accelerator's device, in its precision.

    Raises:
        BackboneError: the diffusion model cannot be found or does not fit.
    """
    precision = resolve_precision(config.runtime.precision, accelerator.device)
    backbone_precision = resolve_backbone_precision(
        config.runtime.backbone_precision, precision=precision, device=accelerator.device
    )
    console.say(
        f"loading the diffusion model {config.model.backbone.source} on {accelerator.device} in "
        f"{backbone_precision}"
    )
    model = build_model(
        config.model,
        device=accelerator.device,
        precision=precision,
        backbone_precision=backbone_precision,
        seed=config.train.seed,
        max_unet_batch=config.runtime.max_unet_batch,
    )
    train = config.train
    images = train.iterations * train.batch_size * train.gradient_accumulation
    prepare_unet(model, config.runtime, images=images)
    return model


def build_trainer(
    config: RunConfig,
    *,
    folder: Path,
    accelerator: Accelerator,
    model: SegmentationModel,
    samples: TrainingSet,
    targets: list[Domain],
    selection: Selection | None = None,
    skipped: Skipped | None = None,
) -> Trainer:
    """Optimizer, trackers and data-parallel wrapping around the model."""
    train = config.train
    if train.trackers:
        accelerator.init_trackers(folder.name, config={"config": dump_config(config)})
    if train.sync_batchnorm and distributed.world_size() > 1:
        synchronise_batchnorm(model.decoder)
    model.decoder.train()
    groups = parameter_groups(
        model.decoder, learning_rate=train.learning_rate, head_multiplier=train.head_multiplier
    )
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=train.weight_decay)
    paired, prepared = accelerator.prepare(PairedDecoder(model.decoder), optimizer)
    weights = None
    if balance := train.loss.class_balance:
        assert samples.statistics is not None, "classes are counted where they are weighted"
        shares = samples.statistics.shares
        weights = torch.from_numpy(class_weights(shares, balance=balance)).to(model.device)
    return Trainer(
        *(config, folder, accelerator, model, paired, prepared, samples, targets),
        selection=selection or Selection(domains=tuple(target.name for target in targets)),
        skipped=skipped or Skipped(samples.domain.name, len(samples)),
        class_weights=weights,
    )
