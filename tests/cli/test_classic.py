"""The machine's own diff is still there: calls that are meant for it reach it unchanged."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from diffcli.cli import classic

ROOT = Path(__file__).parents[2]
REAL = next(classic.classic_paths(), None)
needs_classic = pytest.mark.skipif(REAL is None, reason="this machine has no diff")
posix = pytest.mark.skipif(os.name == "nt", reason="scripts with a shebang")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def launcher(path: Path) -> Path:
    """What an installer writes for `diff = "diffcli.__main__:main"`."""
    code = f"#!{sys.executable}\nimport sys\nfrom diffcli.__main__ import main\nsys.exit(main())\n"
    return script(path, code)


@pytest.fixture
def diff(tmp_path: Path) -> Run:
    """Call `diff` by name with our launcher first on PATH, in a folder with a.txt, b.txt and the folder train."""
    launcher(tmp_path / "ours" / "diff")
    work = tmp_path / "work"
    (work / "train").mkdir(parents=True)
    (work / "a.txt").write_text("one\ntwo\n")
    (work / "b.txt").write_text("one\n2\n")
    (work / "settings.yaml").write_text("nonsense: 1\n")

    def run(
        *arguments: str, path: list[Path] | None = None, stdin: str = "", **env: str
    ) -> "subprocess.CompletedProcess[str]":
        folders = path if path is not None else [tmp_path / "ours", *map(Path, os.get_exec_path())]
        return subprocess.run(
            ["diff", *arguments],
            executable=str(tmp_path / "ours" / "diff"),
            cwd=work,
            env={**os.environ, "PATH": os.pathsep.join(map(str, folders)), "PYTHONPATH": str(ROOT), **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


OURS = [
    [],
    ["--help"],
    ["-h"],
    ["--version"],
    ["train", "settings.yaml"],
    ["trian", "settings.yaml"],
    ["chekc", "settings.yaml"],
    ["settings.yaml"],
    ["nothing"],
    ["--json"],
    ["--set", "a=b", "train", "settings.yaml"],
    ["segment", "a.txt", "-o", "masks"],
]
CLASSIC = [
    ["a.txt", "b.txt"],
    ["a.txt", "missing.txt"],
    ["missing.txt", "a.txt"],
    ["missing.txt", "missing2.txt"],
    ["missing", "a.txt"],
    ["train.txt", "a.txt"],
    ["-u", "a.txt", "b.txt"],
    ["-urN", "train", "b"],
    ["-U3", "a.txt", "b.txt"],
    ["-3", "a.txt", "b.txt"],
    ["--unified=2", "a.txt", "b.txt"],
    ["--bri", "a.txt", "b.txt"],
    ["--color=never", "train", "a.txt"],
    ["-", "a.txt"],
    ["a.txt", "-"],
    ["./train", "train"],
    ["--", "train", "train"],
    ["-v"],
    ["--help", "a.txt"],
    ["settings.yaml", "a.txt"],
]


@pytest.mark.parametrize("arguments", OURS, ids=" ".join)
def test_our_calls_stay_ours(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "settings.yaml"):
        (tmp_path / name).touch()
    assert not classic.is_for_classic(arguments)


@pytest.mark.parametrize("arguments", CLASSIC, ids=" ".join)
def test_classic_calls_are_recognised(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "settings.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "train").mkdir()
    assert classic.is_for_classic(arguments)


def test_our_commands_are_the_cli_s() -> None:
    from diffcli.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    groups = {name: set(one.commands) for name, one in commands.items() if hasattr(one, "commands")}
    assert set(commands) == set(classic.COMMANDS)
    assert {name: set(words) - {"--help", "-h"} for name, words in classic.GROUPS.items()} == groups


@needs_classic
@posix
@pytest.mark.parametrize(
    "arguments",
    [
        ["a.txt", "b.txt"],
        ["a.txt", "a.txt"],
        ["-u", "--label", "x", "--label", "y", "a.txt", "b.txt"],
        ["a.txt", "missing.txt"],
        ["missing.txt", "missing2.txt"],
        ["-y", "-W", "40", "a.txt", "-"],
        ["-rq", "train", "."],
    ],
    ids=" ".join,
)
def test_output_and_exit_code_are_the_classic_tool_s(diff: Run, tmp_path: Path, arguments: list[str]) -> None:
    assert REAL is not None
    ours = diff(*arguments, stdin="one\n")
    theirs = subprocess.run(
        ["diff", *arguments],
        executable=REAL,
        cwd=tmp_path / "work",
        input="one\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


@posix
def test_a_folder_named_like_a_command_is_ours(diff: Run) -> None:
    result = diff("train", "nope.yaml")
    assert result.returncode == 2
    assert "nope.yaml: no such file" in result.stderr


@posix
def test_arguments_pass_unchanged(diff: Run, tmp_path: Path) -> None:
    """Spaces, globs, empty words and options behind a `--` arrive as they were typed."""
    echo = script(tmp_path / "other" / "diff", '#!/bin/sh\nfor word; do echo "[$word]"; done\nexit 7\n')
    result = diff("-u", "a b", "", "*", "--", "-x", path=[tmp_path / "ours", echo.parent, Path("/bin")])
    assert result.returncode == 7
    assert result.stdout.splitlines() == ["[-u]", "[a b]", "[]", "[*]", "[--]", "[-x]"]


@posix
def test_no_other_diff_is_said_with_127(diff: Run, tmp_path: Path) -> None:
    result = diff("a.txt", "b.txt", path=[tmp_path / "ours"])
    assert result.returncode == 127
    assert "no other diff is on PATH" in result.stderr


@posix
def test_links_copies_and_other_installations_of_ours_are_passed_over(diff: Run, tmp_path: Path) -> None:
    ours = tmp_path / "ours" / "diff"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "diff").symlink_to(ours)
    launcher(tmp_path / "elsewhere" / "diff")
    theirs = script(tmp_path / "theirs" / "diff", "#!/bin/sh\necho classic\n")
    folders = [tmp_path / "linked", ours.parent, tmp_path / "elsewhere", theirs.parent, Path("/bin")]
    result = diff("a.txt", "b.txt", path=folders)
    assert (result.returncode, result.stdout) == (0, "classic\n")


@posix
def test_a_wrapper_that_calls_diff_again_ends(diff: Run, tmp_path: Path) -> None:
    """colordiff and version managers find us on PATH again; the second time the call goes further down."""
    wrapper = script(tmp_path / "wrapper" / "diff", '#!/bin/sh\necho wrapped\nexec diff "$@"\n')
    theirs = script(tmp_path / "theirs" / "diff", "#!/bin/sh\necho classic\nexit 1\n")
    folders = [tmp_path / "ours", wrapper.parent, theirs.parent, Path("/bin"), Path("/usr/bin")]
    result = diff("a.txt", "b.txt", path=folders)
    assert (result.returncode, result.stdout) == (1, "wrapped\nclassic\n")
    alone = diff("a.txt", "b.txt", path=[tmp_path / "ours", wrapper.parent])
    assert alone.returncode == 127


@posix
def test_a_program_that_cannot_start_is_passed_over(diff: Run, tmp_path: Path) -> None:
    script(tmp_path / "broken" / "diff", "#!/nowhere/interpreter\n")
    theirs = script(tmp_path / "theirs" / "diff", "#!/bin/sh\necho classic\n")
    result = diff(
        "a.txt", "b.txt", path=[tmp_path / "ours", tmp_path / "broken", theirs.parent, Path("/bin")]
    )
    assert result.stdout == "classic\n"


@needs_classic
@posix
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash for PIPESTATUS")
def test_a_closed_pipe_ends_the_classic_tool_quietly(tmp_path: Path) -> None:
    """Python ignores SIGPIPE; what it hands over to must not."""
    ours = launcher(tmp_path / "ours" / "diff")
    (tmp_path / "a").write_text("".join(f"{i}\n" for i in range(200_000)))
    (tmp_path / "b").touch()
    result = subprocess.run(
        ["bash", "-c", f"{ours} a b | head -1; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "141"
    assert result.stderr == ""


@posix
def test_handing_over_loads_nothing_heavy(diff: Run, tmp_path: Path) -> None:
    """Decided before Typer, rich or the settings are imported."""
    code = (
        "import sys; from diffcli.cli.classic import is_for_classic, classic_paths; is_for_classic(['a', 'b']); "
        "list(classic_paths()); print(sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"typer", "rich", "pydantic", "yaml", "torch", "subprocess"} & set(eval(result.stdout))
