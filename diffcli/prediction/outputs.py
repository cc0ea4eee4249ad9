"""What `diff predict` can write of an image: kinds, file names, and how each file is made. Arrays in, files out."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_ID_OF_TRAIN_ID
from diffcli.drawing.figures import score_picture
from diffcli.drawing.pictures import Pixels, blend, mask_image, with_legend
from diffcli.errors import ConfigError, DiffError
from diffcli.files import write_atomically, write_text
from diffcli.prediction.coco import annotations, require_pycocotools
from diffcli.prediction.inputs import Job, Read
from diffcli.prediction.planes import Plane, Planes

SUFFIXES: Mapping[str, str] = {
    "mask": ".png",
    "label-ids": "_label_ids.png",
    "color": "_color.png",
    "overlay": "_overlay.jpg",
    "confidence": "_confidence.png",
    "confidence-map": "_confidence_map.jpg",
    "uncertainty": "_uncertainty.png",
    "stats": "_stats.json",
    "rle": "_rle.json",
}
"""Kind of output -> what its file's name has behind the image's stem."""
VIDEO_KIND, HEATMAP_KIND = "video", "heatmap"
KINDS = (*SUFFIXES, VIDEO_KIND)
"""What --write takes."""


@dataclass(frozen=True)
class Outputs:
    """What is written of every image, frame and video.

    Args:
        kinds: of SUFFIXES, of an image.
        frames: of SUFFIXES, of a frame of a video.
        classes: names by train id.
        palette: colours (256, 3) by train id.
        heatmap: the class whose score is drawn, of images and frames.
        video: write a segmented video of every video.
        legend: put names and shares of the classes under overlays, colour masks and videos.

    Raises:
        ConfigError: label ids are wanted of classes that Cityscapes does not have.
    """

    kinds: tuple[str, ...]
    frames: tuple[str, ...]
    classes: tuple[str, ...]
    palette: Pixels
    heatmap: str | None = None
    video: bool = False
    legend: bool = True

    def __post_init__(self) -> None:
        if "label-ids" in (*self.kinds, *self.frames):
            label_ids(self.classes)
        if "rle" in (*self.kinds, *self.frames):
            require_pycocotools()

    @property
    def writes_frames(self) -> bool:
        """Whether files are written of every frame of a video."""
        return bool(self.frames) or self.heatmap is not None

    @property
    def wants_image(self) -> bool:
        """Whether an output shows the image itself."""
        shown = not {"overlay", "confidence-map"}.isdisjoint((*self.kinds, *self.frames))
        return shown or self.heatmap is not None or self.video

    @property
    def wants_confidence(self) -> bool:
        """Whether an output needs `Planes.confidence`."""
        return not {"confidence", "confidence-map", "stats"}.isdisjoint((*self.kinds, *self.frames))

    @property
    def score_of(self) -> int | None:
        """Train id of the class whose score is wanted."""
        return None if self.heatmap is None else self.classes.index(self.heatmap)

    def files(self, job: Job) -> dict[str, Path]:
        """Kind -> file of an image or a frame; of a whole video, the segmented video."""
        stem = job.mask.name.removesuffix(".png")
        if job.is_video:
            return {VIDEO_KIND: job.mask.with_name(f"{stem}_segmented.mp4")} if self.video else {}
        kinds = self.kinds if job.frame is None else self.frames
        found = {kind: job.mask.with_name(stem + SUFFIXES[kind]) for kind in kinds}
        if self.heatmap is not None:
            word = re.sub(r"[^\w-]", "_", self.heatmap)
            found[HEATMAP_KIND] = job.mask.with_name(f"{stem}_{word}_heatmap.png")
        return found

    def write(self, read: Read, planes: Planes) -> dict[str, Path]:
        """Write every file of an image, each whole or not at all; kind -> file.

        Raises:
            DiffError: one cannot be written.
        """
        files = self.files(read.job)
        for kind, path in files.items():
            try:
                self._write(kind, path, read, planes)
            except OSError as error:
                raise DiffError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
        return files

    def _write(self, kind: str, path: Path, read: Read, planes: Planes) -> None:
        match kind:
            case "stats":
                write_text(path, json.dumps(self._stats(read, planes), indent=2) + "\n")
            case "rle":
                found = annotations(planes.mask, classes=self.classes, image_id=read.job.mask.stem)
                write_text(path, json.dumps(found) + "\n")
            case _:
                with write_atomically(path) as temporary:  # quality is for JPEG; PNG knows none
                    self._picture(kind, read, planes).save(temporary, quality=90)

    def _picture(self, kind: str, read: Read, planes: Planes) -> Image.Image:
        mask, image = planes.mask, read.full
        match kind:
            case "mask":
                return mask_image(mask, self.palette)
            case "label-ids":
                return Image.fromarray(label_ids(self.classes)[mask])
            case "color":
                return self.shown(self.palette[mask], mask)
            case "overlay":
                assert image is not None
                return self.shown(blend(image, mask, self.palette), mask)
            case "confidence-map":
                assert image is not None
                assert planes.confidence is not None
                return score_picture(image, planes.confidence, name="confidence")
            case "confidence":
                assert planes.confidence is not None
                return grey(planes.confidence)
            case "uncertainty":
                assert planes.uncertainty is not None
                return grey(np.sqrt(planes.uncertainty))  # most of it is near 0, and would be black
            case _:
                assert kind == HEATMAP_KIND
                assert image is not None
                assert planes.score is not None
                assert self.heatmap is not None
                return score_picture(image, planes.score, name=self.heatmap)

    def shown(self, picture: Pixels, mask: Pixels, *, is_frame: bool = False) -> Image.Image:
        """A picture (H,W,3) of a mask (H,W), with the legend where one is wanted; frames share one height."""
        if not self.legend:
            return Image.fromarray(picture)
        return with_legend(picture, mask, classes=self.classes, palette=self.palette, every=is_frame)

    def _stats(self, read: Read, planes: Planes) -> dict[str, Any]:
        """Pixels, share and mean confidence of every class that occurs, and means over the image."""
        mask, confidence = planes.mask.ravel(), planes.confidence
        assert confidence is not None
        counts = np.bincount(mask, minlength=len(self.classes))
        sums = np.bincount(mask, weights=confidence.ravel(), minlength=len(self.classes))
        height, width = planes.mask.shape
        stats: dict[str, Any] = {
            "input": str(read.job.image),
            **({} if read.job.frame is None else {"frame": read.job.frame}),
            "width": width,
            "height": height,
            "mean_confidence": round(float(confidence.mean()), 4),
        }
        if planes.uncertainty is not None:
            stats["mean_uncertainty"] = round(float(planes.uncertainty.mean()), 4)
        stats["classes"] = {
            self.classes[i]: {
                "train_id": i,
                "pixels": int(counts[i]),
                "share": round(int(counts[i]) / mask.size, 6),
                "mean_confidence": round(float(sums[i] / counts[i]), 4),
            }
            for i in np.flatnonzero(counts).tolist()
        }
        return stats


def choose_outputs(
    jobs: Sequence[Job],
    *,
    write: str | None,
    overlay: bool,
    heatmap: str | None,
    samples: int,
    classes: tuple[str, ...],
    palette: Pixels,
    legend: bool = True,
) -> Outputs:
    """What is written of images, of frames and of videos.

    Without `write`: a mask of every image, a segmented video of every video. --overlay and --heatmap add to it.

    Raises:
        ConfigError: the options contradict each other or the inputs.
    """
    if not 1 <= samples <= 1000:
        raise ConfigError(
            "--samples takes a number from 1 to 1000", hint="the average of 1000 draws is known to within 3 %"
        )
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
        legend=legend,
    )


def parse_kinds(text: str) -> tuple[str, ...]:
    """The kinds of a comma list, each once, in the order of KINDS.

    Raises:
        ConfigError: one is unknown; says which may be meant.
    """
    words = [word.strip().lower().replace("_", "-") for word in text.split(",") if word.strip()]
    words = ["color" if word == "colour" else word for word in words]
    for word in words:
        if word not in KINDS:
            close = difflib.get_close_matches(word, KINDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"kinds: {', '.join(KINDS)}"
            raise ConfigError(f"--write knows no {word!r}", hint=hint)
    if not words:
        raise ConfigError("--write names nothing", hint=f"kinds: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in words)


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


def label_ids(classes: Sequence[str]) -> Pixels:
    """Cityscapes' label id of each train id, (256,) uint8; what is no class is 0, unlabeled.

    Raises:
        ConfigError: Cityscapes has no such class.
    """
    strange = [name for name in classes if name not in CITYSCAPES_CLASSES]
    if strange:
        raise ConfigError(
            f"Cityscapes has no label id for {', '.join(strange)}",
            hint="--write mask holds the model's train ids",
        )
    table = np.zeros(256, dtype=np.uint8)
    for train_id, name in enumerate(classes):
        table[train_id] = CITYSCAPES_ID_OF_TRAIN_ID[CITYSCAPES_CLASSES.index(name)]
    return table


def grey(plane: Plane) -> Image.Image:
    """Values 0..1 as an 8-bit grey picture: 255 is 1."""
    return Image.fromarray(np.asarray(plane.clip(0, 1) * np.float32(255) + np.float32(0.5), dtype=np.uint8))
