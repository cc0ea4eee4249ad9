"""The command line: signatures only, each command imports its module when it runs; and the one error boundary."""

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from diffcli.errors import ConfigError, DiffError
from diffcli.runtime import distributed

_STYLED = sys.stdout.isatty() and sys.stderr.isatty() and "NO_COLOR" not in os.environ

HELP = """Domain-generalised semantic segmentation on a frozen text-to-image diffusion model.

Start with `diff train examples/quickstart.yaml`, or with `diff init` for settings of your own.

The classic diff is still there: `diff old.txt new.txt` and its options are handed over to it unchanged; a file that
is named like a command is compared as `diff ./train other`. `diffcli` is the same program under a second name.
"""


def _examples(*lines: str) -> str:
    """The end of a command's help: calls as they are typed, a line each, in a terminal and in a pipe."""
    if _STYLED:
        return "\n\n".join(["Examples:", *(f"`{line}`" for line in lines)])
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


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
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown" if _STYLED else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _complete_runs(incomplete: str) -> list[str]:
    """Names of the runs that hold something, for the shell."""
    from diffcli.runs.folder import CONFIG, RUNS

    return sorted(path.parent.name for path in RUNS.glob(f"{incomplete}*/{CONFIG}"))


def _complete_domains(incomplete: str) -> list[str]:
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
        autocompletion=_complete_runs,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]


def _print_version(asked: bool) -> None:
    if asked:
        from diffcli import __version__
        from diffcli.cli.classic import classic_paths

        typer.echo(f"diffcli {__version__}")
        typer.echo(f"classic diff: {next(classic_paths(), 'none on PATH')}", err=True)
        raise typer.Exit


SHARED = ("train", "eval", "evaluate", "predict")
"""Commands whose work several processes can share."""


@app.callback()
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


_root.__doc__ = HELP


@app.command(
    epilog=_examples(
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
    from diffcli.config.file import load_config
    from diffcli.runs.folder import RUNS

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
            help="Run folder, name, exported folder or hub:OWNER/NAME; repeatable.  [newest finished run]",
            autocompletion=_complete_runs,
        ),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain, comma list of domains, or all.  [the run's own data.eval]",
            show_default=False,
            autocompletion=_complete_domains,
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
    from diffcli.runs.folder import RUNS, find_run

    runs = [find_run(name, runs=RUNS) for name in run] if run else [find_run(runs=RUNS)]
    from diffcli.commands import evaluate as command

    command.run(
        runs, domains=domain, root=root, overrides=overrides or (), output=output, device=device, json=json
    )


_EVAL = _examples(
    "diff eval --domain acdc/night --root /data/acdc",
    "diff eval --run first --run second --domain all --json",
)
app.command("eval", epilog=_EVAL)(evaluate)
app.command("evaluate", hidden=True, epilog=_EVAL)(evaluate)


@app.command(epilog=_examples("diff compare first second --domain acdc/night -o compare.png"))
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, names or exported folders.",
            autocompletion=_complete_runs,
        ),
    ],
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain, comma list of domains, or all.  [the first run's data.eval]",
            show_default=False,
            autocompletion=_complete_domains,
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
    from diffcli.runs.folder import RUNS, find_run

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
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Images, folders, globs, videos; @FILE or - for a list of paths."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")],
    run: Run = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR_OR_FILE",
            help="Exported networks (diff export --format onnx|pt2) instead of a run; ONNX needs no PyTorch.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Comma list of mask, label-ids, color, overlay, confidence, uncertainty, stats, rle, video."
            "  [mask; of a video: video]",
            show_default=False,
        ),
    ] = None,
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
    refine: Annotated[
        int, typer.Option(metavar="N", help="Condition on the prediction itself, N times over.")
    ] = 0,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Average N draws of noise; write their disagreement.")
    ] = 1,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="See images at their own size, in overlapping tiles.  [above 2048x1024 pixels: 1024x1024]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Images a forward pass, or auto: what fits.  [eval.batch_size]",
            show_default=False,
        ),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave images alone whose results are there.")
    ] = False,
    device: Device = None,
    overrides: Overrides = None,
) -> None:
    """Segment images and videos into masks, overlays and more.

    They lie below DIR in the tree of the images; DIR/predictions.jsonl tells of
    each. Masks are palette PNGs of train ids. Examples:

    \b
    - diff predict photos/ -o out --write mask,overlay,stats
    - diff predict street.mp4 -o out
    - diff predict pano.png -o out --tile 1024x1024
    - find . -name "*.jpg" | diff predict - -o out --skip-existing
    - diff predict photos/ -o out --samples 8 --batch auto
    - diff predict photos/ -o out --model first-onnx/
    """
    from diffcli.runs.folder import RUNS, find_run

    if model is not None:
        from diffcli.commands import predict as command

        refused = {
            "--run": run,
            "--reference": reference,
            "--refine": refine,
            "--samples": samples - 1,
            "--tile": tile,
            "--set": overrides,
        }
        command.run_exported(
            images,
            model=model,
            output=output,
            write=write,
            overlay=overlay,
            heatmap=heatmap,
            batch=batch,
            skip_existing=skip_existing,
            device=device,
            refused=[name for name, value in refused.items() if value],
            json=json,
        )
        return
    folder = find_run(run, runs=RUNS)
    from diffcli.commands import predict as command

    command.run(
        images,
        run=folder,
        output=output,
        write=write,
        overlay=overlay,
        heatmap=heatmap,
        reference=reference,
        refine=refine,
        samples=samples,
        tile=tile,
        batch=batch,
        skip_existing=skip_existing,
        device=device,
        overrides=overrides or (),
        json=json,
    )


@app.command(epilog=_examples("diff submit --domain cityscapes --root /data/cityscapes -o cs.zip"))
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
    from diffcli.runs.folder import RUNS, find_run

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
    format: Annotated[
        Literal["folder", "onnx", "pt2"],
        typer.Option(
            "--format", help="folder for diffcli itself; onnx or pt2 (torch.export) for other runtimes."
        ),
    ] = "folder",
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="folder: put the frozen diffusion model in as well.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="onnx, pt2: size that images are resized to.  [eval.size]", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one folder that runs anywhere offline.

    onnx and pt2 hold the whole network of the unconditional branch, its noise and
    export.json; they are reloaded and compared with the model before they are
    kept. onnx needs `pip install 'diffcli[onnx]'`. Examples:

    \b
    - diff export first -o exported/ --with-backbone
    - diff export first -o first-onnx/ --format onnx --size 1024x512
    - diff predict photos/ -o masks/ --model first-onnx/
    """
    from diffcli.runs.folder import RUNS, find_run

    folder = find_run(run, runs=RUNS)
    from diffcli.commands import export as command

    command.run(folder, output=output, format=format, with_backbone=with_backbone, size=size, json=json)


@app.command(
    epilog=_examples(
        "diff push first me/streets",
        "diff predict photos/ -o masks/ --run hub:me/streets",
        "DIFFCLI_HUB=/shared/models diff push first me/streets@v2",
    )
)
def push(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Run folder or name under runs/.", autocompletion=_complete_runs),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="OWNER/NAME, or OWNER/NAME@REVISION for a version.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private; refuse one that is public.")
    ] = False,
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Publish the frozen diffusion model as well.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="Of the weights.  [the diffusion model's]", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Publish a run, with a model card, for --run hub:OWNER/NAME.

    The hub is huggingface.co, once `hf auth login` has been run; where the environment variable DIFFCLI_HUB names a
    folder, that folder takes its place, for writing and for reading.
    """
    from diffcli.runs.folder import RUNS, find_run

    folder = find_run(run, runs=RUNS)
    from diffcli.commands import export as export_command
    from diffcli.commands import push as command

    command.run(
        folder,
        repo=repo,
        export=export_command.write_folder,
        private=private,
        with_backbone=with_backbone,
        licence=licence,
        json=json,
    )


@app.command("import", epilog=_examples("diff import checkpoint.pth -o runs/published"))
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


@app.command(epilog=_examples("diff init my.yaml", "diff init - | less"))
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file to write; - for stdout.")] = Path(
        "diffcli.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a YAML of every setting with its default and meaning."""
    from diffcli.commands import init as command

    command.run(file, force=force)


@app.command(
    epilog=_examples("diff check my.yaml", "diff check my.yaml --set data.train=miniworld/clean --json")
)
def check(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Validate settings, count the data and say what a run would cost."""
    from diffcli.commands import check as command
    from diffcli.config.file import load_config

    command.run(load_config(config, overrides=overrides or ()), config_name=config.stem, json=json)


@app.command(
    epilog=_examples(
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
            help="Comma list: paper, visit9, five, one, clean; own is the settings'.  "
            "[own with CONFIG, else paper,five,one]",
            show_default=False,
        ),
    ] = None,
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
    """Measure speed and memory beside the published code's cost.

    The baseline rows do the published amount of work: every step of the schedule, equal prompts evaluated twice, the
    unused stride fused too.
    """
    from diffcli.commands import bench as command
    from diffcli.config.file import load_config

    plan = command.parse_plan(
        work=work,
        schedules=schedules or ("paper,five,one" if config is None else command.OWN),
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


@app.command(epilog=_examples("diff domains --root /data"))
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


@data.command(
    "inspect",
    epilog=_examples(
        "diff data inspect --domain gta5 --root /data/gta5",
        "diff data inspect --config my.yaml -o inspected/",
    ),
)
def inspect_data(
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain, comma list of domains, or all.",
            show_default=False,
            autocompletion=_complete_domains,
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
    from diffcli.commands import inspect_data as command
    from diffcli.config.file import load_config

    settings = None if config is None else load_config(config, overrides=overrides or ())
    command.run(domain=domain, root=root, split=split, config=settings, output=output, json=json)


@app.command(epilog=_examples("diff doctor --json"))
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
