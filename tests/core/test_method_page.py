"""Docstrings cite the method by section; every section that they cite is there."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "diffcli"
SECTIONS = set(
    re.findall(
        r"^#+ ([0-9]+(?:\.[0-9]+)?)\.? ", (PACKAGE / "core" / "METHOD.md").read_text(encoding="utf-8"), re.M
    )
)
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_cited_sections_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cited = re.findall(r"[Mm]ethod(?: sections?)? ([0-9]+(?:\.[0-9]+)?)", text)
    assert set(cited) <= SECTIONS


def test_sections_are_cited() -> None:
    assert {"0", "1.1", "1.6", "2", "5"} <= SECTIONS
