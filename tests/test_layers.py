"""Imports point one way (design): cli -> commands -> evaluation -> core | data -> config, domains, errors, files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffcli"
FILES = sorted(PACKAGE.rglob("*.py"))

TERMINAL = {"rich", "typer", "tqdm"}
IMAGES = {"cv2", "PIL"}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "cv2", "PIL", "numpy"}
FORBIDDEN: dict[str, set[str]] = {
    "core": {
        *TERMINAL,
        *IMAGES,
        "accelerate",
        "diffcli.data",
        "diffcli.commands",
        "diffcli.cli.main",
        "diffcli.runtime.console",
    },
    "data": {
        *TERMINAL,
        *("diffusers", "transformers", "accelerate"),
        *("diffcli.core", "diffcli.commands", "diffcli.cli.main", "diffcli.runtime.console"),
    },
    "commands": {"typer", "diffcli.cli.main", "diffcli.commands"},
    **{
        name: {*TERMINAL, "diffcli.cli.main", "diffcli.commands"}
        for name in (
            *("evaluation", "inference", "html_report", "score_report"),
            *("any_image", "feature_backbone"),
        )
    },
    "pictures": {*TERMINAL, "torch", "diffcli.core", "diffcli.data", "diffcli.cli.main", "diffcli.commands"},
    "prediction": {*TERMINAL, "diffcli.cli.main", "diffcli.commands"},
    **{
        name: {
            *TERMINAL,
            *("torch", "diffusers", "transformers", "diffcli.core", "diffcli.cli.main", "diffcli.commands"),
            "diffcli.runtime.console",
        }
        for name in ("sources", "outputs", "coco", "writing", "video")
    },
    "segmenting": {*TERMINAL, "torch", "diffusers", "transformers", "diffcli.core", "diffcli.commands"},
    "exported": {
        *TERMINAL,
        *(
            "torch",
            "diffusers",
            "transformers",
            "diffcli.cli.main",
            "diffcli.commands",
            "diffcli.runtime.console",
        ),
    },
    "network_export": {*TERMINAL, "diffcli.cli.main", "diffcli.commands"},
    **{
        name: {
            *HEAVY,
            *TERMINAL,
            "diffcli.core",
            "diffcli.data",
            "diffcli.commands",
            "diffcli.cli.main",
            "diffcli.runtime.console",
        }
        for name in (
            *("config", "config_file", "yaml_tree", "domains", "errors", "files", "runs", "weights"),
            *("model_card", "model_hub"),
        )
    },
    "distributed": {
        *HEAVY,
        *TERMINAL,
        *("diffcli.core", "diffcli.data", "diffcli.commands", "diffcli.cli.main", "diffcli.runtime.console"),
    },
    "console": {*HEAVY, "typer", "diffcli.core", "diffcli.data", "diffcli.commands", "diffcli.cli.main"},
    "classic": {*HEAVY, *TERMINAL, "pydantic", "yaml", "diffcli"},
    "__main__": {*HEAVY, *TERMINAL, "pydantic", "yaml"},
    "__init__": {*HEAVY, *TERMINAL, "pydantic", "yaml", "diffcli"},
}
"""A file of the package, or a folder of it -> what its files may never import."""

AT_TOP_ONLY = {"__main__", "__init__", "distributed"}
"""Files that may import such things inside a function, when they are asked for."""

LIGHT_COMMANDS = ("check", "init", "domains", "doctor", "inspect_data")
"""Commands that answer without loading a network."""


def imports(path: Path, *, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in a file, those for the type checker alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes = ast.iter_child_nodes(tree) if top_only else ast.walk(tree)
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_within(name: str, forbidden: str) -> bool:
    return name == forbidden or name.startswith(f"{forbidden}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    found = imports(path, top_only=part in AT_TOP_ONLY)
    allowed = "diffcli.cli.classic" if part == "__main__" else ""
    bad = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for line, name in found
        for rule in FORBIDDEN.get(part, set())
        if is_within(name, rule) and not (allowed and is_within(name, allowed))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_click_is_typers_own_affair(path: Path) -> None:
    assert not [name for _, name in imports(path) if is_within(name, "click") or "._click" in name]


@pytest.mark.parametrize("name", LIGHT_COMMANDS)
def test_light_commands_import_no_network(name: str) -> None:
    heavy = {"torch", "diffusers", "transformers", "accelerate", "diffcli.core"}
    found = [n for _, n in imports(PACKAGE / "commands" / f"{name}.py", top_only=True)]
    assert not [n for n in found for rule in heavy if is_within(n, rule)]


def test_cli_imports_a_command_only_when_it_runs() -> None:
    assert not [n for _, n in imports(PACKAGE / "cli.py", top_only=True) if is_within(n, "diffcli.commands")]


def test_the_rules_bite(tmp_path: Path) -> None:
    """A relative import, an import inside a function and a submodule are all seen."""
    file = PACKAGE / "core" / "imaginary.py"
    source = "from ..data import dataset\ndef f():\n    import PIL.Image\n"
    tree = {name for _, name in imports_of(source, file, tmp_path)}
    assert tree == {"diffcli.data.dataset", "PIL.Image"}


def imports_of(source: str, as_file: Path, tmp_path: Path) -> Iterator[tuple[int, str]]:
    global PACKAGE
    real = PACKAGE
    PACKAGE = tmp_path / "diffcli"
    try:
        path = PACKAGE / as_file.relative_to(real)
        path.parent.mkdir(parents=True)
        path.write_text(source)
        yield from imports(path)
    finally:
        PACKAGE = real
