"""What `diff bench` measures: the rows of a plan, each beside the baseline that does the published amount of work."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from diffcli.bench.cases import Case, Code, Measurement, Work
from diffcli.bench.random_backbone import Architecture
from diffcli.config.settings import (
    EMBEDDED,
    SCHEDULES,
    BackboneConfig,
    DirectFusion,
    InversionConfig,
    ModelConfig,
    RunConfig,
)
from diffcli.config.size import Size
from diffcli.errors import ConfigError
from diffcli.runtime.device import resolve_backbone_precision, resolve_precision

OWN = "own"
"""The schedule of the settings, whatever it is."""


@dataclass(frozen=True)
class Plan:
    """What to measure; each combination is a row."""

    works: Sequence[Work]
    schedules: Sequence[str]
    precisions: Sequence[str]
    batch_sizes: Sequence[int]
    size: Size | None
    repeats: int


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
    """All rows, each baseline before the rows that are compared with it."""
    if random_weights not in (None, "sd15", "sd21", "tiny"):
        raise ConfigError(f"unknown --random-weights {random_weights!r}", hint="sd15, sd21 or tiny")
    model = settings.model
    configured = model.inversion.schedule if isinstance(model.inversion.schedule, str) else OWN
    schedules = dict.fromkeys(configured if name == OWN else name for name in plan.schedules)
    for name in schedules:
        if name not in (*SCHEDULES, OWN):
            raise ConfigError(f"unknown schedule {name!r}", hint=f"one of {', '.join(SCHEDULES)}, {OWN}")
    comparable = isinstance(model.decoder.fusion, DirectFusion) and model.decoder.features == "all"
    codes: list[Code] = ["baseline"] if comparable else []
    if place.type == "cuda" and settings.runtime.cuda_graphs:
        codes.append("eager")
    codes += ["diffcli", "compiled"] if settings.runtime.compile is True else ["diffcli"]
    cases = []
    for work in plan.works:
        size = plan.size or _default_size(work, random_weights, model)
        for schedule in schedules:
            for wanted in plan.precisions:
                precision = resolve_precision(wanted, place)
                backbone_precision = resolve_backbone_precision(
                    settings.runtime.backbone_precision, precision=precision, device=place
                )
                for batch in plan.batch_sizes:
                    case = Case(
                        work=work,
                        code="diffcli",
                        schedule=schedule,
                        precision=precision,
                        backbone_precision=backbone_precision,
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
    if code == "baseline" and place.type == "cuda" and case.precision != "float32":
        return replace(case, code=code, precision="fp16", backbone_precision="fp16")
    return replace(case, code=code)


def _with_schedule(model: ModelConfig, schedule: str) -> ModelConfig:
    if schedule == OWN:
        return model
    inversion = model.inversion.model_copy(update={"schedule": schedule})
    return model.model_copy(update={"inversion": InversionConfig.model_validate(inversion.model_dump())})


def _default_size(work: Work, random_weights: str | None, model: ModelConfig) -> Size:
    """The sizes that the models are made for: whole images at inference, crops in training."""
    small = random_weights == "tiny" or (
        random_weights is None and model.backbone == BackboneConfig(source=EMBEDDED)
    )
    if work == "training":
        return Size(128, 128) if small else Size(512, 512)
    return Size(256, 128) if small else Size(1024, 512)


def machine(place: torch.device) -> dict[str, object]:
    """Device, its name, threads and version of PyTorch."""
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


def baseline_of(row: Case, rows: Sequence[tuple[Case, Measurement]]) -> Measurement | None:
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
    baseline = baseline_of(case, rows)
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
