"""Tables as lines of text for a pipe and as Rich's for a terminal: nothing is cut off."""

import math
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from diffcli.runtime.words import printable, wrap_name

NARROWEST = 12
"""Columns of text are not made narrower than this."""


def cells(row: Sequence[object], digits: int) -> list[str]:
    """A row as text; None and NaN are a dash, floats have `digits` decimals."""
    return [_cell(value, digits) for value in row]


def _cell(value: object, digits: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def plain_table(
    title: str,
    columns: Sequence[str],
    body: list[list[str]],
    foot: list[list[str]],
    numeric: list[bool],
) -> Iterator[str]:
    """Lines of aligned text; column widths are those of the longest cell."""
    rows = [list(columns), *body, *foot]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]

    def line(row: list[str]) -> str:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    if title:
        yield title
    if any(columns):
        yield line(list(columns))
        yield rule
    yield from map(line, body)
    if foot:
        yield rule
        yield from map(line, foot)


def styled_table(
    columns: Sequence[str],
    body: list[list[str]],
    foot: list[list[str]],
    numeric: list[bool],
    *,
    width: int,
) -> Table:
    """The same table for a terminal, without its title; the first column and the footer are highlighted."""
    rows = _fitted([list(columns), *body, *foot], numeric, room=width)
    columns, body, foot = rows[0], rows[1 : len(body) + 1], rows[len(body) + 1 :]
    result = Table(
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for name, right in zip(columns, numeric, strict=True):
        justify, style = ("right", "") if right else ("left", "cyan" if not result.columns else "")
        result.add_column(Text(name), justify=justify, style=style, no_wrap=right, overflow="fold")  # type: ignore[arg-type]
    for row in body:
        result.add_row(*map(Text, row))
    if foot:
        result.add_section()
    for row in foot:
        result.add_row(*map(Text, row), style="bold")
    return result


def _fitted(rows: list[list[str]], numeric: list[bool], *, room: int) -> list[list[str]]:
    """Rows for a terminal of `room` columns: the widest columns of text give way, their cells go on below."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(numeric))]
    room -= 2 * (len(widths) - 1)
    while sum(widths) > room:
        text = [i for i, width in enumerate(widths) if not numeric[i] and width > NARROWEST]
        if not text:
            break
        widths[max(text, key=widths.__getitem__)] -= 1
    return [[wrap_name(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
