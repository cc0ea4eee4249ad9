"""What an unknown folder of images and labels probably is: how its names pair, its splits, and what its labels hold."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from diffcli.config.domain import FolderDomain
from diffcli.config.size import Size
from diffcli.data.domains import LabelEncoding
from diffcli.data.folder import folder_spec
from diffcli.data.headers import image_size
from diffcli.data.labels import LabelReader, read_pixels
from diffcli.data.listing import archives, find_pairs, find_places, walk_images
from diffcli.data.mapping import Value
from diffcli.data.patterns import ID, SPLIT, Affixes, common_affixes, split_name
from diffcli.data.statistics import in_parallel
from diffcli.errors import DataError, DiffError

MAX_VALUES = 64
"""A file with more values or colours is taken for a picture, not for labels."""
READ_LABELS = 500
"""Labels that are read at most, evenly spread, to find out which values there are."""
_PROBES = 3
_LABEL_FOLDERS = ("label", "mask", "gt", "annot", "segm", "ss", "target")
"""What folders of labels are called, the best sign first."""


@dataclass(frozen=True)
class Guess:
    """What a folder was found to be."""

    settings: dict[str, str]
    """Settings of the domain `folder` that pair its names; nothing where the usual ones do."""
    splits: tuple[str, ...]
    """Names of the splits' folders; nothing for an undivided set."""
    pairs: int
    """Images that have a label, in all splits."""
    size: Size
    """The middle size of the images."""
    values: dict[Value, int]
    """Value or colour -> pixels, of the labels that were read; the largest share first."""
    read: int
    """Labels that were read."""
    others: tuple[str, ...] = ()
    """Further folders that look like labels of the same images."""

    @property
    def colored(self) -> bool:
        """Whether labels are stored as colours."""
        return any(isinstance(value, tuple) for value in self.values)


@dataclass
class _Group:
    """Files below one folder, or of one name in many folders."""

    pattern: str
    files: list[tuple[str, str]] = field(default_factory=list)
    """(what stands for {id}, with the split before it; path)."""


def guess_folder(folder: Path) -> Guess:
    """Look at the names below a folder, at a few files and at up to `READ_LABELS` labels.

    Raises:
        DataError: no images, no labels, or no names that pair; it says what was found.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder))
    found = sorted(walk_images(folder))
    if not found:
        packed = archives(folder)
        hint = f"unpack {packed[0].name}" if packed else "it must hold images and, for each, a label image"
        raise DataError("no images here", where=str(folder), hint=hint)
    groups = _groups(found)
    labels = [group for group in groups if _looks_like_labels(group)]
    images = [group for group in groups if group not in labels]
    if not images:  # pictures of few colours: the names decide
        images = [group for group in groups if _unlikely(group.pattern)[0] == len(_LABEL_FOLDERS)]
        labels = [group for group in groups if group not in images]
    choices = [choice for image in images for choice in _pairings(image, labels)]
    if not choices:
        raise _nothing_pairs(folder, images, labels)
    matched, settings, label_pattern = min(choices, key=lambda choice: (-choice[0], _unlikely(choice[2])))
    others = tuple(sorted({pattern for count, _, pattern in choices if count == matched} - {label_pattern}))
    return _described(folder, settings, others)


def _groups(found: Sequence[tuple[str, str]]) -> list[_Group]:
    """The files by what may be a pattern: a folder, a suffix in a folder, or one name in every folder."""
    scenes = _scenes(found)
    if scenes:
        return scenes
    folders: dict[str, _Group] = {}
    for stem, path in found:
        folder, split, rest = _parts(stem)
        group = folders.setdefault(folder, _Group(folder))
        group.files.append((f"{split}/{rest}", path))
    if len(folders) == 1:
        return _by_suffix(next(iter(folders.values())))
    return list(folders.values())


def _parts(stem: str) -> tuple[str, str, str]:
    """(folder with {split}, split, rest) of a file: the first folder, or the split and one beside it."""
    *folders, name = stem.split("/")
    at = next((i for i, part in enumerate(folders) if split_name(part) is not None), None)
    if at is None:
        return (folders[0] if folders else ""), "", "/".join([*folders[1:], name])
    end = at + 1 if at or len(folders) == 1 else 2
    kept = [SPLIT if i == at else part for i, part in enumerate(folders[:end])]
    return "/".join(kept), folders[at], "/".join([*folders[end:], name])


def _scenes(found: Sequence[tuple[str, str]]) -> list[_Group]:
    """A folder for each image: few file names, each in most folders."""
    names = Counter(os.path.basename(path) for _, path in found)
    folders = {os.path.dirname(stem) for stem, _ in found}
    if len(folders) < 2 or len(names) > len(folders) or min(names.values()) * 2 < len(folders):
        return []
    if len(names) < 2:
        return []
    groups: dict[str, _Group] = {}
    for stem, path in found:
        *above, _ = stem.split("/")
        split = above[0] if len(above) > 1 and split_name(above[0]) else ""
        name = os.path.basename(path)
        group = groups.setdefault(name, _Group(f"{SPLIT}/{ID}/{name}" if split else f"{ID}/{name}"))
        group.files.append((f"{split}/{'/'.join(above[bool(split) :])}", path))
    return list(groups.values())


def _by_suffix(group: _Group) -> list[_Group]:
    """Files of one folder, by their ending or by what follows another file's whole name: a.jpg, a.png, a_mask.png."""
    stems = Counter(key for key, _ in group.files)
    suffixes: Counter[str] = Counter()
    for key in stems:
        cut = key
        while "_" in cut or "-" in cut:
            cut = cut[: max(cut.rfind("_"), cut.rfind("-"))]
            if cut in stems:
                suffixes[key[len(cut) :]] += 1
                break
    prefix = f"{group.pattern}/" if group.pattern else ""
    parts: dict[str, _Group] = {}
    if suffixes and suffixes.most_common(1)[0][1] * 3 >= len(stems):
        suffix = suffixes.most_common(1)[0][0]
        for key, path in group.files:
            mine = suffix if key.endswith(suffix) and key[: -len(suffix)] in stems else ""
            part = parts.setdefault(mine, _Group(f"{prefix}{ID}{mine}"))
            part.files.append((key.removesuffix(mine), path))
        return list(parts.values())
    for key, path in group.files:
        ending = os.path.splitext(path)[1]
        parts.setdefault(ending, _Group(f"{prefix}{ID}{ending}")).files.append((key, path))
    return list(parts.values())


def _looks_like_labels(group: _Group) -> bool:
    """Whether some of its files hold few values, in a format that keeps them."""
    step = max(len(group.files) // _PROBES, 1)
    return all(_few_values(Path(path)) for _, path in group.files[::step][:_PROBES])


def _few_values(path: Path) -> bool:
    try:
        pixels = read_pixels(path)
    except DiffError:
        return False
    if pixels.ndim == 3:
        pixels = pixels.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1])
    return len(np.unique(pixels)) <= MAX_VALUES


def _pairings(image: _Group, labels: Sequence[_Group]) -> Iterator[tuple[int, dict[str, str], str]]:
    """(images with a label, settings, the labels' pattern) for each group of labels that pairs with the images."""
    for label in labels:
        if (SPLIT in image.pattern) != (SPLIT in label.pattern):
            continue
        for affixes in _affixes(image, label):
            before_i, after_i, before_l, after_l = affixes
            ours = _keys(image, before_i, after_i)
            count = len(ours & _keys(label, before_l, after_l))
            if 2 * count > min(len(image.files), len(label.files)):
                settings = {
                    "images": _with_affixes(image.pattern, before_i, after_i),
                    "labels": _with_affixes(label.pattern, before_l, after_l),
                }
                yield count, settings, label.pattern
                break


def _affixes(image: _Group, label: _Group) -> Iterator[Affixes]:
    """Prefix and suffix of the images' names and of the labels': none, or those that pair most of them."""
    yield "", "", "", ""
    if ID not in image.pattern and ID not in label.pattern:
        names = [[os.path.basename(key) for key, _ in group.files] for group in (image, label)]
        found = common_affixes(*names)
        if found is not None:
            yield found


def _keys(group: _Group, before: str, after: str) -> set[str]:
    found = set()
    for key, _ in group.files:
        folder, slash, name = key.rpartition("/")
        if name.startswith(before) and name.endswith(after):
            found.add(f"{folder}{slash}{name[len(before) : len(name) - len(after)]}")
    return found


def _with_affixes(pattern: str, before: str, after: str) -> str:
    return f"{pattern}/{before}{ID}{after}".lstrip("/") if before or after else pattern or ID


def _unlikely(pattern: str) -> tuple[int, int, str]:
    """Lower for folders that are called like labels."""
    name = pattern.replace(SPLIT, "").replace(ID, "").lower()
    rank = next((i for i, word in enumerate(_LABEL_FOLDERS) if word in name), len(_LABEL_FOLDERS))
    return rank, len(name), name


def _described(folder: Path, settings: dict[str, str], others: tuple[str, ...]) -> Guess:
    """The guess with splits, sizes and values, found as training will find them."""
    plain = {name: text.replace(f"/{SPLIT}", "").replace(f"{SPLIT}/", "") for name, text in settings.items()}
    usual = all(ID not in text for text in plain.values()) and all(plain.values())
    chosen = plain if usual else settings
    spec = folder_spec(FolderDomain.model_validate({"root": folder, **chosen}), ("one", "two"))
    places = find_places(folder, spec.layouts)
    pairs = [pair for place in places for pair in find_pairs(place)[0] if pair.label is not None]
    if not pairs:
        raise DataError(
            "images and labels were found, but not how they pair", where=str(folder), hint=str(settings)
        )
    some = (
        pairs
        if len(pairs) <= READ_LABELS
        else [pairs[i * len(pairs) // READ_LABELS] for i in range(READ_LABELS)]
    )
    sizes = [image_size(Path(pair.image)) for pair in some[:50]]
    return Guess(
        settings={name: text for name, text in chosen.items() if text != name},
        splits=tuple(place.split for place in places if place.split),
        pairs=len(pairs),
        size=Size(*(int(median(sides)) for sides in zip(*sizes, strict=True))),
        values=_values([Path(pair.label) for pair in some if pair.label is not None]),
        read=len(some),
        others=others,
    )


def _values(paths: Sequence[Path]) -> dict[Value, int]:
    """Value or colour -> pixels of all the label files; a file that cannot be read is left to `diff check`."""
    reader = LabelReader(LabelEncoding(ids={0: 0}), (0,))
    total: Counter[Value] = Counter()

    def values(number: int) -> dict[Value, int]:
        try:
            return reader.stored_values(paths[number])
        except DiffError:
            return {}

    for found in in_parallel(values, len(paths), workers=min(os.cpu_count() or 1, 8)):
        total.update(found)
    return dict(total.most_common())


def _nothing_pairs(folder: Path, images: Sequence[_Group], labels: Sequence[_Group]) -> DataError:
    def listed(groups: Sequence[_Group]) -> str:
        return ", ".join(f"{g.pattern or '.'} ({len(g.files)})" for g in groups) or "none"

    return DataError(
        f"no images and labels whose names pair\n     images: {listed(images)}\n     labels: {listed(labels)}",
        where=str(folder),
        hint="labels are images of one channel (or of few colours) in a format that keeps values, such as PNG; names "
        "may differ by what stands before or after a common part",
    )
