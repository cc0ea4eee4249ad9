"""`diff bench`: how fast this machine runs the method, and what the published amount of work would cost on it.

Every row is measured in a process of its own (diffcli/benchmark.py): the median over repeats, warm-up left out.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError

from diffcli.bench.cases import Case, Code, Measurement, Work, measure_all
from diffcli.bench.random_backbone import Architecture
from diffcli.config.file import override
from diffcli.config.settings import (
    EMBEDDED,
    SCHEDULES,
    BackboneConfig,
    DirectFusion,
    InversionConfig,
    ModelConfig,
    PixelSize,
    RunConfig,
    Size,
)
from diffcli.errors import ConfigError
from diffcli.runtime import console
from diffcli.runtime.device import resolve_device, resolve_precision

OWN = "own"
"""The schedule of the settings, whatever it is."""
SHORT: dict[str, str] = {"float32": "fp32", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Plan:
    """What to measure; every combination is a row."""

    works: Sequence[Work]
    schedules: Sequence[str]
    precisions: Sequence[str]
    batch_sizes: Sequence[int]
    size: Size | None
    repeats: int


def parse_plan(
    *,
    work: str,
    schedules: str,
    precisions: str,
    batch_sizes: str,
    size: str | None,
    repeats: int,
) -> Plan:
    """The options as they were typed.

    Raises:
        ConfigError: one of them cannot be read.
    """
    works: dict[str, Sequence[Work]] = {
        "inference": ("inference",),
        "training": ("training",),
        "both": ("inference", "training"),
    }
    if work not in works:
        raise ConfigError(f"--work {work!r} is not known", hint=f"one of {', '.join(works)}")
    batches = _listed(batch_sizes)
    if not all(text.isdigit() and int(text) for text in batches):
        raise ConfigError(f"--batch-sizes {batch_sizes!r}: numbers above 0", hint="for example 1,4")
    try:
        pixels = None if size is None else TypeAdapter(PixelSize).validate_python(size)
    except ValidationError as error:
        raise ConfigError(f"--size {size!r} cannot be read", hint="WIDTHxHEIGHT, as in 1024x512") from error
    return Plan(works[work], _listed(schedules), _listed(precisions), [*map(int, batches)], pixels, repeats)


def _listed(text: str) -> list[str]:
    """The parts of a comma list."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def run(
    config: RunConfig | None,
    *,
    plan: Plan,
    overrides: Sequence[str] = (),
    random_weights: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Measure and print, each row beside the baseline of its work, schedule, precision and batch.

    Args:
        overrides: key=value settings on top of the defaults, where there is no config.
        config: the settings; None takes the shipped model with the quickstart's decoder.
        random_weights: sd15, sd21 or tiny: an architecture that replaces the diffusion model.

    Raises:
        ConfigError: something asked for does not exist, or not on this machine.
        DiffError: a row could not be measured; those before it are printed.
    """
    settings = config or override(default_config(random_weights), overrides)
    place = resolve_device(device or settings.runtime.device)
    cases = list_cases(settings, plan, random_weights=random_weights, place=place)
    rows: list[tuple[Case, Measurement]] = []
    try:
        with console.progress("measure", len(cases), unit="rows") as bar:
            for case, found in zip(cases, measure_all(cases), strict=True):
                rows.append((case, found))
                bar.update(done=f"{case.work} {case.schedule} {case.code}")
    finally:
        if json:
            console.print_json({"machine": machine(place), "rows": [record(row, rows) for row in rows]})
        else:
            _print(rows, place)


def default_config(random_weights: str | None) -> RunConfig:
    """The shipped model with a small decoder; with random weights the published decoder at its full widths."""
    model: dict[str, Any] = {} if random_weights not in (None, "tiny") else _SMALL
    return RunConfig.model_validate({"model": {"backbone": {"source": EMBEDDED}, **model}})


_SMALL: dict[str, Any] = {
    "decoder": {"channels": [32, 64, 64, 64], "head_channels": 32},
    "inversion": {
        "class_prompts": {1: "sidewalk", 3: "wall", 12: "rider", 14: "truck", 16: "train"},
    },
}


def list_cases(
    settings: RunConfig, plan: Plan, *, random_weights: str | None, place: torch.device
) -> list[Case]:
    """All rows, the baseline before what is compared with it."""
    if random_weights not in (None, "sd15", "sd21", "tiny"):
        raise ConfigError(f"--random-weights {random_weights!r} is not known", hint="sd15, sd21 or tiny")
    model = settings.model
    own = model.inversion.schedule if isinstance(model.inversion.schedule, str) else OWN
    schedules = dict.fromkeys(own if name == OWN else name for name in plan.schedules)
    for name in schedules:
        if name not in (*SCHEDULES, OWN):
            raise ConfigError(f"schedule {name!r} is not known", hint=f"one of {', '.join(SCHEDULES)}, {OWN}")
    comparable = isinstance(model.decoder.fusion, DirectFusion) and model.decoder.features == "all"
    codes: list[Code] = ["baseline"] if comparable else []
    codes += ["diffcli", "compiled"] if settings.runtime.compile else ["diffcli"]
    cases = []
    for work in plan.works:
        size = plan.size or _default_size(work, random_weights, model)
        for schedule in schedules:
            for wanted in plan.precisions:
                precision = resolve_precision(wanted, place)
                for batch in plan.batch_sizes:
                    case = Case(
                        work=work,
                        code="diffcli",
                        schedule=schedule,
                        precision=precision,
                        batch=batch,
                        width=size.width,
                        height=size.height,
                        device=str(place),
                        repeats=plan.repeats,
                        model=_with_schedule(model, schedule).model_dump(mode="json"),
                        random_weights=cast(Architecture | None, random_weights),
                        max_unet_batch=settings.runtime.max_unet_batch,
                    )
                    cases += [_as_published(case, code, place) for code in codes]
    return cases


def _as_published(case: Case, code: Code, place: torch.device) -> Case:
    """The same case for another code; the published one computes in fp16 on a GPU."""
    half = code == "baseline" and place.type == "cuda" and case.precision != "float32"
    return replace(case, code=code, precision="fp16" if half else case.precision)


def _with_schedule(model: ModelConfig, schedule: str) -> ModelConfig:
    if schedule == OWN:
        return model
    inversion = model.inversion.model_copy(update={"schedule": schedule})
    return model.model_copy(update={"inversion": InversionConfig.model_validate(inversion.model_dump())})


def _default_size(work: Work, random_weights: str | None, model: ModelConfig) -> Size:
    """Sizes the models are made for: whole images at inference, crops in training."""
    small = random_weights == "tiny" or (
        random_weights is None and model.backbone == BackboneConfig(source=EMBEDDED)
    )
    if work == "training":
        return Size(128, 128) if small else Size(512, 512)
    return Size(256, 128) if small else Size(1024, 512)


def machine(place: torch.device) -> dict[str, object]:
    """What it was measured on."""
    name = (
        torch.cuda.get_device_name(place)
        if place.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "device": str(place),
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _baseline(row: Case, rows: Sequence[tuple[Case, Measurement]]) -> Measurement | None:
    """The baseline measured for the same work, schedule, batch and size."""
    key = (row.work, row.schedule, row.batch, row.precision == "float32")
    for case, found in rows:
        same = (case.work, case.schedule, case.batch, case.precision == "float32") == key
        if same and case.code == "baseline":
            return found
    return None


def record(row: tuple[Case, Measurement], rows: Sequence[tuple[Case, Measurement]]) -> dict[str, Any]:
    """A row as `--json` gives it: the case without its settings, what was measured, and the ratios to its baseline."""
    case, found = row
    baseline = _baseline(case, rows)
    return {
        **{name: value for name, value in asdict(case).items() if name != "model"},
        **asdict(found),
        "median_seconds": found.median,
        "spread": found.spread,
        "images_per_second": case.batch / found.median,
        "flop_per_second": found.flop_per_second,
        "share_of_matmul": found.share_of_matmul,
        "speedup": None if baseline is None else baseline.median / found.median,
        "memory_ratio": None if baseline is None else found.peak_bytes / baseline.peak_bytes,
    }


def _print(rows: Sequence[tuple[Case, Measurement]], place: torch.device) -> None:
    """Two tables a work: what one waits for, and what was done in that time."""
    facts = machine(place)
    console.say(f"{facts['name']} ({facts['device']}), {facts['threads']} thread(s), torch {facts['torch']}")
    for work in dict.fromkeys(case.work for case, _ in rows):
        own = [row for row in rows if row[0].work == work]
        first = own[0][0]
        what = "inference" if work == "inference" else "one training step (IPKL, two prompted classes)"
        console.table(
            f"\n{what}, {first.width}x{first.height}",
            [*_NAMES, "ms", "±%", "images/s", "MiB", "times faster"],
            [_speed_row(case, found, rows) for case, found in own],
        )
        console.table(
            "",
            [*_NAMES, "U-Net", "GFLOP", "GFLOP/s", "% of matmul"],
            [_work_row(case, found) for case, found in own],
            digits=1,
        )


_NAMES = ("schedule", "code", "type", "batch")


def _names(case: Case) -> list[object]:
    return [case.schedule, case.code, SHORT[case.precision], case.batch]


def _speed_row(case: Case, found: Measurement, rows: Sequence[tuple[Case, Measurement]]) -> list[object]:
    baseline = _baseline(case, rows)
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
    return [*_names(case), found.unet_evaluations, found.flop / 1e9, rate, share]
