"""Which split of a domain is meant: the one that was asked for, or an error that lists what is there."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from diffcli.config.domain import FolderDomain, KnownDomain
from diffcli.data.domains import DomainSpec
from diffcli.data.listing import Missing, Pair, Place, archives, describe, find_places
from diffcli.data.patterns import common_affixes, split_name
from diffcli.data.roots import other_folders
from diffcli.errors import ConfigError, DataError

_SHOWN = 3


def places_of(spec: DomainSpec, root: Path, *, asked: str | None = None) -> list[Place]:
    """Every split of the domain below `root` (`find_places`); a layout for one split alone goes before the others."""
    return find_places(root, spec.layouts, asked=asked, others=other_folders(spec))


def choose_split(
    spec: DomainSpec, config: KnownDomain | FolderDomain, root: Path, *, wanted: str
) -> tuple[Place, Literal["", "train", "val"]]:
    """Where the wanted split is, and which part of it is meant where val_fraction divides it.

    Without a split in YAML, a set that has no splits at all is taken whole, and so is one that holds the held-out part
    by itself.

    Args:
        wanted: train, val, test, or the name of a split's folder.

    Raises:
        ConfigError: val_fraction for a set that has a val split.
        DataError: the split is not there; the message lists those that are.
    """
    places = places_of(spec, root, asked=config.split)
    name = split_name(wanted) or wanted
    if config.val_fraction is not None:
        return _divided(places, spec, config, root, name)
    exact = [place for place in places if place.split == wanted]
    alike = [place for place in places if place.name == name and place.split]
    if len(alike) > 1 and not exact:
        raise DataError(
            f"{spec.name}: several folders are the {name} split: {', '.join(place.split for place in alike)}",
            where=str(root),
            hint=f"name one: split: {alike[0].split}",
        )
    whole = [place for place in places if not place.split]
    if config.split is None and len(whole) == len(places):
        alike = whole
    elif name == "train":
        alike = alike or whole
    chosen = next(iter([*exact, *alike]), None)
    if chosen is None:
        raise _no_such_split(spec, root, places, wanted)
    return chosen, ""


def _divided(
    places: Sequence[Place], spec: DomainSpec, config: KnownDomain | FolderDomain, root: Path, name: str
) -> tuple[Place, Literal["", "train", "val"]]:
    """The set that val_fraction divides, and the part of it."""
    if any(place.name == "val" for place in places):
        raise ConfigError(
            "val_fraction is set, but there is a val split", where=str(root), hint="drop val_fraction"
        )
    if name not in ("train", "val"):
        wanted = [place for place in places if place.name == name]
        if not wanted:
            raise _no_such_split(spec, root, places, name)
        return wanted[0], ""
    whole = [place for place in places if place.name in ("train", "")]
    if not whole:
        raise _no_such_split(spec, root, places, "train")
    return whole[0], "train" if name == "train" else "val"


def held_out(
    pairs: Sequence[Pair], *, part: Literal["train", "val"], fraction: float, seed: int
) -> list[Pair]:
    """One part of a set that val_fraction divides: val is the share with the smallest digests of (seed, key).

    Raises:
        DataError: there are too few samples for two parts.
    """
    if len(pairs) < 2:
        raise DataError(
            "val_fraction needs two samples at least", hint="drop val_fraction, or add images with labels"
        )

    def digest(pair: Pair) -> bytes:
        return hashlib.sha256(os.fsencode(f"{seed}/{pair.key}")).digest()

    count = min(max(round(len(pairs) * fraction), 1), len(pairs) - 1)
    val = {pair.key for pair in sorted(pairs, key=digest)[:count]}
    return [pair for pair in pairs if (pair.key in val) == (part == "val")]


def _no_such_split(spec: DomainSpec, root: Path, places: Sequence[Place], wanted: str) -> DataError:
    """The split is not there, but others may be."""
    if not places:
        return nothing_here(spec, root, wanted)
    there = [place.split or "a set without splits" for place in places]
    named = [place.split for place in places if place.split]
    hints = [f"set split to one of them (split: {named[-1]})"] if named else []
    if split_name(wanted) == "val" and any(place.name in ("", "train") for place in places):
        hints.append("val_fraction: 0.1 holds out a part of it (in the train entry and in this one)")
    return DataError(
        f"{spec.name}: no {wanted} images here, but there is {', '.join(there)}",
        where=str(root),
        hint="; or ".join(hints) or f"expected {describe(spec.layouts)}",
    )


def nothing_here(spec: DomainSpec, root: Path, wanted: str = "") -> DataError:
    """No layout of the domain is at `root`."""
    for folder, remedy in spec.not_these.items():
        if any((base / folder).is_dir() for base in (root, *root.glob("*"))):
            return DataError(f"{spec.name}: {folder} is not the labelled set", where=str(root), hint=remedy)
    packed = archives(root)
    what = f"no {wanted} images here".replace("  ", " ")
    if packed:
        names = ", ".join(path.name for path in packed[:_SHOWN])
        return DataError(
            f"{spec.name}: {what}, but there are archives: {names}", where=str(root), hint="unpack them"
        )
    find_out = f"; `diff init --folder {root}` finds out how it is laid out" if spec.name == "folder" else ""
    return DataError(
        f"{spec.name}: {what}", where=str(root), hint=f"expected {describe(spec.layouts)}{find_out}"
    )


def unpaired(
    spec: DomainSpec, place: Place, pairs: Sequence[Pair], missing: Missing, purpose: str
) -> DataError:
    """Images and labels that do not find each other, with some of both."""
    expected = f"expected {describe([place.layout])}".replace("{split}", place.split)
    if missing.listed and not pairs:
        return DataError(
            f"{spec.name}: the list names no image that is here: {', '.join(missing.listed[:_SHOWN])}",
            where=str(place.base / place.layout.list_file.replace("{split}", place.split)),
            hint=f"a line is an id, or an image and its label below {place.base}; {expected}",
        )
    if not pairs:
        packed = archives(place)
        return DataError(
            f"{spec.name}: no images here",
            where=str(place.images()),
            hint=f"unpack {packed[0].name}" if packed else expected,
        )
    folders = list(dict.fromkeys(str(place.labels(files)) for files in place.layout.labels))
    nothing = "no image files in" if os.path.isdir(folders[0]) else "there is no folder"
    labels = _few(place.images(), missing.images) or f"{nothing} {folders[0]}"
    images = _few(place.images(), [Path(pair.image) for pair in pairs])
    return DataError(
        f"{spec.name}: no image here has a label\n     images: {images}\n     labels: {labels}",
        where=str(place.images()),
        hint=("training needs labels; " if purpose == "train" else "")
        + f"{expected}; {_suggested(pairs, missing)}",
    )


def _suggested(pairs: Sequence[Pair], missing: Missing) -> str:
    """The prefixes and suffixes that would pair the names, where there are any."""
    images, labels = [Path(pair.image).stem for pair in pairs], [path.stem for path in missing.images]
    affixes = common_affixes(images, labels)
    keys = ("image_prefix", "image_suffix", "label_prefix", "label_suffix")
    found = [f"{key}: {text}" for key, text in zip(keys, affixes or (), strict=False) if text]
    if found:
        return f"names would pair with {', '.join(found)}"
    return "names that differ are paired by a pattern: images: rgb/rgb_{id}.png, labels: ss/ss_{id}.png"


def _few(folder: Path, files: Sequence[Path]) -> str:
    """The first files, by name, and how many there are."""
    names = ", ".join(path.name for path in files[:_SHOWN])
    return f"{names}{', ...' if len(files) > _SHOWN else ''} ({len(files)})" if files else ""
