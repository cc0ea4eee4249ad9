"""`diff check`: are the settings right, is the data there, and what would a run cost? Loads no network."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffcli.backbone.locate import describe_source
from diffcli.config.domain import DomainConfig
from diffcli.config.settings import DataConfig, RunConfig, TrainConfig
from diffcli.core.costs import count_costs, validations
from diffcli.data.dataset import open_domain
from diffcli.errors import DiffError
from diffcli.runtime import console
from diffcli.runtime.words import counted


@dataclass(frozen=True)
class Found:
    """What one domain of the settings turned out to be."""

    use: str
    """train or eval."""
    domain: str
    samples: int
    labels: int
    without_label: int
    without_image: int
    place: str
    """Folder of the images; empty for a rendered domain."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff check` is asked for."""

    config: RunConfig
    config_name: str
    """Name of the YAML, which names the run where `config.name` does not."""


def run(request: Request) -> None:
    """Print what a run would do and cost.

    Raises:
        DiffError: the diffusion model or a domain is missing or wrong; each is named.
    """
    config, config_name = request.config, request.config_name
    found, faults = find_data(config.data, classes=config.model.classes)
    try:
        backbone = describe_source(config.model.backbone, last_timestep=config.model.inversion.last_timestep)
    except DiffError as error:
        backbone = f"{config.model.backbone.source} (not there)"
        faults.insert(0, error)
    costs = count_costs(config, images=sum(one.samples for one in found if one.use == "eval"))
    record = {
        "name": config.name or config_name,
        "backbone": backbone,
        "domains": [asdict(one) for one in found],
        "faults": [str(fault) for fault in faults],
        "validations": validations(config.train),
        "unet_evaluations": {name: cost._asdict() for name, cost in costs.items()},
    }
    console.print_record(record)
    console.table("data", ["use", "domain", "samples", "labels", "unpaired", "where"], map(_row, found))
    console.table("\nwhat would run", ["", ""], _plan(config, config_name, backbone))
    title = "U-Net evaluations" + (" (without what is missing)" if faults else "")
    rows = [[name.replace("_", " "), str(cost)] for name, cost in costs.items()]
    console.table(f"\n{title}", ["", ""], rows)
    if faults:
        raise _joined(faults)


def _row(one: Found) -> list[object]:
    unpaired = one.without_label + one.without_image
    return [one.use, one.domain, one.samples, one.labels, unpaired, one.place or "rendered"]


def find_data(data: DataConfig, *, classes: Sequence[str]) -> tuple[list[Found], list[DiffError]]:
    """Every domain of the settings as found on disk, and what is wrong with those that are not there."""
    found: list[Found] = []
    faults: list[DiffError] = []
    for use, entry in [("train", data.train), *(("eval", entry) for entry in data.eval)]:
        try:
            found.append(_find(entry, use=use, classes=classes))
        except DiffError as error:
            faults.append(error)
    return found, faults


def _find(entry: DomainConfig, *, use: str, classes: Sequence[str]) -> Found:
    domain = open_domain(entry, purpose="train" if use == "train" else "eval", classes=classes)
    images = [sample.image for sample in domain.samples if sample.image is not None]
    labelled = sum(sample.label is not None or sample.scene is not None for sample in domain.samples)
    return Found(
        use=use,
        domain=domain.name,
        samples=len(domain.samples),
        labels=labelled,
        without_label=len(domain.missing.labels),
        without_image=len(domain.missing.images),
        place=_common_folder(images),
    )


def _common_folder(images: Sequence[Path]) -> str:
    """The deepest folder that holds all of them."""
    if not images:
        return ""
    first, last = min(images).parent.parts, max(images).parent.parts
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    return str(Path(*first[:same]))


def _plan(config: RunConfig, config_name: str, backbone: str) -> list[list[object]]:
    """What would run, in words."""
    train, inversion, settings = config.train, config.model.inversion, config.eval
    schedule = inversion.resolved_schedule()
    steps, saved = max(schedule.save_steps) + 1, len(schedule.save_steps)
    name = inversion.schedule if isinstance(inversion.schedule, str) else "custom"
    crops = counted(train.batch_size * train.gradient_accumulation, "crop")
    branches = (
        f"both branches ({train.loss.consistency})" if train.loss.ipkl else "unconditional branch alone"
    )
    views = [
        word
        for word, on in (("mirrored too", settings.flip), ("sliding window", settings.mode == "slide"))
        if on
    ]
    return [
        ["run folder", f"runs/{config.name or config_name}"],
        ["backbone", backbone],
        ["schedule", f"{name}: {counted(steps, 'step')}, features of {saved}"],
        [
            "training",
            f"{counted(train.iterations, 'iteration')} of {crops} {config.augmentation.crop}",
        ],
        ["objective", branches],
        ["evaluation", ", ".join([_seen_at(config), *views])],
        ["evaluated", _when(train) if config.data.eval else "never (data.eval is empty)"],
    ]


def _seen_at(config: RunConfig) -> str:
    entries = config.data.eval
    own = sum(entry.eval_size is not None for entry in entries)
    return f"at {config.eval.size or 'the size of each image'}" + (
        f" ({own} of {counted(len(entries), 'domain')} at sizes of their own)" if own else ""
    )


def _when(train: TrainConfig) -> str:
    count = validations(train)
    if count == 1:
        return "at the end"
    return f"every {train.validate_interval:,} iterations and at the end ({count} times)"


def _joined(faults: list[DiffError]) -> DiffError:
    """All faults as one error."""
    if len(faults) == 1:
        return faults[0]
    lines = [f"  - {str(fault).replace('  ->', '    ->')}" for fault in faults]
    return DiffError("\n".join([f"{len(faults)} things are missing or wrong", *lines]))
