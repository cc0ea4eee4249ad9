"""What the command line promises: one error boundary, help in 80 columns, no network where none is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffcli import __version__
from tests.cli.test_commands_frozen import COMMANDS

SMALL = "data: {train: miniworld/clean, eval: [{domain: miniworld/fog, name: été, count: 2}]}\n"


def test_help_names_every_command_in_80_columns(cli_process: Any) -> None:
    result = cli_process("--help")
    assert result.returncode == 0
    assert all(f"\n  {name.split()[0]} " in result.stdout for name in COMMANDS if name != "evaluate")
    assert "classic diff" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "..." not in result.stdout.partition("Commands:")[2]


def test_no_arguments_show_the_help(cli_process: Any) -> None:
    result = cli_process()
    assert "Commands:" in result.stdout + result.stderr


def test_version(cli_process: Any) -> None:
    assert cli_process("--version").stdout == f"diffcli {__version__}\n"


@pytest.mark.parametrize("command", ["--help", "train --help", "check small.yaml", "domains", "init -"])
def test_torch_is_not_imported_where_it_is_not_needed(command: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    code = (
        "import sys, atexit, runpy\n"
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))))\n"
        f"sys.argv = ['diff', *{command.split()!r}]\n"
        "runpy.run_module('diffcli', run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HEAVY []" in result.stdout


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "train"),
        ("predcit", "predict"),
        ("evalute", "evaluate"),
        ("exprot", "export"),
        ("docter", "doctor"),
    ],
)
def test_a_mistyped_command_gets_a_suggestion(cli: Any, typed: str, meant: str) -> None:
    result = cli(typed, "x")
    assert result.returncode == 2
    assert "Did you mean" in result.stderr
    assert f"'{meant}'" in result.stderr


def test_a_user_s_fault_is_two_lines_without_a_traceback(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train:\n  iteration: 3\n")
    result = cli("check", "x.yaml")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: x.yaml:2: there is no setting train.iteration",
        "  -> did you mean train.iterations?",
    ]
    assert result.stdout == ""


def test_a_wrong_override_names_the_full_key(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").touch()
    result = cli("train", "x.yaml", "--set", "eta=0.5")
    assert result.returncode == 2
    assert "did you mean model.inversion.eta?" in result.stderr


@pytest.mark.parametrize("command", ["eval --domain all", "predict . -o masks"])
def test_without_a_run_it_says_how_to_get_one(cli: Any, command: str) -> None:
    result = cli(*command.split())
    assert result.returncode == 1
    assert "diff train examples/quickstart.yaml" in result.stderr


def in_process(code: str, repository: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the error boundary with `diff doctor` replaced by `code`."""
    program = (
        "import sys, diffcli.commands.doctor as command\n"
        f"def run(request):\n    {code}\n"
        "command.run = run\nsys.argv = ['diff', 'doctor']\n"
        "from diffcli.cli.main import main\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(repository), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unexpected_fault_is_short_and_says_how_to_see_more(repository: Path) -> None:
    short = in_process("raise ZeroDivisionError('by nought')", repository)
    assert short.returncode == 1
    assert short.stderr.splitlines()[0] == "error: unexpected ZeroDivisionError: by nought"
    assert "DIFFCLI_TRACEBACK=1" in short.stderr
    full = in_process("raise ZeroDivisionError('by nought')", repository, DIFFCLI_TRACEBACK="1")
    assert "Traceback (most recent call last)" in full.stderr
    assert full.returncode == 1


def test_ctrl_c_ends_with_130_and_says_what_is_kept(repository: Path) -> None:
    result = in_process("raise KeyboardInterrupt", repository)
    assert result.returncode == 130
    assert "is kept" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_fault(repository: Path) -> None:
    code = "import os, errno; raise BrokenPipeError(errno.EPIPE, 'gone')"
    result = in_process(code, repository)
    assert "unexpected" not in result.stderr


def test_check_prints_data_on_stdout_only(cli: Any, cli_process: Any, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    result = cli("check", "small.yaml", "--json")
    assert json.loads(result.stdout)["name"] == "small"
    assert result.stderr == ""
    plain = cli_process("check", "small.yaml", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert "\\xe9t\\xe9" in plain.stdout


def test_a_closed_pipe_is_no_fault(repository: Path, tmp_path: Path) -> None:
    """diff domains | head"""
    process = subprocess.Popen(
        [sys.executable, "-m", "diffcli", "domains"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    words = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Traceback" not in words
    assert "unexpected" not in words
    assert "BrokenPipe" not in words


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_fault(closed: str, repository: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m diffcli domains {closed}"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_stdout_is_said(repository: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "diffcli", "domains"],
            env={**os.environ, "PYTHONPATH": str(repository)},
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "error: the output: cannot be written: No space left on device",
        "  -> make room, or write to another disk",
    ]


def test_a_wrong_choice_and_a_strange_word_are_said_in_plain_words(cli: Any) -> None:
    wrong = cli("export", "x", "-o", "y", "--format", "foo")
    assert wrong.returncode == 2
    assert "unknown 'foo'; choose one of 'folder', 'onnx', 'pt2'." in wrong.stderr
    assert "Value error" not in wrong.stderr
    strange = cli("doctor", "a\x1b[2Jb")
    assert strange.returncode == 2
    assert "\x1b" not in strange.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("open('a' * 300)", f"{'a' * 300}: cannot be used: File name too long"),
        ("open('/proc/self/mem').read()", "unexpected OSError"),  # no name is known
        ("from pathlib import Path; Path('~no-such-user/a').expanduser()", "a path begins with ~NAME"),
    ],
)
def test_a_path_that_cannot_be_used_is_said(repository: Path, code: str, words: str) -> None:
    result = in_process(code, repository)
    assert result.returncode == 1
    assert words in result.stderr
