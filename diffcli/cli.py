"""The command line: signatures only, each command imports its module when it runs; and the one error boundary."""

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffcli.errors import DiffError

_STYLED = sys.stdout.isatty() and sys.stderr.isatty() and "NO_COLOR" not in os.environ

HELP = """Domain-generalised semantic segmentation on a frozen text-to-image diffusion model.

Start with `diff train examples/quickstart.yaml`, or with `diff init` for settings of your own.

The classic diff is still there: `diff old.txt new.txt` and its options are handed over to it unchanged; a file that
is named like a command is compared as `diff ./train other`. `diffcli` is the same program under a second name.
"""


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


app = typer.Typer(
    cls=_Commands,
    help=HELP,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown" if _STYLED else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
        help="Run folder, name under runs/, or exported folder.  [newest finished run]",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]


def _print_version(asked: bool) -> None:
    if asked:
        from diffcli import __version__
        from diffcli.classic import classic_paths

        typer.echo(f"diffcli {__version__}")
        typer.echo(f"classic diff: {next(classic_paths(), 'none on PATH')}", err=True)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None: ...


_root.__doc__ = HELP


@app.command()
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
    from diffcli.config_file import load_config
    from diffcli.runs import RUNS

    settings = load_config(config, overrides=overrides or ())
    if name is not None:
        settings = settings.model_copy(update={"name": name})
    from diffcli.commands import train as command

    command.run(settings, config_name=config.stem, resume=resume, runs=RUNS, json=json)


def evaluate(
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run folder, name or exported folder; repeatable.  [newest finished run]",
        ),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain, comma list of domains, or all.  [the run's own data.eval]", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds the domain.", show_default=False)
    ] = None,
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
    device: Device = None,
    json: Json = False,
) -> None:
    """Score a run on domains: IoU of every class, and their mean.  `evaluate` is the same command."""
    from diffcli.runs import RUNS, find_run

    runs = [find_run(name, runs=RUNS) for name in run] if run else [find_run(runs=RUNS)]
    from diffcli.commands import evaluate as command

    command.run(
        runs, domains=domain, root=root, overrides=overrides or (), output=output, device=device, json=json
    )


app.command("eval")(evaluate)
app.command("evaluate", hidden=True)(evaluate)


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, names or exported folders.")
    ],
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain, comma list of domains, or all.  [the first run's data.eval]", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds the domain.", show_default=False)
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of the image, from 0.  [the middle one]", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG to write.")] = Path(
        "compare.png"
    ),
    overrides: Overrides = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show what several runs make of the same images, side by side."""
    from diffcli.runs import RUNS, find_run

    paths = [find_run(name, runs=RUNS) for name in runs]
    from diffcli.commands import compare as command

    command.run(
        paths,
        domains=domain,
        root=root,
        index=index,
        output=output,
        overrides=overrides or (),
        device=device,
        json=json,
    )


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Image files, folders or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the masks.")],
    run: Run = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write the colours laid over the image.")
    ] = False,
    heatmap: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", help="Also write the score of one class over the image.", show_default=False
        ),
    ] = None,
    json: Json = False,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Masks to condition on, named like the images.", show_default=False),
    ] = None,
    device: Device = None,
    overrides: Overrides = None,
) -> None:
    """Segment images into palette PNGs of train ids."""
    from diffcli.runs import RUNS, find_run

    folder = find_run(run, runs=RUNS)
    from diffcli.commands import predict as command

    command.run(
        images,
        run=folder,
        output=output,
        overlay=overlay,
        heatmap=heatmap,
        reference=reference,
        device=device,
        overrides=overrides or (),
        json=json,
    )


@app.command()
def submit(
    domain: Annotated[str, typer.Option(help="cityscapes, acdc or dark_zurich.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ZIP", help="Zip file to write.")],
    run: Run = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds the domain.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split to segment.")] = "test",
    device: Device = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Segment a test set and zip it for its evaluation server."""
    from diffcli.runs import RUNS, find_run

    folder = find_run(run, runs=RUNS)
    from diffcli.commands import submit as command

    command.run(
        domain=domain,
        run=folder,
        output=output,
        root=root,
        split=split,
        device=device,
        overrides=overrides or (),
        json=json,
    )


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or name under runs/.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Put the frozen diffusion model in as well.")
    ] = False,
    json: Json = False,
) -> None:
    """Write one folder that loads anywhere offline."""
    from diffcli.runs import RUNS, find_run

    folder = find_run(run, runs=RUNS)
    from diffcli.commands import export as command

    command.run(folder, output=output, with_backbone=with_backbone, json=json)


@app.command("import")
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint of the published code.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run folder to write.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Settings that it was trained with.", show_default=False),
    ] = None,
) -> None:
    """Turn a checkpoint of the published code into a run."""
    from diffcli.commands import import_checkpoint as command

    command.run(checkpoint, output=output, config=config)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file to write; - for stdout.")] = Path(
        "diffcli.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a YAML of every setting with its default and meaning."""
    from diffcli.commands import init as command

    command.run(file, force=force)


@app.command()
def check(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Validate settings, count the data and say what a run would cost."""
    from diffcli.commands import check as command
    from diffcli.config_file import load_config

    command.run(load_config(config, overrides=overrides or ()), config_name=config.stem, json=json)


@app.command()
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
        str, typer.Option(help="Comma list: paper, visit9, five, one, clean.")
    ] = "paper,five,one",
    precisions: Annotated[str, typer.Option(help="Comma list: auto, float32, bf16, fp16.")] = "auto",
    batch_sizes: Annotated[str, typer.Option(help="Comma list of images a batch.")] = "1",
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Size of the images.  [what the model is made for]"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed batches a row; one before them warms up.")] = 3,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="sd15 or sd21 with random weights instead of the diffusion model (tiny: sd21 at toy widths).",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure speed, work and memory on this machine, beside what the published code spends.

    The baseline rows do the published amount of work: every step of the schedule, equal prompts evaluated twice, the
    unused stride fused too.

    diff bench

    diff bench my.yaml --work inference --schedules paper --batch-sizes 1,4

    diff bench --random-weights sd21 --device cuda --size 1024x512 --json
    """
    from diffcli.commands import bench as command
    from diffcli.config_file import load_config

    plan = command.parse_plan(
        work=work,
        schedules=schedules,
        precisions=precisions,
        batch_sizes=batch_sizes,
        size=size,
        repeats=repeats,
    )
    settings = None if config is None else load_config(config, overrides=overrides or ())
    command.run(
        settings,
        plan=plan,
        overrides=overrides or (),
        random_weights=random_weights,
        device=device,
        json=json,
    )


@app.command()
def domains(
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds a folder a domain.  [DIFFCLI_DATA]", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the known domains, and what of them is on this disk."""
    from diffcli.commands import domains as command

    command.run(root=root, json=json)


data = typer.Typer(
    help="Look at sets of images and labels.",
    no_args_is_help=True,
    rich_markup_mode="markdown" if _STYLED else None,
)
app.add_typer(data, name="data")


@data.command("inspect")
def inspect_data(
    domain: Annotated[
        str | None, typer.Option(help="Domain, comma list of domains, or all.", show_default=False)
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
    from diffcli.commands import inspect_data as command
    from diffcli.config_file import load_config

    settings = None if config is None else load_config(config, overrides=overrides or ())
    command.run(domain=domain, root=root, split=split, config=settings, output=output, json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show device, precisions, versions and cached weights."""
    from diffcli.commands import doctor as command

    command.run(json=json)


def main() -> None:
    """Run a command; a DiffError is printed in a line or two and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a letter that the terminal lacks is spelled out, no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name=_program_name())
    except Exception as error:
        if os.environ.get("DIFFCLI_TRACEBACK"):
            traceback.print_exc()
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Print what went wrong and what to do; the exit code."""
    from diffcli import console

    if isinstance(error, DiffError):
        message = f"{error.where}: {error.message}" if error.where else error.message
        console.fail(message, hint=error.hint)
        return error.exit_code
    lines = str(error).splitlines()
    console.fail(
        f"unexpected {type(error).__name__}{f': {lines[0]}' if lines else ''}",
        hint="a fault of diffcli or of a package it uses; run again with DIFFCLI_TRACEBACK=1 to see where",
    )
    return 1


def _program_name() -> str:
    """The name that was typed."""
    name = Path(sys.argv[0]).stem
    return name if name in ("diff", "diffcli") else "python -m diffcli"
