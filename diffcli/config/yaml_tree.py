"""YAML text as plain values that remember the file and line of every key.

Numbers follow YAML 1.2, so that 6e-5 is a number and `no` is a word. A key set twice is an error, and a file may
say `extends: base.yaml`.
"""

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffcli.errors import ConfigError

MAX_BYTES = 1_000_000
"""A larger file is no settings file (somebody passed the weights)."""

Path_ = tuple[str | int, ...]
"""Keys from the root down to a value."""


class Tree(NamedTuple):
    """Plain values, and where each key of them was written."""

    values: dict[Any, Any]
    places: dict[Path_, str]


def read_tree(path: Path) -> Tree:
    """Read a YAML file merged over the one that it extends, and so on down.

    Raises:
        ConfigError: a file is missing, no YAML, or extends itself.
    """
    return _read(path, chain=())


def parse_value(raw: str, where: str) -> Any:
    """Text behind `key=`, read as YAML.

    Raises:
        ConfigError: it is no valid YAML value.
    """
    try:
        loader = _Loader(raw)
        node = loader.get_single_node()
        return None if node is None else _build(loader, node, (), where, {}, parents=())
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            "the value is not valid YAML", where=where, hint="quote text that holds : or {"
        ) from error


def dump(value: Any, *, width: int) -> str:
    """Plain values as YAML, in the order given, short lists in one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: 6e-5 is a float, `on` and `no` are words, dates are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads; short lists in one line."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        simple = all(not isinstance(item, dict) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=simple or flow_style)


for _tag, _pattern, _first in (
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
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _read(path: Path, *, chain: tuple[Path, ...]) -> Tree:
    """The file merged over the one that it extends."""
    if path.resolve() in chain:
        files = " -> ".join(str(file) for file in (*chain, path.resolve()))
        raise ConfigError(f"files extend each other in a circle: {files}", where=str(path))
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
            f"extends {base}, which does not exist", where=where, hint=f"it is looked for at {parent}"
        )
    below = _read(parent, chain=(*chain, path.resolve()))
    return Tree(_merge(below.values, tree.values), {**below.places, **tree.places})


def _read_text(path: Path) -> str:
    if path.is_dir():
        config = path / "config.yaml"
        hint = f"the settings in it: {config}" if config.exists() else "give the YAML file itself"
        raise ConfigError("this is a folder, not a settings file", where=str(path), hint=hint)
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ConfigError("too large for a settings file", where=str(path), hint="give the YAML file")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "this is no text file (not UTF-8)",
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
    places: dict[Path_, str] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return Tree({}, {})
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                "this holds no settings",
                where=file,
                hint="a settings file has lines of the form `key: value`",
            )
        values = _build(loader, node, (), file, places, parents=())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        tab = "\t" in "".join(text.splitlines()[line : line + 1])
        raise ConfigError(
            "this is not valid YAML: " + ", ".join(filter(None, (error.context, error.problem))),
            where=f"{file}:{line + 1}",
            hint="YAML is indented with spaces, not tabs" if tab else None,
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"this is not valid YAML: {str(error).splitlines()[0]}",
            where=file,
            hint="`diff init` writes a valid file",
        ) from error
    finally:
        if loader is not None:
            loader.dispose()
    return Tree(values, places)


def _build(
    loader: _Loader,
    node: yaml.Node,
    path: Path_,
    file: str,
    places: dict[Path_, str],
    *,
    parents: tuple[yaml.Node, ...],
) -> Any:
    """The value of a node; fills `places` with "file:line" of every key and list item."""
    places.setdefault(path, f"{file}:{node.start_mark.line + 1}")
    if any(node is parent for parent in parents):
        raise ConfigError("an alias refers to the value that it is part of", where=places[path])
    parents = (*parents, node)
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(loader, item, (*path, i), file, places, parents=parents)
            for i, item in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    _refuse_duplicates(loader, node, file)
    loader.flatten_mapping(node)
    values: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        places[(*path, key)] = f"{file}:{key_node.start_mark.line + 1}"
        values[key] = _build(loader, value_node, (*path, key), file, places, parents=parents)
    return values


def _refuse_duplicates(loader: _Loader, node: yaml.MappingNode, file: str) -> None:
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key must be one word or number", where=f"{file}:{line}")
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node)
        if key in lines:
            raise ConfigError(f"{key} is set twice, first in line {lines[key]}", where=f"{file}:{line}")
        lines[key] = line


def _merge(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    """Mappings merge key by key, anything else replaces; an empty mapping replaces too."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict) and value
        merged[key] = _merge(old, value) if both and isinstance(old, dict) else value
    return merged
