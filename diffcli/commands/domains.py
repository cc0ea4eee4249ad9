"""`diff domains`: which domains are known, and which of them are on this disk."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcli.data.roots import DATA_VARIABLE, Located, known_domains, locate
from diffcli.errors import DataError
from diffcli.runtime import console


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff domains` is asked for."""

    root: Path | None = None
    """Folder that holds one folder per domain; None takes DIFFCLI_DATA."""


def run(request: Request) -> None:
    """Print every known domain with the images and labels found on this disk.

    Raises:
        DataError: the root is not a folder.
    """
    root = request.root
    if root is not None and not root.is_dir():
        raise DataError(
            "there is no such folder",
            where=str(root),
            hint="give the folder that holds one folder per domain",
        )
    found = {one.spec.name: one for one in locate(root)}
    console.print_record([_record(spec.name, found) for spec in known_domains()])
    rows = [[spec.name, _on_disk(spec.name, found), spec.title] for spec in known_domains()]
    console.table("", ["domain", "on this disk", "what"], rows)
    data = root or os.environ.get(DATA_VARIABLE)
    if data:
        console.say(f"looked in {data}/<domain>")
    else:
        console.say(
            f"set {DATA_VARIABLE} to the folder that holds one folder per domain (/data for /data/cityscapes)"
        )


def _record(name: str, found: dict[str, Located]) -> dict[str, Any]:
    spec = next(spec for spec in known_domains() if spec.name == name)
    one = found.get(name)
    return {
        "domain": name,
        "title": spec.title,
        "members": spec.members,
        "root": one.root if one else None,
        "found": bool(one and one.found),
        "images": one.images if one else {},
        "labelled": one.labelled if one else {},
    }


def _on_disk(name: str, found: dict[str, Located]) -> str:
    """Counts a split, as in "train 2975, val 500"; images without labels are said."""
    spec = next(spec for spec in known_domains() if spec.name == name)
    if spec.members:
        return f"joins {len(spec.members)} parts"
    one = found.get(name)
    if one is None:
        return "set root: in YAML"
    if spec.rendered is not None:
        return "needs no files"
    return ", ".join(_count(one, split) for split in one.images) or "-"


def _count(one: Located, split: str) -> str:
    images, labelled = one.images[split], one.labelled[split]
    return f"{split} {images}" if images == labelled else f"{split} {images} ({labelled} labelled)"
