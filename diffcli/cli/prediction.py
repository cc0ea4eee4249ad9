"""`diff predict` and `submit`: images to masks."""

from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.options import (
    Checkpoint,
    Device,
    Json,
    Overrides,
    Root,
    Run,
    examples,
    execute,
    find_run,
    group,
)

app = group()


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Images, folders, globs, videos; @FILE or - for a list of paths."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the results.  [predictions/NAME of the run]",
            show_default=False,
        ),
    ] = None,
    run: Run = None,
    checkpoint: Checkpoint = "last",
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
            help="Comma list of mask, label-ids, color, overlay, confidence, confidence-map, uncertainty,"
            " stats, rle, video."
            "  [mask; of a video: video]",
            show_default=False,
        ),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write the colours laid over the image.")
    ] = False,
    legend: Annotated[
        bool,
        typer.Option(
            "--legend/--no-legend", help="Names and shares of the classes under overlays and colours."
        ),
    ] = True,
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
        int, typer.Option(metavar="N", help="Condition on the prediction itself, N times.")
    ] = 0,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Average N draws of noise; write their disagreement.")
    ] = 1,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="See images at full size, in overlapping tiles.  [above 2048x1024 pixels: 1024x1024]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Images in a forward pass, or auto: what fits.  [eval.batch_size]",
            show_default=False,
        ),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip images whose results are there.")
    ] = False,
    device: Device = None,
    overrides: Overrides = None,
) -> None:
    """Segment images and videos into masks, overlays and more.

    The results are below DIR in the tree of the images; DIR/predictions.jsonl
    has a line for each. Masks are palette PNGs of train ids. Examples:

    \b
    - diff predict photos/ --overlay
    - diff predict photos/ -o out --write mask,overlay,stats
    - diff predict street.mp4 -o out
    - diff predict pano.png -o out --tile 1024x1024
    - find . -name "*.jpg" | diff predict - -o out --skip-existing
    - diff predict photos/ -o out --samples 8 --batch auto
    - diff predict photos/ -o out --model first-onnx/
    """
    folder = find_run(run, checkpoint) if model is None or run is not None else None
    from diffcli.commands import predict as command

    request = command.Request(
        images=images,
        output=output,
        run=folder,
        model=model,
        write=write,
        legend=legend,
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
    )
    execute(command.run, request, json=json)


@app.command(epilog=examples("diff submit --domain cityscapes --root /data/cityscapes -o cs.zip"))
def submit(
    domain: Annotated[
        str, typer.Option(help="cityscapes, acdc, acdc/CONDITION or dark_zurich.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ZIP", help="Zip file to write.")],
    run: Run = None,
    checkpoint: Checkpoint = "last",
    root: Root = None,
    split: Annotated[str, typer.Option(help="Split to segment.")] = "test",
    device: Device = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Segment a test set and zip it for its evaluation server."""
    folder = find_run(run, checkpoint)
    from diffcli.commands import submit as command

    request = command.Request(
        domain=domain,
        run=folder,
        output=output,
        root=root,
        split=split,
        device=device,
        overrides=overrides or (),
    )
    execute(command.run, request, json=json)
