"""Sizes written WIDTHxHEIGHT: one parser for YAML and options."""

import pytest

from diffcli.config.size import Size, parse_size, size_option
from diffcli.errors import ConfigError


@pytest.mark.parametrize("text", ["1280x720", "1280X720", "1280×720", " 1280 x 720 "])
def test_a_size_is_width_x_height(text: str) -> None:
    assert parse_size(text) == Size(1280, 720)
    assert str(parse_size(text)) == "1280x720"


@pytest.mark.parametrize(
    "text", ["", "x", "5x", "512", "0x5", "-5x5", "5x5x5", "1.5x2", "٣x٤", "65536x1", "9" * 9999 + "x1"]
)
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size(text)
    with pytest.raises(ConfigError, match=r"--tile .*: not a size") as caught:
        size_option("--tile", text)
    assert caught.value.hint == "WIDTHxHEIGHT, as in --tile 1024x512"
