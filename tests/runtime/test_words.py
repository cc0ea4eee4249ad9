"""Text as a terminal shows it."""

from diffcli.runtime.tables import styled_table
from diffcli.runtime.words import counted, wrap_name, wrap_words


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(n, "file") for n in (0, 1, 2048)] == ["0 files", "1 file", "2,048 files"]
    assert counted(2, "class", "classes") == "2 classes"


def test_lines_break_between_words_and_a_long_path_stays_whole() -> None:
    path = "/data/" + "x" * 90
    text = f"  -> give a folder that exists and holds the images of this very domain: {path} or none"
    lines = wrap_words(text, 80).split("\n")
    assert path in " ".join(lines).split()
    assert all(len(line) <= 80 or path in line for line in lines)
    assert lines[1].startswith("  ")


def test_names_break_where_they_have_parts() -> None:
    assert wrap_name("/data/sets/of/images", 12) == "/data/sets/\nof/images"
    assert wrap_name("stable-diffusion-2-1-unclip", 10) == "stable-\ndiffusion-\n2-1-unclip"
    assert wrap_name("unbreakable", 4) == "unbreakable"
    assert wrap_name("", 4) == ""


def test_a_wide_table_fits_without_losing_a_letter() -> None:
    cells = ["a/long/name/of/a/domain/that/goes/on", "/and/a/path/that/is/longer/than/the/room/there/is"]
    table = styled_table(["domain", "where"], [cells], [], [False, False], width=40)
    shown = [str(cell) for column in table.columns for cell in column.cells]
    assert [cell.replace("\n", "") for cell in shown] == cells
    assert sum(max(map(len, cell.split("\n"))) for cell in shown) + 2 <= 40
