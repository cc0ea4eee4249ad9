"""Which domains there are, where they lie on this disk, and what a user's words for them mean."""

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.config.domain import DomainConfig, domain_config
from diffcli.data.domains import DOMAINS, DomainSpec, LabelEncoding, LabelFiles, vistas_train_id
from diffcli.data.listing import Place, describe, find_pairs, find_places
from diffcli.data.patterns import is_archive
from diffcli.errors import ConfigError, DataError

DATA_VARIABLE = "DIFFCLI_DATA"


def known_domains() -> tuple[DomainSpec, ...]:
    """Every domain that `domain:` and `--domain` understand, in the order of tables."""
    return tuple(DOMAINS.values())


def known_domain(name: str) -> DomainSpec:
    """The domain called `name`. Raises ConfigError with the nearest names where there is none."""
    spec = DOMAINS.get(name)
    if spec is not None:
        return spec
    near = difflib.get_close_matches(name.lower(), DOMAINS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(DOMAINS)}"
    raise ConfigError(f"unknown domain {name!r}", hint=hint)


def expand_domains(names: str, *, root: Path | None = None) -> list[DomainConfig]:
    """What `--domain` means: one name or a comma list.

    acdc is its four conditions and all of them together, miniworld its five unseen appearances, and all is every
    domain to evaluate on that is below `root`, or below DIFFCLI_DATA (with none there, the miniature world). `root` is
    the folder that holds the domains' folders, or the domain's folder itself (`find_root`).

    Raises:
        ConfigError: an unknown name, an empty list, or a root for domains that are rendered.
    """
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not asked:
        raise ConfigError(
            "no domain is named", hint="--domain cityscapes, --domain acdc/night,bdd100k or --domain all"
        )
    found = list(dict.fromkeys(part for name in asked for part in _expanded(name, root)))
    if root is not None and all(known_domain(name).folder == "miniworld" for name in found):
        raise ConfigError("the miniature world is rendered: a root does not apply to it")
    return [
        domain_config(name) if known_domain(name).folder == "miniworld" else domain_config(name, root=root)
        for name in found
    ]


def _expanded(name: str, root: Path | None) -> Iterator[str]:
    if name == "all":
        yield from _all_found(root) or DOMAINS["miniworld"].members
        return
    spec = known_domain(name)
    yield from spec.members
    if not spec.members or spec.layouts or spec.name == "acdc":
        yield spec.name


def _all_found(root: Path | None) -> list[str]:
    """Domains to evaluate on that have labels below a folder of domains; a joined one where all its members do."""
    data = _data_folder() if root is None else root
    found: list[str] = []
    for spec in known_domains() if data is not None else ():
        if spec.members:
            members = [name for name in spec.members if _can_be_evaluated(DOMAINS[name], data)]
            found += [*members, spec.name] if len(members) == len(spec.members) else members
        elif spec.name == spec.folder and not spec.source_only and _can_be_evaluated(spec, data):
            found.append(spec.name)
    return found


def _can_be_evaluated(spec: DomainSpec, data: Path | None) -> bool:
    root = None if data is None else _folder_of(spec, data)
    if root is None:
        return False
    places = [place for place in _readable_places(spec, root) if place.name in (spec.eval_split, "")]
    return any(pair.label is not None for place in places for pair in find_pairs(place)[0])


@dataclass(frozen=True)
class Located:
    """A known domain and what was found of it on this disk."""

    spec: DomainSpec
    root: Path | None = None
    """Folder that was looked at; None where neither a root nor DIFFCLI_DATA was set, or nothing is needed."""
    images: dict[str, int] = field(default_factory=dict)
    """split -> images."""
    labelled: dict[str, int] = field(default_factory=dict)
    """split -> images that have a label."""

    @property
    def found(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.images) or self.spec.rendered is not None


def locate(root: Path | None = None) -> list[Located]:
    """What of every known domain is on this disk: in DIFFCLI_DATA/<domain>, or in `root`/<domain>.

    Joined domains (acdc, miniworld) and `folder` are left out: their parts, and YAML, say where they are.
    """
    return [_located(spec, root) for spec in known_domains() if not spec.members and spec.name != "folder"]


def _located(spec: DomainSpec, data: Path | None) -> Located:
    folder = _data_folder() if data is None else data
    if spec.rendered is not None or folder is None:
        return Located(spec)
    root = _folder_of(spec, folder)
    images, labelled = {}, {}
    for place in _readable_places(spec, root):
        pairs, _ = find_pairs(place)
        images[place.name or "train"] = len(pairs)
        labelled[place.name or "train"] = sum(pair.label is not None for pair in pairs)
    return Located(spec, root or folder / spec.folder, images, labelled)


def _readable_places(spec: DomainSpec, root: Path | None) -> list[Place]:
    """The splits of a domain; none where its folder is ambiguous, which is reported where it is opened."""
    try:
        return [] if root is None else find_places(root, spec.layouts)
    except DataError:
        return []


def _data_folder() -> Path | None:
    value = os.environ.get(DATA_VARIABLE)
    return Path(value).expanduser() if value else None


def _folder_of(spec: DomainSpec, data: Path) -> Path | None:
    """The domain's folder in a folder of domains, whatever the case and the dashes of its name; None without one."""
    if (data / spec.folder).is_dir():
        return data / spec.folder
    if not data.is_dir():
        return None
    with os.scandir(data) as entries:
        found = sorted(e.path for e in entries if _plain(e.name) == _plain(spec.folder) and e.is_dir())
    return Path(found[0]) if found else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_root(spec: DomainSpec, root: Path | None) -> Path:
    """The folder of a domain: in `root` (or in DIFFCLI_DATA) the one named like the domain, else `root` itself.

    Raises:
        DataError: there is no such folder.
        ConfigError: no root is set for the domain `folder`.
    """
    if root is None and spec.name == "folder":
        raise ConfigError(
            "domain folder needs a root", hint="set root: to the folder that holds images/ and labels/"
        )
    expected = f"expected there: {describe(spec.layouts)}"
    data = _data_folder() if root is None else Path(root).expanduser()
    if data is None:
        raise DataError(
            f"{spec.name}: no root is set",
            hint=f"set root: in YAML, --root, or the variable {DATA_VARIABLE} to the folder that holds "
            f"{spec.folder}/; {expected}",
        )
    if not data.is_dir() or (root is None and _folder_of(spec, data) is None):
        wanted = data / spec.folder if root is None else data
        unpack = "unpack this archive" if is_archive(wanted.name) else ""
        raise DataError(
            f"{spec.name}: there is no such folder",
            where=str(wanted),
            hint=unpack
            or f"set root: in YAML or --root, or put it at {DATA_VARIABLE}/{spec.folder}; {expected}",
        )
    found = None if spec.name == "folder" else _folder_of(spec, data)
    if found is None or any(place.base == data for place in find_places(data, spec.layouts)):
        return data  # also where it holds a folder that is named like the domain
    return found


def other_folders(spec: DomainSpec) -> tuple[str, ...]:
    """Names of folders that belong to other known domains, so that they are not taken for a part of this one."""
    return tuple({one.folder for one in DOMAINS.values()} - {spec.folder, "folder"})


def label_classes(spec: DomainSpec, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes by whose names a known domain's labels are read: its own where a model names one of them."""
    own = set(classes) & set(spec.classes) - set(CITYSCAPES_CLASSES)
    return spec.classes if own else CITYSCAPES_CLASSES


def vistas_encoding(files: LabelFiles, *folders: Path) -> LabelEncoding:
    """The encoding of `files`; with class names in one of `folders` (Mapillary's config.json), by those names.

    Raises:
        DataError: the file with the names cannot be read.
    """
    paths = (folder / name for name in files.names_in for folder in dict.fromkeys(folders))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return files.encoding
    try:
        names = [label["name"] for label in json.loads(path.read_text(encoding="utf-8"))["labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "this is not the class list of Mapillary Vistas",
            where=str(path),
            hint='expected {"labels": [{"name": ...}, ...]}; download it again, or delete it to use the built-in list',
        ) from error
    return replace(files.encoding, ids={i: vistas_train_id(name) for i, name in enumerate(names)})
