"""What a pipe sees: data on stdout, words on stderr, plain, aligned and whole; and what a terminal sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffcli.runtime import console


def test_a_table_in_a_pipe_is_plain_aligned_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a_domain_with_a_name_that_is_longer_than_any_terminal_would_like_to_show_in_one_line_really"
    rows = [["road", 98.123, None], ["traffic light", 3.0, float("nan")]]
    console.table("mIoU", ["class", "night", name], rows, footer=[["mean", 50.5, 1.0]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mIoU"
    assert lines[1] == f"class          night  {name}"
    assert lines[3] == "road           98.12  " + "-".rjust(len(name))
    assert lines[6] == "mean           50.50  " + "1.00".rjust(len(name))
    assert all(line.isascii() for line in lines)


def test_a_list_of_facts_has_no_heading(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("", ["", ""], [["a", "x"], ["bcd", "y"]])
    assert capsys.readouterr().out == "a    x\nbcd  y\n"


def test_words_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]not markup[/bold] " + "long " * 40)
    console.warn("careful")
    console.fail("it broke", hint="mend it")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:] == ["warning: careful", "error: it broke", "  -> mend it"]
    assert err.startswith("[bold]not markup[/bold] long")
    assert len(err.splitlines()[0]) > 150


def test_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\x9b1m\x07\u202e\x7f\udce9\rb"
    shown = "a\\x1b[2J\\x9b1m\\x07\\u202e\\x7f\\xe9\\x0db"
    console.say(name)
    console.warn(name)
    console.fail(name, hint=name)
    console.print_text(name)
    console.table(name, ["name", name], [[f"{name}\n", 1]])
    with console.progress(name, 1) as bar:
        bar.update(file=name)
    with console.json_only():
        console.print_record({name: name})
    out, err = capsys.readouterr()
    assert not {letter for letter in out + err if letter != "\n" and not letter.isprintable()}
    assert err.count(shown) == 6
    assert f"{shown}\\n" in out
    assert json.loads(out[out.index("{\n") :]) == {name: name}


def test_json_is_json_even_where_numbers_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_record("only where stdout is for JSON")
    with console.json_only():
        console.print_text("left out")
        console.table("left out", ["a"], [["b"]])
        console.print_record({"a": float("nan"), "b": (1, float("inf")), 3: Path("x"), "ü": {"c": 1.5}})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [1, None], "3": "x", "ü": {"c": 1.5}}
    assert "ü" in out


def test_progress_in_a_pipe_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("train", 100, completed=20, per_step=4) as bar:
        for i in range(40):
            now[0] += 0.5
            bar.update(loss=1 / (i + 1), note=None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "train 30/100 | loss 0.1 | 8 samples/s | ETA 0:35"
    assert lines[-1].startswith("train 60/100 | loss 0.025")


def test_progress_without_a_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("validate night", 3) as bar:
        bar.describe("validate fog")
    assert capsys.readouterr().err == "validate fog 0/3\n"


def test_a_failure_inside_progress_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inside"), console.progress("train", 3):
        raise ValueError("inside")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_in_a_terminal_bars_nest_and_words_go_above(repository: Path) -> None:
    code = (
        "from diffcli.runtime import console\n"
        "with console.progress('train', 2) as bar:\n"
        "    bar.update(loss=0.5)\n"
        "    with console.progress('validate', 1) as inner: inner.update()\n"
        "    console.say('a word')\n"
        "    bar.update()\n"
        "console.table('t', ['a', 'b'], [['x', 1]])\n"
    )
    text = in_terminal([sys.executable, "-c", code], cwd=repository)
    assert "validate" in text
    assert "a word" in text
    assert "train 2/2" in text
    assert "\x1b[36mx" in text  # coloured


def in_terminal(command: list[str], *, cwd: Path) -> str:
    """Output of a command whose standard streams are an 80-column terminal."""
    import pty
    import subprocess

    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONPATH": str(cwd)}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=env, close_fds=True
    )
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux ends a pseudo-terminal with an error
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    assert process.wait(timeout=60) == 0, b"".join(chunks).decode()
    return b"".join(chunks).decode()


def test_cached_work_and_a_stage_that_begins_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("count classes", 1) as bar:
        bar.cached()
    with console.progress("export", 3, unit="networks") as bar:
        bar.describe("export encoder")  # may take minutes
        assert capsys.readouterr().err == "count classes: cached (1 sample)\nexport encoder 0/3\n"
        bar.update(3)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_that_is_gone_ends_nothing() -> None:
    """Its writer gets an I/O error, perhaps before the signal that it was closed."""
    import pty

    ours, theirs = pty.openpty()
    code = "import sys; from diffcli.runtime import console; sys.stdin.read(1); console.say('a'); console.warn('b')"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        os.close(ours)
        process.communicate(b"x", timeout=60)
    assert process.returncode == 0
