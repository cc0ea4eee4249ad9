"""`diff predict`: images and videos to masks, and whatever else can be told of them, in the tree of the inputs."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from diffcli import console
from diffcli.config import EvalConfig, Size
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.outputs import SUFFIXES, VIDEO_KIND, Outputs, Planes, known_class, parse_kinds
from diffcli.pictures import Pixels, blend, class_palette
from diffcli.sources import (
    READ_AHEAD_BYTES,
    Failure,
    Job,
    Read,
    Reader,
    Video,
    count_frames,
    plan,
    refuse_collisions,
)
from diffcli.writing import Manifest, VideoFile, WriterPool, open_video

CUT_SHORT = 0.9
"""A video breaks off where fewer than this share of the frames that it says it holds can be decoded."""


class Model(Protocol):
    """What segments: `diffcli.prediction.Predictor`, or anything else that gives planes for images."""

    batch_size: int
    """Images of one size that it takes at once; may change while it works."""

    def predict(self, reads: Sequence[Read]) -> Iterator[Planes]:
        """Planes of images of one size, in order."""


def run(
    images: Sequence[str],
    *,
    run: Path,
    output: Path,
    write: str | None = None,
    overlay: bool = False,
    heatmap: str | None = None,
    reference: Path | None = None,
    refine: int = 0,
    samples: int = 1,
    tile: str | None = None,
    batch: str | None = None,
    skip_existing: bool = False,
    device: str | None = None,
    overrides: Sequence[str] = (),
    json: bool = False,
) -> None:
    """Write a mask for every image below `output`, in the tree of the images, and a line of `predictions.jsonl`.

    The noise is seeded by the file's stem: an image has the same mask wherever it lies and whatever lies beside it.

    Args:
        images: files, folders (with their sub-folders), globs, videos, @LIST or - (stdin).
        run: a run folder, an exported folder or a checkpoint file.
        write: comma list of `outputs.KINDS`; None writes masks of images and a segmented video of videos.
        overlay: also write the colours laid over the image.
        heatmap: also write the softmax score of this class over the image.
        reference: folder of masks (train ids, same stems) that turn the conditional branch on.
        refine: feed the prediction back so many times as the reference of the conditional branch.
        samples: average so many draws of noise, and from 2 on write their disagreement.
        tile: "1024x512": at the image's own size (or --set eval.size), in such tiles; None: above a limit.
        batch: images a forward pass, or "auto"; None takes eval.batch_size.
        skip_existing: leave images alone whose outputs are all there.
        device: auto, cpu, cuda, cuda:1 or mps; None takes auto.
        overrides: "eval.size=512x256" and the like.
        json: print what was written as JSON on stdout.

    Raises:
        DataError: no images; or, after all else is done, some could not be read.
        DiffError: see `open_run`, `OpenRun.load_model` and `segment_files`.
    """
    from diffcli.inference import open_run  # here, since what needs no PyTorch is also used without it
    from diffcli.prediction import Predictor

    jobs = plan(images, output=output, references=reference)
    tiles = None if tile is None else parse_tile(tile)
    trained = open_run(run, overrides=overrides)
    model_config, settings = trained.config.model, trained.config.eval
    outputs = choose_outputs(
        jobs,
        write=write,
        overlay=overlay,
        heatmap=heatmap,
        samples=samples,
        classes=model_config.classes,
        palette=class_palette(model_config),
    )
    refuse_collisions(jobs, outputs.files)
    _check_reference(settings, reference, refine=refine, where=trained.path)
    if tiles is not None and not any(text.startswith("eval.size=") for text in overrides):
        settings = settings.model_copy(update={"size": None})
    manifest = Manifest(output)
    outcome = begin(jobs, outputs, manifest, skip_existing=skip_existing)
    jobs = [job for job in jobs if job not in set(outcome.skipped)]
    replaced = sum(path.exists() for job in jobs for path in outputs.files(job).values())
    if not jobs:
        report(outcome, outputs, run=run, output=output, replaced=0, json=json)
        return
    predictor = Predictor(
        trained.load_model(device=device),
        settings,
        batch=parse_batch(batch, otherwise=settings.batch_size),
        tile=tiles,
        refine=refine,
        samples=samples,
        confidence=outputs.wants_confidence,
        score_of=outputs.score_of,
    )
    reader = Reader(settings.size, classes=len(outputs.classes), keep=outputs.wants_image)
    found = segment_files(
        predictor, jobs, reader=reader, outputs=outputs, manifest=manifest, skip_existing=skip_existing
    )
    report(outcome.merged(found), outputs, run=run, output=output, replaced=replaced, json=json)


def run_exported(
    images: Sequence[str],
    *,
    model: Path,
    output: Path,
    write: str | None = None,
    overlay: bool = False,
    heatmap: str | None = None,
    batch: str | None = None,
    skip_existing: bool = False,
    device: str | None = None,
    refused: Sequence[str] = (),
    json: bool = False,
) -> None:
    """What `run` does, by networks that `diff export --format onnx|pt2` wrote; PyTorch is imported for pt2 alone.

    Every image is seen at the exported size and under the stored noise, whatever its name.

    Args:
        model: the exported folder, or a file in it.
        refused: options that were given and that exported networks cannot follow.

    Raises:
        ConfigError: there are some.
        DataError: see `run`.
        DiffError: see `open_exported`, `ExportedPredictor.predict` and `segment_files`.
    """
    from diffcli.exported import ExportedPredictor, open_exported

    if refused:
        raise ConfigError(
            f"--model and {', '.join(refused)} do not go together",
            hint="exported networks are one plain pass of the unconditional branch; --run RUN can do more",
        )
    jobs = plan(images, output=output)
    exported = open_exported(model, device=device)
    facts = exported.facts
    outputs = choose_outputs(
        jobs,
        write=write,
        overlay=overlay,
        heatmap=heatmap,
        samples=1,
        classes=tuple(entry.name for entry in facts.classes),
        palette=facts.palette,
    )
    refuse_collisions(jobs, outputs.files)
    manifest = Manifest(output)
    outcome = begin(jobs, outputs, manifest, skip_existing=skip_existing)
    jobs = [job for job in jobs if job not in set(outcome.skipped)]
    replaced = sum(path.exists() for job in jobs for path in outputs.files(job).values())
    if jobs:
        predictor = ExportedPredictor(
            exported,
            batch=parse_batch(batch, otherwise=1) or 1,
            confidence=outputs.wants_confidence,
            score_of=outputs.score_of,
        )
        reader = Reader(facts.size, classes=len(facts.classes), keep=outputs.wants_image)
        found = segment_files(
            predictor, jobs, reader=reader, outputs=outputs, manifest=manifest, skip_existing=skip_existing
        )
        outcome = outcome.merged(found)
    report(outcome, outputs, run=model, output=output, replaced=replaced, json=json)


# -------------------------------------------------------------------------------------------------- options


def choose_outputs(
    jobs: Sequence[Job],
    *,
    write: str | None,
    overlay: bool,
    heatmap: str | None,
    samples: int,
    classes: tuple[str, ...],
    palette: Pixels,
) -> Outputs:
    """What is written of images, of frames and of videos.

    Without `write`: a mask of every image, a segmented video of every video. --overlay and --heatmap add to it.

    Raises:
        ConfigError: the options contradict each other or the inputs.
    """
    if samples < 1:
        raise ConfigError("--samples takes a number from 1 on")
    named = () if write is None else parse_kinds(write)
    if "uncertainty" in named and samples == 1:
        raise ConfigError(
            "--write uncertainty needs several draws of noise", hint="--samples 4 averages four of them"
        )
    wanted = {*named, *(["overlay"] if overlay else [])}
    videos, images = any(job.is_video for job in jobs), any(not job.is_video for job in jobs)
    if VIDEO_KIND in named and not videos:
        raise ConfigError("--write video: no input is a video", hint="--write overlay is that of images")
    of_images = {*wanted, *([] if named else ["mask"]), *(["uncertainty"] if samples > 1 else [])}
    of_frames = of_images if named else wanted
    if images and of_images == {VIDEO_KIND} and heatmap is None:
        raise ConfigError(
            "--write video, but some inputs are images", hint="--write video,mask writes masks of images"
        )
    return Outputs(
        kinds=tuple(kind for kind in SUFFIXES if kind in of_images),
        frames=tuple(kind for kind in SUFFIXES if kind in of_frames),
        classes=classes,
        palette=palette,
        heatmap=None if heatmap is None else known_class(heatmap, classes),
        video=videos and (VIDEO_KIND in named or not named),
    )


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


# ----------------------------------------------------------------------------------------------- segmenting


@dataclass
class Outcome:
    """What became of the images and videos."""

    written: list[Job] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    """Left alone, since their outputs were there."""
    frames: int = 0
    """Segmented frames of videos."""
    seconds: float = 0.0

    def merged(self, other: "Outcome") -> "Outcome":
        """Both together; the time is the longer one, of processes beside each other."""
        return Outcome(
            self.written + other.written,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.frames + other.frames,
            max(self.seconds, other.seconds),
        )


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
    return Outcome(skipped=skipped)


def segment_files(
    model: Model,
    jobs: Sequence[Job],
    *,
    reader: Reader,
    outputs: Outputs,
    manifest: Manifest,
    skip_existing: bool = False,
) -> Outcome:
    """Segment and write every image and video; one that cannot be read or segmented is named and kept as failed.

    Reading, the network and writing run beside each other; memory does not grow with the number of images.

    Args:
        skip_existing: leave frames of videos alone whose outputs are there.

    Raises:
        DiffError: the first images already cannot be segmented, or a file cannot be written.
    """
    started = time.monotonic()
    total = sum(count_frames(job.image) if job.is_video else 1 for job in jobs)
    with console.progress("predict", total, unit="images") as bar, WriterPool() as pool:
        work = _Work(model, reader, outputs, manifest, skip_existing, pool, bar)
        for videos, group in groupby(jobs, lambda job: job.is_video):
            if videos:
                for job in group:
                    work.segment_video(job)
            else:
                work.segment_images(list(group))
    work.outcome.seconds = time.monotonic() - started
    return work.outcome


@dataclass
class _Work:
    """The parts of one call, and its outcome so far."""

    model: Model
    reader: Reader
    outputs: Outputs
    manifest: Manifest
    skip_existing: bool
    pool: WriterPool
    bar: console.Bar
    outcome: Outcome = field(default_factory=Outcome)

    def segment_images(self, jobs: Sequence[Job]) -> None:
        for read, planes, seconds in self._predicted(self.reader.images(jobs)):
            self._hand_over(read, planes, seconds)
            self.outcome.written.append(read.job)

    def segment_video(self, job: Job) -> None:
        """One video's frames in order; a video that breaks off keeps what was decoded, and has failed."""
        target = self.outputs.files(job).get(VIDEO_KIND)
        if target is not None and self.skip_existing and target.is_file():
            target = None
        before, started = self.outcome.frames, time.monotonic()
        try:
            with closing(Video(job.image)) as video:
                self._segment_frames(job, video, target)
                size, decoded, count = video.size, video.decoded, video.count
        except DataError as error:
            self._fail([(job, error)])
            return
        frames = self.outcome.frames - before
        error = DataError(f"it breaks off after frame {decoded} of {count}", where=str(job.image))
        is_cut = decoded < CUT_SHORT * count
        self.manifest.add(
            job.image,
            status="failed" if is_cut else "done",
            outputs={} if target is None else {VIDEO_KIND: target},
            size=size,
            seconds=time.monotonic() - started,
            frames=frames,
            **({"error": error.message} if is_cut else {}),
        )
        if is_cut:
            console.warn(_first_line((job, error)))
            self.outcome.failed.append((job, error))
        else:
            self.outcome.written.append(job)

    def _segment_frames(self, job: Job, video: Video, target: Path | None) -> None:
        with ExitStack() as stack:
            sink = None if target is None else stack.enter_context(open_video(target, rate=video.rate))
            lane = stack.enter_context(WriterPool(1))  # one thread: frames stay in order
            reads = self.reader.frames(job, video)
            if sink is None and self.skip_existing:
                reads = self._missing(reads)
            for read, planes, seconds in self._predicted(reads):
                self.outcome.frames += 1
                if self.outputs.writes_frames:
                    self._hand_over(read, planes, seconds)
                if sink is not None and read.full is not None:
                    show = partial(_add_frame, sink, read.full, planes.mask, self.outputs.palette)
                    lane.submit(show, nbytes=read.full.nbytes)
            lane.finish()
            if sink is not None and not sink.frames:
                raise DataError("not one frame could be segmented", where=str(job.image))

    def _missing(self, reads: Iterator[Read | Failure]) -> Iterator[Read | Failure]:
        """The frames whose outputs are not all there."""
        for read in reads:
            files = self.outputs.files(read.job) if isinstance(read, Read) else {}
            if isinstance(read, Read) and all(path.is_file() for path in files.values()):
                self.manifest.add(
                    read.job.image, frame=read.job.frame, status="skipped", outputs=files, size=read.size
                )
                self.bar.update()
            else:
                yield read

    def _predicted(self, reads: Iterator[Read | Failure]) -> Iterator[tuple[Read, Planes, float]]:
        """Every image that could be read and segmented, what became of it, and the seconds that it took."""
        for batch in self._batches(reads):
            started, shared, done = time.perf_counter(), 0.0, 0
            try:
                for read, planes in zip(batch, self.model.predict(batch), strict=True):
                    elapsed = time.perf_counter() - started
                    if done == 0:  # the network ran for the whole batch
                        shared = elapsed = elapsed / len(batch)
                    else:
                        elapsed += shared
                    done += 1
                    yield read, planes, elapsed
                    started = time.perf_counter()
            except DiffError as error:
                if not self.outcome.written and not self.outcome.frames:
                    raise
                self._fail([(read.job, error) for read in batch[done:]])
            self.bar.update(len(batch))

    def _batches(self, reads: Iterator[Read | Failure]) -> Iterator[list[Read]]:
        """Images of one size, as many as the model takes and memory should hold; failures are told on the way."""
        batch: list[Read] = []
        for read in reads:
            if not isinstance(read, Read):
                self._fail([read])
                self.bar.update()
                continue
            if batch and batch[0].image.shape != read.image.shape:
                yield batch
                batch = []
            batch.append(read)
            if len(batch) >= self.model.batch_size or sum(r.nbytes for r in batch) > READ_AHEAD_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _hand_over(self, read: Read, planes: Planes, seconds: float) -> None:
        self.pool.submit(partial(self._write, read, planes, seconds), nbytes=read.nbytes + planes.nbytes)

    def _write(self, read: Read, planes: Planes, seconds: float) -> None:
        """Runs in a writer thread: every file, then the manifest's line."""
        line = partial(self.manifest.add, read.job.image, frame=read.job.frame, size=read.size)
        try:
            files = self.outputs.write(read, planes)
        except DiffError as error:
            with suppress(DiffError):  # on a full disk
                line(status="failed", error=error.message)
            raise
        line(status="done", outputs=files, seconds=seconds)

    def _fail(self, failures: Iterable[Failure]) -> None:
        """Say at once which images are skipped, and keep them."""
        for failure in failures:
            job, error = failure
            console.warn(f"skipped {_first_line(failure)}")
            self.outcome.failed.append(failure)
            self.manifest.add(job.image, frame=job.frame, status="failed", error=error.message)


def _add_frame(sink: VideoFile, image: Pixels, mask: Pixels, palette: Pixels) -> None:
    sink.add(blend(image, mask, palette))


# ------------------------------------------------------------------------------------------------- telling


def report(outcome: Outcome, outputs: Outputs, *, run: Path, output: Path, replaced: int, json: bool) -> None:
    """Say what was written, print it as JSON if asked, and raise a DataError if anything failed."""
    count = len(outcome.written)
    notes = [
        f"{len(outcome.skipped)} were there already" if outcome.skipped else "",
        f"{replaced} files there were replaced" if replaced else "",
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
    if json:
        console.print_json(
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
    if outcome.failed:
        raise _failure(outcome)


def _failure(outcome: Outcome) -> DataError:
    shown = [f"  - {_first_line(failure)}" for failure in outcome.failed[:20]]
    if len(outcome.failed) > len(shown):
        shown.append(f"  - and {len(outcome.failed) - len(shown)} more")
    count = len(outcome.written) + len(outcome.failed) + len(outcome.skipped)
    return DataError(
        "\n".join([f"{len(outcome.failed)} of {count} images have no mask", *shown]),
        hint="mend or take out these files; the others are done",
    )


def _first_line(failure: Failure) -> str:
    """The image and why it failed, without the hint."""
    job, error = failure
    text = str(error).splitlines()[0]
    return text if str(job) in text else f"{job}: {text}"
