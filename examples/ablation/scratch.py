"""The ablation's control: a plain U-Net trained from scratch on diffcli's data stream, loss and evaluation."""

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from diffcli.config.file import dump_config
from diffcli.config.settings import ModelConfig, RunConfig
from diffcli.core.ipkl import segmentation_loss
from diffcli.core.model import SegmentationModel, pad_to_multiple, to_model_range
from diffcli.data.batches import Batch, training_batches
from diffcli.data.dataset import TrainingSet, open_domain
from diffcli.data.statistics import class_statistics, class_weights
from diffcli.errors import TrainingError
from diffcli.evaluation.evaluator import evaluate_domain
from diffcli.evaluation.report import build_report, write_picture
from diffcli.files import write_atomically, write_text
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.folder import CONFIG, METRICS, PICTURE, REPORT, RESUME
from diffcli.runtime import console
from diffcli.runtime.device import resolve_data_workers, resolve_device
from diffcli.training.optimizer import BETAS, set_learning_rate

WEIGHTS = "network.safetensors"
LEVELS = (1, 2, 4, 8, 8)
"""Widths at strides 1, 2, 4, 8, 16, as multiples of the first."""


class UNet(nn.Module):
    """B,3,H,W in [-1,1] to B,classes,H,W logits; H and W multiples of 16 (Ronneberger et al. 2015, with BatchNorm)."""

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()
        widths = [width * level for level in LEVELS]
        self.down = nn.ModuleList(
            _double(before, after) for before, after in zip([3, *widths], widths, strict=False)
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in steps)
        self.join = nn.ModuleList(_double(2 * here, here) for _, here in steps)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.classifier(x)
        return logits


def _double(before: int, after: int) -> nn.Sequential:
    def conv(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(*conv(before), *conv(after))


def trained_parameters(module: nn.Module) -> int:
    """Numbers that the optimizer moves."""
    return sum(parameter.numel() for parameter in module.parameters())


def width_for(parameters: int, *, classes: int) -> int:
    """The smallest first width whose U-Net has at least that many parameters."""
    for width in count(4):
        with torch.device("meta"):
            if trained_parameters(UNet(width=width, classes=classes)) >= parameters:
                return width
    raise AssertionError


class ScratchModel(SegmentationModel):
    """The U-Net where evaluation expects a model: no diffusion model is behind it, none is ever evaluated."""

    def __init__(self, config: ModelConfig, network: UNet, *, device: torch.device) -> None:
        self.config, self.network, self.precision = config, network, "float32"
        self.extractor: Any = SimpleNamespace(
            backbone=SimpleNamespace(
                evaluations=0, device=device, multiple=2 ** (len(LEVELS) - 1), downsample=1
            )
        )

    @torch.no_grad()
    def logits(self, images: Tensor, **_unused: object) -> Tensor:
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images.to(self.device), 2 ** (len(LEVELS) - 1), value=0.0)
        return self.network(padded)[..., :height, :width]


class Training:
    """The U-Net on its way; resumes from the folder's last save.

    Args:
        config: data, augmentation, optimizer and evaluation; its model says the classes only.
        folder: the run folder.
        parameters: about as many are trained.
        seconds: train this long instead of `config.train.iterations`.
    """

    def __init__(self, config: RunConfig, *, folder: Path, parameters: int, seconds: float | None) -> None:
        train, classes = config.train, len(config.model.classes)
        self.config, self.folder, self.seconds = config, folder, seconds
        self.device = resolve_device(config.runtime.device)
        torch.manual_seed(train.seed)
        network = UNet(width=width_for(parameters, classes=classes), classes=classes)
        self.network = network.to(self.device)
        group = {"params": network.parameters(), "lr": train.learning_rate, "base_lr": train.learning_rate}
        self.optimizer = torch.optim.AdamW([group], betas=BETAS, weight_decay=train.weight_decay)
        self.samples = self._samples()
        balance, statistics = train.loss.class_balance, self.samples.statistics
        self.class_weights = None
        if balance and statistics is not None:
            weights = class_weights(statistics.shares, balance=balance)
            self.class_weights = torch.from_numpy(weights).to(self.device)
        self.iteration, self.elapsed, self.metrics = 0, 0.0, []
        if (folder / RESUME).is_file():
            self._restore()

    def _restore(self) -> None:
        with (self.folder / RESUME).open(
            "rb"
        ) as file:  # of a path, torch.load takes the suffix for the format
            state = torch.load(file, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.elapsed, self.metrics = state["iteration"], state["elapsed"], state["metrics"]
        console.say(f"resuming {self.folder} at iteration {self.iteration}")

    def save(self) -> None:
        """Write all that resuming needs."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        counters = {"iteration": self.iteration, "elapsed": self.elapsed, "metrics": self.metrics}
        with write_atomically(self.folder / RESUME) as temporary:
            torch.save({**state, **counters}, temporary)

    @property
    def total(self) -> int:
        """Iterations in all; by the clock, an estimate from those done."""
        if self.seconds is None or not self.elapsed:
            return self.config.train.iterations
        left = max(0.0, self.seconds - self.elapsed)
        return self.iteration + round(left * self.iteration / self.elapsed)

    @property
    def progress(self) -> int:
        """Iterations done, or seconds by the clock."""
        return self.iteration if self.seconds is None else round(self.elapsed)

    def fit(self) -> None:
        """Train to the end, logging and saving as configured."""
        train, mark, shown = self.config.train, self.elapsed, self.progress
        started = time.monotonic() - self.elapsed
        self.network.train()
        total = train.iterations if self.seconds is None else round(self.seconds)
        unit = "iterations" if self.seconds is None else "seconds"
        with console.progress("train", total, completed=shown, unit=unit) as bar:
            for batch in self._batches():
                if self.iteration >= self.total:
                    break
                loss = self._step(batch)
                self.iteration, self.elapsed = self.iteration + 1, time.monotonic() - started
                bar.update(self.progress - shown, loss=loss)
                shown = self.progress
                if self.iteration % train.log_interval == 0 or self.iteration >= self.total:
                    self.metrics.append(
                        {"iteration": self.iteration, "loss": loss, "seconds": self.elapsed - mark}
                    )
                    mark = self.elapsed
                if self.iteration % train.checkpoint_interval == 0:
                    self.save()

    def _step(self, batch: Batch) -> float:
        """One optimizer step at the schedule's rate, as `diff train` takes it; the loss."""
        train = self.config.train
        set_learning_rate(
            self.optimizer,
            self.iteration,
            iterations=self.total,
            warmup_iterations=train.warmup_iterations,
        )
        logits = self.network(to_model_range(batch.images).to(self.device))
        labels = batch.labels.to(self.device).long()
        loss = segmentation_loss(logits, labels, average=train.loss.average, class_weights=self.class_weights)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is not finite at iteration {self.iteration}", where=str(self.folder)
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), train.clip_norm)
        self.optimizer.step()
        return loss.item()

    def _samples(self) -> TrainingSet:
        """The samples that `diff train` draws with this seed."""
        config, train = self.config, self.config.train
        source = open_domain(config.data.train, purpose="train", classes=config.model.classes)
        counted = train.rare_class_sampling is not None or train.loss.class_balance
        return TrainingSet(
            source,
            augmentation=config.augmentation,
            rare_classes=train.rare_class_sampling,
            statistics=class_statistics(source, workers=resolve_data_workers(config.runtime.data_workers))
            if counted
            else None,
            seed=train.seed,
        )

    def _batches(self) -> Iterator[Batch]:
        """The same batches as `diff train`'s, from the current iteration on, without end."""
        size = self.config.train.batch_size
        draws = range(self.iteration * size, 2**40)
        return training_batches(
            self.samples,
            draws=draws,
            batch_size=size,
            workers=resolve_data_workers(self.config.runtime.data_workers),
        )

    def finish(self) -> None:
        """Evaluate the last weights and leave a run folder like any other."""
        self.network.eval()
        model = ScratchModel(self.config.model, self.network, device=self.device)
        segmenter, scores = trained_segmenter(model, self.config.eval), []
        for entry in self.config.data.eval:
            domain = open_domain(entry, purpose="eval", classes=self.config.model.classes)
            with console.progress(f"evaluate {domain.name}", len(domain), unit="images") as bar:
                scores.append(evaluate_domain(segmenter, domain, progress=bar.update))
        training = {
            "iterations": self.iteration,
            "source": self.config.data.train.domain,
            "trained_parameters": trained_parameters(self.network),
        }
        report = build_report(
            scores, model=self.config.model, settings=self.config.eval, training=training
        ).as_json()
        write_picture(self.folder / PICTURE, scores, model=self.config.model)
        with write_atomically(self.folder / WEIGHTS) as temporary:
            save_file(self.network.state_dict(), temporary)
        write_text(self.folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in self.metrics))
        write_text(self.folder / REPORT, json.dumps(report, indent=2))
        (self.folder / RESUME).unlink(missing_ok=True)


def run(config: RunConfig, *, folder: Path, parameters: int, seconds: float | None = None) -> None:
    """Train (or go on training) the control and evaluate it; see `Training`.

    Raises:
        DataError, TrainingError: say what is wrong.
    """
    write_text(folder / CONFIG, dump_config(config))
    training = Training(config, folder=folder, parameters=parameters, seconds=seconds)
    training.fit()
    training.save()
    training.finish()
