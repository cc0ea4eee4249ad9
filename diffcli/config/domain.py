"""Settings of one domain: a known dataset, a folder of your own, or the miniature world, each with its own fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
)

from diffcli.config.base import Color, Seed, Settings
from diffcli.config.size import PixelSize

MINIWORLD = "miniworld"
FOLDER = "folder"


_LabelValue = Annotated[int, Field(ge=-2, lt=65536)]


class _AnyDomain(Settings):
    """What every domain has."""

    domain: str
    """A known domain (see `diff domains`), a part of one (acdc/night), miniworld or a part of it (miniworld/fog), or folder."""
    name: str | None = None
    """Name in tables and reports; null takes the domain's. Names with the same part before a slash (rain/day, rain/night) are also averaged as a group."""
    split: str | None = None
    """train, val, test, or the name of a split's folder (valid and validation are val); null takes train for training, val for evaluation, or all of a set without splits."""
    resize: PixelSize | None = None
    """Resize image and label to this size first, WIDTHxHEIGHT; null keeps the size of the files."""
    eval_size: PixelSize | None = None
    """Size at which the network sees this domain's images in an evaluation; null takes eval.size."""
    limit: PositiveInt | None = None
    """Take at most this many samples, evenly spread; null takes all."""


class KnownDomain(_AnyDomain):
    """A dataset whose layout and labels diffcli knows."""

    model_config = ConfigDict(title="a known domain")

    root: Path | None = None
    """Folder of the dataset, or the folder that holds the datasets' folders; null takes DIFFCLI_DATA."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Hold out this share of a set without a val split: it becomes split val, the rest split train."""
    val_seed: NonNegativeInt = 0
    """Seed of the draw of val_fraction, which depends on it and the names of the images alone."""


class FolderDomain(_AnyDomain):
    """Images and labels of your own."""

    model_config = ConfigDict(title=f"domain: {FOLDER}")

    domain: Literal["folder"] = "folder"
    """folder: images and labels of your own."""
    root: Path | None = None
    """Folder that holds the images and the labels."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Hold out this share of a set without a val split: it becomes split val, the rest split train."""
    val_seed: NonNegativeInt = 0
    """Seed of the draw of val_fraction, which depends on it and the names of the images alone."""
    images: str = "images"
    """Sub-folder of the images, or a pattern of their paths: rgb/rgb_{id}.png, {split}/{id}/left.png."""
    labels: str = "labels"
    """Sub-folder of the labels, or a pattern with the same {id}: ss/ss_{id}.png."""
    image_prefix: str = ""
    """What names of images begin with, before the part that they and their labels have in common."""
    image_suffix: str = ""
    """What names of images end with, after that part: _rgb, or with the ending _rgb.png."""
    label_prefix: str = ""
    """What names of labels begin with."""
    label_suffix: str = ""
    """What names of labels end with: _mask, or with the ending _mask.png."""
    list_file: str | None = None
    """Text file below root that names the samples, an id or an image and its label in a line: ImageSets/Segmentation/{split}.txt."""
    label_ids: dict[_LabelValue | Literal["*"], int] | None = None
    """Label value -> train id (255 ignores); "*" is every value that is not listed; null reads the files as train ids."""
    label_colors: tuple[tuple[Color | Literal["*"], int], ...] | None = None
    """[[red, green, blue], train id] pairs, for labels stored as colours; ["*", 255] is every other colour."""


class MiniworldDomain(_AnyDomain):
    """The miniature world, which is rendered."""

    model_config = ConfigDict(title=f"domain: {MINIWORLD}")

    domain: str = MINIWORLD
    """miniworld, or one appearance of it (miniworld/fog)."""
    count: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Number of scenes, at most 1,000,000 (the next split begins there); null takes 512 for training and 32 for evaluation."""
    seed: Seed = 0
    """Seed of the geometry; splits never have a scene in common."""

    @property
    def root(self) -> None:
        """None: nothing of it is on disk."""
        return None


DomainConfig = KnownDomain | FolderDomain | MiniworldDomain
"""One domain."""


def _kind(value: object) -> str:
    """The variant that a value is meant to be, by its `domain`."""
    name = value.get("domain") if isinstance(value, Mapping) else getattr(value, "domain", None)
    kind = name.partition("/")[0] if isinstance(name, str) else ""
    return kind if kind in (FOLDER, MINIWORLD) else "known"


def _as_mapping(value: object) -> object:
    """A bare string is short for {domain: ...}; null means the default, also for a field of another variant."""
    if isinstance(value, str):
        return {"domain": value}
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None or key not in _FIELDS}
    return value


_FIELDS = {*KnownDomain.model_fields, *FolderDomain.model_fields, *MiniworldDomain.model_fields}

DomainEntry = Annotated[
    Annotated[
        Annotated[KnownDomain, Tag("known")]
        | Annotated[FolderDomain, Tag(FOLDER)]
        | Annotated[MiniworldDomain, Tag(MINIWORLD)],
        Discriminator(_kind),
    ],
    BeforeValidator(_as_mapping),
]
"""A domain in a YAML file."""

_ADAPTER: TypeAdapter[Any] = TypeAdapter(DomainEntry)


def domain_config(domain: str, **settings: Any) -> DomainConfig:
    """The settings of a domain by its name.

    Raises:
        pydantic.ValidationError: a setting does not apply to it, or its value is wrong.
    """
    config: DomainConfig = _ADAPTER.validate_python({"domain": domain, **settings})
    return config
