"""`diff predict`: images and videos to masks and other outputs, in the tree of the inputs."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffcli.config.settings import DEFAULT_BACKBONE, EMBEDDED, EvalConfig
from diffcli.config.size import size_option
from diffcli.errors import ConfigError, DataError
from diffcli.files import LOCK, hold_lock
from diffcli.prediction.coco import write_coco
from diffcli.prediction.files import Outcome, begin, first_line, merged, segment_files
from diffcli.prediction.index import INDEX, write_index
from diffcli.prediction.inputs import Reader, plan, refuse_collisions
from diffcli.prediction.manifest import Manifest
from diffcli.prediction.outputs import Outputs, choose_outputs
from diffcli.prediction.segmenter import Segmenter, Source
from diffcli.runtime import console, distributed
from diffcli.runtime.words import counted

DEFAULT_OUTPUT = Path("predictions")
"""Folder of the folders that results go to where none is named."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff predict` is asked for: images, and a run or an exported network."""

    images: Sequence[str]
    """Files, folders (with their sub-folders), globs, videos, @LIST or - (stdin)."""
    output: Path | None = None
    """Folder for the results; None takes predictions/NAME of the run."""
    run: Path | None = None
    """A run folder, an exported folder or a checkpoint file."""
    model: Path | None = None
    """Exported networks instead of a run: their folder, or a file in it."""
    write: str | None = None
    """Comma list of `outputs.KINDS`; None writes masks of images and a segmented video of videos."""
    legend: bool = True
    """Put names and shares of the classes under overlays, colour masks and videos."""
    overlay: bool = False
    """Also write the colours laid over the image."""
    heatmap: str | None = None
    """Also write the softmax score of this class over the image."""
    reference: Path | None = None
    """Folder of masks (train ids, same stems) that turn the conditional branch on."""
    refine: int = 0
    """How many times the prediction becomes the reference of the conditional branch."""
    samples: int = 1
    """Draws of noise to average; from 2 on their disagreement is written."""
    tile: str | None = None
    """"1024x512": see the image at full size (or at an overridden eval.size), in such tiles; None: above a limit."""
    batch: str | None = None
    """Images in a forward pass, or "auto"; None takes eval.batch_size."""
    skip_existing: bool = False
    """Skip images whose outputs are all there."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; None takes auto."""
    overrides: Sequence[str] = ()
    """Settings to change, as in "eval.size=512x256"."""


def run(request: Request) -> None:
    """Write a mask for every image below `output`, in the tree of the images, and a line of `predictions.jsonl`.

    The noise is seeded by the file's stem: an image has the same mask in every folder and beside any other images.
    Exported networks see every image at the exported size and under the stored noise, whatever its name.

    Raises:
        ConfigError: options that do not go together, or that exported networks do not have.
        DataError: no images; or, after all else is done, some could not be read.
        DiffError: see `open_run`, `open_exported` and `segment_files`.
    """
    skip_existing = request.skip_existing
    output = request.output or DEFAULT_OUTPUT / _name(request)
    jobs = distributed.broadcast(lambda: plan(request.images, output=output, references=request.reference))
    tile = None if request.tile is None else size_option("--tile", request.tile)
    source = _open(request)
    settings = source.settings
    outputs = choose_outputs(
        jobs,
        write=request.write,
        overlay=request.overlay,
        heatmap=request.heatmap,
        samples=request.samples,
        classes=source.classes,
        palette=source.palette,
        legend=request.legend,
    )
    refuse_collisions(jobs, outputs.files)
    _check_reference(settings, request.reference, refine=request.refine, where=source.path)
    if tile is not None and not any(text.startswith("eval.size=") for text in request.overrides):
        settings = settings.model_copy(update={"size": None})
    batch = parse_batch(request.batch, otherwise=settings.batch_size)
    manifest = Manifest(output)
    with _shared(output):
        outcome = distributed.broadcast(lambda: begin(jobs, outputs, manifest, skip_existing=skip_existing))
        skipped = set(outcome.skipped)
        remaining = [job for job in jobs if job not in skipped]
        if remaining:
            with distributed.raise_together():
                network = source.load(
                    device=request.device,
                    samples=request.samples,
                    images=len(remaining) * (1 + request.refine) // distributed.world_size(),
                )
            segmenter = Segmenter(
                network,
                settings,
                batch=batch,
                tile=tile,
                refine=request.refine,
                confidence=outputs.wants_confidence,
                score_of=outputs.score_of,
                on_retile=console.warn,
            )
            reader = Reader(settings.size, classes=len(outputs.classes), keep=outputs.wants_image)
            shard = distributed.shard(remaining, chunk=batch or 1)
            done = distributed.all_gather(
                lambda: segment_files(
                    segmenter,
                    shard,
                    reader=reader,
                    outputs=outputs,
                    manifest=manifest,
                    skip_existing=skip_existing,
                )
            )
            outcome = merged([outcome, *done], jobs)
            distributed.broadcast(lambda: _finish(manifest, outputs, title=source.description))
    report(outcome, outputs, source=source, output=output)
    distributed.barrier()
    if outcome.failed:
        raise _failure(outcome)


@contextmanager
def _shared(output: Path) -> Iterator[None]:
    """While it lasts, only other calls of predict may write to the folder: they share its manifest.

    Raises:
        DiffError: another command writes there; the folder cannot be made or written to.
    """
    with ExitStack() as stack:
        with distributed.raise_together():
            if distributed.is_main_process():
                stack.enter_context(hold_lock(output / LOCK, where=output, shared=True))
        yield


def _name(request: Request) -> str:
    """The default folder's name: that of the run or of the exported networks."""
    path = (request.model or request.run or Path()).resolve()
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    return run.stem if run.is_file() else run.name


def _finish(manifest: Manifest, outputs: Outputs, *, title: str) -> None:
    """One line for each image, the COCO file of the folder, and the page that shows all of it."""
    manifest.finish()
    if "rle" in outputs.kinds:
        write_coco(manifest.folder, manifest.entries(), classes=outputs.classes)
    count = sum(1 for entry in manifest.entries() if entry.frame is None)
    with console.progress("write index.html", count, unit="images") as bar:
        write_index(
            manifest, title=title, classes=outputs.classes, palette=outputs.palette, progress=bar.update
        )


def _open(request: Request) -> Source:
    """The run or the exported networks, read but not loaded; PyTorch is imported for a run and for pt2 alone."""
    if request.model is None:
        from diffcli.prediction.trained import open_source  # takes seconds: after what can be wrong at once

        assert request.run is not None, "a run or exported networks"
        source = open_source(request.run, overrides=request.overrides)
        if source.run.config.model.backbone.source == EMBEDDED:
            console.say(
                f"the diffusion model of {source.path} knows a toy world only; for photographs, train with "
                f"model.backbone.source: {DEFAULT_BACKBONE}"
            )
        return source
    asked = {
        "--run": request.run,
        "--reference": request.reference,
        "--refine": request.refine,
        "--samples": request.samples - 1,
        "--tile": request.tile,
        "--set": request.overrides,
    }
    if refused := [name for name, value in asked.items() if value]:
        raise ConfigError(
            f"--model and {', '.join(refused)} do not go together",
            hint="exported networks are one plain pass of the unconditional branch; --run RUN can do more",
        )
    from diffcli.export.runner import ExportSource

    return ExportSource(request.model)


# -------------------------------------------------------------------------------------------------- options


def parse_batch(text: str | None, *, otherwise: int) -> int | None:
    """Images a forward pass; None for auto. Raises ConfigError where it is neither."""
    if text is None:
        return otherwise
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"--batch {text}: neither a number from 1 on nor auto")
    return int(text)


def _check_reference(settings: EvalConfig, references: Path | None, *, refine: int, where: Path) -> None:
    """The run's eval settings suit what predict can know."""
    if not 0 <= refine <= 100:
        raise ConfigError(
            "--refine takes a number from 0 to 100", hint="masks hardly change after the first few times"
        )
    if references is not None and settings.reference == "prediction":
        raise ConfigError(
            "--reference and eval.reference=prediction contradict each other",
            hint="--reference DIR --refine 1 begins with the masks and feeds the prediction back",
        )
    if references is None and settings.reference == "labels":
        raise ConfigError(
            "eval.reference is labels, but images to predict have none",
            where=str(where),
            hint="--reference DIR gives masks; --set eval.reference=none (or prediction) does without",
        )


# -------------------------------------------------------------------------------------------------- report


def report(outcome: Outcome, outputs: Outputs, *, source: Source, output: Path) -> None:
    """Say what was written, and print it as JSON if asked."""
    count = len(outcome.written)
    notes = [
        f"{len(outcome.skipped)} already there" if outcome.skipped else "",
        f"{counted(outcome.replaced, 'file')} there replaced" if outcome.replaced else "",
    ]
    remarks = "; ".join(filter(None, notes))
    images = count - sum(job.is_video for job in outcome.written)
    parts = [counted(images, "image")] if images or not outcome.frames else []
    parts += [counted(outcome.frames, "frame")] if outcome.frames else []
    what = " and ".join(parts)
    console.say(f"{what} with {source.description} -> {output}{f' ({remarks})' if remarks else ''}")
    if (output / INDEX).is_file():
        console.say(f"open {output / INDEX} to see them")
    console.print_record(
        {
            "run": str(source.path),
            "output": str(output),
            "images": [
                {
                    "image": str(job.image),
                    **{kind: str(path) for kind, path in outputs.files(job).items()},
                }
                for job in outcome.written
            ],
            "failed": [{"image": str(job), "error": error.message} for job, error in outcome.failed],
            "skipped": [str(job.image) for job in outcome.skipped],
            "seconds": round(outcome.seconds, 2),
        }
    )


def _failure(outcome: Outcome) -> DataError:
    shown = [f"  - {first_line(failure)}" for failure in outcome.failed[:20]]
    if len(outcome.failed) > len(shown):
        shown.append(f"  - and {len(outcome.failed) - len(shown)} more")
    count = len(outcome.written) + len(outcome.failed) + len(outcome.skipped)
    return DataError(
        "\n".join([f"no mask for {len(outcome.failed)} of {counted(count, 'image')}", *shown]),
        hint="fix or remove these files; the others are done",
    )
