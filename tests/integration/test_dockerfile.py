"""The Dockerfile copies what an installation needs and nothing that is not there; its PyTorch is pyproject's."""

import re
import tomllib
from pathlib import Path


def test_what_is_copied_is_there_and_is_let_through(repository: Path) -> None:
    text = (repository / "examples" / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, flags=re.M) for word in line.split()[:-1]]
    ignore = (repository / "examples" / "Dockerfile.dockerignore").read_text().splitlines()
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    assert all((repository / name).exists() for name in copied)
    assert sorted(copied) == sorted(line[1:] for line in ignore if line.startswith("!"))
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(copied)


def test_the_layer_of_pytorch_is_what_the_project_asks_for(repository: Path) -> None:
    text = (repository / "examples" / "Dockerfile").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    (asked,) = [name for name in project["project"]["dependencies"] if name.startswith("torch>")]
    assert f'"{asked}"' in text
    (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', text, flags=re.M)
    assert entry in project["project"]["scripts"]
