"""Sizes in pixels, written WIDTHxHEIGHT ("1280x720") in YAML, in options and in tables."""

import re
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, PlainSerializer

from diffcli.errors import ConfigError


class Size(NamedTuple):
    """A size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_size(text: str) -> Size:
    """WIDTHxHEIGHT as a size; X and × do as well.

    Raises:
        ValueError: the text is not a size, or a side is 0 or over 65535 pixels (the most that a JPEG can have).
    """
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", text, re.ASCII)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(0 < side <= 65535 for side in sides):
        raise ValueError(f"a size is written WIDTHxHEIGHT, for example 1024x512; got {text!r}")
    return Size(*sides)


def size_option(option: str, text: str) -> Size:
    """The size given to a command-line option.

    Raises:
        ConfigError: the text is not a size.
    """
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}: not a size", hint=f"WIDTHxHEIGHT, as in {option} 1024x512"
        ) from error


def _validate(value: object) -> Size:
    if isinstance(value, Size):
        return value
    if isinstance(value, str):
        return parse_size(value)
    raise ValueError(f"a size is written WIDTHxHEIGHT, for example 1024x512; got {value!r}")


PixelSize = Annotated[Size, BeforeValidator(_validate), PlainSerializer(str, return_type=str)]
"""A `Size` that YAML spells "1024x512"."""
