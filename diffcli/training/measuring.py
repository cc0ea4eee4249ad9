"""What a run takes on this machine: a few real iterations and one evaluated image, timed."""

import copy
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from diffcli.config.settings import RunConfig
from diffcli.evaluation.evaluator import evaluate_domain
from diffcli.prediction.trained import trained_segmenter
from diffcli.runtime import console
from diffcli.runtime.memory import peak_memory, reset_peak
from diffcli.training.accelerator import build_accelerator
from diffcli.training.needs import Needs, needs_of
from diffcli.training.samples import batches, check_samples, open_domains, training_set
from diffcli.training.step import training_step
from diffcli.training.trainer import Trainer, build_trainer, load_model

SECONDS, MOST = 5.0, 20
"""Iterations are timed for about so long, and at most so many."""


def measure_needs(config: RunConfig) -> Needs:
    """Train for a few seconds and evaluate one image; nothing is kept.

    Raises:
        DiffError: the data or the diffusion model is missing or wrong, or memory runs out.
    """
    train = config.train.model_copy(
        update={"trackers": (), "iterations": max(config.train.iterations, MOST + 2)}
    )
    trial = config.model_copy(update={"train": train})
    source, targets = open_domains(trial)
    checked = check_samples(trial, source, targets)
    samples = training_set(trial, source, checked.statistics)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = build_accelerator(trial, runs=Path(folder))
        model = load_model(trial, accelerator)
        trainer = build_trainer(
            trial,
            folder=Path(folder),
            accelerator=accelerator,
            model=model,
            samples=samples,
            targets=targets,
            skipped=checked.skipped,
        )
        reset_peak(model.device)
        iteration = _time_iterations(trainer)
        image = _time_image(trainer) if targets else 0.0
    return needs_of(
        config,
        measured=True,
        device=str(model.device),
        iteration=(iteration, iteration),
        image=(image, image),
        images=sum(map(len, targets)),
        samples=len(source),
        memory=peak_memory(model.device),
        weights=sum(parameter.numel() for parameter in model.decoder.parameters()),
    )


def _time_iterations(trainer: Trainer) -> float:
    """Mean seconds of an iteration, the first two left out: they set up what later ones reuse."""
    with console.progress("measure", MOST, unit="iterations") as bar, closing(batches(trainer)) as source:
        times: list[float] = []
        while len(times) < MOST + 2 and sum(times[2:]) < SECONDS:
            started = time.perf_counter()
            training_step(trainer, source)
            _wait(trainer.model.device)
            times.append(time.perf_counter() - started)
            trainer.iteration += 1
            bar.update(int(len(times) > 2))
    return sum(times[2:]) / len(times[2:])


def _time_image(trainer: Trainer) -> float:
    """Seconds of the second one of two images of the first domain, loading included."""
    model, domain = trainer.model, copy.copy(trainer.targets[0])
    domain.samples = domain.samples[:1]
    segmenter = trained_segmenter(model, trainer.config.eval)
    model.decoder.eval()
    for _ in range(2):
        started = time.perf_counter()
        evaluate_domain(segmenter, domain)
        seconds = time.perf_counter() - started
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
