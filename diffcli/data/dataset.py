"""Domains as datasets: opening one by its configuration, and the stream of training samples drawn from it.

`open_domain` turns a `DomainConfig` into a `Domain` (names only, nothing is decoded until it is asked for);
`TrainingSet` turns a Domain into an endless, repeatable stream of augmented training samples.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict

import cv2
import numpy as np

from diffcli.classes import CITYSCAPES_CLASSES, IGNORE_ID
from diffcli.config.domain import DomainConfig, FolderDomain, KnownDomain, MiniworldDomain
from diffcli.config.settings import AugmentationConfig, RareClassConfig
from diffcli.data.domain import Domain, Sample, Scene
from diffcli.data.domains import DOMAINS, MINIWORLD_SOURCE, DomainSpec
from diffcli.data.folder import folder_spec
from diffcli.data.images import Image
from diffcli.data.labels import Label, LabelReader, train_ids_by_name
from diffcli.data.listing import Missing, Pair, Place, archives, find_pairs
from diffcli.data.patterns import ID, SPLIT, split_name
from diffcli.data.roots import (
    Located,
    expand_domains,
    find_root,
    known_domain,
    known_domains,
    label_classes,
    locate,
    vistas_encoding,
)
from diffcli.data.splits import choose_split, held_out, nothing_here, places_of, unpaired
from diffcli.data.statistics import ClassStatistics, RareClasses, rare_classes
from diffcli.data.transforms import IMAGE_PADDING, draw_crop, flip_horizontally, pad, photometric_distortion
from diffcli.errors import ConfigError, DataError

__all__ = [
    "Domain",
    "Located",
    "Missing",
    "Sample",
    "Scene",
    "TrainingSample",
    "TrainingSet",
    "expand_domains",
    "find_splits",
    "known_domains",
    "locate",
    "open_domain",
]

Purpose = Literal["train", "eval"]

CROP_TRIES = 10
"""A crop is redrawn at most this often (method section 3)."""
SCENES: dict[Purpose, int] = {"train": 512, "eval": 32}
"""Scenes of the miniature world where YAML gives no count."""
FIRST_SCENE = {"train": 0, "val": 1_000_000, "test": 2_000_000}
"""Where each split starts, so that no two have a scene in common."""


def open_domain(
    config: DomainConfig, *, purpose: Purpose, classes: Sequence[str] = CITYSCAPES_CLASSES
) -> Domain:
    """The samples that `config` names, for training (labelled ones only) or for evaluation.

    Labels come in the positions of `classes`; Cityscapes classes that it does not name are ignored. An evaluation split
    without a single label (a test set) is opened without labels.

    Raises:
        ConfigError: an unknown domain, or settings that do not belong to it.
        DataError: the folder, its layout or its labels are not there.
    """
    # Workers and threads are the parallel part; and a forked worker hangs in a thread pool that its parent had.
    cv2.setNumThreads(1)
    spec = known_domain(config.domain)
    _check_settings(config, spec, classes)
    if spec.name == "miniworld" and purpose == "train":
        spec = DOMAINS[MINIWORLD_SOURCE]
    if spec.members:
        domain = _join(spec, config, purpose, classes)
    elif isinstance(config, MiniworldDomain):
        domain = _rendered(spec, config, purpose, classes)
    else:
        try:
            domain = _listed(spec, config, purpose, classes)
        except OSError as error:
            raise DataError(
                f"{spec.name}: a folder cannot be listed: {error.strerror or error}",
                where=str(error.filename),
                hint="check that you may read it and that the disk is there",
            ) from error
    if config.limit is not None and config.limit < len(domain):
        domain.samples = tuple(domain.samples[i * len(domain) // config.limit] for i in range(config.limit))
    return domain


def find_splits(config: DomainConfig, *, classes: Sequence[str] = CITYSCAPES_CLASSES) -> list[str]:
    """The splits of the domain that are there, "train" for an undivided set; the configured one alone if there is one.

    Raises:
        ConfigError: an unknown domain, or settings that do not belong to it.
        DataError: the folder is not there, or holds no split at all.
    """
    spec = known_domain(config.domain)
    _check_settings(config, spec, classes)
    if config.split is not None:
        return [config.split]
    if spec.members:  # they have one layout
        return find_splits(config.model_copy(update={"domain": spec.members[0]}), classes=classes)
    if spec.rendered is not None:
        return [spec.eval_split]
    if isinstance(config, FolderDomain):
        spec = folder_spec(config, classes)
    root = find_root(spec, config.root)
    found = list(dict.fromkeys(place.name or "train" for place in places_of(spec, root, asked=config.split)))
    if not found:
        raise nothing_here(spec, root)
    assert not isinstance(config, MiniworldDomain), "it is rendered"
    return ["train", "val", *found[1:]] if config.val_fraction is not None else found


def _check_settings(config: DomainConfig, spec: DomainSpec, classes: Sequence[str]) -> None:
    """Raise a ConfigError for settings that do not apply to the domain, or that contradict the classes."""
    if isinstance(config, FolderDomain):
        _check_folder(config, classes)
        return
    if config.split is not None and split_name(config.split) is None:
        raise ConfigError(f"unknown split {config.split!r}", hint="splits are train, val and test")
    if isinstance(config, KnownDomain) and config.val_fraction is not None and spec.members:
        raise ConfigError(f"val_fraction does not apply to {spec.name}", hint="name one of its parts")
    if not set(classes) & {*CITYSCAPES_CLASSES, *spec.classes}:
        raise ConfigError(
            f"{spec.name} has Cityscapes' classes, and model.classes names none of them",
            hint="use domain: folder for other classes",
        )


def _check_folder(config: FolderDomain, classes: Sequence[str]) -> None:
    """Train ids are those of the classes; prefix and suffix belong to a folder's name, not to a pattern."""
    used = [*(config.label_ids or {}).values(), *(i for _, i in config.label_colors or ())]
    outside = sorted({i for i in used if not (0 <= i < len(classes) or i == IGNORE_ID)})
    if outside:
        raise ConfigError(
            f"label_ids or label_colors name train ids {outside}, but there are {len(classes)} classes",
            hint="train ids are the positions in model.classes; 255 ignores",
        )
    for what in ("image", "label"):
        text = getattr(config, f"{what}s")
        if ID in text and (getattr(config, f"{what}_prefix") or getattr(config, f"{what}_suffix")):
            raise ConfigError(
                f"{what}s is a pattern and {what}_prefix or {what}_suffix is set as well",
                hint=f"write all of it into {what}s: {text}",
            )
        if "{" in text.replace(ID, "").replace(SPLIT, ""):
            raise ConfigError(
                f"{what}s: {text} has an unknown placeholder", hint=f"there are {ID} and {SPLIT}"
            )


def _join(spec: DomainSpec, config: DomainConfig, purpose: Purpose, classes: Sequence[str]) -> Domain:
    """The members' samples one after the other; ids begin with the member's own name."""
    alone = config.model_copy(update={"limit": None})
    parts = [
        open_domain(alone.model_copy(update={"domain": member}), purpose=purpose, classes=classes)
        for member in spec.members
    ]
    samples: list[Sample] = []
    readers: list[LabelReader] = []
    for part, member in zip(parts, spec.members, strict=True):
        own = member.partition("/")[2]
        samples += (
            replace(sample, id=f"{own}/{sample.id}", reader=sample.reader + len(readers))
            for sample in part.samples
        )
        readers += part.readers
    return Domain(
        config.name or spec.name,
        samples,
        classes=classes,
        readers=readers,
        missing=Missing(
            labels=tuple(path for part in parts for path in part.missing.labels),
            images=tuple(path for part in parts for path in part.missing.images),
        ),
        resize=config.resize,
        eval_size=config.eval_size,
    )


def _rendered(spec: DomainSpec, config: MiniworldDomain, purpose: Purpose, classes: Sequence[str]) -> Domain:
    """Scenes of the miniature world; nothing is rendered yet."""
    assert spec.rendered is not None
    split = split_name(config.split or "") or ("train" if purpose == "train" else "val")
    if split not in FIRST_SCENE:
        raise ConfigError(f"{spec.name} has no split {split}", hint="its splits are train, val and test")
    first = FIRST_SCENE[split]
    scenes = (Scene(config.seed, first + i, spec.rendered) for i in range(config.count or SCENES[purpose]))
    samples = [
        Sample(id=f"{split}/{scene.seed}_{scene.index}", image=None, label=None, scene=scene)
        for scene in scenes
    ]
    return Domain(
        config.name or spec.name,
        samples,
        classes=classes,
        split=split,
        resize=config.resize,
        eval_size=config.eval_size,
    )


def _listed(
    spec: DomainSpec, config: KnownDomain | FolderDomain, purpose: Purpose, classes: Sequence[str]
) -> Domain:
    """Samples that are on disk."""
    if isinstance(config, FolderDomain):
        spec = folder_spec(config, classes)
    root = find_root(spec, config.root)
    usual = "train" if purpose == "train" else "val" if config.val_fraction else spec.eval_split
    wanted = config.split or usual
    place, part = choose_split(spec, config, root, wanted=wanted)
    pairs, missing = find_pairs(place)
    labelled = [pair for pair in pairs if pair.label is not None]
    if not pairs or (not labelled and (purpose == "train" or missing.images)):
        raise unpaired(spec, place, pairs, missing, purpose)
    kept = labelled or pairs
    if part:
        kept = held_out(kept, part=part, fraction=config.val_fraction or 0, seed=config.val_seed)
    split = part or place.name
    return Domain(
        config.name or (root.resolve().name if spec.name == "folder" else spec.name),
        [_sample(pair, split if part or place.split else "") for pair in kept],
        classes=classes,
        readers=_readers(spec, place, root, classes),
        missing=missing,
        split=split,
        resize=config.resize,
        eval_size=config.eval_size,
        aspect_tolerance=0.1 if spec.labels_may_differ else 0.01,
        archives=archives(place),
    )


def _sample(pair: Pair, split: str) -> Sample:
    return Sample(
        id=f"{split}/{pair.key}" if split else pair.key,
        image=Path(pair.image),
        label=None if pair.label is None else Path(pair.label),
        reader=pair.kind,
    )


def _readers(spec: DomainSpec, place: Place, root: Path, classes: Sequence[str]) -> list[LabelReader]:
    """One reader for each kind of label files of the layout."""
    if spec.name == "folder":
        return [LabelReader(files.encoding, (*range(len(classes)),)) for files in place.layout.labels]
    names, by_cityscapes = label_classes(spec, classes), train_ids_by_name(classes)
    readers = []
    for files in place.layout.labels:
        if files.own is not None and names != CITYSCAPES_CLASSES:
            readers.append(LabelReader(files.own, train_ids_by_name(classes, names=names)))
        else:
            readers.append(LabelReader(vistas_encoding(files, place.base, root), by_cityscapes))
    return readers


class TrainingSample(TypedDict):
    """One augmented sample: `image` (H, W, 3) RGB uint8 and `label` (H, W) train ids, both of the crop's size."""

    image: Image
    label: Label
    id: str
    identity: str
    file: str
    rare_class: int | None
    """Train id that rare class sampling drew the sample for; None without it."""


class TrainingSet:
    """Augmented training samples by number: sample `draw` is a function of (seed, draw) alone.

    Resuming is going on at draw k; the number of workers changes nothing. Images are drawn by rare class sampling, or
    without `rare_classes` in a new random order each epoch. The order of augmentation is that of the paper's recipe:
    crop, flip, photometric distortion, padding.

    Args:
        domain: labelled samples.
        augmentation: crop, flip and colour settings.
        rare_classes: settings of rare class sampling; None draws images evenly.
        statistics: pixels of each class in each sample (`class_statistics`); needed for rare class sampling, kept for
            whoever weighs classes.
        seed: of everything random here.

    Raises:
        ConfigError: rare class sampling without statistics.
        DataError: no sample holds enough pixels of any class.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        augmentation: AugmentationConfig,
        rare_classes: RareClassConfig | None,
        statistics: ClassStatistics | None,
        seed: int,
    ) -> None:
        self.domain = domain
        self.augmentation = augmentation
        self.statistics = statistics
        self.seed = seed
        self.rare = None if rare_classes is None else _sampling(rare_classes, statistics)
        self.min_crop_pixels = 0 if rare_classes is None else rare_classes.min_crop_pixels

    def __len__(self) -> int:
        """Samples of one epoch; draws may go on beyond it."""
        return len(self.domain)

    def __getitem__(self, draw: int) -> TrainingSample:
        return self.sample(draw)

    def sample(self, draw: int, *, attempt: int = 0) -> TrainingSample:
        """Sample `draw`; with another `attempt` the one that takes its place where it cannot be used.

        Raises:
            DataError: the sample cannot be used.
        """
        rng = np.random.default_rng([self.seed, draw, 2, attempt] if attempt else [self.seed, draw, 0])
        index, wanted = self._pick(draw, rng, attempt)
        image, label = self.domain.load(index)
        image, label = self._augment(image, label, wanted, rng)
        return TrainingSample(
            image=image,
            label=label,
            id=self.domain.samples[index].id,
            identity=f"{self.domain.identity(index)}#{draw}",
            file=self.domain.file(index),
            rare_class=wanted,
        )

    def _pick(self, draw: int, rng: np.random.Generator, attempt: int) -> tuple[int, int | None]:
        """(sample index, train id that its crop must hold, if any)."""
        if self.rare is None:
            if attempt:
                return int(rng.integers(len(self.domain))), None
            epoch, position = divmod(draw, len(self.domain))
            order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.domain))
            return int(order[position]), None
        train_id = int(rng.choice(self.rare.classes, p=self.rare.weights))
        return int(rng.choice(self.rare.samples[train_id])), train_id

    def _augment(
        self, image: Image, label: Label, wanted: int | None, rng: np.random.Generator
    ) -> tuple[Image, Label]:
        settings = self.augmentation
        crop = draw_crop(
            label,
            size=settings.crop,
            rng=rng,
            tries=CROP_TRIES,
            max_share=settings.crop_max_share,
            wanted=wanted,
            min_pixels=self.min_crop_pixels,
        )
        image, label = image[crop], label[crop]
        if rng.random() < settings.flip:
            image, label = flip_horizontally(image), flip_horizontally(label)
        image = photometric_distortion(image, rng=rng, probability=settings.photometric)
        return pad(image, settings.crop, value=IMAGE_PADDING), pad(label, settings.crop, value=IGNORE_ID)


def _sampling(config: RareClassConfig, statistics: ClassStatistics | None) -> RareClasses:
    if statistics is None:
        raise ConfigError("rare class sampling needs class statistics", hint="pass class_statistics(domain)")
    return rare_classes(statistics, config)
