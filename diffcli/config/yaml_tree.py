"""YAML text as plain values that remember the file and line of every key.

Numbers follow YAML 1.2, so that 6e-5 is a number, 010 is ten and `no` is a word. A key set twice is an error, and a
file may say `extends: base.yaml`. The text may come from a stranger (the settings of a hub model): files, nesting and
aliases are limited, and no tag makes anything but text and numbers.
"""

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffcli.errors import ConfigError

RUN_CONFIG = "config.yaml"
"""The settings in a run folder."""

MAX_BYTES = 1_000_000
"""A larger file is not a settings file (somebody passed the weights)."""
MAX_VALUES = 100_000
"""Values in one file, aliases expanded. The longest mapping that makes sense gives a train id to
each of 65536 label values."""
MAX_FILES = 20
"""Files that extend each other."""

Path_ = tuple[str | int, ...]
"""Keys from the root down to a value."""


class Tree(NamedTuple):
    """Plain values, and where each key of them was written."""

    values: dict[Any, Any]
    places: dict[Path_, str]


def read_tree(path: Path) -> Tree:
    """Read a YAML file merged over the one that it extends, and so on down.

    Raises:
        ConfigError: a file is missing, is not YAML, or extends itself.
    """
    return _read(path, chain=())


def parse_value(raw: str, where: str) -> Any:
    """The text after `key=`, read as YAML.

    Raises:
        ConfigError: it is not a valid YAML value.
    """
    loader = None
    try:
        loader = _Loader(raw)
        node = loader.get_single_node()
        return None if node is None else _Builder(loader, where, lines=False).build(node, ())
    except _FAULTS as error:
        raise ConfigError(
            "the value is not valid YAML", where=where, hint="quote text that holds : or {"
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def dump(value: Any, *, width: int) -> str:
    """Plain values as YAML, in the order given, short lists in one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


# ------------------------------------------------------------------------------------------- YAML 1.2


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: 6e-5 is a float, `on` and `no` are words, dates are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads; short lists in one line."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value in full wherever it stands: a person reads this file."""
        return True

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        simple = all(not isinstance(item, dict) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=simple or flow_style)


_CORE = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_CORE + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


def _integer(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """0o17 and 0x1f have a base, 010 is ten (PyYAML reads it as octal)."""
    text = node.value.replace("_", "")
    base = {"0o": 8, "0x": 16}.get(text[:2].lower(), 10)
    return int(text, base)


_Loader.add_constructor(_CORE + "int", _integer)

_FAULTS = (yaml.YAMLError, RecursionError, ValueError, KeyError)
"""What PyYAML raises at text that is not YAML; KeyError is its answer to `!!bool maybe`."""


# --------------------------------------------------------------------------------------------- reading


def _read(path: Path, *, chain: tuple[Path, ...]) -> Tree:
    """The file merged over the one that it extends."""
    if path.resolve() in chain:
        files = " -> ".join(str(file) for file in (*chain, path.resolve()))
        raise ConfigError(f"files extend each other in a circle: {files}", where=str(path))
    if len(chain) >= MAX_FILES:
        raise ConfigError(f"more than {MAX_FILES} files extend each other", where=str(chain[0]))
    tree = _parse(_read_text(path), str(path))
    base = tree.values.pop("extends", None)
    if base is None:
        return tree
    where = tree.places[("extends",)]
    if not isinstance(base, str):
        raise ConfigError(f"extends takes the name of one YAML file, not {base!r}", where=where)
    parent = path.parent / Path(base).expanduser()
    if not parent.exists():
        raise ConfigError(
            f"extends {base}, which does not exist", where=where, hint=f"it is expected at {parent}"
        )
    below = _read(parent, chain=(*chain, path.resolve()))
    return Tree(_merge(below.values, tree.values), {**below.places, **tree.places})


def _merge(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    """Mappings merge key by key, anything else replaces; an empty mapping replaces too."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict) and value
        merged[key] = _merge(old, value) if both and isinstance(old, dict) else value
    return merged


def _read_text(path: Path) -> str:
    """The text of a settings file; a pipe of the shell (/dev/fd/63, /dev/stdin) will do."""
    if path.is_dir():
        config = path / RUN_CONFIG
        hint = f"its settings: {config}" if config.exists() else "give the YAML file itself"
        raise ConfigError("this is a folder, not a settings file", where=str(path), hint=hint)
    if path.exists() and not path.is_file() and path.parts[:2] != ("/", "dev"):
        raise ConfigError("this is not a regular file", where=str(path), hint="give a YAML file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError("too large for a settings file", where=str(path), hint="give the YAML file")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "this is not a text file (not UTF-8)",
            where=str(path),
            hint="give a YAML file; `diff init` writes one",
        ) from error
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=str(path), hint=_beside(path)) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _beside(path: Path) -> str:
    """A file of a similar name in the same folder, or how to get one."""
    try:
        names = [file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml")]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "`diff init FILE` writes one to start from"


def _parse(text: str, file: str) -> Tree:
    """YAML text as plain values and the line of each key."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None or node.tag == _CORE + "null":
            return Tree({}, {})
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                "this holds no settings",
                where=file,
                hint="a settings file has lines of the form `key: value`",
            )
        builder = _Builder(loader, file)
        return Tree(builder.build(node, ()), builder.places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        tab = "\t" in "".join(text.splitlines()[line : line + 1])
        raise ConfigError(
            "this is not valid YAML: " + ", ".join(filter(None, (error.context, error.problem))),
            where=f"{file}:{line + 1}",
            hint="YAML is indented with spaces, not tabs" if tab else None,
        ) from error
    except _FAULTS as error:
        raise ConfigError(
            f"this is not valid YAML: {str(error).splitlines()[0]}",
            where=file,
            hint="`diff init` writes a valid file",
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


_TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.MappingNode: ("map",),
    yaml.SequenceNode: ("seq",),
    yaml.ScalarNode: ("str", "int", "float", "bool", "null", "merge"),
}
"""The tags that a node may have, by its kind."""


class _Builder:
    """Plain values from YAML nodes; `places` collects "file:line" of every key and list item.

    Every value counts towards MAX_VALUES as often as aliases and merge keys repeat it, so that a few lines of YAML
    cannot grow without limit.
    """

    def __init__(self, loader: _Loader, file: str, *, lines: bool = True) -> None:
        self.loader, self.file, self.lines = loader, file, lines
        self.places: dict[Path_, str] = {}
        self.count = 0

    def place(self, node: yaml.Node) -> str:
        """Where a node is written."""
        return f"{self.file}:{node.start_mark.line + 1}" if self.lines else self.file

    def build(self, node: yaml.Node, path: Path_, parents: tuple[yaml.Node, ...] = ()) -> Any:
        """The value of a node that stands at `path`."""
        self.places.setdefault(path, self.place(node))
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(
                f"more than {MAX_VALUES:,} values", where=self.file, hint="aliases repeat what they refer to"
            )
        if any(node is parent for parent in parents):
            raise ConfigError("an alias refers to the value that it is part of", where=self.places[path])
        if node.tag.removeprefix(_CORE) not in _TAGS[type(node)]:
            raise ConfigError(
                f"the tag {node.tag.replace(_CORE, '!!')} is not supported",
                where=self.place(node),
                hint="write the value without a tag",
            )
        parents = (*parents, node)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, parents)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), parents) for i, item in enumerate(node.value)]
        return node.value if node.tag == _CORE + "merge" else self.loader.construct_object(node)

    def mapping(self, node: yaml.MappingNode, path: Path_, parents: tuple[yaml.Node, ...]) -> dict[Any, Any]:
        """Keys and values; `<<: *base` gives those of another mapping that are not set here."""
        values: dict[Any, Any] = {}
        written: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be one word or number", where=self.place(key_node))
            if key_node.tag == _CORE + "merge":
                values |= self.merged(value_node, path, parents)
                continue
            key = self.loader.construct_object(key_node)
            if key in written:
                first = written[key][0].start_mark.line + 1
                raise ConfigError(f"{key} is set twice, first in line {first}", where=self.place(key_node))
            written[key] = key_node, value_node
        for key, (key_node, value_node) in written.items():
            self.places[(*path, key)] = self.place(key_node)
            values[key] = self.build(value_node, (*path, key), parents)
        return values

    def merged(self, node: yaml.Node, path: Path_, parents: tuple[yaml.Node, ...]) -> dict[Any, Any]:
        """What `<<` takes over from a mapping, or from a list of mappings of which the first counts most."""
        values: dict[Any, Any] = {}
        for source in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            if not isinstance(source, yaml.MappingNode):
                raise ConfigError("<< takes another mapping", where=self.place(node))
            values |= self.build(source, path, parents)
        return values
