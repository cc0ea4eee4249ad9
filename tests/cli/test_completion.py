"""Shell completion under the name `diff`, beside the classic tool's file names; help ends with calls that parse."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from diffcli.cli.main import app

Complete = Callable[..., list[str]]

OTHERS = {"predict", "export", "bench"}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """What an installer writes for `diff`."""
    path = tmp_path / "bin" / "diff"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom diffcli.__main__ import main\nsys.exit(main())\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def complete(program: Path, tmp_path: Path, repository: Path) -> Complete:
    """complete("diff", "ev") -> what bash is offered for the last word."""

    def run(*words: str) -> list[str]:
        env = {
            "_DIFF_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
            "PYTHONPATH": str(repository),
        }
        done = subprocess.run(
            [program], cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.split()

    return run


def test_commands_options_runs_and_domains(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").touch()
    assert complete("diff", "pu") == ["push"]
    assert "--domain" in complete("diff", "eval", "--do")
    assert complete("diff", "predict", "x", "--run", "fi") == ["first"]
    assert {"miniworld", "miniworld/fog"} <= set(complete("diff", "eval", "--domain", "mini"))


def test_file_names_are_left_to_the_shell(complete: Complete, tmp_path: Path) -> None:
    """The classic calls: nothing of ours is offered, so that the shell goes on with its own."""
    (tmp_path / "old.txt").touch()
    assert complete("diff", "old.txt", "ne") == []
    assert complete("diff", "-u", "ol") == []


def test_the_script_for_the_shell(program: Path, repository: Path) -> None:
    """It is registered for the name that is typed, and lets bash go on with files."""
    env = {**os.environ, "PYTHONPATH": str(repository), "SHELL": "/bin/bash"}
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{program} --show-completion; exit $?",
        ],  # which keeps the shell in place, to be found
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "complete -o default -F _diff_completion diff" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def commands() -> dict[str, Any]:
    """Every command by the words that call it."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {word}": one for word, one in inner.items()} if inner else {name: command}
    return found


@pytest.mark.parametrize("name", sorted(commands().keys() - OTHERS))
def test_the_examples_of_a_command_parse(name: str) -> None:
    every = commands()
    examples = [line.strip() for line in (every[name].epilog or "").splitlines() if " diff " in f" {line}"]
    assert examples
    called = []
    for line in examples:
        assert len(line) <= 76
        words = shlex.split(line.partition("|")[0])
        words = words[words.index("diff") + 1 :]
        length = 2 if " ".join(words[:2]) in every else 1
        called.append(" ".join(words[:length]))
        every[called[-1]].make_context(called[-1], words[length:])
    assert name.replace("evaluate", "eval") in called
