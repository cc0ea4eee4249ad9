"""Finding images and their labels on disk: names only, no pixel is read and no image is opened.

A listing of 100 000 files takes about a second: folders are walked with os.scandir, which knows files from folders
without asking the file system about each of them.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from diffcli.data.domains import LabelFiles, Layout
from diffcli.data.lists import read_list
from diffcli.data.patterns import (
    ID,
    IMAGE_SUFFIXES,
    SPLIT,
    Pattern,
    is_archive,
    pattern,
    split_name,
    split_part,
)
from diffcli.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "Missing",
    "Pair",
    "Place",
    "archives",
    "find_pairs",
    "find_places",
    "walk_images",
]


@dataclass(frozen=True, slots=True)
class Pair:
    """One image: its key (what `{id}` stands for), file, label file if any, and which `LabelFiles` that is."""

    key: str
    image: str
    label: str | None
    kind: int


@dataclass(frozen=True)
class Missing:
    """What has no partner: images without a label, labels without an image, lines of a list without a file."""

    labels: tuple[Path, ...] = ()
    """Images that have no label."""
    images: tuple[Path, ...] = ()
    """Labels that have no image."""
    listed: tuple[str, ...] = ()
    """Lines of a list file for which there is no image."""

    def __len__(self) -> int:
        return len(self.labels) + len(self.images) + len(self.listed)


@dataclass(frozen=True)
class Place:
    """A layout as found on disk."""

    base: Path
    """Folder that holds the images' part of the layout."""
    label_base: Path
    """Folder that holds the labels' part: another one where two archives were unpacked side by side."""
    layout: Layout
    split: str
    """Name of the split's folder; empty for an undivided set."""
    parts: tuple[Path, ...] = ()
    """Folders beside `base` that hold more of the images: numbered archives, unpacked into a folder each."""
    label_parts: tuple[Path, ...] = ()
    """The same of `label_base`."""

    @property
    def name(self) -> str:
        """The split: train, val, test, train_extra, another folder's name, or empty for an undivided set."""
        return split_name(self.split) or self.split

    def images(self) -> Path:
        """The folder of the images."""
        return self.base / pattern(self.layout.images, self.split).folder

    def labels(self, files: LabelFiles) -> Path:
        """The folder of one kind of labels."""
        return self.label_base / pattern(files.files, self.split).folder

    def has_labels(self) -> bool:
        """Whether there is a folder of any kind of labels."""
        return any(self.labels(files).is_dir() for files in self.layout.labels)


def find_places(
    root: Path, layouts: Sequence[Layout], *, asked: str | None = None, others: Sequence[str] = ()
) -> list[Place]:
    """Every split that is at `root` or one folder below, in the order of the layouts, each folder name once.

    A place with labels goes before one without. Labels may be below another folder than the images, as archives that
    were unpacked side by side leave them. An undivided set is the place whose split is empty; the folder of a split is
    never taken for one.

    Args:
        asked: a folder name that counts as a split although it is none of the usual names.
        others: folders below the root that belong to something else.

    Raises:
        DataError: two folders below the root both hold the layout.
    """
    bases = (root, *(f for f in _subfolders(root) if split_name(f.name) is None and f.name not in others))
    found = [place for base in bases for layout in layouts for place in _places(base, layout, asked)]
    names = dict.fromkeys(place.split for place in found)
    return [_chosen([place for place in found if place.split == name], bases) for name in names]


def _chosen(places: Sequence[Place], bases: Sequence[Path]) -> Place:
    """The best of the places of one split: labels beside the images, then labels elsewhere, then no labels."""
    whole = [place for place in places if place.has_labels()]
    if whole:
        _refuse_twins([place for place in whole if place.layout == whole[0].layout], bases)
    apart = (replace(place, label_base=base) for place in places for base in bases)
    chosen = next(chain(whole, (place for place in apart if place.has_labels())), places[0])
    return replace(
        chosen,
        parts=_numbered_alike(chosen.base, bases),
        label_parts=_numbered_alike(chosen.label_base, bases),
    )


def _refuse_twins(places: Sequence[Place], bases: Sequence[Path]) -> None:
    """Two folders below the root that hold the same layout are two sets: neither is taken without being named."""
    first = places[0].base
    twins = [p.base for p in places if p.base not in (first, *_numbered_alike(first, bases))]
    if twins and first != bases[0]:
        raise DataError(
            f"several folders here hold images and labels: {', '.join(sorted(p.name for p in (first, *twins)))}",
            where=str(bases[0]),
            hint=f"set root to one of them, for example {first}",
        )


def _numbered_alike(base: Path, bases: Sequence[Path]) -> tuple[Path, ...]:
    """02_images to 10_images for 01_images, as the ten archives of GTA5 are called; never beside the root itself."""
    if base == bases[0] or not re.search(r"\d", base.name):
        return ()
    name = re.sub(r"\d+", "", base.name)
    return tuple(other for other in bases[1:] if other != base and re.sub(r"\d+", "", other.name) == name)


def _places(base: Path, layout: Layout, asked: str | None) -> Iterator[Place]:
    divided = split_part(layout.list_file or layout.images)
    if divided is None:
        place = Place(base, base, layout, "")
        if layout.list_file:
            there = (base / layout.list_file).is_file()
        else:
            there = place.images().is_dir() and not any(
                split_name(folder.name) is not None for folder in _subfolders(place.images())
            )
        if there:
            yield place
        return
    above, names = divided
    for name in _split_names(base / above, names, asked):
        place = Place(base, base, layout, name)
        if layout.only in ("", place.name) and (layout.list_file or place.images().is_dir()):
            yield place


def _split_names(folder: Path, names: re.Pattern[str], asked: str | None) -> list[str]:
    """The splits that the entries of a folder are named for, the usual spelling of each first."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        matches = [match["split"] for entry in entries if (match := names.fullmatch(entry.name))]
    found = {name for name in matches if split_name(name) is not None or name == asked}
    return sorted(found, key=lambda name: (split_name(name) != name, name))


def _subfolders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir())


def archives(place_or_root: Place | Path) -> list[Path]:
    """Archives that have not been unpacked: at the root and one folder below, or in the folders of a place."""
    if isinstance(place_or_root, Place):
        place = place_or_root
        folders = [place.images(), *(place.labels(files) for files in place.layout.labels)]
    else:
        folders = [place_or_root, *_subfolders(place_or_root)]
    found = []
    for folder in dict.fromkeys(folder for folder in folders if folder.is_dir()):
        with os.scandir(folder) as entries:
            found += [Path(entry.path) for entry in entries if is_archive(entry.name) and entry.is_file()]
    return sorted(found)


def find_pairs(place: Place) -> tuple[list[Pair], Missing]:
    """Images of `place` in the order of their keys, each with its most preferred label, and what has no partner.

    Files that are no images, hidden files and images that do not match the layout's pattern are passed over. With a
    list file, its samples and no others.

    Raises:
        DataError: two images, or two labels of one kind, have the same key, or a list file cannot be read.
    """
    images, labels = _files(place)
    if place.layout.list_file:
        return _listed(place, images, labels)
    pairs = [_pair(key, images[key], labels) for key in sorted(images)]
    orphans = {path for found in labels for key, path in found.items() if key not in images}
    return pairs, Missing(labels=_without_label(pairs), images=tuple(Path(path) for path in sorted(orphans)))


def _pair(key: str, image: str, labels: Sequence[dict[str, str]]) -> Pair:
    label, kind = next(((found[key], i) for i, found in enumerate(labels) if key in found), (None, -1))
    return Pair(key, image, label, kind)


def _without_label(pairs: Sequence[Pair]) -> tuple[Path, ...]:
    return tuple(Path(pair.image) for pair in pairs if pair.label is None)


def _listed(
    place: Place, images: dict[str, str], labels: Sequence[dict[str, str]]
) -> tuple[list[Pair], Missing]:
    """The samples that the list file of a place names, in its order."""
    path = place.base / place.layout.list_file.replace(SPLIT, place.split)
    pairs: dict[str, Pair] = {}
    unknown: list[str] = []
    for line in read_list(path, root=place.base, keys=images):
        if line.image is None:
            unknown.append(line.text)
        elif line.label is not None:
            pairs[line.key] = Pair(line.key, line.image, line.label, 0)
        else:
            pairs[line.key] = _pair(line.key, line.image, labels)
    found = list(pairs.values())
    return found, Missing(labels=_without_label(found), listed=tuple(unknown))


def _files(place: Place) -> tuple[dict[str, str], list[dict[str, str]]]:
    """key -> file of the images, and of each `LabelFiles`. Each folder is walked once.

    A file that several patterns match belongs to the one with most given letters: x_labelTrainIds.png in a folder of
    {id}.png and {id}_labelTrainIds.png is of the second kind.
    """
    images = pattern(place.layout.images, place.split)
    labels = [pattern(files.files, place.split) for files in place.layout.labels]
    found: list[dict[str, str]] = [{} for _ in (images, *labels)]
    roots: dict[tuple[Path, ...], list[tuple[Pattern, dict[str, str]]]] = {}
    for number, one in enumerate((images, *labels)):
        bases = (place.label_base, *place.label_parts) if number else (place.base, *place.parts)
        roots.setdefault(tuple(base / one.folder for base in bases), []).append((one, found[number]))
    for folders, patterns in roots.items():
        heaviest_first = sorted(patterns, key=lambda item: -item[0].weight)
        for folder in folders:
            _collect(folder, heaviest_first, earlier=[dict(keys) for _, keys in heaviest_first])
    return found[0], found[1:]


def _collect(
    folder: Path, patterns: Sequence[tuple[Pattern, dict[str, str]]], *, earlier: Sequence[dict[str, str]]
) -> None:
    """Add the files below `folder` to the first pattern that each matches, unless an earlier folder has its key."""
    for stem, path in walk_images(folder):
        ending = path[path.rindex(".") :].lower()
        for (one, keys), before in zip(patterns, earlier, strict=True):
            key = one.key(stem, ending)
            if key is None:
                continue
            if key not in before and keys.setdefault(key, path) is not path:
                _refuse_twice(keys[key], path)
            break


def _refuse_twice(first: str, second: str) -> None:
    names = [os.path.basename(path) for path in (first, second)]
    raise DataError(
        f"two files of one name: {names[0]} and {names[1]}",
        where=os.path.dirname(second),
        hint="keep one of them; names must differ in more than their ending (and in more than the spelling of accents)",
    )


def walk_images(folder: Path) -> Iterator[tuple[str, str]]:
    """(relative path without suffix, full path) of every image below `folder`, links followed, in no order.

    What is named like an image and is no folder counts, so that a link without a target is reported when it is read.
    """
    if folder.is_dir():
        yield from _walk(str(folder), "", (os.path.realpath(folder),))


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """`above`: the real folders on the way down to `folder` and itself; a link back to one of them is not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            stem, dot, ending = name.rpartition(".")
            if dot and f".{ending.lower()}" in IMAGE_SUFFIXES and not entry.is_dir():
                yield prefix + stem, entry.path
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:
                    yield from _walk(entry.path, f"{prefix}{name}/", (*above, real))


def describe(layouts: Sequence[Layout]) -> str:
    """The layouts in words, for errors: leftImg8bit/{split}/{id}_leftImg8bit.* with gtFine/..."""
    return " or ".join(
        f"{_shown(one.images)} with {_shown(one.labels[0].files)}" for one in layouts if not one.only
    )


def _shown(text: str) -> str:
    full = text if ID in text else f"{text}/{ID}"
    return full if os.path.splitext(full)[1].lower() in IMAGE_SUFFIXES else f"{full}.*"
