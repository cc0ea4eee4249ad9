"""`diff eval` and `compare`: what trained runs are worth on labelled domains."""

from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.options import (
    Checkpoint,
    DataFile,
    Device,
    Domains,
    Json,
    Limit,
    Overrides,
    Root,
    Split,
    complete_runs,
    examples,
    execute,
    find_runs,
    group,
    join_names,
    read_data,
)

app = group()


def evaluate(
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run folder, name, exported folder or hub:OWNER/NAME; repeatable.  [newest finished run]",
            autocompletion=complete_runs,
        ),
    ] = None,
    domain: Domains = None,
    root: Root = None,
    config: DataFile = None,
    split: Split = None,
    limit: Limit = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the reports.  [RUN/eval/<time>]",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = "last",
    device: Device = None,
    json: Json = False,
) -> None:
    """Score a run on domains: IoU of every class, and their mean.  `evaluate` is the same command."""
    runs, data = (
        find_runs(run, checkpoint),
        read_data(config),
    )  # before the seconds that the command's libraries take
    from diffcli.commands import evaluate as command
    from diffcli.evaluation.domains import DomainChoice

    request = command.Request(
        runs=runs,
        domains=DomainChoice(names=join_names(domain), root=root, data=data, split=split, limit=limit),
        overrides=overrides or (),
        output=output,
        device=device,
    )
    execute(command.run, request, json=json)


_EVAL = examples(
    "diff eval --domain acdc/night --root /data/acdc",
    "diff eval --run first --run second --domain acdc/night,bdd100k --root /data",
    "diff eval --config my.yaml --split test --limit 50 --json",
)
app.command("eval", epilog=_EVAL)(evaluate)
app.command("evaluate", hidden=True, epilog=_EVAL)(evaluate)


@app.command(epilog=examples("diff compare first second --domain acdc/night -o compare.png"))
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, names or exported folders.",
            autocompletion=complete_runs,
        ),
    ],
    domain: Domains = None,
    root: Root = None,
    config: DataFile = None,
    index: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of the image, from 0.  [the middle one]", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG to write.")] = Path(
        "compare.png"
    ),
    overrides: Overrides = None,
    checkpoint: Checkpoint = "last",
    device: Device = None,
    json: Json = False,
) -> None:
    """Show what several runs make of the same images, side by side."""
    paths, data = find_runs(runs, checkpoint), read_data(config)
    from diffcli.commands import compare as command
    from diffcli.evaluation.domains import DomainChoice

    request = command.Request(
        runs=paths,
        domains=DomainChoice(names=join_names(domain), root=root, data=data),
        index=index,
        output=output,
        overrides=overrides or (),
        device=device,
    )
    execute(command.run, request, json=json)
