"""`diff domains` and `diff data ...`: sets of images and labels on this disk."""

from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.options import (
    Config,
    Json,
    Overrides,
    complete_domains,
    examples,
    execute,
    group,
    join_names,
    read_settings,
)

app = group()
data = group(help="Look at sets of images and labels.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command(epilog=examples("diff domains --root /data"))
def domains(
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds one folder per domain.  [DIFFCLI_DATA]", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the known domains, and what of them is on this disk."""
    from diffcli.commands import domains as command

    execute(command.run, command.Request(root=root), json=json)


@data.command(
    "inspect",
    epilog=examples(
        "diff data inspect --domain gta5 --root /data/gta5",
        "diff data inspect --config my.yaml -o inspected/",
    ),
)
def inspect_data(
    domain: Annotated[
        list[str] | None,
        typer.Option(
            "--domain",
            metavar="NAME",
            help="Domain, comma list of domains, or all; repeatable.",
            show_default=False,
            autocompletion=complete_domains,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the domain.  [DIFFCLI_DATA/<domain>]", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test.  [every one that is there]", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="YAML file whose classes and domains to look at, instead of --domain.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the pictures.")
    ] = Path("inspected"),
    json: Json = False,
) -> None:
    """Count samples, sizes, classes and faults; draw them."""
    settings = None if config is None else read_settings(config, overrides)
    from diffcli.commands import inspect_data as command

    request = command.Request(
        domains=join_names(domain), root=root, split=split, config=settings, output=output
    )
    execute(command.run, request, json=json)


@data.command(
    "preview",
    epilog=examples(
        "diff data preview my.yaml",
        "diff data preview my.yaml --draws 40 --set augmentation.photometric=0",
    ),
)
def preview(
    config: Config,
    overrides: Overrides = None,
    draws: Annotated[
        int, typer.Option(metavar="N", min=1, max=200, help="Samples to draw, from the first on.")
    ] = 12,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG to write.")] = Path(
        "preview.png"
    ),
    json: Json = False,
) -> None:
    """Draw what training feeds to the network: crops, labels, prompts."""
    settings = read_settings(config, overrides)
    from diffcli.commands import preview as command

    execute(command.run, command.Request(config=settings, count=draws, output=output), json=json)
