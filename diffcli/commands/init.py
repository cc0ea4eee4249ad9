"""`diff init`: a YAML file of every setting, with its default and its meaning."""

import sys
from dataclasses import dataclass
from pathlib import Path

from diffcli.config.file import commented_yaml
from diffcli.errors import DiffError
from diffcli.files import check_output, write_text
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
        DiffError: the file exists (without `force`), is not a YAML file that may be replaced, or cannot be
            written.
    """
    file = request.file
    if str(file) == "-":
        sys.stdout.write(commented_yaml())
        return
    check_output(file, suffixes=(".yaml", ".yml"))
    if file.exists() and not request.force:
        raise DiffError(
            "this file exists already", where=str(file), hint="choose another name, or add --force"
        )
    write_text(file, commented_yaml())
    console.say(
        f"wrote {file}: set data.train and data.eval, then `diff check {file}` and `diff train {file}`"
    )
