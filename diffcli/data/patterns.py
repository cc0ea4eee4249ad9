"""Patterns of file names, as layouts and YAML write them: `rgb/{split}/rgb_{id}.png`."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from diffcli.data.domains import SPLITS

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")

ID, SPLIT = "{id}", "{split}"

_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_SPLIT_NAME = re.compile(
    rf"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?:[ _.-]*(?:set|split|\d+))*", re.I
)


def split_name(folder: str) -> str | None:
    """The split that a folder's name stands for: val for Validation, train for train2017; None for other names."""
    match = _SPLIT_NAME.fullmatch(folder.strip())
    return _SPLIT_OF[match[1].lower()] if match else None


@dataclass(frozen=True)
class Pattern:
    """A pattern below a root, with the split's folder name filled in."""

    text: str

    @cached_property
    def folder(self) -> str:
        """The folder that holds every file that matches: the part before the first placeholder or star."""
        parts = self._parts
        first = next(i for i, part in enumerate(parts) if ID in part or "*" in part)
        return "/".join(parts[:first])

    @cached_property
    def weight(self) -> int:
        """Letters that are given: a file that two patterns of one folder match belongs to the one that says more."""
        return len(re.sub(r"\{id\}|\*", "", self.text))

    @cached_property
    def ending(self) -> str:
        """The ending that files must have, in lower case with its dot; empty for any image format."""
        dot = self._parts[-1].rpartition(".")[2].lower()
        return f".{dot}" if f".{dot}" in IMAGE_SUFFIXES else ""

    def key(self, stem: str, ending: str) -> str | None:
        """What `{id}` stands for in a file below `folder`, in Unicode's composed form; None where it does not match.

        Args:
            stem: path of the file below `folder`, without its ending.
            ending: its ending in lower case, with the dot.
        """
        if self.ending and ending != self.ending:
            return None
        if self._affixes is not None:
            before, after = self._affixes
            folder, slash, name = stem.rpartition("/")
            if not (
                name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
            ):
                return None
            key = f"{folder}{slash}{name[len(before) : len(name) - len(after)]}"
        else:
            match = self._regex.fullmatch(stem)
            if match is None:
                return None
            key = match["id"]
        return key if key.isascii() else unicodedata.normalize("NFC", key)

    @cached_property
    def _parts(self) -> list[str]:
        """Parts of the path; a pattern that names no file is a folder of files named {id}."""
        text = self.text.strip("/").removeprefix("./")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        return parts if ID in text else [*parts, ID]

    @cached_property
    def _below(self) -> list[str]:
        """Parts below `folder`, the last without its ending."""
        depth = len([part for part in self.folder.split("/") if part])
        *folders, name = self._parts[depth:]
        return [*folders, name.removesuffix(".*")[: -len(self.ending) or None]]

    @cached_property
    def _affixes(self) -> tuple[str, str] | None:
        """(before, after) {id} in a file's name, where {id} is all else; folders above it belong to the key."""
        name = self._below[-1]
        if len(self._below) > 1 or name.count(ID) != 1 or "*" in name:
            return None
        before, after = name.split(ID)
        return before, after

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        """Matches a path below `folder` without its ending; {id} spans folders and may be repeated."""
        known = {"**/": "(?:.*/)?", "*": "[^/]*", ID: "(?P<id>.+)"}
        regex = ""
        for piece in re.split(r"(\{id\}|\*\*/|\*)", "/".join(self._below)):
            regex += known.get(piece, re.escape(piece))
            if piece == ID:
                known[ID] = "(?P=id)"
        return re.compile(regex, re.DOTALL)


def pattern(text: str, split: str) -> Pattern:
    """The pattern with the split's folder name filled in."""
    return Pattern(text.replace(SPLIT, split))


def split_part(text: str) -> tuple[str, re.Pattern[str]] | None:
    """(folder above, regex of names in it with the group `split`) of a text with {split}; None without it."""
    parts = text.strip("/").split("/")
    at = next((i for i, part in enumerate(parts) if SPLIT in part), None)
    if at is None:
        return None
    before, _, after = parts[at].partition(SPLIT)
    name = re.escape(after).replace(re.escape(ID), ".+").replace(re.escape(SPLIT), "(?P=split)")
    before = re.escape(before).replace(re.escape(ID), ".+")
    return "/".join(parts[:at]), re.compile(f"{before}(?P<split>.+?){name}", re.DOTALL)


Affixes = tuple[str, str, str, str]
"""Prefix and suffix of the images' names, prefix and suffix of the labels'."""


def common_affixes(images: Sequence[str], labels: Sequence[str]) -> Affixes | None:
    """What names of images and labels have around the part that pairs them; None where at most half would pair.

    A few labels are compared with many images: the longest text that two names have in common is taken for {id}.
    """
    best, most = None, min(len(set(images)), len(set(labels))) // 2
    for label in labels[:: max(len(labels) // 3, 1)][:3]:
        affixes = max((_around(image, label) for image in images[:400]), default=(0, ("", "", "", "")))[1]
        count = len(set(_inner(images, *affixes[:2])) & set(_inner(labels, *affixes[2:])))
        if count > most:
            best, most = affixes, count
    return best


def _around(image: str, label: str) -> tuple[int, Affixes]:
    """(letters in common, affixes) of two names."""
    start, other, size = SequenceMatcher(None, image, label, autojunk=False).find_longest_match()
    while size and start and other and not image[start].isalnum():  # rgb_ and ss_ rather than rgb and ss
        start, other, size = start + 1, other + 1, size - 1
    return size, (image[:start], image[start + size :], label[:other], label[other + size :])


def _inner(names: Sequence[str], before: str, after: str) -> Iterator[str]:
    for name in names:
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            yield name[len(before) : len(name) - len(after)]


def is_archive(name: str) -> bool:
    """Whether a file's name is that of an archive that has not been unpacked."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def from_parts(folder: str, prefix: str, suffix: str) -> str:
    """The pattern of files named `prefix{id}suffix` in a folder; the suffix may include the ending (_mask.png)."""
    return f"{folder.rstrip('/')}/{prefix}{ID}{suffix}" if prefix or suffix else folder
