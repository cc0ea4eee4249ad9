"""`diff train`: the IPKL recipe (method sections 2 and 3) from a config to a finished run folder.

A run is a function of its config: sampling, augmentation, dropout and noise are all keyed by (seed, iteration), so that
resuming needs only the weights, the optimizer and the iteration, and continues as if nothing had happened.

Several processes (`torchrun`, `accelerate launch`) share an iteration as one process would a batch as many times as
large: draws are dealt out in order, gradients and logged losses are means over all images, BatchNorm sees all of them.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from diffcli.classes import IGNORE_ID
from diffcli.config.file import dump_config
from diffcli.config.settings import LossConfig, RunConfig, TrainConfig
from diffcli.core.inversion import noise_seed
from diffcli.core.ipkl import IPKLFeatures, IPKLLosses, PairedDecoder, extract_pair, ipkl_loss
from diffcli.core.model import SegmentationModel, build_model, to_model_range
from diffcli.data.batches import Batch, training_batches
from diffcli.data.dataset import Domain, TrainingSet, open_domain
from diffcli.data.statistics import ClassStatistics, class_statistics, class_weights
from diffcli.errors import CheckpointError, ConfigError, DataError, DiffError, TrainingError
from diffcli.evaluation import report as score_report
from diffcli.evaluation import scoring as evaluation
from diffcli.evaluation.groups import score_all
from diffcli.evaluation.scoring import DomainScores
from diffcli.files import write_atomically, write_text
from diffcli.prediction.inference import compile_unet
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import (
    BEST,
    CONFIG,
    LAST,
    METRICS,
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
from diffcli.runtime.device import resolve_device, resolve_precision
from diffcli.runtime.signals import Stop, graceful_stop
from diffcli.training.batchnorm import synchronise_batchnorm
from diffcli.training.optimizer import parameter_groups, set_learning_rate


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
    config, resume, runs = request.config, request.resume, request.runs
    name, settings = config.name or request.config_name, dump_config(config)
    unfinished = (
        distributed.from_main(lambda: find_unfinished(name, runs=runs, settings=settings)) if resume else None
    )
    accelerator = build_accelerator(config.train, runs=runs)
    source, targets = _open_domains(config)
    samples = _training_set(config, source, distributed.from_main(lambda: _statistics(config, source)))
    with distributed.together():
        model = _build_model(config, accelerator)
    # last: what fails before leaves no folder
    folder = unfinished or distributed.from_main(lambda: create_run(name, runs=runs))
    trainer = setup(
        config, folder=folder, accelerator=accelerator, model=model, samples=samples, targets=targets
    )
    if accelerator.is_main_process:
        write_text(folder / CONFIG, dump_config(config))
        write_text(folder / VERSIONS, json.dumps(versions(), indent=2))
    if resume:
        with distributed.together():
            trainer.restore()
    with graceful_stop() as stop:
        fit(trainer, stop)
    _finish(trainer)


def build_accelerator(train: TrainConfig, *, runs: Path) -> Accelerator:
    """Device, mixed precision and trackers as configured; processes as `accelerate launch` made them.

    Raises:
        ConfigError: the device is not there or not this process's alone, or a tracker's package is not installed.
    """
    for tracker in train.trackers:
        if find_spec(tracker) is None:
            raise ConfigError(
                f"train.trackers: {tracker} is not installed",
                hint=f"pip install 'diffcli[{tracker}]', or leave it out",
            )
    device = resolve_device(train.device)
    precision = resolve_precision(train.precision, device)
    if device.type == "cuda":
        _one_gpu_each(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "float32" else precision,
        log_with=list(train.trackers) or None,
        project_dir=runs,
    )
    assert accelerator.num_processes == distributed.world_size(), (
        "distributed.start() comes before the command"
    )
    return accelerator


def _one_gpu_each(device: torch.device) -> None:
    """Refuse a GPU that several processes would share: gradients cannot be exchanged on one."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if distributed.world_size() > 1 else 1
    if local > 1 and (device.type != str(device) or local > torch.cuda.device_count()):
        raise ConfigError(
            f"train.device {device}: the {local} processes on this machine need a GPU each, it has "
            f"{torch.cuda.device_count()}",
            hint="train.device: auto, and as many processes as GPUs (--nproc-per-node, --num_processes)",
        )


@dataclass
class Trainer:
    """Everything one training run holds."""

    config: RunConfig
    folder: Path
    accelerator: Accelerator
    model: SegmentationModel
    paired: torch.nn.Module
    optimizer: torch.optim.Optimizer
    samples: TrainingSet
    targets: list[Domain]
    iteration: int = 0
    """Optimizer steps done."""
    best: dict[str, Any] = field(default_factory=dict)
    """Iteration and score of the best checkpoint so far."""
    class_weights: torch.Tensor | None = None
    """(classes,) float32 on the model's device: what a pixel of each class counts; None: all alike."""

    def save(self) -> None:
        """Write the last checkpoint and, in one file of its own, all that resuming needs; the processes wait for it."""
        with distributed.together():
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


def _build_model(config: RunConfig, accelerator: Accelerator) -> SegmentationModel:
    """The model on the accelerator's device, in its precision."""
    precision = resolve_precision(config.train.precision, accelerator.device)
    console.say(
        f"loading the diffusion model {config.model.backbone.source} on {accelerator.device} in {precision}"
    )
    model = build_model(config.model, device=accelerator.device, precision=precision, seed=config.train.seed)
    if config.train.compile:
        compile_unet(model)
    return model


def setup(
    config: RunConfig,
    *,
    folder: Path,
    accelerator: Accelerator,
    model: SegmentationModel,
    samples: TrainingSet,
    targets: list[Domain],
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
    optimizer = torch.optim.AdamW(groups, betas=train.betas, weight_decay=train.weight_decay)
    paired, prepared = accelerator.prepare(PairedDecoder(model.decoder), optimizer)
    return Trainer(
        *(config, folder, accelerator, model, paired, prepared, samples, targets),
        class_weights=_class_weights(samples, train.loss.class_balance, model.device),
    )


def _class_weights(samples: TrainingSet, balance: float, device: torch.device) -> torch.Tensor | None:
    """What a pixel of each class counts in the cross-entropy; None where all count alike."""
    if not balance:
        return None
    assert samples.statistics is not None, "counted where classes are weighed"
    return torch.from_numpy(class_weights(samples.statistics.shares, balance=balance)).to(device)


def fit(trainer: Trainer, stop: Stop) -> None:
    """Train to the last iteration, checkpointing and validating on the way.

    Raises:
        TrainingError: a loss or gradient is not finite.
        DataError: a bad sample; everything up to it is saved.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything up to it is saved.
    """
    train = trainer.config.train
    batches = _batches(trainer)
    per_iteration = train.batch_size * train.gradient_accumulation * trainer.accelerator.num_processes
    with console.progress(
        "train", train.iterations, completed=trainer.iteration, per_step=per_iteration
    ) as bar:
        mark = (time.monotonic(), trainer.model.extractor.backbone.evaluations)
        while trainer.iteration < train.iterations:
            try:
                record = training_step(trainer, batches)
            except DiffError as error:
                raise _kept(trainer, error) from error
            trainer.iteration += 1
            bar.update(loss=record["loss"])
            if trainer.iteration % train.log_interval == 0 or trainer.iteration == train.iterations:
                now = (time.monotonic(), trainer.model.extractor.backbone.evaluations)
                [evaluations] = distributed.sums([now[1] - mark[1]])
                trainer.log({**record, "seconds": now[0] - mark[0], "unet_evaluations": int(evaluations)})
                mark = now
            last = trainer.iteration == train.iterations
            if train.validate_interval and trainer.iteration % train.validate_interval == 0 and not last:
                validate(trainer)
            [stopping] = distributed.sums([stop.requested])  # a signal may reach one process before another
            if last or stopping or trainer.iteration % train.checkpoint_interval == 0:
                trainer.save()
            if stopping:
                console.say(
                    f"stopped at iteration {trainer.iteration}; continue with --resume ({trainer.folder})"
                )
                raise KeyboardInterrupt


def training_step(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, Any]:
    """One optimizer step: gradient accumulation, clipping, the schedule's rate. Returns what metrics.jsonl records."""
    train, accelerator = trainer.config.train, trainer.accelerator
    factor = set_learning_rate(
        trainer.optimizer,
        trainer.iteration,
        iterations=train.iterations,
        warmup_iterations=train.warmup_iterations,
        warmup_ratio=train.warmup_ratio,
    )
    total: dict[str, float] = {}
    files: list[str] = []
    for micro in range(train.gradient_accumulation):
        with distributed.together():
            batch = next(batches).to(trainer.model.device)
            features = _features(trainer, batch)
        files += batch.files
        synchronised = micro == train.gradient_accumulation - 1
        with nullcontext() if synchronised else accelerator.no_sync(trainer.paired):
            # keyed, and after the loader, which draws from the same generator when it starts: resuming repeats dropout
            key = f"dropout/{trainer.iteration}/{micro}/{accelerator.process_index}"
            torch.manual_seed(noise_seed(train.seed, key))
            losses = _losses(trainer, features, batch.labels)
            values = _values(losses)
            with distributed.together():
                if not np.isfinite(values["loss"]):
                    raise _not_finite("loss", trainer, files)
            for key, value in _means(values).items():
                total[key] = total.get(key, 0.0) + value / train.gradient_accumulation
            accelerator.backward(losses.total / train.gradient_accumulation)
    norm = _clip(trainer)
    if (
        not np.isfinite(norm) and accelerator.scaler is None
    ):  # in every process, since the gradient is the same
        every = [file for own in distributed.gather(lambda: files) for file in own]
        raise _not_finite("gradient", trainer, every)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return {**total, "gradient_norm": norm, "learning_rate": train.learning_rate * factor}


def _features(trainer: Trainer, batch: Batch) -> IPKLFeatures:
    """Both passes of one micro-batch through the frozen half."""
    config = trainer.config.train
    return extract_pair(
        trainer.model.extractor,
        to_model_range(batch.images),
        batch.labels,
        identities=batch.identities,
        seed=config.seed,
        ipkl=config.loss.ipkl,
    )


def _losses(trainer: Trainer, features: IPKLFeatures, labels: Tensor) -> IPKLLosses:
    """The loss of one micro-batch; its mean over the processes is that of all their images together."""
    loss = trainer.config.train.loss
    with trainer.accelerator.autocast():
        conditional, unconditional = trainer.paired(features.conditional, features.unconditional)
    losses = ipkl_loss(unconditional, conditional, labels, loss, class_weights=trainer.class_weights)
    if loss.average == "all" or distributed.world_size() == 1:
        return losses
    return _by_labelled_pixels(losses, labels, loss)


def _by_labelled_pixels(losses: IPKLLosses, labels: Tensor, config: LossConfig) -> IPKLLosses:
    """Cross-entropies weighted by this process's share of the labelled pixels: gradients are averaged evenly."""
    own = int((labels != IGNORE_ID).sum())
    [everyone] = distributed.sums([own])
    factor = own * distributed.world_size() / max(everyone, 1)
    unconditional = factor * losses.unconditional
    if losses.conditional is None or losses.consistency is None:
        return IPKLLosses(unconditional, unconditional, None, None)
    conditional = factor * losses.conditional
    total = conditional + unconditional + config.weight * losses.consistency
    return IPKLLosses(total, unconditional, conditional, losses.consistency)


def _values(losses: IPKLLosses) -> dict[str, float]:
    """The loss terms as numbers; one transfer from the device."""
    terms = {
        "loss": losses.total,
        "loss_unconditional": losses.unconditional,
        "loss_conditional": losses.conditional,
        "consistency": losses.consistency,
    }
    present = {name: value.detach().float() for name, value in terms.items() if value is not None}
    return dict(zip(present, torch.stack(list(present.values())).tolist(), strict=True))


def _means(values: dict[str, float]) -> dict[str, float]:
    """Each value's mean over the processes."""
    totals = distributed.sums(list(values.values()))
    return {key: total / distributed.world_size() for key, total in zip(values, totals, strict=True)}


def _clip(trainer: Trainer) -> float:
    """Clip the gradients as configured; their norm before it."""
    limit = trainer.config.train.clip_norm
    norm = trainer.accelerator.clip_grad_norm_(
        trainer.paired.parameters(), float("inf") if limit is None else limit
    )
    return float(norm) if norm is not None else 0.0


def _not_finite(what: str, trainer: Trainer, files: Sequence[str]) -> TrainingError:
    last = trainer.folder / LAST
    kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint was written yet"
    return TrainingError(
        f"the {what} is not finite at iteration {trainer.iteration}, on {', '.join(files)}",
        where=str(trainer.folder),
        hint=f"{kept}; lower train.learning_rate or set train.precision to float32 or bf16",
    )


def _kept(trainer: Trainer, error: DiffError) -> DiffError:
    """Save the work done before an error in the data, and say so; a loss that is not finite saves nothing."""
    if isinstance(error, TrainingError) or trainer.iteration == 0:
        return error
    trainer.save()
    remedy = error.hint or "mend or remove the file"
    error.hint = f"{remedy}; iterations up to {trainer.iteration} are saved: --resume continues"
    return error


def validate(trainer: Trainer) -> tuple[list[DomainScores], list[str]]:
    """Evaluate on every target domain, log the scores and keep the best checkpoint (by mean mIoU over domains).

    A domain or sample that cannot be read costs no training: it is left out, and told in the second value.
    """
    model, config = trainer.model, trainer.config
    problems: list[str] = []

    def score(domain: Domain) -> DomainScores | None:
        with console.progress(f"evaluate {domain.name}", len(domain)) as bar:
            try:
                found = evaluation.evaluate_domain(
                    model, domain, config.eval, workers=config.data.workers, progress=bar.update
                )
            except DataError as error:
                problems.append(f"{domain.name}: {error.message} ({error.where})")
                return None
        if found.skipped:
            problems.append(f"{domain.name}: {found.skipped} samples left out, first {found.problems[0]}")
        return found

    model.decoder.eval()
    scores = [found for found in score_all(trainer.targets, score) if found is not None]
    model.decoder.train()
    for problem in problems:
        console.warn(problem)
    if scores:
        _log_scores(trainer, scores)
    return scores, problems


def _log_scores(trainer: Trainer, scores: Sequence[DomainScores]) -> None:
    """Tell the mIoU of every domain, and keep the checkpoint where their mean is the best so far."""
    means = {one.name: one.scores.mean_iou for one in scores}
    mean = float(np.nanmean([means[name] for name in score_report.counted([*means])]))
    trainer.log({"mean_iou": mean, **{f"mean_iou/{name}": value for name, value in means.items()}})
    listed = ", ".join(f"{name} {100 * value:.1f}" for name, value in means.items())
    console.say(f"iteration {trainer.iteration}: mIoU {listed}")
    if trainer.accelerator.is_main_process and mean > trainer.best.get("mean_iou", -1.0):
        trainer.best = {"iteration": trainer.iteration, "mean_iou": mean}
        save_checkpoint(trainer.folder / BEST, trainer.model, info=trainer.best)


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
        score_report.write_picture(trainer.folder / PICTURE, scores, model=model)
    report = score_report.report(scores, model=model, settings=trainer.config.eval)
    report["training"] = {"iterations": trainer.iteration, "best": trainer.best, **_unseen(trainer, scores)}
    write_text(trainer.folder / REPORT, json.dumps(report, indent=2))
    (trainer.folder / RESUME).unlink(missing_ok=True)
    console.print_record({"run": trainer.folder, **report})
    if scores:
        score_report.print_blocks(score_report.summary_table(scores, model=model))
        _say_unseen(report["training"])
    console.say(f"run folder: {trainer.folder}")
    if problems:
        raise DataError(
            f"not everything could be scored: {'; '.join(problems)}",
            where=str(trainer.folder / REPORT),
            hint="training is complete; mend the files and score again: diff eval",
        )


def _unseen(trainer: Trainer, scores: Sequence[DomainScores]) -> dict[str, Any]:
    """The source, and the mean mIoU over the domains that are not the source."""
    data = trainer.config.data
    seen = {
        target.name
        for entry, target in zip(data.eval, trainer.targets, strict=True)
        if (entry.domain, entry.root) == (data.train.domain, data.train.root)
    }
    counted = score_report.counted([one.name for one in scores if one.name not in seen])
    unseen = [one.scores.mean_iou for one in scores if one.name in counted]
    mean = float(np.nanmean(unseen)) if unseen else None
    return {"source": data.train.domain, "unseen_domains": len(unseen), "mean_iou_unseen": mean}


def _say_unseen(training: dict[str, Any]) -> None:
    if training["unseen_domains"]:
        mean, count = 100 * training["mean_iou_unseen"], training["unseen_domains"]
        console.print_text(f"mean mIoU over {count} domains never seen in training: {mean:.2f}")


def _open_domains(config: RunConfig) -> tuple[Domain, list[Domain]]:
    """List the source and every target before anything heavy is loaded."""
    classes = config.model.classes
    source = open_domain(config.data.train, purpose="train", classes=classes)
    targets = [open_domain(entry, purpose="eval", classes=classes) for entry in config.data.eval]
    distributed.require_same([domain.samples for domain in (source, *targets)], what="samples")
    return source, targets


def _statistics(config: RunConfig, source: Domain) -> ClassStatistics | None:
    """Class shares of the source, where rare class sampling needs them; cached between runs."""
    if config.train.rare_class_sampling is None and not config.train.loss.class_balance:
        return None
    with console.progress("count classes", len(source)) as bar:
        return class_statistics(
            source, workers=config.data.workers, progress=lambda _done, _total: bar.update()
        )


def _training_set(config: RunConfig, source: Domain, statistics: ClassStatistics | None) -> TrainingSet:
    samples = TrainingSet(
        source,
        augmentation=config.augmentation,
        rare_classes=config.train.rare_class_sampling,
        statistics=statistics,
        seed=config.train.seed,
    )
    if samples.rare is not None and samples.rare.left_out:
        names = ", ".join(config.model.classes[train_id] for train_id in samples.rare.left_out)
        console.say(f"rare class sampling leaves out classes that no image holds enough of: {names}")
    return samples


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """This process's micro-batches from the current iteration to the last; their number, not the time, draws them."""
    train, accelerator = trainer.config.train, trainer.accelerator
    steps = range(
        trainer.iteration * train.gradient_accumulation, train.iterations * train.gradient_accumulation
    )
    first = [
        (step * accelerator.num_processes + accelerator.process_index) * train.batch_size for step in steps
    ]
    return training_batches(
        trainer.samples,
        draws=[start + i for start in first for i in range(train.batch_size)],
        batch_size=train.batch_size,
        workers=trainer.config.data.workers,
        pin=trainer.model.device.type == "cuda",
    )
