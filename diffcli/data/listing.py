"""Finding images and their labels on disk: names only, no pixel is read and no file is opened.

A listing of 100 000 files takes about a second: folders are walked with os.scandir, which knows files from folders
without asking the file system about each of them.
"""

import os
import re
from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from diffcli.data.domains import SPLITS, LabelFiles, Layout
from diffcli.errors import DataError

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))


@dataclass(frozen=True, slots=True)
class Pair:
    """One image: its key (relative path without suffixes), file, label file if any, and which `LabelFiles` that is."""

    key: str
    image: str
    label: str | None
    kind: int


@dataclass(frozen=True)
class Missing:
    """What has no partner: images without a label, labels without an image."""

    labels: tuple[Path, ...] = ()
    """Images that have no label."""
    images: tuple[Path, ...] = ()
    """Labels that have no image."""

    def __len__(self) -> int:
        return len(self.labels) + len(self.images)


@dataclass(frozen=True)
class Place:
    """A layout as found, with `split` being the name of the split's folder ("" where there are none)."""

    base: Path
    """Folder that holds the images' part of the layout."""
    label_base: Path
    """Folder that holds the labels' part: another one where two archives were unpacked side by side."""
    layout: Layout
    split: str
    parts: tuple[Path, ...] = ()
    """Folders beside `base` that hold more of the images: numbered archives, unpacked into a folder each."""
    label_parts: tuple[Path, ...] = ()
    """The same of `label_base`."""

    def images(self) -> Path:
        """The folder of the images."""
        return self.base / self.layout.images.format(split=self.split)

    def labels(self, files: LabelFiles) -> Path:
        """The folder of one kind of labels."""
        return self.label_base / files.folder.format(split=self.split)

    def has_labels(self) -> bool:
        """Whether there is a folder of any kind of labels."""
        return any(self.labels(files).is_dir() for files in self.layout.labels)


def find_place(root: Path, layouts: Sequence[Layout], split: str) -> Place | None:
    """The first layout that lies at `root` or one folder below; one with labels goes before one without.

    Labels may lie below another folder than the images, as archives unpacked side by side leave them.
    A layout without split folders is one undivided set; it answers to "train" and to "", which asks for nothing else.
    """
    bases = (root, *_subfolders(root))
    places = [place for base in bases for layout in layouts for place in _places(base, layout, split)]
    apart = (replace(place, label_base=base) for place in places for base in bases)
    labelled = next((place for place in chain(places, apart) if place.has_labels()), None)
    found = labelled or next(iter(places), None)
    if found is None:
        return None
    return replace(
        found, parts=_numbered_alike(found.base, bases), label_parts=_numbered_alike(found.label_base, bases)
    )


def _numbered_alike(base: Path, bases: Sequence[Path]) -> tuple[Path, ...]:
    """02_images to 10_images for 01_images, as the ten archives of GTA5 are called; never beside the root itself."""
    if base == bases[0] or not re.search(r"\d", base.name):
        return ()
    name = re.sub(r"\d+", "", base.name)
    return tuple(other for other in bases[1:] if other != base and re.sub(r"\d+", "", other.name) == name)


def _places(base: Path, layout: Layout, split: str) -> Iterator[Place]:
    if "{split}" in layout.images:
        for name in SPLITS.get(split, ()):
            place = Place(base, base, layout, name)
            if place.images().is_dir():
                yield place
    elif split in ("train", ""):
        place = Place(base, base, layout, "")
        if place.images().is_dir() and not _has_splits(place.images()):
            yield place


def _has_splits(folder: Path) -> bool:
    return any((folder / name).is_dir() for names in SPLITS.values() for name in names)


def _subfolders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir())


def find_pairs(place: Place) -> tuple[list[Pair], Missing]:
    """Images of `place` in the order of their keys, each with its most preferred label, and what has no partner.

    Files that are no images, hidden files and images that do not end as the layout says are passed over.

    Raises:
        DataError: two images, or two labels of one kind, share a key.
    """
    suffix = place.layout.image_suffix
    folder = place.layout.images.format(split=place.split)
    images = _keyed_in((place.base, *place.parts), folder, (suffix,))[suffix]
    labels = _labels(place)
    pairs = []
    for key in sorted(images):
        label, kind = next(((found[key], i) for i, found in enumerate(labels) if key in found), (None, -1))
        pairs.append(Pair(key, images[key], label, kind))
    without_label = tuple(Path(pair.image) for pair in pairs if pair.label is None)
    orphans = {path for found in labels for key, path in found.items() if key not in images}
    return pairs, Missing(labels=without_label, images=tuple(Path(path) for path in sorted(orphans)))


def _labels(place: Place) -> list[dict[str, str]]:
    """For each `LabelFiles` of the layout: key -> file. Each folder is walked once."""
    kinds = place.layout.labels
    bases = (place.label_base, *place.label_parts)
    walked: dict[str, dict[str, dict[str, str]]] = {}
    for folder in dict.fromkeys(files.folder for files in kinds):
        suffixes = tuple(files.suffix for files in kinds if files.folder == folder)
        walked[folder] = _keyed_in(bases, folder.format(split=place.split), suffixes)
    return [walked[files.folder][files.suffix] for files in kinds]


def _keyed_in(bases: Sequence[Path], folder: str, suffixes: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """`_keyed` of the folder below each of the bases, earlier ones first."""
    found = [_keyed(base / folder, suffixes) for base in bases]
    return {suffix: dict(ChainMap(*(one[suffix] for one in found))) for suffix in suffixes}


def _keyed(folder: Path, suffixes: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """suffix -> key -> file, for the images below `folder`; a file counts for the longest suffix that it ends in."""
    found: dict[str, dict[str, str]] = {suffix: {} for suffix in suffixes}
    longest_first = sorted(found, key=len, reverse=True)
    for stem, path in walk_images(folder):
        suffix = next((s for s in longest_first if stem.endswith(s)), None)
        if suffix is None:
            continue
        key = stem[: len(stem) - len(suffix)]
        other = found[suffix].setdefault(key, path)
        if other is not path:
            raise DataError(
                f"two files of one name: {Path(other).name} and {Path(path).name}",
                where=str(Path(path).parent),
                hint="keep one of them; names must differ in more than their ending",
            )
    return found


def walk_images(folder: Path) -> Iterator[tuple[str, str]]:
    """(relative path without suffix, full path) of every image below `folder`, links followed, in no order."""
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
            if dot and f".{ending.lower()}" in IMAGE_SUFFIXES and entry.is_file():
                yield prefix + stem, entry.path
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:
                    yield from _walk(entry.path, f"{prefix}{name}/", (*above, real))
