"""`diff data inspect`: what a set of images and labels holds, and all that is wrong with it, before training starts.

A sample that cannot be used never stops the others from being looked at; at the end it makes the exit code 1.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from diffcli.config.domain import DomainConfig
from diffcli.config.settings import ModelConfig, RunConfig
from diffcli.data.dataset import Domain, expand_domains, find_splits, open_domain
from diffcli.data.domains import DOMAINS
from diffcli.data.glance import empty_classes, glance
from diffcli.data.mapping import OutsideMapping, counted, percent
from diffcli.data.survey import Survey, survey
from diffcli.drawing.contact_sheet import Panel, inspection_picture
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.files import check_writable, write_atomically
from diffcli.runtime import console, words

PANELS = 12
"""Samples on the contact sheet."""
_TERMINAL, _BAR, _NAMES, _FAULTS = 80, 32, 3, 12


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff data inspect` is asked for: a domain, or settings that name some."""

    domains: str | None = None
    """A name, "all" or a comma list."""
    root: Path | None = None
    """Where the one named domain is; None takes DIFFCLI_DATA/<domain>."""
    split: str | None = None
    """train, val or test; None takes every split that is there."""
    config: RunConfig | None = None
    """Settings whose classes and domains to inspect."""
    output: Path = Path("inspected")
    """Folder of the pictures."""


def run(request: Request) -> None:
    """Print and draw what the named domains hold; without a name, those of the settings.

    Raises:
        ConfigError: neither a domain nor settings are given, or both.
        DataError: at the end, if any sample cannot be used.
    """
    config, output = request.config, request.output
    model = config.model if config is not None else ModelConfig()
    entries = _entries(request.domains, request.root, config)
    if request.split is not None:
        entries = [entry.model_copy(update={"split": request.split}) for entry in entries]
    problems: list[str] = []
    opened = []
    for entry in entries:
        try:
            opened += list(_open_splits(entry, model))
        except DataError as error:
            if len(entries) == 1:
                raise
            problems.append(str(error))
    _refuse_inside(output, [one for _, one in opened])
    check_writable(output)
    records: list[dict[str, Any]] = []
    for name, one in opened:
        found = _survey(name, one)
        picture = _picture_path(output, name, taken=[record["picture"] for record in records])
        panels = _panels(one, found)
        _draw(picture, f"{name}: {words.counted(len(one), 'sample')}", found, panels, model)
        empty = _empty(one, found)
        records.append({**_record(name, one, found, picture), "note": empty})
        problems += _problems(name, one, found)
        _show(name, one, found)
        if empty:
            console.warn(empty)
        console.say(f"drew {picture}")
    console.print_record(records)
    if problems:
        raise DataError(
            "\n".join(problems) if len(problems) == 1 else "\n  - ".join(["", *problems]).lstrip()
        )


def _problems(name: str, domain: Domain, found: Survey) -> Iterator[str]:
    """What makes the exit code 1, in a clause each: samples that cannot be used, a mapping with gaps, no labels."""
    if found.damaged:
        yield (
            f"{name}: {found.damaged} of {words.counted(len(domain), 'sample')} cannot be used\n"
            "  -> fix or remove them; training skips up to 1 % of its samples and stops at more (data.on_error)"
        )
    if found.unmapped is not None:
        yield str(found.unmapped)
    if not _labelled(domain) and domain.split != "test":
        yield (
            f"{name}: no image has a label\n"
            "  -> put the labels where the domain expects them (diff domains), or set root to the folder above both"
        )
    if domain.missing.listed:
        lines = domain.missing.listed
        yield f"{name}: {words.counted(len(lines), 'line')} of the list without an image: {', '.join(lines[:_NAMES])}"
    if domain.archives:
        yield f"{name}: archives are not unpacked: {_first(domain.archives)}"


def _empty(domain: Domain, found: Survey) -> str | None:
    """Which classes have no pixel at all, and the mapping that was probably meant."""
    if found.faults or not _labelled(domain):
        return None
    return empty_classes(domain, glance(domain), found.statistics)


def _entries(domain: str | None, root: Path | None, config: RunConfig | None) -> list[DomainConfig]:
    """The domains to look at; a joined one is left out where its parts are looked at anyway."""
    if (domain is None) == (config is None):
        raise ConfigError(
            "give either a domain or settings", hint="--domain cityscapes, or --config CONFIG.yaml"
        )
    if config is not None:
        unique: dict[str, DomainConfig] = {}
        for entry in (config.data.train, *config.data.eval):
            unique.setdefault(entry.model_dump_json(exclude={"name", "resize"}), entry)
        return list(unique.values())
    assert domain is not None
    entries = expand_domains(domain, root=root)
    names = {entry.domain for entry in entries}
    return [entry for entry in entries if not set(DOMAINS[entry.domain].members) & names]


def _open_splits(entry: DomainConfig, model: ModelConfig) -> Iterator[tuple[str, Domain]]:
    """(name, opened domain) of every split that is there."""
    splits = find_splits(entry, classes=model.classes)
    for split in splits:
        one = open_domain(entry.model_copy(update={"split": split}), purpose="eval", classes=model.classes)
        yield (f"{one.name}, {split}" if len(splits) > 1 else one.name), one


def _refuse_inside(output: Path, domains: Sequence[Domain]) -> None:
    """Nothing is written among a dataset's images or labels."""
    here = output.resolve()
    for one in domains:
        images = [sample.image for sample in one.samples if sample.image is not None]
        labels = [sample.label for sample in one.samples if sample.label is not None]
        for files in filter(None, (images, labels)):
            if _common_folder(files).resolve() in (here, *here.parents):
                raise DataError(
                    "this is inside the dataset", where=str(output), hint="choose another folder with -o"
                )


def _survey(name: str, domain: Domain) -> Survey:
    with console.progress(f"inspect {name}", len(domain)) as bar:
        return survey(domain, workers=min(os.cpu_count() or 1, 16), progress=lambda _done, _all: bar.update())


def _picture_path(output: Path, name: str, *, taken: Sequence[Path]) -> Path:
    """A file named like the domain; two domains of one name are numbered."""
    stem = re.sub(r"[^\w.]+", "-", name)
    numbered = (output / f"{stem}{f'-{i}' if i > 1 else ''}.png" for i in count(1))
    return next(path for path in numbered if path not in taken)


def _panels(domain: Domain, found: Survey) -> list[Panel]:
    """Samples spread evenly over the sound ones. One that turns out not to decode becomes a fault in `found`."""
    sound = [i for i, one in enumerate(found.samples) if not one.faults]
    shown = [sound[i * len(sound) // PANELS] for i in range(PANELS)] if len(sound) > PANELS else sound
    panels = []
    for i in shown:
        try:
            panels.append(Panel(domain.samples[i].id, *domain.load(i)))
        except DiffError as error:
            found.samples[i] = replace(found.samples[i], faults=(error,))
    return panels


def _draw(path: Path, title: str, found: Survey, panels: Sequence[Panel], model: ModelConfig) -> None:
    picture = inspection_picture(title, found.statistics.shares, panels, model=model)
    with write_atomically(path) as temporary:
        picture.save(temporary)


def _record(name: str, domain: Domain, found: Survey, picture: Path) -> dict[str, Any]:
    """All of it, for --json."""
    statistics = found.statistics
    return {
        "domain": name,
        "samples": len(domain),
        "labelled": _labelled(domain),
        "images_without_label": domain.missing.labels,
        "labels_without_image": domain.missing.images,
        "sizes": {str(size): images for size, images in _sizes(found)},
        "labels_of_other_size": _of_other_size(found),
        "ignored_share": _ignored(found),
        "classes": [
            {"class": class_name, "pixels": pixels, "share": share, "samples": samples}
            for class_name, pixels, share, samples in zip(
                domain.classes,
                statistics.pixels.sum(axis=0).tolist(),
                statistics.shares.tolist(),
                (statistics.pixels > 0).sum(axis=0).tolist(),
                strict=True,
            )
        ],
        "outside_mapping": {str(value): files for value, files in _outside(found).items()},
        "faults": [{"file": fault.where, "message": fault.message} for fault in found.faults],
        "picture": picture,
    }


def _show(name: str, domain: Domain, found: Survey) -> None:
    console.table(f"\n{name}", ["", ""], _facts(domain, found))
    if found.statistics.pixels.any():
        console.table("\nclasses", ["class", "% of pixels", "samples", ""], _class_rows(found))
    if found.outside:
        rows = _outside_rows(found)
        console.table(
            "\nlabel values outside the mapping", ["value", "pixels", "files", "first of them"], rows
        )
    others = [fault for fault in found.faults if not isinstance(fault, OutsideMapping)]
    for fault in others[:_FAULTS]:
        console.warn(f"{fault.where}: {fault.message}")
    if len(others) > _FAULTS:
        console.warn(f"and {words.counted(len(others) - _FAULTS, 'more file')} (--json lists them)")


def _facts(domain: Domain, found: Survey) -> Iterator[list[str]]:
    labelled = _labelled(domain)
    yield ["samples", f"{len(domain)}" + ("" if labelled == len(domain) else f", {labelled} labelled")]
    images = [sample.image for sample in domain.samples if sample.image is not None]
    if images:
        yield ["images", str(_common_folder(images))]
    sizes = _sizes(found)
    shown = ", ".join(f"{size}" + (f" ({images})" if len(sizes) > 1 else "") for size, images in sizes[:4])
    yield ["sizes", shown + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else "")]
    other = _of_other_size(found)
    if other:
        yield ["unequal", f"{words.counted(other, 'label')} of another size than the image: resized to it"]
    if labelled:
        for what, files in (
            ("no label", domain.missing.labels),
            ("no image", domain.missing.images),
        ):
            yield [what, f"{len(files)}: {_first(files)}" if files else "0"]
        nothing = "" if found.statistics.pixels.any() else ": no pixel carries a class"
        yield ["ignored", f"{100 * _ignored(found):.2f} % of pixels{nothing}"]


def _class_rows(found: Survey) -> Iterator[list[object]]:
    statistics = found.statistics
    shares, holding = statistics.shares, (statistics.pixels > 0).sum(axis=0)
    room = _TERMINAL - max(map(len, statistics.classes)) - len("  % of pixels  samples  ")
    width = min(max(room, 8), _BAR)
    for train_id, name in enumerate(statistics.classes):
        share = float(shares[train_id])
        bar = console.share_bar(share / float(shares.max()), width)
        yield [name, 100 * share, int(holding[train_id]), bar]


def _labelled(domain: Domain) -> int:
    return sum(sample.label is not None or sample.scene is not None for sample in domain.samples)


def _sizes(found: Survey) -> list[tuple[object, int]]:
    return list(Counter(one.image for one in found.samples if one.image).most_common())


def _of_other_size(found: Survey) -> int:
    return sum(not one.faults and one.label is not None and one.label != one.image for one in found.samples)


def _ignored(found: Survey) -> float:
    ignored, labelled = int(found.statistics.ignored.sum()), int(found.statistics.pixels.sum())
    return ignored / max(ignored + labelled, 1)


def _outside(found: Survey) -> dict[object, list[str]]:
    """Label value -> files that hold it, both in order."""
    files: dict[Any, list[str]] = defaultdict(list)
    for fault in found.outside:
        for value in fault.pixels:
            files[value].append(str(fault.where))
    return dict(sorted(files.items()))


def _outside_rows(found: Survey) -> Iterator[list[object]]:
    """Each value outside the mapping with its share of the pixels of all labels."""
    pixels, _ = counted(found.outside)
    total = int(found.statistics.pixels.sum() + found.statistics.ignored.sum())
    total += sum(fault.total for fault in found.outside)
    for value, files in _outside(found).items():
        yield [str(value), percent(pixels[value], total), len(files), _first(files)]


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([str(file.parent) for file in files]))


def _first(files: Sequence[object]) -> str:
    names = [Path(str(file)).name for file in files[:_NAMES]]
    return ", ".join(names) + (", ..." if len(files) > _NAMES else "")
