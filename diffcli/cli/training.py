"""`diff init`, `check` and `train`: from settings to a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.options import Config, Json, Overrides, examples, execute, group, read_settings
from diffcli.errors import ConfigError

app = group()


@app.command(
    epilog=examples("diff init my.yaml", "diff init - | less", "diff init --folder /data/mine -o my.yaml")
)
def init(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="YAML file to write; - for stdout.  [diffcli.yaml]", show_default=False
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Look at a folder of images and labels and write a YAML that trains on it.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The same as FILE.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a YAML of every setting, or a starter for a folder."""
    if file is not None and output is not None:
        raise ConfigError("two files are named", hint="diff init my.yaml, or diff init -o my.yaml")
    from diffcli.commands import init as command

    execute(command.run, command.Request(file=file or output, folder=folder, force=force))


@app.command(
    epilog=examples(
        "diff check my.yaml",
        "diff check my.yaml --measure",
        "diff check my.yaml --set data.train=miniworld/clean --json",
        "diff check examples/cityscapes.yaml --config my-data.yaml",
    )
)
def check(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="YAML file with the settings.  [--config]", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="YAML",
            help="File whose data part is taken instead of CONFIG's.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run a few iterations to know time and memory.")
    ] = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Validate settings, count the data and say what a run would cost."""
    file = config or data
    if file is None:
        raise ConfigError("no settings are named", hint="diff check CONFIG.yaml")
    settings = read_settings(file, overrides, data=data)
    from diffcli.commands import check as command

    request = command.Request(config=settings, config_name=file.stem, measure=measure)
    execute(command.run, request, json=json)


@app.command(
    epilog=examples(
        "diff train examples/quickstart.yaml",
        "diff train my.yaml --set train.iterations=1000 --name first",
        "diff train my.yaml --resume",
    )
)
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest unfinished run of that name.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder under runs/.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Train on one domain, then score domains never seen in training."""
    settings = read_settings(config, overrides)  # before the seconds that the command's libraries take
    from diffcli.commands import train as command

    if name is not None:
        settings = settings.model_copy(update={"name": name})
    request = command.Request(config=settings, config_name=config.stem, resume=resume)
    execute(command.run, request, json=json)
