"""`diff doctor` and `bench`: what this machine has, and how fast it is."""

from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.options import (
    Device,
    Json,
    Overrides,
    complete_runs,
    examples,
    execute,
    find_run,
    group,
    read_settings,
)

app = group()


@app.command(epilog=examples("diff doctor --json", "diff doctor --run runs/quickstart"))
def doctor(
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Show instead what differs here from where this run was trained: versions, device, git, weights.",
            autocompletion=complete_runs,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show device, versions and cached weights, or how a run differs."""
    from diffcli.commands import doctor as command

    execute(command.run, command.Request(None if run is None else find_run(run)), json=json)


@app.command(
    epilog=examples(
        "diff bench",
        "diff bench my.yaml --work inference --batch-sizes 1,4",
        "diff bench --random-weights sd21 --size 1024x512 --json",
    )
)
def bench(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="YAML file with the settings.  [the shipped model]", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    work: Annotated[str, typer.Option(help="inference, training, or both.")] = "both",
    schedules: Annotated[
        str | None,
        typer.Option(
            help="Comma list of paper, visit9, five, one, clean, or own: the settings' schedule.  "
            "[own with CONFIG, else paper,five,one]",
            show_default=False,
        ),
    ] = None,
    precisions: Annotated[str, typer.Option(help="Comma list: auto, float32, bf16, fp16.")] = "auto",
    batch_sizes: Annotated[str, typer.Option(help="Comma list of images in a batch.")] = "1",
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Size of the images.  [what the model is made for]"),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=10_000, help="Timed batches for each row, after one to warm up.")
    ] = 3,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="sd15 or sd21 with random weights instead of the diffusion model (tiny: sd21 at toy size).",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure speed and memory beside the published code's cost.

    The baseline rows do the published amount of work: every step of the schedule, equal prompts evaluated twice, the
    unused stride fused too.
    """
    settings = None if config is None else read_settings(config, overrides)
    from diffcli.commands import bench as command

    request = command.Request(
        config=settings,
        overrides=overrides or (),
        work=work,
        schedules=schedules,
        precisions=precisions,
        batch_sizes=batch_sizes,
        size=size,
        repeats=repeats,
        random_weights=random_weights,
        device=device,
    )
    execute(command.run, request, json=json)
