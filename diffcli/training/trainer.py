"""Everything that one training run holds, and how it is built."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffcli.config.settings import RunConfig
from diffcli.core.ipkl import PairedDecoder
from diffcli.core.model import SegmentationModel, build_model
from diffcli.data.dataset import Domain, TrainingSet
from diffcli.data.skipped import Skipped
from diffcli.data.statistics import class_weights
from diffcli.runs.opening import prepare_unet
from diffcli.runtime import console, distributed
from diffcli.runtime.device import resolve_backbone_precision, resolve_precision
from diffcli.training.batchnorm import synchronise_batchnorm
from diffcli.training.optimizer import BETAS, parameter_groups
from diffcli.training.run_folder import append_metrics
from diffcli.training.selection import Selection
from diffcli.training.trackers import flat_numbers, start_trackers


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

    changes: list[dict[str, Any]] = field(default_factory=list)
    """Settings that changed at a resume: the iteration, and key -> [before, from there on]."""
    validated: int = 0
    """Iteration of the last validation."""
    logged: tuple[float, int] = (0.0, 0)
    """Clock in seconds and the backbone's count of U-Net evaluations at the last line of losses."""

    def since_logged(self) -> tuple[float, int]:
        """Seconds since the last line of losses, and U-Net evaluations of all processes."""
        seconds, evaluations = self._now()
        [total] = distributed.all_reduce([evaluations - self.logged[1]])
        return seconds - self.logged[0], int(total)

    def start_interval(self, *, seconds: float = 0.0, evaluations: int = 0) -> None:
        """Count from now on; what a resumed run has spent already is counted once, by the main process."""
        now = self._now()
        spent = evaluations if self.accelerator.is_main_process else 0
        self.logged = (now[0] - seconds, now[1] - spent)

    def _now(self) -> tuple[float, int]:
        return time.monotonic(), self.model.extractor.backbone.evaluations

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl and report to the trackers.

        Raises:
            DiffError: the file cannot be written.
        """
        with distributed.raise_together():
            if self.accelerator.is_main_process:
                append_metrics(self.folder, {"iteration": self.iteration, **record})
        self.accelerator.log(flat_numbers(record), step=self.iteration)


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
        start_trackers(accelerator, config, name=folder.name)
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
    trainer = Trainer(
        *(config, folder, accelerator, model, paired, prepared, samples, targets),
        selection=selection or Selection(domains=tuple(target.name for target in targets)),
        skipped=skipped or Skipped(samples.domain.name, len(samples)),
        class_weights=weights,
    )
    trainer.start_interval()
    return trainer
