"""The command line: the app with its families of commands, and the one place where errors are printed."""

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffcli.cli import data, machine, prediction, publishing, scoring, training
from diffcli.cli.options import group
from diffcli.errors import ConfigError, DiffError
from diffcli.runtime import distributed

HELP = """Domain-generalised semantic segmentation on a frozen text-to-image diffusion model.

Start with `diff train examples/quickstart.yaml`, or with `diff init` for settings of your own.

The classic diff is still there: `diff old.txt new.txt` and its options are handed over to it unchanged; a file that
is named like a command is compared as `diff ./train other`. `diffcli` is the same program under a second name.
"""

SHARED = ("train", "eval", "evaluate", "predict")
"""Commands whose work several processes can share."""


class _Commands(TyperGroup):
    """Turns Ctrl-C into an error like any other, before Typer ends the process without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


class Interrupted(DiffError):
    """The user pressed Ctrl-C."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__(
            "stopped", hint="what was written is whole and is kept; a training run continues with --resume"
        )


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


def main() -> None:
    """Run a command; a DiffError is printed in a line or two and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a letter that the terminal lacks is spelled out, no reason to fail
            stream.reconfigure(errors="backslashreplace")
    sys.exit(distributed.shut_down(_run()))


def _run() -> int:
    """The exit code of the command, which told its errors."""
    try:
        distributed.init_process_group()
        with distributed.only_main_prints():
            app(prog_name=_program_name())
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

    told = distributed.error_to_report(error)
    if told is None:
        return error.exit_code if isinstance(error, DiffError) else 1
    error = told
    if isinstance(error, DiffError):
        message = f"{error.where}: {error.message}" if error.where else error.message
        console.fail(message, hint=error.hint)
        return error.exit_code
    lines = str(error).splitlines()
    place = f" in process {distributed.rank()}" if distributed.world_size() > 1 else ""
    console.fail(
        f"unexpected {type(error).__name__}{place}{f': {lines[0]}' if lines else ''}",
        hint="a fault of diffcli or of a package it uses; run again with DIFFCLI_TRACEBACK=1 to see where",
    )
    return 1


def _program_name() -> str:
    """The name that was typed."""
    name = Path(sys.argv[0]).stem
    if {"--install-completion", "--show-completion"} & set(sys.argv):
        return "diffcli" if name == "__main__" else name  # what the shell completes is one word
    return name if name in ("diff", "diffcli") else "python -m diffcli"
