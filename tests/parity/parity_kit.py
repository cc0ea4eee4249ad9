"""A kit of golden arrays as `parity.py` reads it, and the report that it writes."""

import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.config.settings import SCHEDULES, BackboneConfig, CustomSchedule, DecoderConfig, InversionConfig
from diffcli.core.decoder import SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import InversionSchedule, Noise
from diffcli.core.model import to_model_range
from diffcli.runs.published import convert_state

EXACT, FORWARD, GRADIENT, UPDATE, RATE = 0.0, 5e-5, 5e-3, 2e-2, 1e-9
STRIDES = (64, 32, 16, 8)
PRESETS = {"default": "paper", "short": "five", "onestep": "one"}
SHARED = ("schedule.npz", "text.npz")
"""Files that say nothing about one input, and so may come from --weights."""


# --- report -----------------------------------------------------------------------------------------------------


def relative_error(ours: Tensor, theirs: Tensor, *, nan_allowed: bool = False) -> float:
    """max|a - b| / max|b|; infinite where shapes differ or a value is not finite (nan_allowed: on one side only)."""
    a, b = ours.detach().double(), theirs.detach().double()
    if a.shape != b.shape:
        return float("inf")
    if nan_allowed and torch.equal(a.isnan(), b.isnan()):
        a, b = a[~a.isnan()], b[~b.isnan()]
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    if not b.numel():
        return 0.0
    return float((a - b).abs().max() / (b.abs().max() or 1.0))


@dataclass
class Report:
    """What was compared, what was not and why."""

    lines: list[tuple[str, float, float, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def error(self, name: str, error: float, tolerance: float, note: str = "") -> None:
        """Record one comparison by its error."""
        self.lines.append((name, error, tolerance, note))

    def compare(
        self,
        name: str,
        ours: Tensor,
        theirs: Tensor,
        tolerance: float = FORWARD,
        *,
        nan_allowed: bool = False,
    ) -> None:
        """Record one array."""
        note = (
            "" if ours.shape == theirs.shape else f"shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
        )
        self.error(name, relative_error(ours, theirs, nan_allowed=nan_allowed), tolerance, note)

    def compare_each(
        self, name: str, ours: Mapping[str, float], theirs: Mapping[str, float], tolerance: float
    ) -> None:
        """Record many scalars as one line, relative to their size (or 1e-6 of the largest); a missing name fails."""
        missing = [key for key in theirs if key not in ours]
        floor = 1e-6 * max(map(abs, theirs.values()), default=0.0)
        errors = {key: scalar_error(ours[key], theirs[key], floor=floor) for key in theirs if key in ours}
        worst = max(errors, key=errors.__getitem__, default="nothing")
        note = f"{len(errors)} values, worst {worst}"
        if missing:
            note = f"{len(missing)} missing, first {missing[0]}"
        self.error(name, float("inf") if missing else errors.get(worst, float("inf")), tolerance, note)

    def skip(self, name: str, reason: str) -> None:
        """Record what is left out on purpose."""
        self.skipped.append((name, reason))

    @property
    def failures(self) -> list[tuple[str, float, float, str]]:
        """Lines over their tolerance; an error that is not a number is one."""
        return [line for line in self.lines if not line[1] <= line[2]]

    @property
    def passed(self) -> bool:
        """Something was compared and nothing failed."""
        return bool(self.lines) and not self.failures

    def __str__(self) -> str:
        width = max((len(name) for name, *_ in (*self.lines, *self.skipped)), default=0)
        rows = []
        for name, error, tolerance, note in self.lines:
            verdict = "ok" if error <= tolerance else "FAIL"
            rows.append(f"{name:<{width}}  {error:9.1e}  {tolerance:9.1e}  {verdict:<4}  {note}".rstrip())
        rows += [f"{name:<{width}}  not compared: {reason}" for name, reason in self.skipped]
        compared = len(self.lines)
        verdict = "FAIL, nothing could be compared" if not compared else "all within tolerance"
        if self.failures:
            verdict = f"{len(self.failures)} FAIL: {', '.join(name for name, *_ in self.failures[:5])}"
        return "\n".join(
            [*rows, f"{compared} compared, {len(self.skipped)} not compared on purpose: {verdict}"]
        )


def scalar_error(ours: float, theirs: float, *, floor: float = 0.0) -> float:
    """|a - b| relative to |b|, or to `floor` where that is larger; infinite where a value is not finite."""
    if not (isfinite(ours) and isfinite(theirs)):
        return float("inf")
    return abs(ours - theirs) / (max(abs(theirs), floor) or 1.0)


# --- kit --------------------------------------------------------------------------------------------------------


class Arrays(Mapping[str, Tensor]):
    """An npz file as tensors, remembering which were read."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._tensors = {key: torch.from_numpy(np.array(file[key])) for key in file.files}
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Arrays whose names begin with `prefix`, without it."""
        return {key.removeprefix(prefix): self[key] for key in self if key.startswith(prefix)}


class Kit:
    """The files of a kit, and what is built from them once."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folders = (folder, weights)

    @property
    def files(self) -> list[str]:
        """Names of the files to check."""
        own, support = ({path.name for path in folder.iterdir()} for folder in self.folders)
        return sorted(own | (support & set(SHARED)))

    def path(self, pattern: str) -> Path:
        """The first match in the kit, else in the weights' folder."""
        for folder in self.folders:
            for path in sorted(folder.glob(pattern)):
                return path
        raise FileNotFoundError(f"{pattern} is neither in the kit nor in --weights")

    @cache  # noqa: B019 - one kit a process
    def arrays(self, name: str) -> Arrays:
        """An npz file."""
        return Arrays(self.path(name) if name in SHARED else self.folders[0] / name)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file."""
        return dict(json.loads(self.path(name).read_text()))

    @cached_property
    def label_map(self) -> dict[int, str]:
        """Class -> prompt; empty where the kit has no labelled case and brings none."""
        try:
            return {int(key): prompt for key, prompt in self.json("label_map.json").items()}
        except FileNotFoundError:
            return {}

    @cached_property
    def pipeline(self) -> Path:
        """The folder of the diffusion model."""
        return self.path("*/model_index.json").parent

    @cached_property
    def backbone(self) -> DiffusionBackbone:
        """The diffusion model in float32, with every prompt encoded; the published code takes any output for noise."""
        config = BackboneConfig(source=str(self.pipeline), prediction_type="as_epsilon")
        prompts = ("", *self.label_map.values())
        return load_backbone(config, prompts=prompts, device=torch.device("cpu"), dtype=torch.float32)

    @cached_property
    def schedules(self) -> dict[str, CustomSchedule]:
        """Ours under the kit's names, and any that only the kit has."""
        known = {name: SCHEDULES[preset] for name, preset in PRESETS.items()}
        try:
            arrays = self.arrays("schedule.npz")
        except FileNotFoundError:
            return known
        names = [key.removesuffix("_next_t") for key in arrays if key.endswith("_next_t")]
        return {**{name: _schedule(arrays, name) for name in names}, **known}

    def schedule_like(self, fits: Callable[[CustomSchedule], bool]) -> CustomSchedule:
        """The first schedule that fits."""
        for schedule in self.schedules.values():
            if fits(schedule):
                return schedule
        raise ValueError("no known schedule has these steps")

    def schedule_of(self, arrays: Arrays, prefix: str = "") -> CustomSchedule:
        """The schedule of a file: by its timesteps where they are given, else by the number of draws."""
        if "t" in arrays:
            wanted = tuple(arrays["t"].int().tolist())
            return self.schedule_like(lambda s: InversionSchedule.from_config(s).timesteps == wanted)
        steps, one_step = len(arrays[f"{prefix}step_noise"]), f"{prefix}addnoise_noise" in arrays
        return self.schedule_like(lambda s: len(s.timesteps) == steps and s.one_step == one_step)

    def extractor(
        self, schedule: CustomSchedule, stages: Sequence[int] = (1, 2, 3)
    ) -> DiffusionFeatureExtractor:
        """Our extractor on the kit's diffusion model."""
        config = InversionConfig(schedule=schedule, class_prompts=self.label_map)
        return DiffusionFeatureExtractor(self.backbone, config, stages=stages)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The published weights, float32."""
        path = self.path("weights_model.safetensors*")
        data = path.read_bytes()
        state = load(lzma.decompress(data) if path.suffix == ".xz" else data)
        return {key: x.float() if x.is_floating_point() else x for key, x in state.items()}

    @cached_property
    def our_names(self) -> dict[str, str]:
        """Published name -> ours, read off the name map that imports use."""
        numbers = {
            key: torch.full_like(x, i, dtype=torch.float32) for i, (key, x) in enumerate(self.weights.items())
        }
        names = list(self.weights)
        return {names[int(x.flatten()[0])]: ours for ours, x in convert_state(numbers).items()}

    def decoder(self, schedule: CustomSchedule) -> SegmentationDecoder:
        """Our trained part with the kit's weights, without dropout."""
        extractor = self.extractor(schedule)
        state = convert_state(self.weights)
        config = DecoderConfig(
            channels=(
                state["pyramid.up3.deconv.weight"].shape[1],
                *(len(state[f"pyramid.norms.{i}.weight"]) for i in (2, 1, 0)),
            ),
            head_channels=state["head.classifier.weight"].shape[1],
            dropout=0.0,
        )
        decoder = SegmentationDecoder(
            config,
            widths=extractor.stage_widths,
            steps=extractor.steps,
            classes=len(state["head.classifier.weight"]),
        )
        decoder.load_state_dict(state)
        return decoder.eval()


def _schedule(arrays: Arrays, name: str) -> CustomSchedule:
    """A schedule from the kit's own arrays."""
    targets = arrays[f"{name}_next_t"].int().tolist()
    return CustomSchedule(
        timesteps=targets,
        save_steps=arrays[f"{name}_save_order"].tolist(),
        one_step=arrays[f"{name}_t"].int().tolist() == targets and len(targets) == 1,
    )


# --- inputs of one run ------------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """Images, labels and recorded draws of one pass; classes are those with a prompt."""

    images: Tensor
    labels: list[Tensor] | None
    own: list[list[int]]
    """Classes of each image."""
    union: list[int]
    """Classes of the whole batch, as the kit's branches follow each other."""
    draws: dict[str, Tensor]

    @property
    def alone(self) -> list[int]:
        """Images that hold every class of the batch: what the kit computed for them is theirs alone."""
        return [image for image, classes in enumerate(self.own) if classes == self.union]

    def noise(self) -> Noise:
        """The recorded draws through our one door: posterior, noising, then the image's own groups at every step."""
        sequences = [self._sequence(image) for image in range(len(self.images))]

        def draw(image: int, shape: tuple[int, ...]) -> Tensor:
            recorded = next(sequences[image])
            assert tuple(recorded.shape) == shape, f"draw of {shape}, recorded {tuple(recorded.shape)}"
            return recorded.float()

        return draw

    def _sequence(self, image: int) -> Iterator[Tensor]:
        for name in ("vae_noise", "addnoise_noise"):
            if name in self.draws:
                yield self.draws[name][image : image + 1]
        branches = [0, *(1 + self.union.index(train_id) for train_id in self.own[image])]
        for step in self.draws["step_noise"]:
            by_branch = step.unflatten(0, (-1, len(self.images)))
            yield by_branch[branches, image]


def read_inputs(kit: Kit, arrays: Arrays, *, prefix: str = "", labelled: bool) -> Inputs:
    """Inputs of one pass; `prefix` names its draws."""
    images = to_model_range(arrays["image_u8"].movedim(1, -1))
    labels = list(arrays["gt"][:, 0].long()) if labelled else None
    own = [sorted(set(x.unique().tolist()) & kit.label_map.keys()) for x in labels or []] or [[]] * len(
        images
    )
    names = ("vae_noise", "addnoise_noise", "step_noise")
    draws = {name: arrays[prefix + name] for name in names if prefix + name in arrays}
    return Inputs(images, labels, own, sorted({i for classes in own for i in classes}), draws)


def vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
