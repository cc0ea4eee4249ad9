"""`diff export`, `push` and `import`: runs that leave this machine, and one that comes from elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffcli.cli.options import (
    Checkpoint,
    Json,
    RunArgument,
    examples,
    execute,
    find_run,
    group,
    read_settings,
)

app = group()


@app.command()
def export(
    run: RunArgument,
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
    checkpoint: Checkpoint = "last",
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
    folder = find_run(run, checkpoint)
    from diffcli.commands import export as command

    request = command.Request(
        run=folder, output=output, format=format, with_backbone=with_backbone, size=size
    )
    execute(command.run, request, json=json)


@app.command(
    epilog=examples(
        "diff push first me/streets",
        "diff predict photos/ -o masks/ --run hub:me/streets",
        "DIFFCLI_HUB=/shared/models diff push first me/streets@v2",
    )
)
def push(
    run: RunArgument,
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
    folder = find_run(run)
    from diffcli.commands import push as command

    request = command.Request(
        run=folder, repo=repo, private=private, with_backbone=with_backbone, licence=licence
    )
    execute(command.run, request, json=json)


@app.command("import", epilog=examples("diff import checkpoint.pth -o runs/published"))
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint of the published code.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run folder to write.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Settings that it was trained with.", show_default=False),
    ] = None,
) -> None:
    """Turn a checkpoint of the published code into a run."""
    from diffcli.config.settings import RunConfig

    settings = RunConfig() if config is None else read_settings(config, None)
    from diffcli.commands import import_checkpoint as command

    execute(command.run, command.Request(checkpoint=checkpoint, output=output, config=settings))
