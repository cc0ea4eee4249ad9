"""The rooms of the package and the order of imports (diffcli/ARCHITECTURE.md), held as one closed list."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffcli"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = (
    *("__main__", "__init__", "cli", "commands", "bench", "training", "api", "export", "evaluation"),
    *("prediction", "runs", "core", "backbone", "drawing", "data", "runtime", "config"),
    *("files", "errors", "classes"),
)
"""Every room and every file at the root, from the top down: each may import itself and what stands behind it."""

TERMINAL = {"rich", "typer", "tqdm"}
IMAGES = {"cv2", "PIL"}
LIBRARIES = {"diffusers", "transformers", "accelerate"}
HEAVY = {"torch", "numpy", *LIBRARIES, *IMAGES}

NEVER: dict[str, set[str]] = {
    "__main__": {*HEAVY, *TERMINAL, "pydantic", "yaml"},
    "__init__": {*HEAVY, *TERMINAL, "pydantic", "yaml"},
    "cli": HEAVY,
    "cli/classic.py": {*TERMINAL, "pydantic", "yaml", "diffcli"},
    "commands": {"typer"},
    "bench": TERMINAL,
    "training": TERMINAL,
    "api": TERMINAL,
    "export": TERMINAL,
    "export/runner.py": LIBRARIES,
    "evaluation": TERMINAL,
    "prediction": {*TERMINAL, *LIBRARIES},
    "runs": {*TERMINAL, *IMAGES, *LIBRARIES},
    "core": {*TERMINAL, *IMAGES, "accelerate", "transformers"},
    "backbone": {*TERMINAL, *IMAGES},
    "drawing": {*TERMINAL, *LIBRARIES, "torch"},
    "data": {*TERMINAL, *LIBRARIES, "torch"},
    "data/batches.py": {*TERMINAL, *LIBRARIES},
    "runtime": {"typer", *IMAGES, *LIBRARIES},
    "config": {*HEAVY, *TERMINAL},
    "files": {*HEAVY, *TERMINAL, "pydantic", "yaml"},
    "errors": {*HEAVY, *TERMINAL, "pydantic", "yaml"},
    "classes": {*HEAVY, *TERMINAL, "pydantic", "yaml"},
}
"""A room, or a file that has a rule of its own, -> the libraries that it never imports, not even in a function."""

TYPER = {"cli"}
"""The rooms that know Typer."""

AT_TOP: dict[str, set[str]] = {
    "commands/check.py": {"torch", *LIBRARIES},
    "commands/init.py": {"torch", *LIBRARIES},
    "commands/domains.py": {"torch", *LIBRARIES},
    "commands/doctor.py": {"torch", *LIBRARIES},
    "commands/inspect_data.py": {"torch", *LIBRARIES},
    "cli": {"pydantic", "diffcli.commands"},
    "export/runner.py": {"torch"},
    "runtime/console.py": {"torch"},
    "runtime/distributed.py": {"torch"},
    "runtime/signals.py": {"torch"},
}
"""A room or file -> what it imports only inside a function, when it is asked for."""


@functools.cache
def imports(path: Path, *, top_only: bool = False) -> tuple[tuple[int, str], ...]:
    """(line, absolute dotted name) of every import in a file, those for the type checker alone left out."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    return tuple(imports_of(path.read_text(encoding="utf-8"), package, top_only=top_only))


def imports_of(source: str, package: tuple[str, ...], *, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in a module of `package`."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.iter_child_nodes(tree) if top_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(path: Path) -> str:
    """The room in which a file of the package stands; a file at the root is a room by itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def goes_up(room: str, imported: str) -> bool:
    """Whether a module of `room` that imports `imported` reaches above itself."""
    parts = imported.split(".")
    if parts[0] != "diffcli" or parts[1:] == ["__version__"]:
        return False
    target = parts[1] if len(parts) > 1 else "__init__"
    return ROOMS.index(target if target in ROOMS else "__init__") < ROOMS.index(room)


def is_within(name: str, forbidden: str) -> bool:
    return name == forbidden or name.startswith(f"{forbidden}.")


def rules(table: dict[str, set[str]], path: Path) -> set[str]:
    """The rule for a file: its own where there is one, else that of its room."""
    own = path.relative_to(PACKAGE).as_posix()
    return table.get(own, table.get(room_of(path), set()))


def by_file(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_module_stands_in_a_room() -> None:
    assert not [by_file(path) for path in FILES if room_of(path) not in ROOMS]


def test_every_room_is_there_and_has_a_rule() -> None:
    found = {room_of(path) for path in FILES}
    assert found == set(ROOMS)
    assert set(ROOMS) <= set(NEVER)


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_imports_go_down_only(path: Path) -> None:
    found = [f"{by_file(path)}:{line} {name}" for line, name in imports(path) if goes_up(room_of(path), name)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_a_room_keeps_its_rule(path: Path) -> None:
    never, at_top = rules(NEVER, path), rules(AT_TOP, path)
    allowed = {"diffcli.cli"} if room_of(path) == "__main__" else set()
    bad = [
        f"{by_file(path)}:{line} imports {name}"
        for found, rule in ((imports(path), never), (imports(path, top_only=True), at_top))
        for line, name in found
        if any(is_within(name, one) for one in rule) and not any(is_within(name, one) for one in allowed)
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_only_the_command_line_knows_typer(path: Path) -> None:
    found = {name for _, name in imports(path)}
    assert room_of(path) in TYPER or not [name for name in found if is_within(name, "typer")]
    assert not [name for name in found if is_within(name, "click") or "._click" in name]


def test_the_miniature_world_has_one_door() -> None:
    inside = PACKAGE / "data" / "miniworld"
    behind = [
        f"diffcli.data.miniworld.{path.stem}" for path in inside.glob("*.py") if path.stem != "__init__"
    ]
    bad = [
        f"{by_file(path)}:{line} {name}"
        for path in FILES
        if inside not in path.parents
        for line, name in imports(path)
        if any(is_within(name, module) for module in behind)
    ]
    assert not bad, "\n".join(bad)


RESULTS = {"table", "print_record", "print_text", "fail"}
"""What prints a result or the end of a command; progress, notes and warnings may come from any room."""


@pytest.mark.parametrize("path", FILES, ids=by_file)
def test_only_commands_print_results(path: Path) -> None:
    if room_of(path) in {"cli", "commands", "runtime"}:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bad = [
        f"{by_file(path)}:{node.lineno} console.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "console" and node.attr in RESULTS
    ]
    bad += [
        f"{by_file(path)}:{node.lineno} print"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not bad, "\n".join(bad)


def test_the_rules_bite() -> None:
    """A relative import, an import inside a function and a submodule are all seen, and going up is refused."""
    source = "from ..data import dataset\ndef f():\n    import PIL.Image\n"
    assert {name for _, name in imports_of(source, ("diffcli", "core"))} == {
        "diffcli.data.dataset",
        "PIL.Image",
    }
    assert goes_up("core", "diffcli.runs.folder.LAST")
    assert goes_up("core", "diffcli.load")
    assert not goes_up("core", "diffcli.data.dataset")
    assert not goes_up("core", "diffcli.__version__")
