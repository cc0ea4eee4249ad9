"""`diff check`: are the settings right, is the data there, and what would a run cost?

Loads no network, except to measure (--measure).
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffcli.backbone.locate import describe_source
from diffcli.config.domain import DomainConfig, MiniworldDomain
from diffcli.config.settings import RunConfig, TrainConfig
from diffcli.core.costs import count_costs, validations
from diffcli.data.dataset import Domain, open_domain
from diffcli.data.glance import empty_classes, glance
from diffcli.data.skipped import tolerated
from diffcli.errors import DiffError
from diffcli.runtime import console
from diffcli.runtime.words import counted
from diffcli.training.needs import Needs, estimate_needs
from diffcli.training.selection import select, with_held_out


@dataclass(frozen=True)
class Found:
    """What one domain of the settings turned out to be."""

    use: str
    """train or eval."""
    domain: str
    samples: int
    labels: int
    split: str
    """Which split; empty for a set without splits."""
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
    measure: bool = False
    """Run a few iterations to know time and memory."""


def run(request: Request) -> None:
    """Print what a run would do and cost.

    Raises:
        DiffError: the diffusion model or a domain is missing or wrong; each is named.
    """
    config, config_name = with_held_out(request.config), request.config_name
    found, faults, notes, chosen = find_data(config)
    try:
        backbone = describe_source(config.model.backbone, last_timestep=config.model.inversion.last_timestep)
    except DiffError as error:
        backbone = f"{config.model.backbone.source} (not there)"
        faults.insert(0, error)
    images = sum(one.samples for one in found if one.use == "eval")
    costs = count_costs(config, images=images)
    needs = None if faults else _needs(config, found, images=images, measure=request.measure)
    record = {
        "name": config.name or config_name,
        "backbone": backbone,
        "domains": [asdict(one) for one in found],
        "faults": [str(fault) for fault in faults],
        "notes": notes,
        "best_checkpoint": chosen,
        "validations": validations(config.train),
        "unet_evaluations": {name: cost._asdict() for name, cost in costs.items()},
        "needs": None if needs is None else asdict(needs),
    }
    console.print_record(record)
    headings = ["use", "domain", "split", "samples", "labels", "unpaired", "where"]
    console.table("data", headings, map(_row, found))
    console.table("\nwhat would run", ["", ""], _plan(config, config_name, backbone, chosen))
    title = "U-Net evaluations" + (" (without what is missing)" if faults else "")
    rows = [[name.replace("_", " "), str(cost)] for name, cost in costs.items()]
    console.table(f"\n{title}", ["", ""], rows)
    if needs is not None:
        _show_needs(needs)
    for note in notes:
        console.warn(note)
    if faults:
        raise _joined(faults)


def _needs(config: RunConfig, found: Sequence[Found], *, images: int, measure: bool) -> Needs:
    if measure:
        from diffcli.training.measuring import measure_needs  # PyTorch, diffusers and the networks

        return measure_needs(config)
    return estimate_needs(config, images=images, samples=found[0].samples)


def _show_needs(needs: Needs) -> None:
    how = "measured" if needs.measured else "estimated from FLOPs"
    rows = [
        ["device", needs.device],
        ["an iteration", _times(needs.seconds_per_iteration)],
        ["an evaluated image", _times(needs.seconds_per_image)],
        ["the whole run", _times(needs.seconds)],
        ["memory", f"{needs.memory / 2**30:.1f} GiB"],
        ["checkpoints", f"{_size(needs.disk_training)} while it trains, {_size(needs.disk_kept)} afterwards"],
        *([["cache", f"{_size(needs.cache)} of counted classes"]] if needs.cache else []),
        ["predictions", f"about {_size(needs.mask)} a mask"],
    ]
    if not needs.measured:
        gpu = ", on the GPU" if shutil.which("nvidia-smi") else ""
        rows.append(["accuracy", f"within a factor of 3; --measure runs a few iterations{gpu}"])
    console.table(f"\ntime, memory and disk ({how})", ["", ""], rows)


def _times(seconds: tuple[float, float]) -> str:
    """A range of durations, as in "0.25 s" and "3 min to 1.5 h"."""
    least, most = map(_duration, seconds)
    number, unit = least.split()
    if least == most:
        return least
    return f"{number} to {most}" if unit == most.split()[1] else f"{least} to {most}"


def _duration(seconds: float) -> str:
    """Two digits, in the unit that people would use."""
    for unit, length, up_to in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 72 * 3600)):
        if seconds < up_to:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds / 86400:.2g}'):g} days"


def _size(count: int) -> str:
    """Bytes as kB, MB or GB."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{float(f'{count / length:.2g}'):g} {unit}"
    return f"{-(-count // 1000)} kB"


def _row(one: Found) -> list[object]:
    unpaired = one.without_label + one.without_image
    where = one.place or "rendered"
    return [one.use, one.domain, one.split or "-", one.samples, one.labels, unpaired, where]


def find_data(config: RunConfig) -> tuple[list[Found], list[DiffError], list[str], str]:
    """Every domain of the settings as found on disk, what is wrong, what is worth knowing, and what chooses the best.

    A handful of labels of each is read, so that settings that pass do not fail in the first second of training.
    """
    data, found, opened = config.data, list[Found](), list[Domain]()
    faults: list[DiffError] = []
    notes: list[str] = []
    for use, entry in [("train", data.train), *(("eval", entry) for entry in data.eval)]:
        try:
            domain = open_domain(
                entry, purpose="train" if use == "train" else "eval", classes=config.model.classes
            )
        except DiffError as error:
            faults.append(error)
            continue
        opened.append(domain)
        found.append(_found(domain, use=use))
        wrong, worth = _look_at(domain, may_skip=use == "train" and data.on_error == "skip")
        faults += wrong
        notes += worth
    if len(opened) != 1 + len(data.eval) or not data.eval:
        return found, faults, notes, ""
    selection = select(config, opened[0], opened[1:])
    return found, faults, [*notes, *selection.overlaps()], selection.describe()


def _found(domain: Domain, *, use: str) -> Found:
    images = [sample.image for sample in domain.samples if sample.image is not None]
    labelled = sum(sample.label is not None or sample.scene is not None for sample in domain.samples)
    return Found(
        use=use,
        domain=domain.name,
        samples=len(domain.samples),
        labels=labelled,
        split=domain.split,
        without_label=len(domain.missing.labels),
        without_image=len(domain.missing.images),
        place=_common_folder(images),
    )


def _look_at(domain: Domain, *, may_skip: bool) -> tuple[list[DiffError], list[str]]:
    """What is wrong with a domain and what is worth knowing, from a handful of its labels."""
    notes = []
    look = glance(domain)
    errors = look.errors
    if may_skip and look.samples > len(errors) == len(look.faults) <= tolerated(len(domain)):
        notes += [f"{fault.where}: {fault.message}; training draws others in its place" for fault in errors]
        errors = []
    if domain.missing.listed:
        notes.append(
            f"{domain.name}: {counted(len(domain.missing.listed), 'line')} of the list without an image, the first: "
            f"{domain.missing.listed[0]}"
        )
    if domain.archives:
        notes.append(
            f"{domain.name}: archives among the files that are not unpacked: {domain.archives[0].name}"
        )
    return errors, [*notes, *filter(None, [empty_classes(domain, look)])]


def _common_folder(images: Sequence[Path]) -> str:
    """The deepest folder that holds all of them."""
    if not images:
        return ""
    first, last = min(images).parent.parts, max(images).parent.parts
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    return str(Path(*first[:same]))


def _plan(config: RunConfig, config_name: str, backbone: str, chosen: str) -> list[list[object]]:
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
        *_held_out(config.data.train),
        [
            "training",
            f"{counted(train.iterations, 'iteration')} of {crops} {config.augmentation.crop}",
        ],
        ["objective", branches],
        ["evaluation", ", ".join([_seen_at(config), *views])],
        ["evaluated", _when(train) if config.data.eval else "never (data.eval is empty)"],
        ["best checkpoint", chosen or "the last one: nothing is evaluated"],
    ]


def _held_out(source: DomainConfig) -> list[list[object]]:
    """What val_fraction holds out of the source."""
    if isinstance(source, MiniworldDomain) or source.val_fraction is None:
        return []
    return [["held out", f"{source.val_fraction:g} of the source, by seed {source.val_seed}"]]


def _seen_at(config: RunConfig) -> str:
    entries = config.data.eval
    different = sum(entry.eval_size is not None for entry in entries)
    return f"at {config.eval.size or 'the size of each image'}" + (
        f" ({different} of {counted(len(entries), 'domain')} at another size)" if different else ""
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
