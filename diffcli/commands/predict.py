"""`diff predict`: images and videos to masks, and whatever else can be told of them, in the tree of the inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.drawing.pictures import class_palette
from diffcli.errors import ConfigError, DataError
from diffcli.prediction.files import Outcome, first_line, merged, segment_files
from diffcli.prediction.inputs import Job, Reader, plan, refuse_collisions
from diffcli.prediction.outputs import Outputs, choose_outputs
from diffcli.prediction.writers import Manifest
from diffcli.runtime import console, distributed


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff predict` is asked for: images, and a run or an exported network."""

    images: Sequence[str]
    """Files, folders (with their sub-folders), globs, videos, @LIST or - (stdin)."""
    output: Path
    """Folder for the results."""
    run: Path | None = None
    """A run folder, an exported folder or a checkpoint file."""
    model: Path | None = None
    """Exported networks instead of a run: their folder, or a file in it."""
    write: str | None = None
    """Comma list of `outputs.KINDS`; None writes masks of images and a segmented video of videos."""
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

    Raises:
        ConfigError: options that do not go together.
        DataError: no images; or, after all else is done, some could not be read.
        DiffError: see `open_run`, `OpenRun.load_model` and `segment_files`.
    """
    if request.model is not None:
        _run_exported(request, request.model)
    else:
        assert request.run is not None, "a run or exported networks"
        _run_trained(request, request.run)


def _run_trained(request: Request, run: Path) -> None:
    """What `run` does, by a trained run."""
    output, skip_existing, overrides = request.output, request.skip_existing, request.overrides
    jobs = distributed.broadcast(lambda: plan(request.images, output=output, references=request.reference))
    tiles = None if request.tile is None else parse_tile(request.tile)

    from diffcli.prediction.segmenter import Predictor
    from diffcli.runs.opening import (
        open_run,  # seconds: after what can be wrong at once, and not for exported networks
    )

    trained = open_run(run, overrides=overrides)
    model_config, settings = trained.config.model, trained.config.eval
    outputs = choose_outputs(
        jobs,
        write=request.write,
        overlay=request.overlay,
        heatmap=request.heatmap,
        samples=request.samples,
        classes=model_config.classes,
        palette=class_palette(model_config),
    )
    refuse_collisions(jobs, outputs.files)
    _check_reference(settings, request.reference, refine=request.refine, where=trained.path)
    if tiles is not None and not any(text.startswith("eval.size=") for text in overrides):
        settings = settings.model_copy(update={"size": None})
    manifest = Manifest(output)
    begun = distributed.broadcast(lambda: begin(jobs, outputs, manifest, skip_existing=skip_existing))
    left_alone = set(begun.skipped)
    left = [job for job in jobs if job not in left_alone]
    if not left:
        report(begun, outputs, run=run, output=output)
        return
    with distributed.raise_together():
        model = trained.load_model(device=request.device)
    batch_size = parse_batch(request.batch, otherwise=settings.batch_size)
    predictor = Predictor(
        model,
        settings,
        batch=batch_size,
        tile=tiles,
        refine=request.refine,
        samples=request.samples,
        confidence=outputs.wants_confidence,
        score_of=outputs.score_of,
    )
    reader = Reader(settings.size, classes=len(outputs.classes), keep=outputs.wants_image)
    own = distributed.shard(left, chunk=batch_size or 1)
    shares = distributed.all_gather(
        lambda: segment_files(
            predictor, own, reader=reader, outputs=outputs, manifest=manifest, skip_existing=skip_existing
        )
    )
    outcome = merged([begun, *shares], jobs)
    report(outcome, outputs, run=run, output=output)
    distributed.barrier()
    if outcome.failed:
        raise _failure(outcome)


def _run_exported(request: Request, model: Path) -> None:
    """What `run` does, by networks that `diff export --format onnx|pt2` wrote; PyTorch is imported for pt2 alone.

    Every image is seen at the exported size and under the stored noise, whatever its name.

    Raises:
        ConfigError: the request has options that exported networks do not have.
        DataError: see `run`.
        DiffError: see `open_exported`, `ExportedPredictor.predict` and `segment_files`.
    """
    from diffcli.export.runner import ExportedPredictor, open_exported

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
    output, skip_existing = request.output, request.skip_existing
    jobs = plan(request.images, output=output)
    exported = open_exported(model, device=request.device)
    facts = exported.facts
    outputs = choose_outputs(
        jobs,
        write=request.write,
        overlay=request.overlay,
        heatmap=request.heatmap,
        samples=1,
        classes=tuple(entry.name for entry in facts.classes),
        palette=facts.palette,
    )
    refuse_collisions(jobs, outputs.files)
    manifest = Manifest(output)
    outcome = begin(jobs, outputs, manifest, skip_existing=skip_existing)
    left_alone = set(outcome.skipped)
    left = [job for job in jobs if job not in left_alone]
    if left:
        predictor = ExportedPredictor(
            exported,
            batch=parse_batch(request.batch, otherwise=1) or 1,
            confidence=outputs.wants_confidence,
            score_of=outputs.score_of,
        )
        reader = Reader(facts.size, classes=len(facts.classes), keep=outputs.wants_image)
        found = segment_files(
            predictor, left, reader=reader, outputs=outputs, manifest=manifest, skip_existing=skip_existing
        )
        outcome = merged([outcome, found], jobs)
    report(outcome, outputs, run=model, output=output)
    if outcome.failed:
        raise _failure(outcome)


# -------------------------------------------------------------------------------------------------- options


def parse_tile(text: str) -> Size:
    """WIDTHxHEIGHT as a size. Raises ConfigError where it is none."""
    width, _, height = text.lower().replace("×", "x").partition("x")
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise ConfigError(f"--tile {text}: not a size", hint="WIDTHxHEIGHT, as in --tile 1024x1024")
    return Size(int(width), int(height))


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
    if refine < 0:
        raise ConfigError("--refine takes a number from 0 on")
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


# ------------------------------------------------------------------------------------- beginning and telling


def begin(jobs: Sequence[Job], outputs: Outputs, manifest: Manifest, *, skip_existing: bool) -> Outcome:
    """Open the folder and its manifest, and find what is there already: an outcome of skipped jobs.

    Raises:
        DiffError: the folder cannot be written to.
    """

    def is_there(job: Job) -> bool:
        files = outputs.files(job)
        to_take_apart = job.is_video and outputs.writes_frames
        return bool(files) and not to_take_apart and all(path.is_file() for path in files.values())

    skipped = [job for job in jobs if skip_existing and is_there(job)]
    left = set(skipped)
    manifest.begin(job.image for job in jobs if job not in left)
    told = {entry.get("input") for entry in manifest.entries()} if skipped else set()
    for job in skipped:
        if str(job.image) not in told:
            manifest.add(job.image, status="skipped", outputs=outputs.files(job))
    replaced = sum(path.exists() for job in jobs if job not in left for path in outputs.files(job).values())
    return Outcome(skipped=skipped, replaced=replaced)


def report(outcome: Outcome, outputs: Outputs, *, run: Path, output: Path) -> None:
    """Say what was written, and print it as JSON if asked."""
    count = len(outcome.written)
    notes = [
        f"{len(outcome.skipped)} were there already" if outcome.skipped else "",
        f"{outcome.replaced} files there were replaced" if outcome.replaced else "",
    ]
    told = "; ".join(filter(None, notes))
    what = f"{count} {'image' if count == 1 else 'images'}"
    if outcome.frames:
        videos = sum(job.is_video for job in outcome.written)
        what = (
            f"{count - videos} images and {outcome.frames} frames"
            if count > videos
            else f"{outcome.frames} frames"
        )
    console.say(f"{what} segmented into {output}{f' ({told})' if told else ''}")
    console.print_record(
        {
            "run": str(run),
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
        "\n".join([f"{len(outcome.failed)} of {count} images have no mask", *shown]),
        hint="mend or take out these files; the others are done",
    )
