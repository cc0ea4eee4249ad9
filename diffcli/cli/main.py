"""The command line: the app with its families of commands, and the one place where errors are printed."""

import io
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffcli.cli import data, machine, prediction, publishing, scoring, training
from diffcli.cli.options import group
from diffcli.errors import ConfigError, DiffError
from diffcli.files import FULL, UNUSABLE
from diffcli.runtime import distributed
from diffcli.runtime.signals import Stop

HELP = """Domain-generalised semantic segmentation on a frozen text-to-image diffusion model.

Start with `diff train examples/quickstart.yaml`, or with `diff init` for settings of your own.

The classic diff is still there: `diff old.txt new.txt` and its options are handed over to it unchanged; a file that
is named like a command is compared as `diff ./train other`. `diffcli` is the same program under a second name.
"""

SHARED = ("train", "eval", "evaluate", "predict")
"""Commands whose work several processes can share."""


class _Commands(TyperGroup):
    """Turns Ctrl-C into an error like any other, and Typer's errors into plain words, before Typer prints them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted(getattr(stop, "exit_code", 130)) from None
        except _USAGE_ERROR as error:
            error.message = _in_plain_words(error.message)
            raise


_USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]
"""A wrong call; Typer exports this kind of it alone."""


class Interrupted(DiffError):
    """Ctrl-C, or a signal that ends programs."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(
            "stopped", hint="what was written is whole and is kept; a training run continues with --resume"
        )


def _in_plain_words(message: str) -> str:
    """What Typer says of a wrong call, without the words of its validation library and without control characters."""
    from diffcli.runtime.words import printable

    choice = re.fullmatch(r"Value error, (.+) is not one of (.+?)\.?", message)
    return printable(f"unknown {choice[1]}; choose one of {choice[2]}." if choice else message)


app = group(
    cls=_Commands,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for family in (training, scoring, prediction, publishing, data, machine):
    app.add_typer(family.app)


def _print_version(asked: bool) -> None:
    if asked:
        from diffcli import __version__
        from diffcli.cli.classic import classic_paths

        typer.echo(f"diffcli {__version__}")
        typer.echo(f"classic diff: {next(classic_paths(), 'none on PATH')}", err=True)
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    if distributed.world_size() > 1 and context.invoked_subcommand not in SHARED:
        raise ConfigError(
            f"diff {context.invoked_subcommand} is one process, not {distributed.world_size()}",
            hint="start it without torchrun or accelerate launch",
        )


def main(stop: Stop | None = None) -> None:
    """Run a command; a DiffError is printed in a line or two and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal lacks is spelled out
            stream.reconfigure(errors="backslashreplace")
    code = _run()
    if (
        stop is not None and stop.requested
    ):  # also where the exception was lost, as in the middle of an import
        code = 128 + stop.number
    sys.exit(distributed.shut_down(code))


def _run() -> int:
    """Run the command and print its errors; the exit code."""
    try:
        distributed.init_process_group()
        with distributed.only_main_prints():
            app(prog_name=_program_name())
    except KeyboardInterrupt as stop:  # outside any command
        return _report(Interrupted(getattr(stop, "exit_code", 130)))
    except SystemExit as end:  # how Typer ends
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if os.environ.get("DIFFCLI_TRACEBACK"):
            traceback.print_exc()
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    """Print what went wrong and what to do, unless another process says so; the exit code."""
    from diffcli.runtime import console

    reported = distributed.error_to_report(error)
    if reported is None:
        return error.exit_code if isinstance(error, DiffError) else 1
    error = _of_the_disk(reported) or reported
    if isinstance(error, DiffError):
        message = f"{error.where}: {error.message}" if error.where else error.message
        console.fail(message, hint=error.hint)
        return error.exit_code
    lines = str(error).splitlines()
    place = f" in process {distributed.rank()}" if distributed.world_size() > 1 else ""
    console.fail(
        f"unexpected {type(error).__name__}{place}{f': {lines[0]}' if lines else ''}",
        hint="an error in diffcli or in a package that it uses; DIFFCLI_TRACEBACK=1 shows where",
    )
    return 1


def _of_the_disk(error: Exception) -> DiffError | None:
    """The error of a full disk or of a path that cannot be used, wherever it arose; None for any other."""
    if isinstance(error, RuntimeError) and "determine home directory" in str(error):
        return DiffError("a path begins with ~NAME, and there is no such user", hint="write the path out")
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        return DiffError(
            f"cannot be written: {error.strerror}",
            where=str(error.filename or "the output"),
            hint="make room, or write to another disk",
        )
    if error.filename is not None and error.errno in UNUSABLE:
        return DiffError(
            f"cannot be used: {error.strerror}", where=str(error.filename), hint="check this path"
        )
    return None


def _program_name() -> str:
    """The name that was typed."""
    name = Path(sys.argv[0]).stem
    if {"--install-completion", "--show-completion"} & set(sys.argv):
        return "diffcli" if name == "__main__" else name  # what the shell completes is one word
    return name if name in ("diff", "diffcli") else "python -m diffcli"
