"""Settings as YAML: read with file and line in every error, written back, and listed with their meanings.

`--set model.inversion.eta=0.5` overrides any key.
"""

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from diffcli.config.base import Settings, as_plain
from diffcli.config.settings import RunConfig
from diffcli.config.yaml_tree import Path_, Tree, dump, parse_value, read_tree
from diffcli.errors import ConfigError


def load_config(path: Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read settings from a YAML file, with the files that it extends, and apply `key=value` overrides.

    Raises:
        ConfigError: the file is missing or is not YAML, or a key or value does not fit; the message names file,
            line and key of each fault.
    """
    tree = read_tree(Path(path))
    return _validated(tree, overrides, where=str(path))


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Settings with `key=value` overrides applied.

    Raises:
        ConfigError: a key does not exist or a value does not fit.
    """
    if not overrides:
        return config
    return _validated(Tree(as_plain(config), {}), overrides, where="--set")


def settings_of(values: Mapping[str, Any], *, overrides: Sequence[str] = ()) -> RunConfig:
    """Settings from a mapping, as YAML would hold it, with `key=value` overrides applied.

    Raises:
        ConfigError: a key or value does not fit.
    """
    return _validated(Tree(deepcopy(dict(values)), {}), overrides, where="settings")


def dump_config(config: Settings) -> str:
    """Settings as YAML that loads back to the same settings."""
    return dump(_with_int_keys(as_plain(config)), width=100)


def commented_yaml() -> str:
    """Every field with its default and its meaning, as YAML that loads back to the defaults."""
    head = (
        "Settings of diffcli: every field, its meaning and its default. Keep what you change.\n"
        "`diff check FILE` validates them and says what a run would cost.\n"
        "`extends: other.yaml` starts from another file."
    )
    lines = [*_comment(head, indent=0), ""]
    for name, field in RunConfig.model_fields.items():
        lines += [*_field_lines(RunConfig(), name, indent=0), ""]
        assert field.description, name
    return "\n".join(lines).rstrip() + "\n"


# -------------------------------------------------------------------------------------------- overriding


def _override(tree: Tree, text: str) -> None:
    """Apply one `a.b.c=value` in place."""
    dotted, equals, raw = text.partition("=")
    where = f"--set {text if len(text) <= 100 else text[:97] + '...'}"
    if not equals or not dotted.strip():
        raise ConfigError(
            "an override is written key=value", where=where, hint="for example --set train.iterations=100"
        )
    keys = _split_key(dotted.strip(), where)
    node: Any = tree.values
    for i, key in enumerate(keys):
        if isinstance(node, list) and not (isinstance(key, int) and key < len(node)):
            message = f"{'.'.join(map(str, keys[:i]))} has {len(node)} items; item {key} does not exist"
            raise ConfigError(message, where=where, hint="items are counted from 0")
        if i == len(keys) - 1:
            node[key] = parse_value(raw, where)
        else:
            child = node[int(key)] if isinstance(node, list) else node.get(key, _default_at(keys[: i + 1]))
            node[key] = child if isinstance(child, dict | list) else _expanded(child, keys[: i + 1])
            node = node[key]
            tree.places.setdefault(keys[: i + 1], where)
    tree.places[keys] = where


def _default_at(keys: Path_) -> Any:
    """The default at a path as plain values; None where it has none."""
    value: Any = as_plain(RunConfig())
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return _with_int_keys(value)


def _expanded(value: object, keys: Path_) -> dict[Any, Any]:
    """The mapping that a short form stands for: `train: gta5`, `fusion: mixing`; else a fresh one."""
    models = _models_at(keys)
    first = next(iter(models[0].model_fields)) if models else ""
    return {first: value} if isinstance(value, str) and first in ("domain", "kind") else {}


def _split_key(dotted: str, where: str) -> Path_:
    """The keys of a dotted name, checked against the settings that exist."""
    keys: Path_ = ()
    for word in dotted.split("."):
        models = _models_at(keys)
        known = [name for model in models for name in model.model_fields]
        if known and word not in known and not word.isdigit():
            raise ConfigError(
                f"there is no setting {dotted}", where=where, hint=_suggest(dotted, _siblings(keys))
            )
        keys = (*keys, int(word) if word.isdigit() else word)
    return keys


def _suggest(dotted: str, siblings: Sequence[str]) -> str:
    """The setting that was probably meant: a sibling, or one of the same or a similar name elsewhere."""
    everywhere = list(_dotted_names(RunConfig, ""))
    last = _last(dotted)
    for names, cutoff in ((siblings, 0.7), (everywhere, 1.0), (everywhere, 0.7)):
        words = difflib.get_close_matches(last, dict.fromkeys(map(_last, names)), n=2, cutoff=cutoff)
        close = [name for word in words for name in names if _last(name) == word]
        if close:
            return f"did you mean {' or '.join(close[:4])}?"
    return f"settings there: {', '.join(sorted(siblings))}"


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _siblings(path: Path_) -> list[str]:
    """Dotted names of the settings that exist at `path`."""
    names = dict.fromkeys(name for model in _models_at(path) for name in model.model_fields)
    return [".".join(map(str, (*path, name))) for name in names]


def _dotted_names(model: type[Settings], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for child in _models_in(field.annotation):
            yield from _dotted_names(child, f"{prefix}{name}.")


# -------------------------------------------------------------------------------------------- validating


def _validated(tree: Tree, overrides: Sequence[str], *, where: str) -> RunConfig:
    for text in overrides:
        _override(tree, text)
    try:
        return RunConfig.model_validate(tree.values)
    except ValidationError as error:
        groups = _by_setting(error.errors(include_url=False, include_input=False), tree)
    faults = [_fault(path, _value_at(tree.values, path), groups[path], tree) for path in [*groups][:SHOWN]]
    if len(groups) == 1:
        place, message, hint = faults[0]
        raise ConfigError(message, where=place or where, hint=hint) from None
    bullets = [
        f"  - {f'{place}: ' if place else ''}{message}{f' ({hint})' if hint else ''}"
        for place, message, hint in faults
    ]
    more = [f"  - and {len(groups) - SHOWN:,} more"] if len(groups) > SHOWN else []
    raise ConfigError(
        "\n".join([f"{len(groups):,} settings do not fit", *bullets, *more]), where=where
    ) from None


Fault = tuple[str, str, str | None]
"""Where, what, hint."""
SHOWN = 10
"""Faults that one error lists; the rest is counted."""


def _by_setting(errors: list[ErrorDetails], tree: Tree) -> dict[Path_, list[ErrorDetails]]:
    """The errors of each setting; those of a mapping are left out where errors inside it say more."""
    groups: dict[Path_, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_real_path(error, tree.values), []).append(error)
    above = {path[:end] for path in groups for end in range(len(path))}
    return {
        path: group
        for path, group in groups.items()
        if path not in above or not isinstance(_value_at(tree.values, path), dict)
    }


def _fault(path: Path_, value: Any, group: list[ErrorDetails], tree: Tree) -> Fault:
    """What is wrong with the value at `path`, in this program's words."""
    others = [error for error in group if error["type"] != "literal_error"]
    if others and not isinstance(value, str) and not all(error["type"] in _KINDS for error in others):
        group = others  # a number or a mapping: it was not meant to be one of the words
    error = group[0]
    name, place = ".".join(map(str, path)), _place(path, tree)
    message, context = error["msg"].removeprefix("Value error, "), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return place, *_unknown(path, tree)
        case "missing" if isinstance(error["loc"][-1], int):
            return place, f"{name}: needs more values than {_shortened(value)}", None
        case "missing":
            return place, f"{name} is missing", None
        case "value_error":
            return place, f"{name}: {message}" if name else message, None
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return (
                place,
                _not_among(name, value, [*choices, *(_KINDS.get(e["type"], e["msg"]) for e in others)]),
                _did_you_mean(str(value), choices),
            )
        case "union_tag_invalid":
            choices, tag = re.findall(r"'([^']*)'", context["expected_tags"]), str(context["tag"])
            return place, _not_among(name, tag, choices), _did_you_mean(tag, choices)
        case "model_type" | "dict_type" if value is None:
            return place, f"{name} is empty", "indent its settings below it, or delete the line"
        case "model_type" | "dict_type":
            fields = ", ".join(key.rpartition(".")[2] for key in _siblings(path))
            hint = f"it holds: {fields}" if fields else None
            return place, f"{name}: takes nested settings, not {_shortened(value)}", hint
        case "string_type" if isinstance(value, int | float):
            return place, f"{name}: must be text, not {value!r}", 'put it in quotes: "..."'
    return place, f"{name}: {message[0].lower()}{message[1:]}, not {_shortened(value)}", None


def _unknown(path: Path_, tree: Tree) -> tuple[str, str]:
    """Message and hint for a key that does not exist, or that another variant of these settings has."""
    name = ".".join(map(str, path))
    variants = _models_at(path[:-1])
    having = [model.model_config["title"] for model in variants if path[-1] in model.model_fields]
    if not having:
        return f"there is no setting {name}", _suggest(name, _siblings(path[:-1]))
    chosen = _value_at(tree.values, (*path[:-1], next(iter(variants[0].model_fields))))
    return f"{name} does not apply to {chosen}", f"it is a setting of {' and '.join(map(str, having))}"


_KINDS = {
    "model_type": "nested settings",
    "dict_type": "nested settings",
    "int_type": "a number",
    "int_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
"""What else a setting can be that takes words, by the error of a value that is neither."""


def _not_among(name: str, value: object, choices: list[str]) -> str:
    return f"{name}: must be {' or '.join(dict.fromkeys(choices))}, not {_shortened(value)}"


def _did_you_mean(word: str, choices: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]}?" if close else None


def _real_path(error: ErrorDetails, values: Any) -> Path_:
    """The keys of an error's location that exist in the file; pydantic also names union members and keys' types."""
    path: Path_ = ()
    location = error["loc"]
    for i, key in enumerate(location):
        last = i == len(location) - 1
        if isinstance(values, dict):
            found = key if key in values else next((k for k in values if str(k) == str(key)), None)
            if found is not None:
                path, values = (*path, found), values[found]
            elif last and error["type"] == "missing":
                path = (*path, key)
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            path, values = (*path, key), values[key]
    return path


def _value_at(values: Any, path: Path_) -> Any:
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _place(path: Path_, tree: Tree) -> str:
    """File and line of the nearest key that was written."""
    for end in range(len(path), 0, -1):
        if path[:end] in tree.places:
            return tree.places[path[:end]]
    return ""


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ------------------------------------------------------------------------------------------- the fields


def _models_at(path: Path_) -> list[type[Settings]]:
    """The settings that can stand at a path: empty for a plain value, one mostly, several for a union."""
    models: list[type[Settings]] = [RunConfig]
    for key in path:
        if isinstance(key, int):
            continue  # an item of a list has the list's settings
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        models = [child for field in fields for child in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> list[type[Settings]]:
    """Every Settings class inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _choices(annotation: Any) -> list[str]:
    """The words that a field can be."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [word for part in get_args(annotation) for word in _choices(part)]
    return []


def _field_lines(settings: Settings, name: str, indent: int) -> Iterator[str]:
    """A field as YAML with its meaning above it."""
    field = type(settings).model_fields[name]
    value = getattr(settings, name)
    choices = _choices(field.annotation)
    meaning = field.description or ""
    unsaid = any(word not in meaning for word in choices)
    yield from _comment(f"{meaning} One of: {', '.join(choices)}." if unsaid else meaning, indent)
    pad = " " * indent
    if isinstance(value, Settings) and (len(type(value).model_fields) > 1):
        yield f"{pad}{name}:"
        for child in type(value).model_fields:
            yield from _field_lines(value, child, indent + 2)
        for variant in _models_in(field.annotation):
            yield from _variant_lines(variant, type(value), indent + 2)
    else:
        plain = _with_int_keys(as_plain(settings)[name])
        text = dump({name: plain}, width=96 - indent)
        yield from (pad + line for line in text.splitlines())


def _variant_lines(variant: type[Settings], shown: type[Settings], indent: int) -> Iterator[str]:
    """The fields that another variant has besides those shown, as a comment."""
    fields = {name: field for name, field in variant.model_fields.items() if name not in shown.model_fields}
    if fields:
        yield " " * indent + f"# {variant.model_config['title']} also takes these:"
    for name, field in fields.items():
        yield from _comment(field.description or "", indent, inner="  ")
        yield " " * indent + "#   " + dump({name: field.default}, width=90 - indent).strip()


def _comment(text: str, indent: int, *, inner: str = "") -> list[str]:
    pad = " " * indent + "# " + inner
    return [
        line
        for paragraph in text.splitlines()
        for line in textwrap.wrap(
            paragraph, 96, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False
        )
    ]


def _with_int_keys(value: Any) -> Any:
    """JSON's keys are text; train ids are numbers again."""
    if isinstance(value, dict):
        return {
            int(key) if isinstance(key, str) and re.fullmatch(r"-?\d+", key) else key: _with_int_keys(item)
            for key, item in value.items()
        }
    return [_with_int_keys(item) for item in value] if isinstance(value, list) else value
