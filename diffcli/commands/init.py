"""`diff init`: a YAML file of every setting, with its default and its meaning."""

import sys
from dataclasses import dataclass
from pathlib import Path

from diffcli.config.file import commented_yaml
from diffcli.errors import DiffError
from diffcli.files import write_text
from diffcli.runtime import console


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff init` is asked for."""

    file: Path
    """The YAML file to write; "-" is stdout."""
    force: bool = False
    """Overwrite an existing file."""


def run(request: Request) -> None:
    """Write the commented defaults.

    Raises:
        DiffError: the file exists (without `force`), or its folder cannot be written to.
    """
    file = request.file
    if str(file) == "-":
        sys.stdout.write(commented_yaml())
        return
    if file.is_dir():
        raise DiffError(
            "this is a folder", where=str(file), hint=f"name a file in it: {file / 'diffcli.yaml'}"
        )
    if file.exists() and not request.force:
        raise DiffError(
            "this file exists already", where=str(file), hint="choose another name, or add --force"
        )
    write_text(file, commented_yaml())
    console.say(
        f"wrote {file}: set data.train and data.eval, then `diff check {file}` and `diff train {file}`"
    )
