"""Text files that name the samples of a split, a line each: ids, or pairs of image and label."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffcli.data.patterns import IMAGE_SUFFIXES
from diffcli.errors import DataError


@dataclass(frozen=True)
class Line:
    """One sample of a list."""

    text: str
    key: str
    image: str | None
    """The image file; None where there is none."""
    label: str | None = None
    """The label file, where the line names it."""


def read_list(path: Path, *, root: Path, keys: Mapping[str, str]) -> Iterator[Line]:
    """The samples of a list file, in its order. Blank lines and those that begin with # are passed over.

    A line is an id (the key of an image, with or without its ending), or an image and its label, separated by a tab, a
    comma or spaces, as paths below the root or absolute ones.

    Args:
        root: paths are relative to it.
        keys: key -> image file of all images of the layout.

    Raises:
        DataError: the file cannot be read, is no text, or names a label that is not there.
    """
    names: dict[str, str] = {}
    for key, file in keys.items():
        names.setdefault(os.path.basename(key), key)
        names[os.path.relpath(file, root)] = key
    for number, text in enumerate(_lines(path), start=1):
        entry = text.strip()
        if not entry or entry.startswith("#"):
            continue
        yield _as_id(entry, keys, names) or _as_pair(entry, root, where=f"{path}, line {number}")


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"the list cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError("the list is no UTF-8 text", where=str(path), hint="save it as UTF-8") from error


def _as_id(entry: str, keys: Mapping[str, str], names: Mapping[str, str]) -> Line | None:
    """The sample whose key, or whose file name where folders are left out, is the whole line."""
    key = unicodedata.normalize("NFC", entry.replace("\\", "/"))
    stem, ending = os.path.splitext(key)
    for candidate in (key, stem if ending.lower() in IMAGE_SUFFIXES else key):
        found = candidate if candidate in keys else names.get(candidate)
        if found is not None:
            return Line(entry, found, keys[found])
    return None


def _as_pair(entry: str, root: Path, *, where: str) -> Line:
    """The two files that a line names; without a second one the line is an id that is not known."""
    separator = "\t" if "\t" in entry else "," if "," in entry else None
    parts = [part.strip().strip('"') for part in entry.split(separator)]
    if len(parts) != 2:
        return Line(entry, entry, _file(root, entry))
    image, label = (_file(root, part) for part in parts)
    if image is not None and label is None:
        raise DataError(
            f"there is no label {parts[1]}",
            where=where,
            hint=f"a line is an id, or an image and its label below {root}",
        )
    key = unicodedata.normalize("NFC", os.path.splitext(parts[0].replace("\\", "/").lstrip("/"))[0])
    return Line(entry, key, image, label)


def _file(root: Path, text: str) -> str | None:
    """The file that a line names, below the root or as it stands; None where there is none."""
    path = text.replace("\\", "/") if os.sep == "/" else text
    candidates = (os.path.join(root, path.lstrip("/")), path)
    return next((one for one in candidates if os.path.lexists(one)), None)
