"""What is to be segmented: files, folders, globs, lists and videos become jobs, and jobs become pixels, read ahead."""

import glob
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from diffcli.classes import IGNORE_ID
from diffcli.config.size import Size
from diffcli.data.images import read_image
from diffcli.data.labels import read_pixels
from diffcli.data.listing import IMAGE_SUFFIXES, walk_images
from diffcli.drawing.pictures import Pixels
from diffcli.errors import DataError, DiffError
from diffcli.prediction.segmenter import at_network_size
from diffcli.prediction.video import Video, is_video

READERS, READ_AHEAD = 2, 16
"""Threads that read images, and how many they read at most before they are wanted; decoding releases Python's lock."""
READ_AHEAD_BYTES = 256 << 20
"""Pixels that are read before they are wanted, whatever the number of images; one image may be larger."""
FRAMES_AHEAD = 4


@dataclass(frozen=True)
class Job:
    """One image, one video, or one frame of a video, and where its mask goes; other outputs go beside the mask."""

    image: Path
    mask: Path
    """PNG of an image or a frame; a video's is the name of its folder of frames, with .png behind it."""
    reference: Path | None = None
    """Mask of an image or a frame; folder of masks of a video."""
    frame: int | None = None

    @property
    def is_video(self) -> bool:
        """Whether this is a whole video, to be taken apart."""
        return self.frame is None and is_video(self.image)

    @property
    def frames(self) -> Path:
        """The folder of a video's frames."""
        return self.mask.with_name(self.mask.name.removesuffix(".png"))

    def of_frame(self, number: int) -> "Job":
        """The job of a video's frame, counted from 0."""
        name = f"{number:06d}.png"
        reference = None if self.reference is None else self.reference / name
        return replace(self, mask=self.frames / name, reference=reference, frame=number)

    def __str__(self) -> str:
        return str(self.image) if self.frame is None else f"{self.image}, frame {self.frame}"


# ------------------------------------------------------------------------------------------------- planning


def plan(inputs: Sequence[str], *, output: Path, references: Path | None = None) -> list[Job]:
    """Every image and video once, in order, with its mask below `output` at its place below the inputs' common folder.

    An input is a file, a folder (images below it), a glob, @FILE or - (paths, one a line, in a file or on stdin). Two
    images of one stem in one folder keep their suffixes (a.jpg.png, a.png.png). Files below `output` are no input,
    unless they are named themselves. A path of a list that does not exist stays a job, and fails when it is read.

    Raises:
        DataError: an input or a list is missing, nothing is found, or a mask would replace an image.
    """
    if output.exists() and not output.is_dir():
        raise DataError("the output is a file", where=str(output), hint="give a folder: -o masks")
    below = os.path.abspath(output)
    found = [_found(text, output=below, listed=listed) for text, listed in _listed(inputs)]
    files = list(dict.fromkeys(path for _, paths in found for path in paths))
    if not files:
        raise DataError(
            "no images found",
            where=", ".join(inputs),
            hint="give image files, a folder that holds some, or a quoted glob",
        )
    base = os.path.commonpath([root for root, _ in found])
    names = {path: os.path.relpath(path, base) for path in files}
    stems = Counter(os.path.splitext(name)[0] for name in names.values())
    masks = {
        path: name if stems[os.path.splitext(name)[0]] > 1 else os.path.splitext(name)[0]
        for path, name in names.items()
    }
    jobs = [Job(Path(path), output / f"{mask}.png") for path, mask in masks.items()]
    refuse_collisions(jobs, lambda job: {"mask": job.mask})
    return jobs if references is None else _with_references(jobs, references, output=output)


def _listed(inputs: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Every input with whether it comes from a list; the lists' lines in the place of the lists."""
    for text in inputs:
        if text == "-":
            yield from ((line, True) for line in _lines(sys.stdin, where="stdin"))
        elif text.startswith("@"):
            try:
                with open(text[1:], encoding="utf-8-sig") as file:
                    yield from ((line, True) for line in _lines(file, where=text[1:]))
            except OSError as error:
                raise DataError(
                    f"the list cannot be read: {error.strerror}",
                    where=text[1:],
                    hint=f"@FILE is a list of paths, one a line; a file of this name is ./{text}",
                ) from error
        else:
            yield text, False


def _lines(file: Iterable[str], *, where: str) -> list[str]:
    try:
        lines = [line.rstrip("\r\n") for line in file]
    except UnicodeDecodeError:
        lines = ["\0"]
    if any("\0" in line for line in lines):
        raise DataError("this is no list of paths", where=where, hint="one path a line, as text")
    return [line for line in lines if line.strip()]


def _found(text: str, *, output: str, listed: bool) -> tuple[str, list[str]]:
    """(the folder below which the tree is kept, images) of one input, all absolute and sorted."""
    path = os.path.abspath(os.path.expanduser(text))
    if os.path.isdir(path):
        if path == output:
            raise DataError(
                "images and masks would share this folder", where=text, hint="give another one: -o masks"
            )
        return path, sorted(file for _, file in walk_images(Path(path)) if not _is_below(file, output))
    if listed or os.path.lexists(path):
        return os.path.dirname(path), [path]
    if not glob.has_magic(text):
        raise DataError(
            "no such file or folder", where=text, hint="give image files, folders, or a quoted glob"
        )
    path = re.sub(r"(\*\*/)+", "**/", path)  # each further one would multiply the time
    root = path
    while glob.has_magic(root):
        root = os.path.dirname(root)
    found = (match for match in glob.iglob(path, recursive=True) if os.path.isfile(match))
    images = (
        match for match in found if is_video(match) or os.path.splitext(match)[1].lower() in IMAGE_SUFFIXES
    )
    return root, sorted(match for match in images if root == output or not _is_below(match, output))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def refuse_collisions(jobs: Sequence[Job], files: Callable[[Job], Mapping[str, Path]]) -> None:
    """No output may replace an input or another image's output; a video's frames have their folder to themselves.

    Args:
        files: kind of output -> file, of a job.

    Raises:
        DataError: names the file and who would write it.
    """
    folder = cache(os.path.realpath)

    def place(path: Path) -> str:
        return os.path.join(folder(path.parent), path.name)

    inputs = {real for job in jobs for real in (place(job.image), os.path.realpath(job.image))}
    writers: dict[str, Job] = {}
    for job in jobs:
        targets = {kind: place(path) for kind, path in files(job).items()}
        for kind, target in targets.items():
            if target in inputs:
                raise DataError(
                    f"the {kind} of {job} would replace an image",
                    where=target,
                    hint="give another folder: -o masks",
                )
            other = writers.setdefault(target, job)
            if other is not job:
                raise DataError(
                    f"two images would write this file: {other} and {job}",
                    where=target,
                    hint="rename one of them, or segment them into two folders",
                )
    frames = {place(job.frames): job for job in jobs if job.is_video}
    for target, job in writers.items() if frames else ():
        video = frames.get(os.path.dirname(target))
        if video is not None and video is not job:
            raise DataError(
                f"{job} would write into the folder of the frames of {video}",
                where=target,
                hint="rename one of them, or segment them into two folders",
            )


def _with_references(jobs: Sequence[Job], folder: Path, *, output: Path) -> list[Job]:
    """Each job with its reference: the PNG at its mask's place below `folder`, else the one of its stem in there."""
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), hint="--reference takes a folder of masks")
    by_stem: dict[str, list[Path]] = {}
    for path in (Path(path) for _, path in walk_images(folder)):
        if path.suffix.lower() == ".png":
            by_stem.setdefault(path.stem, []).append(path)

    def reference(job: Job) -> Path:
        if job.is_video:
            return folder / job.frames.relative_to(output)
        own = folder / job.mask.relative_to(output)
        candidates = by_stem.get(job.image.stem, [])
        return own if own.is_file() or len(candidates) != 1 else candidates[0]

    return [replace(job, reference=reference(job)) for job in jobs]


# -------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Read:
    """One image as a reader hands it over."""

    job: Job
    image: Pixels
    """At the network's size."""
    size: tuple[int, int]
    """Height and width of the file, upright."""
    full: Pixels | None
    """At that size, where an output wants it."""
    reference: Pixels | None

    @property
    def identity(self) -> str:
        """What seeds its noise: the file's stem, in whatever folder; the frames of a video share theirs."""
        return self.job.image.stem

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return self.image.nbytes + (0 if self.full is None or self.full is self.image else self.full.nbytes)


Failure = tuple[Job, DiffError]
"""A job that could not be done, and why."""


@dataclass(frozen=True)
class Reader:
    """How images are read: the size that the network sees (None: each image's own), and what else is kept."""

    size: Size | None
    classes: int
    keep: bool
    """Whether outputs want the image itself."""

    def images(self, jobs: Sequence[Job]) -> Iterator[Read | Failure]:
        """The images of the jobs in order, read by threads while the model works; memory does not grow with them."""
        with ThreadPoolExecutor(READERS) as pool:
            waiting: deque[Future[Read | Failure]] = deque()
            largest = READ_AHEAD_BYTES // READERS
            for job in jobs:
                waiting.append(pool.submit(self._image, job))
                while len(waiting) >= READ_AHEAD or len(waiting) * largest > READ_AHEAD_BYTES:
                    item = waiting.popleft().result()
                    largest = item.nbytes if isinstance(item, Read) else 0
                    yield item
                    del item
            while waiting:
                yield waiting.popleft().result()

    def _image(self, job: Job) -> Read | Failure:
        try:
            return self._read(job, read_image(job.image))
        except DiffError as error:
            return job, error
        except Exception as error:  # decoders raise nearly anything; one file must not cost the others
            return job, DataError(f"cannot be read: {error}", where=str(job.image))

    def _read(self, job: Job, image: Pixels) -> Read:
        reference = None if job.reference is None else read_reference(job.reference, classes=self.classes)
        seen = at_network_size(image, self.size)
        size = (image.shape[0], image.shape[1])
        return Read(job, seen, size, image if self.keep else None, reference)

    def frames(self, job: Job, video: Video) -> Iterator[Read | Failure]:
        """The frames of an open video in order, decoded by a thread while the model works."""

        def next_frame() -> Read | Failure | None:
            number, image = video.decoded, video.next_frame()
            if image is None:
                return None
            own = job.of_frame(number)
            try:
                return self._read(own, image)
            except DiffError as error:
                return own, error

        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(next_frame) for _ in range(FRAMES_AHEAD))
            while (frame := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next_frame))
                yield frame


def read_reference(path: Path, *, classes: int) -> Pixels:
    """Train ids (H,W) of a reference mask.

    Raises:
        DataError: unreadable, a colour image, or values that are no train ids.
    """
    pixels = read_pixels(path)
    if pixels.ndim != 2:
        raise DataError("a reference is a mask of train ids, this is a colour image", where=str(path))
    outside = np.setdiff1d(pixels, [*range(classes), IGNORE_ID])
    if outside.size:
        raise DataError(
            f"reference values that are no train ids: {', '.join(map(str, outside[:12]))}",
            where=str(path),
            hint=f"a reference holds 0..{classes - 1} and {IGNORE_ID}, as diff predict writes it",
        )
    return pixels.astype(np.uint8)
