"""Every YAML that ships in examples/ is valid, and says nothing that it does not mean."""

from pathlib import Path

import pytest

from diffcli.config_file import load_config

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").rglob("*.yaml"))


def test_there_are_examples() -> None:
    assert "quickstart.yaml" in {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_valid(path: Path) -> None:
    load_config(path)
