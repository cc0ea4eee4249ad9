"""Which domains there are, where they lie on this disk, and what a user's words for them mean."""

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffcli.config.domain import DomainConfig, domain_config
from diffcli.data.domains import DOMAINS, SPLITS, DomainSpec, LabelEncoding, LabelFiles, vistas_train_id
from diffcli.data.listing import find_pairs, find_place
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

    acdc is its four conditions and all of them together, miniworld its five unseen looks, and all is every domain to
    evaluate on that lies under DIFFCLI_DATA (with none there, the miniature world). `root` is where the one named
    domain lies.

    Raises:
        ConfigError: an unknown name, an empty list, or a root for several domains.
    """
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not asked:
        raise ConfigError(
            "no domain is named", hint="--domain cityscapes, --domain acdc/night,bdd100k or --domain all"
        )
    found = list(dict.fromkeys(part for name in asked for part in _expanded(name)))
    if root is not None and len({known_domain(name).folder for name in found}) > 1:
        raise ConfigError(
            "one root was given for several domains", hint=f"set {DATA_VARIABLE}, or name one domain"
        )
    if root is not None and known_domain(found[0]).folder == "miniworld":
        raise ConfigError("the miniature world is rendered: a root does not apply to it")
    return [domain_config(name, root=root) for name in found]


def _expanded(name: str) -> Iterator[str]:
    if name == "all":
        yield from _all_found() or DOMAINS["miniworld"].members
        return
    spec = known_domain(name)
    yield from spec.members
    if not spec.members or spec.layouts or spec.name == "acdc":
        yield spec.name


def _all_found() -> list[str]:
    """Domains to evaluate on that lie, with labels, under DIFFCLI_DATA; a joined one where all its members do."""
    found: list[str] = []
    for spec in known_domains():
        if spec.members:
            members = [name for name in spec.members if _can_be_evaluated(DOMAINS[name])]
            found += [*members, spec.name] if len(members) == len(spec.members) else members
        elif spec.name == spec.folder and not spec.source_only and _can_be_evaluated(spec):
            found.append(spec.name)
    return found


def _can_be_evaluated(spec: DomainSpec) -> bool:
    data = _data_folder()
    if data is None or not (data / spec.folder).is_dir():
        return False
    places = (find_place(data / spec.folder, spec.layouts, split) for split in (spec.eval_split, ""))
    return any(pair.label is not None for place in places if place for pair in find_pairs(place)[0])


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
    """What of every known domain lies on this disk: under DIFFCLI_DATA/<domain>, or under `root`/<domain>.

    Joined domains (acdc, miniworld) and `folder` are left out: their parts, and YAML, say where they are.
    """
    return [_located(spec, root) for spec in known_domains() if not spec.members and spec.name != "folder"]


def _located(spec: DomainSpec, data: Path | None) -> Located:
    folder = _data_folder() if data is None else data
    if spec.rendered is not None or folder is None:
        return Located(spec)
    root = folder / spec.folder
    images, labelled = {}, {}
    for split in SPLITS if root.is_dir() else ():
        place = find_place(root, spec.layouts, split)
        if place is not None:
            pairs, _ = find_pairs(place)
            images[split] = len(pairs)
            labelled[split] = sum(pair.label is not None for pair in pairs)
    return Located(spec, root, images, labelled)


def _data_folder() -> Path | None:
    value = os.environ.get(DATA_VARIABLE)
    return Path(value).expanduser() if value else None


def find_root(spec: DomainSpec, root: Path | None) -> Path:
    """The folder of a domain: `root`, or DIFFCLI_DATA/<domain>. Raises DataError where there is none."""
    expected = f"expected there: {describe_layouts(spec)}"
    if root is None and spec.name == "folder":
        raise ConfigError(
            "domain folder needs a root", hint="set root: to the folder that holds images/ and labels/"
        )
    if root is None:
        data = _data_folder()
        if data is None:
            raise DataError(
                f"{spec.name}: no root is set",
                hint=f"set root: in YAML, --root, or the variable {DATA_VARIABLE} to the folder that holds "
                f"{spec.folder}/; {expected}",
            )
        root = data / spec.folder
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{spec.name}: there is no such folder",
            where=str(root),
            hint=f"set root: in YAML or --root, or put it at {DATA_VARIABLE}/{spec.folder}; {expected}",
        )
    return root


def describe_layouts(spec: DomainSpec) -> str:
    """The layouts in words, for errors: "leftImg8bit/{split}/**/*_leftImg8bit.png with gtFine/..."."""
    return " or ".join(
        f"{layout.images}/**/*{layout.image_suffix}.* with {layout.labels[0].folder}/**/*{layout.labels[0].suffix}.*"
        for layout in spec.layouts
    )


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
