"""`diff predict`: images to masks. Files, folders and globs in; palette PNGs of train ids in the same tree out."""

import difflib
import glob
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcli import console, distributed
from diffcli.config import EvalConfig
from diffcli.core.model import SegmentationModel
from diffcli.data.images import read_image
from diffcli.data.labels import read_pixels
from diffcli.data.listing import IMAGE_SUFFIXES, walk_images
from diffcli.domains import IGNORE_ID
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.figures import score_picture
from diffcli.files import write_atomically
from diffcli.inference import OpenRun, network_image, open_run, score_images, segment_images
from diffcli.pictures import Pixels, blend, class_palette, mask_image

READERS, READ_AHEAD = 2, 8
"""Threads that read images, and how many they read before they are wanted; decoding releases Python's lock."""
OVERLAY_SUFFIX = "_overlay.jpg"


def run(
    images: Sequence[str],
    *,
    run: Path,
    output: Path,
    overlay: bool = False,
    heatmap: str | None = None,
    reference: Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    json: bool = False,
) -> None:
    """Write a mask for every image below `output`, in the tree of the images.

    The noise is seeded by the file's stem: an image has the same mask wherever it lies and whatever lies beside it.

    Args:
        images: files, folders (with their sub-folders) and globs.
        run: a run folder, an exported folder or a checkpoint file.
        overlay: also write <stem>_overlay.jpg, the colours laid over the image.
        heatmap: also write <stem>_<class>_heatmap.png, the softmax score of this class over the image.
        reference: folder of masks (train ids, same stems) that turn the conditional branch on.
        device: auto, cpu, cuda, cuda:1 or mps; None takes auto.
        overrides: "eval.size=512x256" and the like.
        json: print what was written as JSON on stdout.

    Raises:
        DataError: no images; or, after all else is done, some could not be read.
        DiffError: see `open_run`, `OpenRun.load_model` and `segment_images`.
    """
    jobs = plan(images, output=output, references=reference)
    trained = open_run(run, overrides=overrides)
    if heatmap is not None:
        heatmap = known_class(heatmap, trained.config.model.classes)
        _refuse_heatmaps(jobs, name=heatmap)
    settings = _settings(trained, reference)
    model = trained.load_model(device=device)
    replaced = sum(job.mask.exists() for job in jobs)
    distributed.require_same(jobs, what="images")  # and nothing is written before every process has looked
    own = distributed.share(jobs, chunk=settings.batch_size)
    shares = distributed.gather(lambda: segment_files(model, own, settings, overlay=overlay, heatmap=heatmap))
    outcome = _merged(shares, jobs)
    count = len(outcome.written)
    note = f" ({replaced} files there were replaced)" if replaced else ""
    console.say(f"{count} {'mask' if count == 1 else 'masks'} in {output}{note}")
    if json:
        console.print_json(_report(outcome, run=run, output=output, overlay=overlay, heatmap=heatmap))
    distributed.barrier()
    if outcome.failed:
        raise _failure(outcome, count=len(jobs))


# ------------------------------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class Job:
    """One image and where its mask goes."""

    image: Path
    mask: Path
    reference: Path | None = None

    @property
    def overlay(self) -> Path:
        """Where its overlay goes."""
        return self.mask.with_name(self.mask.stem + OVERLAY_SUFFIX)

    def heatmap(self, name: str) -> Path:
        """Where the heat map of class `name` goes."""
        word = re.sub(r"[^\w-]", "_", name)
        return self.mask.with_name(f"{self.mask.stem}_{word}_heatmap.png")


def plan(inputs: Sequence[str], *, output: Path, references: Path | None = None) -> list[Job]:
    """Every image once, in order, with its mask below `output` at its place below the inputs' common folder.

    Two images of one stem in one folder keep their suffixes (a.jpg.png, a.png.png). What lies below `output` is no
    input, unless it is named itself.

    Raises:
        DataError: an input is missing, nothing is found, or a mask would replace an image.
    """
    if output.exists() and not output.is_dir():
        raise DataError("the output is a file", where=str(output), hint="give a folder: -o masks")
    found = [_found(text, output=os.path.abspath(output)) for text in inputs]
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
    _refuse_overwriting(jobs)
    return jobs if references is None else _with_references(jobs, references, output=output)


def _found(text: str, *, output: str) -> tuple[str, list[str]]:
    """(the folder below which the tree is kept, images) of one input, all absolute and sorted."""
    path = os.path.abspath(os.path.expanduser(text))
    if os.path.isdir(path):
        if path == output:
            raise DataError(
                "images and masks would share this folder", where=text, hint="give another one: -o masks"
            )
        return path, sorted(file for _, file in walk_images(Path(path)) if not _is_below(file, output))
    if os.path.lexists(path):
        return os.path.dirname(path), [path]
    if not glob.has_magic(text):
        raise DataError(
            "no such file or folder", where=text, hint="give image files, folders, or a quoted glob"
        )
    root = path
    while glob.has_magic(root):
        root = os.path.dirname(root)
    found = (match for match in glob.iglob(path, recursive=True) if os.path.isfile(match))
    images = (match for match in found if os.path.splitext(match)[1].lower() in IMAGE_SUFFIXES)
    return root, sorted(match for match in images if root == output or not _is_below(match, output))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _refuse_overwriting(jobs: Sequence[Job]) -> None:
    images = {os.path.realpath(job.image) for job in jobs}
    masks = Counter(os.path.realpath(job.mask) for job in jobs)
    for job in jobs:
        mask = os.path.realpath(job.mask)
        if mask in images:
            raise DataError(
                "the mask would replace an image", where=str(job.mask), hint="give another folder: -o masks"
            )
        if masks[mask] > 1:
            raise DataError(
                "two images would write this mask", where=str(job.mask), hint="rename one of them"
            )


def _refuse_heatmaps(jobs: Sequence[Job], *, name: str) -> None:
    """No heat map may replace an image or another image's mask."""
    taken = {os.path.realpath(path) for job in jobs for path in (job.image, job.mask)}
    for job in jobs:
        if os.path.realpath(job.heatmap(name)) in taken:
            raise DataError(
                "the heat map would replace an image or a mask",
                where=str(job.heatmap(name)),
                hint="rename the image, or give another folder: -o masks",
            )


def known_class(word: str, classes: Sequence[str]) -> str:
    """The class that `word` names; case, _ and - do not matter.

    Raises:
        ConfigError: there is none; says which may be meant.
    """

    def plain(name: str) -> str:
        return name.lower().replace("_", " ").replace("-", " ")

    for name in classes:
        if plain(name) == plain(word):
            return name
    close = difflib.get_close_matches(plain(word), classes, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"classes: {', '.join(classes)}"
    raise ConfigError(f"this model has no class {word!r}", hint=hint)


def _with_references(jobs: Sequence[Job], folder: Path, *, output: Path) -> list[Job]:
    """Each job with its reference: the PNG at its mask's place below `folder`, else the one of its stem in there."""
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), hint="--reference takes a folder of masks")
    by_stem: dict[str, list[Path]] = {}
    for path in (Path(path) for _, path in walk_images(folder)):
        if path.suffix.lower() == ".png":
            by_stem.setdefault(path.stem, []).append(path)

    def reference(job: Job) -> Path:
        own = folder / job.mask.relative_to(output)
        candidates = by_stem.get(job.image.stem, [])
        return own if own.is_file() or len(candidates) != 1 else candidates[0]

    return [replace(job, reference=reference(job)) for job in jobs]


def _settings(trained: OpenRun, references: Path | None) -> EvalConfig:
    """The run's eval settings, checked against what predict can know."""
    settings = trained.config.eval
    if references is not None and settings.reference == "prediction":
        raise ConfigError(
            "--reference and eval.reference=prediction contradict each other", hint="drop one of the two"
        )
    if references is None and settings.reference == "labels":
        raise ConfigError(
            "eval.reference is labels, but images to predict have none",
            where=str(trained.path),
            hint="--reference DIR gives masks; --set eval.reference=none (or prediction) does without",
        )
    return settings


# ----------------------------------------------------------------------------------------------- segmenting


Failure = tuple[Job, DiffError]
"""A job that could not be done, and why."""


@dataclass
class Outcome:
    """What became of the images."""

    written: list[Job] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Say at once which images are skipped, and keep them."""
        for failure in failures:
            console.warn(f"skipped {_first_line(failure)}")
            self.failed.append(failure)


@dataclass(frozen=True)
class _Read:
    """One image as a reader hands it over."""

    job: Job
    image: Pixels
    """At the network's size."""
    size: tuple[int, int]
    """Height and width of the file, upright."""
    full: Pixels | None
    """At that size, where an overlay or a heat map wants it."""
    reference: Pixels | None


def _merged(shares: Sequence[Outcome], jobs: Sequence[Job]) -> Outcome:
    """The processes' outcomes as one, in the order of the jobs."""
    place = {job: i for i, job in enumerate(jobs)}
    written = [job for share in shares for job in share.written]
    failed = [failure for share in shares for failure in share.failed]
    return Outcome(
        written=sorted(written, key=place.__getitem__),
        failed=sorted(failed, key=lambda failure: place[failure[0]]),
        seconds=max(share.seconds for share in shares),
    )


def segment_files(
    model: SegmentationModel,
    jobs: Sequence[Job],
    settings: EvalConfig,
    *,
    overlay: bool = False,
    heatmap: str | None = None,
) -> Outcome:
    """Segment and write every image; one that cannot be read or segmented is named, skipped and kept in `failed`.

    Args:
        overlay: write the overlays as well.
        heatmap: write heat maps of this class as well.

    Raises:
        DiffError: the first images already cannot be segmented, or a mask cannot be written.
    """
    outcome, started = Outcome(), time.monotonic()
    palette, keep = class_palette(model.config), overlay or heatmap is not None
    train_id = None if heatmap is None else model.config.classes.index(heatmap)

    def read(job: Job) -> _Read | Failure:
        try:
            return _read(job, settings, classes=len(model.config.classes), keep=keep)
        except DiffError as error:
            return job, error
        except Exception as error:  # decoders raise nearly anything; one file must not cost the others
            return job, DataError(f"cannot be read: {error}", where=str(job.image))

    with console.progress("predict", len(jobs), unit="images") as bar:
        for batch in _batched(_read_ahead(read, jobs), settings.batch_size):
            outcome.add_failures(item for item in batch if not isinstance(item, _Read))
            good = [item for item in batch if isinstance(item, _Read)]
            for _, images in groupby(good, lambda item: item.image.shape):
                same = list(images)
                try:
                    segmented = _segment(model, same, settings, score_of=train_id)
                except DiffError as error:
                    if not outcome.written:
                        raise
                    outcome.add_failures((item.job, error) for item in same)
                    continue
                for item, (mask, score) in zip(same, segmented, strict=True):
                    _write(item.job.mask, mask_image(mask, palette))
                    if overlay and item.full is not None:
                        _write(item.job.overlay, Image.fromarray(blend(item.full, mask, palette)))
                    if heatmap is not None and item.full is not None and score is not None:
                        _write(item.job.heatmap(heatmap), score_picture(item.full, score, name=heatmap))
                    outcome.written.append(item.job)
            bar.update(len(batch))
    outcome.seconds = time.monotonic() - started
    return outcome


def _read(job: Job, settings: EvalConfig, *, classes: int, keep: bool) -> _Read:
    image = read_image(job.image)
    reference = None if job.reference is None else _read_reference(job.reference, classes=classes)
    size = (image.shape[0], image.shape[1])
    return _Read(job, network_image(image, settings.size), size, image if keep else None, reference)


def _read_reference(path: Path, *, classes: int) -> Pixels:
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


def _segment(
    model: SegmentationModel, items: Sequence[_Read], settings: EvalConfig, *, score_of: int | None
) -> list[tuple[Pixels, NDArray[np.float32] | None]]:
    """Masks of images of one network size, each at its file's size; with the scores of class `score_of`, if any."""
    images, sizes = [item.image for item in items], [item.size for item in items]
    names = [item.job.image.stem for item in items]
    references = [item.reference for item in items if item.reference is not None] or None
    if score_of is None:
        masks = segment_images(
            model, images, sizes=sizes, identities=names, config=settings, references=references
        )
        return [(mask.cpu().numpy(), None) for mask in masks]
    scored = score_images(
        model,
        images,
        train_id=score_of,
        sizes=sizes,
        identities=names,
        config=settings,
        references=references,
    )
    return [(mask.cpu().numpy(), score.cpu().numpy()) for mask, score in scored]


def _write(path: Path, picture: Image.Image) -> None:
    """Write a picture; the quality is for JPEG, PNG knows none."""
    with write_atomically(path) as temporary:
        picture.save(temporary, quality=90)


def _read_ahead(read: Callable[[Job], _Read | Failure], jobs: Sequence[Job]) -> Iterator[_Read | Failure]:
    """What `read` makes of the jobs, in order, read by threads while the model works."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[Future[_Read | Failure]] = deque()
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batched(items: Iterator[_Read | Failure], size: int) -> Iterator[list[_Read | Failure]]:
    while batch := list(islice(items, size)):
        yield batch


# ------------------------------------------------------------------------------------------------- telling


def _report(
    outcome: Outcome, *, run: Path, output: Path, overlay: bool, heatmap: str | None
) -> dict[str, Any]:
    """What --json prints."""

    def entry(job: Job) -> dict[str, str]:
        files = {"image": job.image, "mask": job.mask}
        if overlay:
            files["overlay"] = job.overlay
        if heatmap is not None:
            files["heatmap"] = job.heatmap(heatmap)
        return {key: str(path) for key, path in files.items()}

    return {
        "run": str(run),
        "output": str(output),
        "images": [entry(job) for job in outcome.written],
        "failed": [{"image": str(job.image), "error": error.message} for job, error in outcome.failed],
        "seconds": round(outcome.seconds, 2),
    }


def _failure(outcome: Outcome, *, count: int) -> DataError:
    shown = [f"  - {_first_line(failure)}" for failure in outcome.failed[:20]]
    if len(outcome.failed) > len(shown):
        shown.append(f"  - and {len(outcome.failed) - len(shown)} more")
    return DataError(
        "\n".join([f"{len(outcome.failed)} of {count} images have no mask", *shown]),
        hint="mend or take out these files; the others are done",
    )


def _first_line(failure: Failure) -> str:
    """The image and why it failed, without the hint."""
    job, error = failure
    text = str(error).splitlines()[0]
    return text if str(job.image) in text else f"{job.image}: {text}"
