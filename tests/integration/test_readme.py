"""README.md tells the truth: its commands exist with those options, its YAML is valid, and .ci/run finds its tests."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from diffcli.cli.main import app
from diffcli.config.file import load_config
from diffcli.config.settings import RunConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def commands() -> list[str]:
    """Every `diff ...` of the bash blocks, also behind `&&`."""
    lines = [
        part.strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")
    ]
    return [line for line in lines if line.split()[:1] in (["diff"], ["diffcli"])]


def classic() -> list[str]:
    return [line for line in commands() if line.split()[1].startswith("-")]


@pytest.mark.parametrize("line", [line for line in commands() if line not in classic()])
def test_command_parses(line: str) -> None:
    """Against the real signatures; nothing runs."""
    _, name, *arguments = shlex.split(line, comments=True)
    group: Any = typer.main.get_command(app)
    assert name in group.commands, line
    group.commands[name].make_context(name, arguments)


def test_the_classic_example_is_handed_over() -> None:
    from diffcli.cli.classic import is_for_classic

    assert classic()
    assert all(is_for_classic(shlex.split(line)[1:]) for line in classic())


def test_every_command_is_in_the_table() -> None:
    group: Any = typer.main.get_command(app)
    listed = set(re.findall(r"^\| `diff (\w+)", README, flags=re.M))
    assert listed == {name for name, command in group.commands.items() if not command.hidden}


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "readme.yaml"
    file.write_text(text.replace("extends: examples/", f"extends: {ROOT}/examples/"))
    assert load_config(file) != RunConfig()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_two_commands_do_everything() -> None:
    """One line installs and trains the quickstart, one installs and tests; .ci/run takes the latter from here."""
    lines = [
        line for block in blocks("bash") for line in block.splitlines() if "pip install" in line.split("#")[0]
    ]
    assert len(lines) == 2
    assert lines[0].endswith("diff train examples/quickstart.yaml")
    assert "-m pytest" in lines[1]
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"command=\$\((.*)\)$", script, flags=re.M)
    assert found
    result = subprocess.run(["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == lines[1]
