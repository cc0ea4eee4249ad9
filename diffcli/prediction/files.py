"""The work of `diff predict`: jobs are read, segmented and written, side by side; what fails costs only itself."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from diffcli.drawing.pictures import Pixels, blend
from diffcli.errors import DataError, DiffError
from diffcli.prediction.inputs import READ_AHEAD_BYTES, Failure, Job, Read, Reader
from diffcli.prediction.manifest import Manifest, path_text
from diffcli.prediction.outputs import VIDEO_KIND, Outputs
from diffcli.prediction.planes import Planes
from diffcli.prediction.segmenter import Segmenter
from diffcli.prediction.video import Video, VideoFile, count_frames, open_video
from diffcli.prediction.writers import WriterPool, is_whole
from diffcli.runtime import console

CUT_SHORT = 0.9
"""A video has failed where fewer than this share of the frames that it says it holds can be decoded."""


@dataclass
class Outcome:
    """What became of the images and videos."""

    written: list[Job] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    """Their outputs were there already."""
    frames: int = 0
    """Segmented frames of videos."""
    seconds: float = 0.0
    replaced: int = 0
    """Files that were there before, and were written again."""


def merged(outcomes: Sequence[Outcome], jobs: Sequence[Job]) -> Outcome:
    """What became of parts of the jobs as one, in the order of the jobs; the seconds are those of the slowest."""
    place = {job.image: i for i, job in enumerate(jobs)}
    return Outcome(
        written=sorted((job for o in outcomes for job in o.written), key=lambda job: place[job.image]),
        failed=sorted((failure for o in outcomes for failure in o.failed), key=lambda f: place[f[0].image]),
        skipped=[job for o in outcomes for job in o.skipped],
        frames=sum(o.frames for o in outcomes),
        seconds=max(o.seconds for o in outcomes),
        replaced=sum(o.replaced for o in outcomes),
    )


def begin(jobs: Sequence[Job], outputs: Outputs, manifest: Manifest, *, skip_existing: bool) -> Outcome:
    """Open the folder and its manifest, and find what is already there, whole: an outcome of skipped jobs.

    Raises:
        DiffError: the folder cannot be written to.
    """

    def is_done(job: Job) -> bool:
        files = outputs.files(job)
        has_frames = job.is_video and outputs.writes_frames
        return bool(files) and not has_frames and all(is_whole(path) for path in files.values())

    skipped = [job for job in jobs if skip_existing and is_done(job)]
    remaining = [job for job in jobs if job not in set(skipped)]
    manifest.begin(job.image for job in remaining)
    listed = {entry.input for entry in manifest.entries()} if skipped else set()
    for job in skipped:
        if path_text(job.image) not in listed:
            manifest.add(job.image, status="skipped", outputs=outputs.files(job))
    replaced = sum(path.exists() for job in remaining for path in outputs.files(job).values())
    return Outcome(skipped=skipped, replaced=replaced)


def segment_files(
    segmenter: Segmenter,
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
        work = _Work(segmenter, reader, outputs, manifest, skip_existing, pool, bar)
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

    segmenter: Segmenter
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
        """One video's frames in order; of a video that ends early, what was decoded is kept, and it has failed."""
        target = self.outputs.files(job).get(VIDEO_KIND)
        if target is not None and self.skip_existing and is_whole(target):
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
        cut = DataError(f"it ends early, after frame {decoded} of {count}", where=str(job.image))
        is_cut = decoded < CUT_SHORT * count
        self.manifest.add(
            job.image,
            status="failed" if is_cut else "done",
            outputs={} if target is None else {VIDEO_KIND: target},
            size=size,
            seconds=time.monotonic() - started,
            frames=frames,
            error=cut.message if is_cut else None,
        )
        if is_cut:
            console.warn(first_line((job, cut)))
            self.outcome.failed.append((job, cut))
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
                    show = partial(_add_frame, sink, read.full, planes.mask, self.outputs)
                    lane.submit(show, nbytes=read.full.nbytes)
            lane.finish()
            if sink is not None and not sink.frames:
                raise DataError("not one frame could be segmented", where=str(job.image))
            if sink is not None and sink.encoder == "mpeg4":
                console.warn(
                    f"{target} is MPEG-4, not H.264: no encoder for that is here; browsers may not show it"
                )

    def _missing(self, reads: Iterator[Read | Failure]) -> Iterator[Read | Failure]:
        """The frames whose outputs are not all there."""
        for read in reads:
            files = self.outputs.files(read.job) if isinstance(read, Read) else {}
            if isinstance(read, Read) and all(is_whole(path) for path in files.values()):
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
                for read, planes in zip(batch, self.segmenter.segment(batch), strict=True):
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
        """Images of one size, as many as the model takes and memory should hold; failures are reported on the way."""
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
            if len(batch) >= self.segmenter.batch_size or sum(r.nbytes for r in batch) > READ_AHEAD_BYTES:
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
        line(status="done", outputs=files, seconds=seconds, confidence=round(planes.mean_confidence, 4))

    def _fail(self, failures: Iterable[Failure]) -> None:
        """Say at once which images are skipped, and keep them."""
        for failure in failures:
            job, error = failure
            console.warn(f"skipped {first_line(failure)}")
            self.outcome.failed.append(failure)
            self.manifest.add(job.image, frame=job.frame, status="failed", error=error.message)


def _add_frame(sink: VideoFile, image: Pixels, mask: Pixels, outputs: Outputs) -> None:
    frame = outputs.shown(blend(image, mask, outputs.palette), mask, is_frame=True)
    sink.add(np.asarray(frame, dtype=np.uint8))


def first_line(failure: Failure) -> str:
    """The image and why it failed, without the hint."""
    job, error = failure
    text = str(error).splitlines()[0]
    return text if str(job) in text else f"{job}: {text}"
