"""Exported networks: what lies in their folder, and how they run without PyTorch.

A folder holds three networks (`encoder`, `step`, `decoder`), the noise they were checked under, and `export.json`,
which says all that is needed to run them. The loop over the schedule's steps is `ExportedModel.logits`: a few lines, to
be written again wherever the networks are to run (README.md of the folder shows them).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from diffcli.config.size import Size
from diffcli.drawing.pictures import Pixels
from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.prediction.inputs import Read
from diffcli.prediction.outputs import Planes, Scores
from diffcli.runs.exported import EXPORT_FACTS

NOISE = "noise.npy"
ENCODER, STEP, DECODER = "encoder", "step", "decoder"
MEAN = SCALE = 127.5
"""(pixel - MEAN) / SCALE is what the networks see."""

Floats = NDArray[np.float32]
Network = Callable[..., list[Floats]]
"""Arrays in the order of its inputs to arrays in the order of its outputs."""
Kind = Literal["onnx", "pt2"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ClassFacts(_Facts):
    train_id: int
    name: str
    color: tuple[int, int, int]


class InputFacts(_Facts):
    width: int
    height: int
    multiple: int
    largest_batch: int


class NoiseFacts(_Facts):
    encoder_draws: int
    draws: int


class LoopFacts(_Facts):
    evaluated_steps: int
    save_steps: tuple[int, ...]


class ExportFacts(_Facts):
    """What the runner reads of `export.json`; there is more in it for people."""

    kind: Kind
    networks: dict[str, str]
    """encoder, step, decoder -> file; without step where the features are the VAE latent alone."""
    classes: tuple[ClassFacts, ...]
    input: InputFacts
    noise: NoiseFacts
    schedule: LoopFacts

    @property
    def size(self) -> Size:
        """What images are resized to."""
        return Size(self.input.width, self.input.height)

    @property
    def palette(self) -> Pixels:
        """Colours (256, 3) of the train ids; what is no class is black."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        for entry in self.classes:
            palette[entry.train_id] = entry.color
        return palette


class ExportedModel:
    """Images to logits by exported networks; the same results as `SegmentationModel.logits` under the same noise.

    Args:
        facts: what they are.
        networks: encoder, step and decoder.
        noise: D,4,h,w, the draws for images that come without noise of their own (method section 1.1).
    """

    def __init__(self, facts: ExportFacts, *, networks: Mapping[str, Network], noise: Floats) -> None:
        self.facts = facts
        self.networks = networks
        self.noise = noise

    def logits(self, images: Floats, noise: Floats | None = None) -> Floats:
        """B,3,H,W images in [-1,1] of the exported size to B,classes,H,W logits.

        Args:
            noise: B,D,4,h,w; None takes the stored noise for every image.
        """
        facts, (height, width) = self.facts, images.shape[-2:]
        multiple = facts.input.multiple
        padded = np.pad(images, ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)))
        if noise is None:
            noise = np.broadcast_to(self.noise, (len(images), *self.noise.shape))
        first = facts.noise.encoder_draws
        (latent,) = self.networks[ENCODER](padded, *([noise[:, :first]] if first else []))
        kept: dict[int, list[Floats]] = {}
        for index in range(facts.schedule.evaluated_steps):
            latent, *maps = self.networks[STEP](latent, noise[:, first + index], np.array(index))
            if index in facts.schedule.save_steps:
                kept[index] = maps
        saved = [kept[index] for index in facts.schedule.save_steps if kept]
        stacks = [np.concatenate(maps, axis=1) for maps in zip(*saved, strict=True)] or [latent]
        (logits,) = self.networks[DECODER](*stacks)
        return logits[..., :height, :width]


def open_exported(path: Path, *, device: str | None = None) -> ExportedModel:
    """The networks of a folder that `diff export --format onnx|pt2` wrote, or of the folder that a file lies in.

    PyTorch is imported for pt2 only.

    Args:
        device: auto, cpu or cuda; None takes auto.

    Raises:
        CheckpointError: no such export, or a damaged one.
        ConfigError: the device is not there.
        DiffError: the runtime is not installed.
    """
    folder = path if path.is_dir() else path.parent
    facts = read_facts(path)
    noise = _read_noise(folder / NOISE)
    match facts.kind:
        case "onnx":
            networks = _onnx_networks(folder, facts.networks, device=device)
        case "pt2":
            from diffcli.export.programs import load_programs

            networks = load_programs(folder, facts.networks, device=device)
    return ExportedModel(facts, networks=networks, noise=noise)


def read_facts(path: Path) -> ExportFacts:
    """What `export.json` says, of a folder or beside a file of it.

    Raises:
        CheckpointError: there is none, it is damaged, or of a folder for diffcli itself.
    """
    if not path.exists():
        raise CheckpointError("no such export", where=str(path), hint="diff export RUN -o DIR --format onnx")
    file = (path if path.is_dir() else path.parent) / EXPORT_FACTS
    if not file.is_file():
        raise CheckpointError(
            f"there is no {EXPORT_FACTS} here" if path.is_dir() else f"there is no {EXPORT_FACTS} beside it",
            where=str(path),
            hint="--model takes a folder that `diff export RUN -o DIR --format onnx` wrote, or a file in it",
        )
    try:
        text = file.read_text(encoding="utf-8")
        if '"networks"' not in text and '"base_model"' in text:
            raise CheckpointError("an export for diffcli itself", where=str(path), hint=f"--run {path}")
        return ExportFacts.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "JSON"
        raise CheckpointError(
            f"it is damaged: {what}: {first['msg']}", where=str(file), hint="export the run again"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(file)) from error


def _read_noise(file: Path) -> Floats:
    try:
        return np.asarray(np.load(file), dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError("missing or damaged", where=str(file), hint="export the run again") from error


def need(*packages: str) -> None:
    """Packages of the `onnx` extra are installed.

    Raises:
        DiffError: one is not; says how to install it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise DiffError(
            f"ONNX needs {' and '.join(missing)}, not installed here", hint="pip install 'diffcli[onnx]'"
        )


def _onnx_networks(folder: Path, files: Mapping[str, str], *, device: str | None) -> dict[str, Network]:
    need("onnxruntime")
    import onnxruntime

    there = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
    if device == "cpu":
        providers = ["CPUExecutionProvider"]
    elif device not in (None, "auto") and not (device == "cuda" and len(providers) == 2):
        raise ConfigError(
            f"onnxruntime has no {device} here", hint="--device cpu; cuda needs the package onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads := os.environ.get("OMP_NUM_THREADS"):  # which PyTorch obeys, too
        options.intra_op_num_threads = int(threads)

    def load(file: Path) -> Network:
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # onnxruntime has an exception of its own for every way to be damaged
            raise _damaged(file, error) from error
        names = [entry.name for entry in session.get_inputs()]
        return lambda *arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))

    return {part: load(folder / name) for part, name in files.items()}


def _damaged(file: Path, error: Exception) -> CheckpointError:
    if not file.is_file():
        return CheckpointError("this part of the export is missing", where=str(file))
    words = " ".join(str(error).split())
    return CheckpointError(
        f"cannot be loaded: {words[:160]}", where=str(file), hint="the file is damaged: export the run again"
    )


# ---------------------------------------------------------------------------------------------- predicting


class ExportedPredictor:
    """Images to masks, and what else the outputs need: what `diff predict` runs (`commands.predict.Model`).

    Args:
        model: the networks.
        batch: images a call.
        confidence: give `Planes.confidence`.
        score_of: give `Planes.score` of this class.
    """

    def __init__(
        self, model: ExportedModel, *, batch: int = 1, confidence: bool = False, score_of: int | None = None
    ) -> None:
        self.model, self.batch_size = model, min(batch, model.facts.input.largest_batch)
        self.confidence, self.score_of = confidence, score_of

    def predict(self, reads: Sequence[Read]) -> Iterator[Planes]:
        """What the model makes of images of the exported size, in order, each at its file's size.

        Raises:
            DiffError: the output is not finite, or the runtime failed.
        """
        for start in range(0, len(reads), self.batch_size):
            batch = reads[start : start + self.batch_size]
            images = to_model_range([read.image for read in batch])
            try:
                logits = self.model.logits(images)
            except Exception as error:  # whatever a runtime raises, foremost where memory does not suffice
                words = " ".join(str(error).split())
                raise DiffError(f"the networks failed: {words[:160]}", where=batch[0].identity) from error
            if not np.isfinite(logits).all():
                raise DiffError("the networks' output is not finite", where=batch[0].identity)
            for read, output in zip(batch, logits, strict=True):
                yield self._finish(output, read.size)

    def _finish(self, logits: Floats, size: tuple[int, int]) -> Planes:
        """classes,h,w logits to planes of `size` (H,W), one class after the other."""
        ids, best = np.zeros(size, dtype=np.uint8), np.full(size, -np.inf, dtype=np.float32)
        for train_id, plane in enumerate(logits):
            full = resize(plane, size)
            ids[full > best] = train_id
            np.maximum(best, full, out=best)
        confidence = score = None
        if self.confidence or self.score_of is not None:
            powers = np.exp(logits - logits.max(axis=0))
            probabilities = powers / powers.sum(axis=0)
            if self.score_of is not None:
                score = resize(probabilities[self.score_of], size)
            if self.confidence:
                confidence = np.zeros(size, dtype=np.float32)
                for train_id in np.unique(ids).tolist():
                    chosen = ids == train_id
                    confidence[chosen] = resize(probabilities[train_id], size)[chosen]
        return Planes(ids, confidence=confidence, score=score)


def to_model_range(images: Sequence[Pixels]) -> Floats:
    """H,W,3 uint8 images to B,3,H,W float32 in [-1,1]."""
    return np.ascontiguousarray((np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) - MEAN) / SCALE)


def resize(plane: Floats, size: tuple[int, int]) -> Scores:
    """An h,w plane at `size` (H,W), bilinearly between pixel centres."""
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def describe(kind: Kind, **facts: Any) -> dict[str, Any]:
    """The facts that are told, checked to be what the runner reads."""
    told = {"kind": kind, **facts}
    ExportFacts.model_validate(told)
    return told
