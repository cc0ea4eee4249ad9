"""Programs of torch.export (.pt2) are checked before PyTorch opens them: opening one may run code that is in it.

An archive can carry code as a pickled member, as the operator that a step of the graph names, as an expression or guard
that is evaluated, or as a type that is imported. Each has to be of a kind that `diff export` writes, and everything
else is refused. The weights are not judged: a stranger's networks may segment as badly as they like.
"""

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from diffcli.errors import CheckpointError

_MAX_GRAPH = 64_000_000
"""Bytes of a graph; the largest that is exported has 2 MB."""

_RAW = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/model_\1_config\.json"
    r"|models/model\.json|serialized_exported_program\.json"
    r"|archive_(format|version)|version|byteorder|\.data/(version|serialization_id)|\.format_version"
)
"""Members that hold tensors as plain bytes, JSON or a few words."""
_PICKLED = re.compile(r"data/sample_inputs/model\.pt|serialized_(state_dict|constants|example_inputs)\.pt")
"""Members that PyTorch unpickles."""
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!_?from_file|_?save|set_|record_stream)[A-Za-z_]\w*\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(float|int|max|min|not|ite|sum)|math\.(ceil|floor|trunc)"
)
"""Operators of a graph: of tensors, and of sizes; none that touches a file."""
_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_NOTED = {"nn_module_stack", "torch_fn", "stack_trace", "from_node"}
_EXPRESSION = {
    *("Symbol", "Integer", "Rational", "Float", "Mul", "Add", "Mod", "Max", "Min", "Abs"),
    *("FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "PythonMod", "IntTrueDiv", "TruncToInt", "Where"),
    *("Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan"),
    *("Eq", "Ne", "Le", "Ge", "Lt", "Gt", "And", "Or", "Not", "true", "false", "oo", "int_oo"),
}
"""Names in an expression of sizes."""


def check_program(path: Path) -> None:
    """The archive holds nothing that could run code when it is opened, beyond the operators of a network.

    Raises:
        CheckpointError: missing, damaged, or holding something that `diff export` does not write; names the member.
    """
    if not path.is_file():
        raise CheckpointError("this part of the export is missing", where=str(path), hint=_AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
    except CheckpointError:
        raise
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            "cannot be loaded: the file is damaged", where=str(path), hint=_AGAIN
        ) from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = [member.filename.casefold() for member in members]  # as PyTorch's own reader looks them up
    if len(set(names)) != len(names):
        raise _refused(path, "two members of one name")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
            raise _refused(path, f"{member.filename[:80]} is compressed")
        name = member.filename.partition("/")[2] or member.filename
        if _PICKLED.fullmatch(name):
            _check_pickle(path, name, archive.read(member))
        elif not _RAW.fullmatch(name):
            raise _refused(path, f"a member {member.filename[:80]}")
        elif name.endswith(".json"):
            if member.file_size > _MAX_GRAPH:
                raise _refused(path, f"a graph of {member.file_size:,} bytes")
            content = json.loads(archive.read(member))
            if "config" in content:
                _check_payload(path, content["config"])
            else:
                _check_graph(path, content)


def _check_pickle(path: Path, name: str, content: bytes) -> None:
    """A member that PyTorch unpickles holds tensors, lists and dicts alone."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted pickle can raise anything
        raise _refused(path, f"code in {name}") from error


def _check_payload(path: Path, entries: dict[str, Any]) -> None:
    """Weights and constants are plain bytes in members of the expected names."""
    for entry in entries.values():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise _refused(path, f"a pickled object {str(entry['path_name'])[:80]}")


def _check_graph(path: Path, node: Any, key: str = "") -> None:
    """Every operator, expression, guard, type and note in a serialized program is of a harmless kind."""
    if isinstance(node, list):
        for item in node:
            _check_graph(path, item, key)
    elif isinstance(node, dict):
        if key == "metadata" and not set(node) <= _NOTED:
            raise _refused(path, f"a note {sorted(set(node) - _NOTED)[0][:40]}")
        for name, value in node.items():
            odd = (
                "custom_obj" in name
                or "opaque" in name
                or name in ("as_operator", "treespec_namedtuple_fields")
            )
            if odd and value:
                raise _refused(path, f"an object ({name[:40]})")
            _check_graph(path, value, name)
    elif isinstance(node, str):
        if key == "target" and not _OPERATORS.fullmatch(node):
            raise _refused(path, f"an operator {node[:80]}")
        if key == "expr_str" and not _is_expression(node):
            raise _refused(path, f"an expression {node[:80]}")
        if key == "guards_code" and not _is_guard(node):
            raise _refused(path, f"a guard {node[:80]}")
        if key in ("in_spec", "out_spec") and not _is_spec(json.loads(node or "null")):
            raise _refused(path, f"a type in {key}")


def _is_expression(text: str) -> bool:
    """Whether a text is an expression of sizes: what is evaluated when a program is opened."""
    return _holds_only(text, names=_EXPRESSION, calls=True, strings=r"[su]\d+")


def _is_guard(text: str) -> bool:
    """Whether a text compares sizes of inputs, L['image'].size()[0], with numbers or with each other."""
    return _holds_only(text, names={"L"}, calls=False, strings=r"\w+")


def _holds_only(text: str, *, names: set[str], calls: bool, strings: str) -> bool:
    """Whether a Python expression is made of numbers, operators, these names and short strings alone.

    Args:
        calls: whether the names may be called; otherwise only .size() of a value may.
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                allowed = name in names
            case ast.Constant(value=str(value)):
                allowed = re.fullmatch(strings, value) is not None
            case ast.Constant(value=value):
                allowed = isinstance(value, int | float | None)
            case ast.Attribute(attr=attribute):
                allowed = not calls and attribute == "size"
            case ast.Call(func=function):
                allowed = isinstance(function, ast.Name if calls else ast.Attribute)
            case ast.Pow() | ast.LShift():  # small expressions of numbers that take for ever
                allowed = False
            case _:
                allowed = isinstance(node, _SYNTAX)
        if not allowed:
            return False
    return True


_SYNTAX = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Subscript, ast.keyword),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)


def _is_spec(node: Any) -> bool:
    """Whether the structure of inputs or outputs is one of tuples, lists and dicts."""
    if isinstance(node, list):
        return all(map(_is_spec, node))
    if isinstance(node, dict):
        context = node.get("context")
        plain = context is None or (isinstance(context, str) and "__" not in context)
        return node.get("type") in _TYPES and plain and _is_spec(node.get("children_spec", []))
    return node is None or isinstance(node, int)


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"not opened: it holds {what}, which diff export does not write",
        where=str(path),
        hint="it may have been made to run code here; get the export from someone you trust, or export the run again",
    )


_AGAIN = "export the run again"
