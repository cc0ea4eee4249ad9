"""The training loop that both stages of pretrain_miniworld.py share."""

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


class Trainer:
    """AdamW with warm-up and cosine decay, clipped gradients, averaged weights; resumes from its checkpoint."""

    def __init__(
        self, path: Path, model: nn.ModuleDict, *, steps: int, rate: float, best: Path, decay: float = 0.998
    ) -> None:
        self.path, self.best_path, self.model = path, best, model
        self.steps, self.rate, self.decay = steps, rate, decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.step, self.best, self.history = 0, math.inf, []
        seconds = self._load() if path.exists() else 0.0
        self.started = time.monotonic() - seconds

    def _load(self) -> float:
        saved = torch.load(self.path, weights_only=True)
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.best, self.history = saved["step"], saved["best"], saved["history"]
        return float(saved["seconds"])

    def save(self) -> None:
        """Write everything that resuming needs, whole or not at all."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        facts = {"step": self.step, "steps": self.steps, "best": self.best, "history": self.history}
        whole = {**parts, **facts, "seconds": time.monotonic() - self.started}
        torch.save(whole, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def steps_left(self, name: str, stop: int) -> Iterator[int]:
        """Yield the steps that remain until `stop`, with a progress bar, the learning rate set for each."""
        left = range(self.step, min(stop, self.steps))
        for step in tqdm(left, desc=name, initial=self.step, total=min(stop, self.steps), mininterval=20):
            cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, (step + 1) / 100) * cosine
            yield step

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer, and of the average of the weights."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def due(self, step: int, *, every: int) -> bool:
        """Whether to measure and save after this step."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def keep_if_best(self, score: float, step: int, weights: dict[str, Any]) -> None:
        """Record a held-out score (lower is better), save, and keep `weights` when it is the best so far."""
        self.history.append((step + 1, score))
        spent = time.monotonic() - self.started
        tqdm.write(f"{self.path.stem} step {step + 1}: held-out {score:.4f} after {spent:.0f} s")
        if score < self.best:
            self.best = score
            torch.save({"weights": weights, "step": step + 1}, self.best_path)
        self.save()
