"""`diff init`: a YAML file of every setting, with its default and its meaning."""

import sys
from pathlib import Path

from diffcli.config.file import commented_yaml
from diffcli.errors import DiffError
from diffcli.files import check_output, write_text
from diffcli.runtime import console


def run(file: Path, *, force: bool = False) -> None:
    """Write the commented defaults to `file`, or to stdout for "-".

    Raises:
        DiffError: the file exists (without `force`), is no YAML file that may be replaced, or cannot be written.
    """
    if str(file) == "-":
        sys.stdout.write(commented_yaml())
        return
    check_output(file, suffixes=(".yaml", ".yml"))
    if file.exists() and not force:
        raise DiffError(
            "this file exists already", where=str(file), hint="choose another name, or add --force"
        )
    write_text(file, commented_yaml())
    console.say(
        f"wrote {file}: set data.train and data.eval, then `diff check {file}` and `diff train {file}`"
    )
