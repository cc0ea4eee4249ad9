"""The ablation's cells: one row at one budget and seed, its settings, its run folder, and what has to run before it."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffcli.config.file import load_config
from diffcli.config.settings import RunConfig
from diffcli.errors import ConfigError
from diffcli.runs.folder import CONFIG, METRICS, REPORT, RESUME

HERE = Path(__file__).parent
SCRATCH = {
    "scratch_iterations": "a plain U-Net from scratch, as many iterations",
    "scratch_wallclock": "a plain U-Net from scratch, as much time as the full method took",
}
"""Rows without a diffusion model: their titles."""
DECIDING = ("full", "no_ipkl", "random_weights", *SCRATCH, "schedule_one", "schedule_five")
"""Rows that decide whether the method carries."""
OTHERS = (
    *("resnet_only", "latents_only", "fusion_vanilla", "fusion_mixing"),
    *("consistency_kl", "consistency_ce", "consistency_dice", "teacher_detached"),
    *("reference_prediction", "reference_truth"),
)
SCHEDULES = tuple(f"schedule_{name}" for name in ("paper", "visit9", "five", "one", "clean", "found"))
"""The same training without IPKL under every schedule: what an evaluation of the U-Net buys."""
FIVE = ("schedule_five", *(f"five_{name}" for name in (
    "full", "reference_truth", "reference_prediction", "all_prompts", "all_prompts_truth",
    "teacher_detached", "kl", "ce", "dice",
)))  # fmt: skip
"""IPKL where its masks can act: they do so between timesteps, of which `clean` has one. The first is without IPKL."""
ROWS = tuple(dict.fromkeys((*DECIDING, *OTHERS, *SCHEDULES, *FIVE)))


@dataclass(frozen=True)
class Cell:
    """One row at one budget and seed."""

    row: str
    budget: int
    seed: int
    folder: Path
    """Its run folder: finished once it holds a report."""
    overrides: tuple[str, ...]
    after: "Cell | None" = None
    """The cell that has to be finished before: its weights are evaluated here, or its time is taken."""

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        return settings(self.row, self.budget, self.seed, self.overrides)

    @property
    def trained(self) -> Path:
        """The folder of the training that it evaluates: most often its own."""
        return self.folder if self.after is None or self.row in SCRATCH else self.after.folder

    def chain(self) -> list["Cell"]:
        """This cell behind the one that it needs."""
        return [self] if self.after is None else [*self.after.chain(), self]


def cell(row: str, budget: int, seed: int, *, output: Path, overrides: tuple[str, ...]) -> Cell:
    """The cell of a row; a row that is trained and evaluated just like an earlier one is that one's cell."""

    def of(name: str, after: Cell | None = None) -> Cell:
        return Cell(name, budget, seed, output / f"{name}-{budget}it-seed{seed}", overrides, after)

    if row in SCRATCH:
        return of(row, of("full") if row == "scratch_wallclock" else None)
    own = settings(row, budget, seed, overrides)
    for other in ROWS:
        if other not in SCRATCH and other != row:
            theirs = settings(other, budget, seed, overrides)
            if theirs.model_copy(update={"eval": own.eval}) == own and ROWS.index(other) < _place(row):
                return of(other) if theirs == own else of(row, of(other))
    return of(row)


def _place(row: str) -> int:
    return ROWS.index(row) if row in ROWS else len(ROWS)


@cache
def settings(row: str, budget: int, seed: int, overrides: tuple[str, ...]) -> RunConfig:
    """A row's settings at a budget and seed; the unseen domains are looked at once, at the end."""
    own = [f"train.iterations={budget}", f"train.seed={seed}", "train.validate_interval=null"]
    path = HERE / f"{'full' if row in SCRATCH else row}.yaml"
    return load_config(path, overrides=[*overrides, *own]).model_copy(update={"name": None})


def title(row: str) -> str:
    """What a row is: the first line of its YAML."""
    if row in SCRATCH:
        return SCRATCH[row]
    return (HERE / f"{row}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def finished(job: Cell) -> bool:
    """Whether a cell's scores are there.

    Raises:
        ConfigError: it was run, or begun, with other settings.
    """
    done, begun = ((job.folder / name).is_file() for name in (REPORT, RESUME))
    if (done or begun) and load_config(job.folder / CONFIG) != job.config:
        raise ConfigError(
            "this cell was run with other settings",
            where=str(job.folder),
            hint="choose another --output, or delete the folder",
        )
    return done


def training_seconds(folder: Path) -> float:
    """How long a run trained, without its evaluation."""
    return sum(line["seconds"] for line in training_lines(folder))


def training_lines(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl that tell of training."""
    lines = map(json.loads, (folder / METRICS).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "seconds" in line]
