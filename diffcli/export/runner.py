"""Exported networks: what their folder holds, and how they run without PyTorch.

A folder holds three networks (`encoder`, `step`, `decoder`), the noise they were checked under, and `export.json`,
which says all that is needed to run them. The loop over the schedule's steps is `ExportedNetwork.logits`: a few lines,
to be written again wherever the networks are to run (README.md of the folder shows them).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from json import JSONDecodeError
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from diffcli.config.settings import EvalConfig
from diffcli.data.images import PIXEL_MEAN, PIXEL_SCALE
from diffcli.drawing.pictures import Pixels
from diffcli.errors import CheckpointError, ConfigError, DiffError
from diffcli.export.facts import SCHEMA_VERSION, NetworkFacts
from diffcli.prediction.planes import NumpyArrays
from diffcli.prediction.segmenter import Maps
from diffcli.runs.exported import EXPORT_FACTS, check_files

NOISE = "noise.npy"
ENCODER, STEP, DECODER = "encoder", "step", "decoder"

Floats = NDArray[np.float32]
RunPart = Callable[..., list[Floats]]
"""Arrays in the order of its inputs to arrays in the order of its outputs."""


class ExportedNetwork:
    """Images to logits by exported networks: the same results as `SegmentationModel.logits` under the same noise.

    This is a `diffcli.prediction.segmenter.Network` of one fixed size, without references; its noise is stored, so that
    identities do not matter.

    Args:
        facts: what they are.
        networks: encoder, step and decoder.
        noise: D,4,h,w, the draws for images that come without noise (method section 1.1).
    """

    arrays = NumpyArrays()
    multiple = 0
    gives_probabilities = False

    def __init__(self, facts: NetworkFacts, *, networks: Mapping[str, RunPart], noise: Floats) -> None:
        self.facts = facts
        self.networks = networks
        self.noise = noise
        self.classes = len(facts.classes)
        self.evaluations = 0

    @property
    def device(self) -> str:
        """The runtime, for messages."""
        return {"onnx": "onnxruntime", "pt2": "torch.export"}[self.facts.kind]

    def batch_for(self, pixels: int) -> int:
        """1: a runtime does not say that its memory ran out in a way that could be answered by a smaller batch."""
        return 1

    def maps(
        self,
        images: Sequence[Pixels],
        *,
        identities: Sequence[str],
        references: Sequence[Pixels | None] | None,
        origin: tuple[int, int] | None,
    ) -> Maps:
        """Logits of images (h,w,3) of the exported size, at most `largest_batch` a call.

        Raises:
            DiffError: references are given, the output is not finite, or the runtime failed.
        """
        if references is not None or origin is not None:
            raise DiffError("exported networks take whole images without references", where=identities[0])
        largest = self.facts.input.largest_batch
        batches = (images[start : start + largest] for start in range(0, len(images), largest))
        try:
            output = np.concatenate([self.logits(to_model_range(batch)) for batch in batches])
        except Exception as error:  # every runtime has different exceptions, most often for too little memory
            words = " ".join(str(error).split())
            raise DiffError(f"the networks failed: {words[:160]}", where=identities[0]) from error
        self.evaluations += len(images) * self.facts.schedule.evaluated_steps
        if not np.isfinite(output).all():
            raise DiffError("the networks' output is not finite", where=identities[0])
        return Maps(output)

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


def open_exported(path: Path, *, device: str | None = None) -> ExportedNetwork:
    """The networks of a folder that `diff export --format onnx|pt2` wrote, or of the folder that holds a file.

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
    check_files(folder, facts.checksums)
    noise = _read_noise(folder / NOISE)
    match facts.kind:
        case "onnx":
            networks = _onnx_networks(folder, facts.networks, device=device)
        case "pt2":
            from diffcli.export.programs import load_programs

            networks = load_programs(folder, facts.networks, device=device)
    return ExportedNetwork(facts, networks=networks, noise=noise)


class ExportSource:
    """Exported networks as `diffcli.prediction.segmenter.Source`: their folder, or a file in it.

    Raises:
        CheckpointError: no such export, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        facts = read_facts(path)
        self.path, self.palette = path, facts.palette
        self.description = f"{path} ({facts.kind})"
        self.classes = tuple(entry.name for entry in facts.classes)
        self.settings = EvalConfig(size=facts.size)
        """One plain pass of each image at the exported size."""

    def load(self, *, device: str | None, samples: int = 1, images: int = 0) -> ExportedNetwork:
        """The networks. Raises: see `open_exported`."""
        assert samples == 1, "the noise is stored"
        return open_exported(self.path, device=device)


def is_export(path: Path) -> bool:
    """Whether this is a folder of exported networks, or a network file in one."""
    file = (path if path.is_dir() else path.parent) / EXPORT_FACTS
    try:
        return path.suffix != ".safetensors" and '"networks"' in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def read_facts(path: Path) -> NetworkFacts:
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
        version = json.loads(text).get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise CheckpointError(
                f"schema version {version}, and this diffcli reads {SCHEMA_VERSION}",
                where=str(file),
                hint="it is of another release: upgrade diffcli, or export the run again",
            )
        return NetworkFacts.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "JSON"
        raise CheckpointError(
            f"it is damaged: {what}: {first['msg']}", where=str(file), hint="export the run again"
        ) from error
    except (AttributeError, JSONDecodeError) as error:
        raise CheckpointError(
            f"it is damaged: {error}", where=str(file), hint="export the run again"
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


def _onnx_networks(folder: Path, files: Mapping[str, str], *, device: str | None) -> dict[str, RunPart]:
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

    def load(file: Path) -> RunPart:
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # onnxruntime has a different exception for every kind of damage
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


def to_model_range(images: Sequence[Pixels]) -> Floats:
    """H,W,3 uint8 images to B,3,H,W float32 in [-1,1].

    `diffcli.core.model.to_model_range` does this on the device for a trained run; this one runs without PyTorch.
    """
    pixels = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray((pixels - PIXEL_MEAN) / PIXEL_SCALE)
