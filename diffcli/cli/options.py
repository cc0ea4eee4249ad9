"""What the commands have in common: every shared option, declared once, and what becomes of its value.

Importing this loads neither the commands nor their libraries, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from diffcli.config.settings import DataConfig, RunConfig

T = TypeVar("T")

STYLED = sys.stdout.isatty() and sys.stderr.isatty() and "NO_COLOR" not in os.environ
"""Whether help is coloured and reads Markdown; in a pipe it is plain text."""


def group(**options: Any) -> typer.Typer:
    """A family of commands."""
    options.setdefault("cls", TyperGroup)
    return typer.Typer(rich_markup_mode="markdown" if STYLED else None, **options)


def examples(*lines: str) -> str:
    """The end of a command's help: calls as they are typed, one per line, in a terminal and in a pipe."""
    if STYLED:
        return "\n\n".join(["Examples:", *(f"`{line}`" for line in lines)])
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def complete_runs(incomplete: str) -> list[str]:
    """Names of the runs under runs/, for the shell."""
    from diffcli.runs.folder import CONFIG, RUNS

    return sorted(path.parent.name for path in RUNS.glob(f"{incomplete}*/{CONFIG}"))


def complete_domains(incomplete: str) -> list[str]:
    """Names of the known domains, for the shell."""
    from diffcli.data.domains import DOMAINS

    return sorted(name for name in DOMAINS if name.startswith(incomplete))


Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override any setting, as in model.inversion.eta=0.5; repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
Run = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="Run folder, name under runs/, exported folder, or hub:OWNER/NAME.  [newest finished run]",
        autocompletion=complete_runs,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Run folder or name under runs/.", autocompletion=complete_runs),
]
Domains = Annotated[
    list[str] | None,
    typer.Option(
        "--domain",
        metavar="NAME",
        help="Domain, comma list of domains, or all; repeatable.  [data.eval of the first run]",
        show_default=False,
        autocompletion=complete_domains,
    ),
]
DataFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="YAML",
        help="File whose data.eval is taken instead of the run's.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None, typer.Option(help="train, val or test of every domain.  [val]", show_default=False)
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Images of each domain at most.  [all]", show_default=False),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds the domains' folders, or the domain's folder.  [DIFFCLI_DATA]",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Literal["last", "best"],
    typer.Option(help="Checkpoint of the run: best was chosen by its validations (train.select_on)."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]


def find_run(name: str | None, checkpoint: str = "last") -> Path:
    """What --run and --checkpoint mean. Raises CheckpointError where there is no such run or checkpoint."""
    from diffcli.runs.folder import RUNS, choose_checkpoint
    from diffcli.runs.folder import find_run as find

    return choose_checkpoint(find(name, runs=RUNS), checkpoint)


def find_runs(names: Sequence[str] | None, checkpoint: str = "last") -> list[Path]:
    """What a repeated --run means; without one, the newest finished run."""
    return [find_run(name, checkpoint) for name in names] if names else [find_run(None, checkpoint)]


def read_settings(config: Path, overrides: Sequence[str] | None, *, data: Path | None = None) -> "RunConfig":
    """The settings of a YAML file, with the data part of another one, with the values of --set.

    Raises:
        ConfigError: they do not validate.
    """
    from diffcli.config.file import load_config, override

    if data is None:
        return load_config(config, overrides=overrides or ())
    settings = load_config(config).model_copy(update={"data": load_config(data).data})
    return override(settings, overrides or ())


def read_data(config: Path | None) -> "DataConfig | None":
    """The data part of a YAML file. Raises ConfigError where the file does not validate."""
    return None if config is None else read_settings(config, None).data


def join_names(names: Sequence[str] | None) -> str | None:
    """Repeated names as one comma list; None where none was given."""
    return ",".join(names) if names else None


def execute(run: Callable[[T], object], request: T, *, json: bool = False) -> None:
    """Run a command; with --json its record goes to stdout instead of its tables."""
    from diffcli.runtime import console

    with console.json_only(json):
        run(request)
