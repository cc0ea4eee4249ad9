"""`diff bench`: how fast this machine runs the method, and what the published amount of work would cost on it.

Every row is the median over repeats, without the warm-up (bench/cases.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffcli.bench.cases import Case, Measurement, Work, measure_all
from diffcli.bench.plan import OWN, Plan, baseline_of, default_config, list_cases, machine, record
from diffcli.config.file import override
from diffcli.config.settings import RunConfig
from diffcli.config.size import size_option
from diffcli.errors import ConfigError
from diffcli.runtime import console
from diffcli.runtime.device import resolve_device
from diffcli.runtime.words import counted

SHORT: dict[str, str] = {"float32": "fp32", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff bench` is asked for; lists are comma lists as they were typed."""

    config: RunConfig | None = None
    """The settings; None takes the shipped model with the quickstart's decoder."""
    overrides: Sequence[str] = ()
    """Settings to change where there is no config."""
    work: str = "both"
    """inference, training or both."""
    schedules: str | None = None
    """Names of schedules, or "own"; None takes "own" with settings, else three of the published ones."""
    precisions: str = "auto"
    batch_sizes: str = "1"
    size: str | None = None
    """WIDTHxHEIGHT; None takes the size that the model is made for."""
    repeats: int = 3
    """Timed batches for each row."""
    random_weights: str | None = None
    """sd15, sd21 or tiny: an architecture that replaces the diffusion model."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; None takes the settings'."""


def run(request: Request) -> None:
    """Measure and print, each row beside the baseline of its work, schedule, precision and batch.

    Raises:
        ConfigError: something asked for does not exist, or not on this machine.
        DiffError: a row could not be measured; those before it are printed.
    """
    settings = request.config or override(default_config(request.random_weights), request.overrides)
    plan = parse_plan(request)
    place = resolve_device(request.device or settings.runtime.device)
    cases = list_cases(settings, plan, random_weights=request.random_weights, place=place)
    rows: list[tuple[Case, Measurement]] = []
    try:
        with console.progress("measure", len(cases), unit="rows") as bar:
            for case, found in zip(cases, measure_all(cases), strict=True):
                rows.append((case, found))
                bar.update(done=f"{case.work} {case.schedule} {case.code}")
    finally:
        console.print_record({"machine": machine(place), "rows": [record(row, rows) for row in rows]})
        _print(rows, place)


def parse_plan(request: Request) -> Plan:
    """What to measure, from the options as they were typed.

    Raises:
        ConfigError: one of them cannot be read.
    """
    work, batch_sizes, size = request.work, request.batch_sizes, request.size
    schedules = request.schedules or (OWN if request.config is not None else "paper,five,one")
    works: dict[str, Sequence[Work]] = {
        "inference": ("inference",),
        "training": ("training",),
        "both": ("inference", "training"),
    }
    if work not in works:
        raise ConfigError(f"unknown --work {work!r}", hint=f"one of {', '.join(works)}")
    batches = _listed(batch_sizes)
    if not all(text.isdigit() and int(text) for text in batches):
        raise ConfigError(f"--batch-sizes {batch_sizes!r}: numbers above 0", hint="for example 1,4")
    pixels = None if size is None else size_option("--size", size)
    return Plan(
        works[work],
        _listed(schedules),
        _listed(request.precisions),
        [*map(int, batches)],
        pixels,
        request.repeats,
    )


def _listed(text: str) -> list[str]:
    """The parts of a comma list."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _print(rows: Sequence[tuple[Case, Measurement]], place: torch.device) -> None:
    """Two tables for each kind of work: how long it takes, and what is done in that time."""
    facts = machine(place)
    threads = counted(torch.get_num_threads(), "thread")
    console.say(f"{facts['name']} ({facts['device']}), {threads}, torch {facts['torch']}")
    on_gpu = place.type == "cuda"
    for work in dict.fromkeys(case.work for case, _ in rows):
        measured = [row for row in rows if row[0].work == work]
        first = measured[0][0]
        what = "inference" if work == "inference" else "one training step (IPKL, two prompted classes)"
        console.table(
            f"\n{what}, {first.width}x{first.height}",
            [*_NAMES, "ms", "±%", "images/s", "MiB", "times faster"],
            [_speed_row(case, found, rows) for case, found in measured],
        )
        console.table(
            "\nwork done in that time",
            [*_NAMES, "U-Net", "GFLOP", "GFLOP/s", "% of matmul", *(["% GPU busy"] if on_gpu else [])],
            [_work_row(case, found) for case, found in measured],
            digits=1,
        )


_NAMES = ("schedule", "code", "type", "batch")


def _names(case: Case) -> list[object]:
    return [case.schedule, case.code, SHORT[case.precision], case.batch]


def _speed_row(case: Case, found: Measurement, rows: Sequence[tuple[Case, Measurement]]) -> list[object]:
    baseline = baseline_of(case, rows)
    return [
        *_names(case),
        round(1000 * found.median),
        round(100 * found.spread),
        case.batch / found.median,
        round(found.peak_bytes / 2**20),
        None if baseline is None else baseline.median / found.median,
    ]


def _work_row(case: Case, found: Measurement) -> list[object]:
    rate = found.flop_per_second / 1e9
    share = 100 * found.share_of_matmul
    busy = [] if found.gpu_busy is None else [100 * found.gpu_busy]
    return [*_names(case), found.unet_evaluations, found.flop / 1e9, rate, share, *busy]
