"""Text as a terminal shows it: no control characters, lines broken between words, numbers with their nouns."""

import re
import textwrap

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey or show in another order, and bytes of a name that is not UTF-8; not tab and line feed."""


def printable(text: str) -> str:
    """`text` with control characters spelled out: a file's name may hold any, and a terminal would obey them."""
    return UNSAFE.sub(_spelled_out, text)


def _spelled_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, as in "1 file" and "2,048 files"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def wrap_words(text: str, width: int) -> str:
    """Every line of `text` broken between words at `width`; a path that is longer stays whole."""
    return "\n".join(_wrap_line(line, width) for line in text.split("\n"))


def _wrap_line(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def wrap_name(text: str, width: int) -> str:
    """`text` in lines of at most `width`, broken after a space, comma or slash, in a longer part after a dash.

    A part without any of these stays whole.
    """
    lines = [""]
    for part in re.findall(r"[^\s/,]*[\s/,]|[^\s/,]+", text):
        pieces = [part] if len(part.rstrip()) <= width else re.findall(r"[^_.-]*[_.-]|[^_.-]+", part)
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
