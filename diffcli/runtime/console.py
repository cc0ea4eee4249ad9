"""What the terminal shows: words on stderr, data on stdout; coloured in a terminal, plain and aligned in a pipe."""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from diffcli.runtime.tables import cells, plain_table, styled_table
from diffcli.runtime.words import UNSAFE, counted, printable, wrap_words

PLAIN_INTERVAL = 5.0
"""Seconds between two progress lines in a pipe."""


@cache
def _words() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@cache
def _data() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _print_words(text: str, *, label: str = "", style: str = "") -> None:
    """A paragraph on stderr: wrapped between words in a terminal, as it is in a pipe."""
    console, text = _words(), printable(text)
    if console.is_terminal:
        text = wrap_words(label + text, console.width)[len(label) :]
    try:
        console.print(Text.assemble((label, style), text))
    except OSError as error:
        if error.errno != errno.EIO:  # what a terminal says that was closed a moment ago
            raise
        leave_terminal()


def leave_terminal() -> None:
    """From now on, what is written to stdout and stderr goes nowhere: there is no terminal any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say(text: str) -> None:
    """Print a line of words on stderr; above the progress bar if one is shown."""
    _print_words(text)


def say_in_terminal(text: str) -> None:
    """Print a line that stays above the progress bar; in a pipe, the bar's own lines say as much."""
    if _words().is_terminal:
        _print_words(text)


def warn(text: str) -> None:
    """Print a warning on stderr; what matters first, the remedy after it."""
    _print_words(text, label="warning: ", style="bold yellow")


def fail(message: str, *, hint: str | None = None) -> None:
    """Print why a command ended, and what to do about it, on stderr."""
    _print_words(message, label="error: ", style="bold red")
    if hint:
        _print_words(hint, label="  -> ", style="bold")


_json_only: ContextVar[bool] = ContextVar("json_only", default=False)


@contextmanager
def json_only(wanted: bool = True) -> Iterator[None]:
    """Within it, stdout carries the command's record as JSON and nothing else: tables and text are left out."""
    token = _json_only.set(wanted)
    try:
        yield
    finally:
        _json_only.reset(token)


def print_text(text: str) -> None:
    """Print text as it is on stdout, unless stdout is for JSON alone."""
    if not _json_only.get():
        _data().print(Text(printable(text)))


def print_record(value: Any) -> None:
    """Print what a command found as JSON on stdout, if stdout is for JSON (`json_only`).

    A number that is not finite becomes null, a path its text.
    """
    if not _json_only.get():
        return
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(_jsonable(value), indent=2, ensure_ascii=not unicode, default=str)
    print(UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    footer: Iterable[Sequence[object]] = (),
    digits: int = 2,
    words: bool = False,
) -> None:
    """Print a table on stdout (on stderr with `words`): names to the left, numbers to the right, nothing cut off.

    Where stdout is for JSON alone (`json_only`), a table meant for it is left out.

    Args:
        title: a line above it; an empty one is left out.
        columns: headings; all empty ones are left out (a list of names and values).
        rows: cells; None is shown as a dash, a float with `digits` decimals.
        footer: further rows below a rule, for means and totals.
    """
    if _json_only.get() and not words:
        return
    console = _words() if words else _data()
    body, foot = [list(row) for row in rows], [list(row) for row in footer]
    numeric = [
        all(isinstance(row[i], int | float | None) for row in [*body, *foot]) and bool(body or foot)
        for i in range(len(columns))
    ]
    title, columns = printable(title), cells(columns, digits)
    head = [cells(row, digits) for row in body]
    tail = [cells(row, digits) for row in foot]
    if console.is_terminal:
        if title:  # of its own, since a table would break it at the width of its columns
            console.print(Text(title, style="italic"))
        styled = styled_table(columns, head, tail, numeric, width=console.width)
        console.print(styled, soft_wrap=False)
    else:
        print("\n".join(plain_table(title, columns, head, tail, numeric)), file=console.file, flush=True)


def share_bar(share: float, width: int) -> str:
    """A bar of `share` (0..1) of `width` letters; what is more than nothing shows."""
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        return "#" * max(round(share * width), int(share > 0))
    eighths = max(round(share * width * 8), int(share > 0))
    return "\N{FULL BLOCK}" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


class Bar(Protocol):
    """A task whose progress is shown."""

    def update(self, advance: int = 1, **fields: object) -> None:
        """Move on by `advance` steps and show `fields` (loss=0.4) from now on; a None field is removed."""

    def describe(self, description: str) -> None:
        """Change the name of the stage."""

    def cached(self) -> None:
        """Nothing needs doing: what an earlier call found is kept."""

    def interrupted(self, seconds: float, *, later: float = 0.0) -> None:
        """Other work took `seconds`, which do not count in the rate; it will take `later` seconds until the end."""


@contextmanager
def progress(
    description: str, total: int, *, completed: int = 0, unit: str = "samples", per_step: int = 1
) -> Iterator[Bar]:
    """Show stage, step, fields, rate and time left: a bar in a terminal, a line every few seconds in a pipe.

    Progress inside progress (a validation during training) adds a bar below, or further lines.

    Args:
        description: the stage ("train", "validate night").
        total: steps in all.
        completed: steps done before (a resumed run); they do not count in the rate.
        unit: what the rate counts.
        per_step: units in a step (the batch size).
    """
    state = _State(description, total, completed, unit, per_step)
    if not _words().is_terminal:
        plain = _PlainBar(state)
        yield plain
        plain.finish()
    elif _live:
        yield from _add_bar(_live[-1], state)
    else:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
        )
        with Progress(
            *columns, TextColumn("{task.fields[facts]}", markup=False), console=_words(), transient=True
        ) as live:
            _live.append(live)
            try:
                yield from _add_bar(live, state)
            finally:
                _live.pop()
        say(state.line())


_live: list[Progress] = []
"""The one live display, while it is shown."""


class _State:
    """Steps done, fields and the clock of one task."""

    def __init__(self, description: str, total: int, completed: int, unit: str, per_step: int) -> None:
        self.description, self.total, self.completed = printable(description), total, completed
        self.unit, self.per_step = unit, per_step
        self.fields: dict[str, object] = {}
        self._marks = [(time.monotonic(), completed)]
        self._later = 0.0
        self.is_cached = False

    def interrupted(self, seconds: float, later: float) -> None:
        self._marks = [(mark + seconds, completed) for mark, completed in self._marks]
        self._later = later

    def update(self, advance: int, fields: dict[str, object]) -> None:
        self.completed += advance
        self.fields = {key: value for key, value in {**self.fields, **fields}.items() if value is not None}
        now = time.monotonic()
        if now - self._marks[-1][0] >= 1:
            self._marks = [*self._marks[-30:], (now, self.completed)]

    def facts(self) -> str:
        """The fields, samples/s and time left, as in `loss 0.431 | 12.3 samples/s | ETA 1:23`."""
        parts = [f"{key.replace('_', ' ')} {_short(value)}" for key, value in self.fields.items()]
        start, before = self._marks[0]
        seconds = time.monotonic() - start
        if self.completed > before and seconds > 0:
            rate = (self.completed - before) / seconds
            parts.append(f"{_short(rate * self.per_step)} {self.unit}/s")
            if self.completed < self.total:
                parts.append(f"ETA {clock((self.total - self.completed) / rate + self._later)}")
        return " | ".join(parts)

    def line(self) -> str:
        if self.is_cached:
            return f"{self.description}: cached ({counted(self.total, self.unit.removesuffix('s'))})"
        facts = self.facts()
        return f"{self.description} {self.completed}/{self.total}" + (f" | {facts}" if facts else "")


class _PlainBar:
    """A line every `PLAIN_INTERVAL` seconds, and a last one at the end."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self._last = time.monotonic()
        self._shown = -1

    def update(self, advance: int = 1, **fields: object) -> None:
        self.state.update(advance, fields)
        if time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._show()

    def describe(self, description: str) -> None:
        """A stage may take minutes without a step: a line says at once that it has begun."""
        self.state.description = printable(description)
        self._show()

    def cached(self) -> None:
        self.state.completed, self.state.is_cached = self.state.total, True

    def interrupted(self, seconds: float, *, later: float = 0.0) -> None:
        self.state.interrupted(seconds, later)

    def finish(self) -> None:
        if self.state.completed != self._shown:
            self._show()

    def _show(self) -> None:
        say(self.state.line())
        self._last, self._shown = time.monotonic(), self.state.completed


class _RichBar:
    """One line of the live display."""

    def __init__(self, live: Progress, task: TaskID, state: _State) -> None:
        self.live, self.task, self.state = live, task, state

    def update(self, advance: int = 1, **fields: object) -> None:
        self.state.update(advance, fields)
        self.live.update(self.task, completed=self.state.completed, facts=self.state.facts())

    def describe(self, description: str) -> None:
        self.state.description = printable(description)
        self.live.update(self.task, description=self.state.description)

    def cached(self) -> None:
        self.state.completed, self.state.is_cached = self.state.total, True

    def interrupted(self, seconds: float, *, later: float = 0.0) -> None:
        self.state.interrupted(seconds, later)


def _add_bar(live: Progress, state: _State) -> Iterator[Bar]:
    task = live.add_task(state.description, total=state.total, completed=state.completed, facts="")
    try:
        yield _RichBar(live, task, state)
    finally:
        live.remove_task(task)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value))


def _jsonable(value: Any) -> Any:
    """`value` without numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    return value
