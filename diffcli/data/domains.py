"""What is known about each domain: where its files lie and how its labels are encoded. Data, no behaviour.

To add a domain, write one `DomainSpec` and put it into `DOMAINS`. Train ids in this file are positions in
`CITYSCAPES_CLASSES`; a model with another class list finds its classes by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from diffcli.classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_PALETTE,
    IGNORE_ID,
    Color,
)
from diffcli.data.idd import IDD_CLASSES, IDD_LABELS
from diffcli.data.vistas import VISTAS_1_2, VISTAS_2_0, VISTAS_TO_CITYSCAPES

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "train_extra": ("train_extra", "trainextra"),
}
"""Name of a split -> the folder names that stand for it, in any case and with a number or "set" after them."""


@dataclass(frozen=True)
class LabelEncoding:
    """How the pixels of a label file become train ids.

    A file of one channel is read by `ids`, a colour file by `colors`. A value or colour outside them becomes
    `other_ids` or `other_colors`; without one (None) it is an error, except -1, 254 and 255, which are always ignored.
    Values from `plain_below` on are divided by `divide` first: instance files hold id * divide + n.
    """

    ids: Mapping[int, int] = field(default_factory=dict)
    colors: tuple[tuple[Color, int], ...] = ()
    divide: int = 1
    plain_below: int = 0
    other_ids: int | None = None
    other_colors: int | None = None
    setting: str = ""
    """What the user set to choose this encoding, for messages: label_ids, label_colors, train ids (a folder without
    either), or empty (a known domain)."""


@dataclass(frozen=True)
class LabelFiles:
    """Where a layout keeps labels, as a pattern like that of `Layout.images`.

    `names_in` lists JSON files at the root that hold the class names in the order of their ids (config.json of
    Mapillary Vistas); the first one found replaces the built-in table.
    """

    files: str
    encoding: LabelEncoding
    names_in: tuple[str, ...] = ()
    own: LabelEncoding | None = None
    """The encoding in the domain's classes (positions in `DomainSpec.classes`), where it has any of its own."""


@dataclass(frozen=True)
class Layout:
    """One way in which a domain is stored: patterns of the images and, in order of preference, of their labels.

    A pattern is a path below the root. "{split}" stands for the split's folder name; a layout without it is one
    undivided set. "{id}" is what an image and its label have in common, sub-folders included; a pattern without it is
    a folder of files named {id}. A pattern without an ending takes every image format. `list_file` (with or without
    "{split}") is a text file that names the samples.
    """

    images: str
    labels: tuple[LabelFiles, ...]
    list_file: str = ""
    only: str = ""
    """The one split that is stored like this; empty for all."""


@dataclass(frozen=True)
class DomainSpec:
    """A domain: `layouts` on disk, or `members` that it joins, or the `rendered` appearance of the miniature world."""

    name: str
    title: str
    layouts: tuple[Layout, ...] = ()
    members: tuple[str, ...] = ()
    rendered: str | None = None
    source_only: bool = False
    """Known as a training set: left out of `--domain all`."""
    eval_split: str = "val"
    """Split to evaluate on where YAML names none."""
    labels_may_differ: bool = False
    """Some label files are of another size than their image; they are resized to it."""
    classes: tuple[str, ...] = ()
    """Names of the classes that only this domain has, beside those it shares with Cityscapes: a model that names one
    of them reads the labels by `own` of its LabelFiles."""
    not_these: Mapping[str, str] = field(default_factory=dict)
    """Folder that is often found in place of the right one -> what to do about it."""

    @property
    def folder(self) -> str:
        """Name of its folder under DIFFCLI_DATA."""
        return self.name.partition("/")[0]


def vistas_train_id(name: str) -> int:
    """Train id of a class of Mapillary Vistas, by its full name; 255 where Cityscapes has no such class."""
    known = VISTAS_TO_CITYSCAPES.get(name)
    return IGNORE_ID if known is None else CITYSCAPES_CLASSES.index(known)


def _by_name(names: Mapping[str, str | None]) -> dict[str, int]:
    """Source class -> Cityscapes class name (None ignores), as train ids."""
    return {
        name: IGNORE_ID if known is None else CITYSCAPES_CLASSES.index(known) for name, known in names.items()
    }


_VOID_COLORS: tuple[Color, ...] = (
    (0, 0, 0),
    (111, 74, 0),
    (81, 0, 81),
    (250, 170, 160),
    (230, 150, 140),
    (180, 165, 180),
    (150, 100, 100),
    (150, 120, 90),
    (0, 0, 90),
    (0, 0, 110),
)
TRAIN_IDS = LabelEncoding(
    ids={i: i for i in range(19)},
    colors=tuple((color, i) for i, color in enumerate(CITYSCAPES_PALETTE))
    + tuple((color, IGNORE_ID) for color in _VOID_COLORS),
)
LABEL_IDS = LabelEncoding(
    ids={i: CITYSCAPES_LABEL_IDS.index(i) if i in CITYSCAPES_LABEL_IDS else IGNORE_ID for i in range(35)}
)
"""Cityscapes' 34 label ids; 34 is GTA5's licence plate, -1 in Cityscapes."""
GTA5_IDS = LabelEncoding(ids=LABEL_IDS.ids, colors=(*TRAIN_IDS.colors, ((20, 20, 20), IGNORE_ID)))
"""GTA5's palette files hold label ids; copies that lost their palette hold its colours, those of Cityscapes."""
INSTANCE_IDS = LabelEncoding(ids=LABEL_IDS.ids, divide=1000, plain_below=1000)
KITTI_INSTANCES = LabelEncoding(ids=LABEL_IDS.ids, divide=256)

_SYNTHIA_CLASSES: Mapping[str, str | None] = {
    "void": None,
    "sky": "sky",
    "building": "building",
    "road": "road",
    "sidewalk": "sidewalk",
    "fence": "fence",
    "vegetation": "vegetation",
    "pole": "pole",
    "car": "car",
    "traffic sign": "traffic sign",
    "pedestrian": "person",
    "bicycle": "bicycle",
    "motorcycle": "motorcycle",
    "parking slot": None,
    "road work": None,
    "traffic light": "traffic light",
    "terrain": "terrain",
    "rider": "rider",
    "truck": "truck",
    "bus": "bus",
    "train": "train",
    "wall": "wall",
    "lane marking": None,
}
_SYNTHIA_TRAIN_IDS = _by_name(_SYNTHIA_CLASSES)
_SYNTHIA_COLORS: tuple[tuple[str, Color], ...] = (
    ("void", (0, 0, 0)),
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("road", (128, 64, 128)),
    ("sidewalk", (0, 0, 192)),
    ("fence", (64, 64, 128)),
    ("vegetation", (128, 128, 0)),
    ("pole", (192, 192, 128)),
    ("car", (64, 0, 128)),
    ("traffic sign", (192, 128, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicycle", (0, 128, 192)),
    ("lane marking", (0, 172, 0)),
    ("lane marking", (0, 175, 0)),
    ("traffic light", (0, 128, 128)),
)
SYNTHIA = LabelEncoding(
    ids=dict(enumerate(_SYNTHIA_TRAIN_IDS.values())),
    colors=tuple((color, _SYNTHIA_TRAIN_IDS[name]) for name, color in _SYNTHIA_COLORS),
)
"""RAND-CITYSCAPES has the ids in the first channel of 16-bit files; the older sequences are colour-coded."""
SYNTHIA_SF = LabelEncoding(
    colors=(
        *TRAIN_IDS.colors,
        ((119, 11, 31), 18),
        ((157, 234, 50), IGNORE_ID),
        ((72, 0, 98), IGNORE_ID),
        ((167, 106, 29), IGNORE_ID),
    )
)

CAMVID_11 = LabelEncoding(ids=dict(enumerate((10, 2, 5, 0, 1, 8, 7, 4, 13, 11, IGNORE_ID, IGNORE_ID))))
"""Sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist (rider with bicycle), void."""
_CAMVID_32: tuple[tuple[str, Color, str | None], ...] = (
    ("Animal", (64, 128, 64), None),
    ("Archway", (192, 0, 128), None),
    ("Bicyclist", (0, 128, 192), None),
    ("Bridge", (0, 128, 64), None),
    ("Building", (128, 0, 0), "building"),
    ("Car", (64, 0, 128), "car"),
    ("CartLuggagePram", (64, 0, 192), None),
    ("Child", (192, 128, 64), "person"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Fence", (64, 64, 128), "fence"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("Misc_Text", (128, 128, 64), None),
    ("MotorcycleScooter", (192, 0, 192), "motorcycle"),
    ("OtherMoving", (128, 64, 64), None),
    ("ParkingBlock", (64, 192, 128), None),
    ("Pedestrian", (64, 64, 0), "person"),
    ("Road", (128, 64, 128), "road"),
    ("RoadShoulder", (128, 128, 192), "road"),
    ("Sidewalk", (0, 0, 192), "sidewalk"),
    ("SignSymbol", (192, 128, 128), "traffic sign"),
    ("Sky", (128, 128, 128), "sky"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("TrafficCone", (0, 0, 64), None),
    ("TrafficLight", (0, 64, 64), "traffic light"),
    ("Train", (192, 64, 128), "train"),
    ("Tree", (128, 128, 0), "vegetation"),
    ("Truck_Bus", (192, 128, 192), None),
    ("Tunnel", (64, 0, 64), None),
    ("VegetationMisc", (192, 192, 0), "vegetation"),
    ("Void", (0, 0, 0), None),
    ("Wall", (64, 192, 0), "wall"),
)
_CAMVID_TRAIN_IDS = _by_name({name: known for name, _, known in _CAMVID_32})
CAMVID_32 = LabelEncoding(
    ids=dict(enumerate(_CAMVID_TRAIN_IDS.values())),
    colors=tuple((color, _CAMVID_TRAIN_IDS[name]) for name, color, _ in _CAMVID_32),
)
CAMVID_ANY = LabelEncoding(ids=CAMVID_11.ids, colors=CAMVID_32.colors)
"""Folders named <split>annot hold the 11 ids in one channel, or the 32 colours."""


URBANSYN = LabelEncoding(ids={**TRAIN_IDS.ids, 19: IGNORE_ID}, colors=TRAIN_IDS.colors)
"""Train ids; 19 is unlabelled."""

IDD_IDS = LabelEncoding(
    ids={
        i: CITYSCAPES_CLASSES.index(label.cityscapes) if label.cityscapes else IGNORE_ID
        for i, label in enumerate(IDD_LABELS)
    }
)
IDD_OWN_IDS = LabelEncoding(
    ids={i: IGNORE_ID if label.level3 is None else label.level3 for i, label in enumerate(IDD_LABELS)}
)
IDD_LEVEL3 = LabelEncoding(
    ids={
        i: CITYSCAPES_CLASSES.index(name) if name in CITYSCAPES_CLASSES else IGNORE_ID
        for i, name in enumerate(IDD_CLASSES)
    }
)
"""The 26 classes of the benchmark: animals count as person, rail tracks and other ground beside the road as neither."""
IDD_OWN_LEVEL3 = LabelEncoding(ids={i: i for i in range(len(IDD_CLASSES))})

VISTAS_ENCODING_1_2 = LabelEncoding(ids={i: vistas_train_id(name) for i, name in enumerate(VISTAS_1_2)})
VISTAS_ENCODING_2_0 = LabelEncoding(ids={i: vistas_train_id(name) for i, name in enumerate(VISTAS_2_0)})


def _vistas_labels(version: str, *folders: str) -> tuple[LabelFiles, ...]:
    encoding = VISTAS_ENCODING_1_2 if version == "v1.2" else VISTAS_ENCODING_2_0
    names_in = (f"config_{version}.json", "config.json")
    return tuple(LabelFiles(folder, encoding, names_in) for folder in folders)


def _vistas(name: str, title: str, *versions: str) -> DomainSpec:
    split = {
        "v1.2": _vistas_labels("v1.2", "{split}/v1.2/labels", "{split}/labels"),
        "v2.0": _vistas_labels("v2.0", "{split}/v2.0/labels"),
    }
    flat = {version: _vistas_labels(version, version) for version in split}
    layouts = (
        Layout("{split}/images", sum((split[version] for version in versions), ())),
        Layout("images", sum((flat[version] for version in versions), ())),
    )
    return DomainSpec(name=name, title=title, layouts=layouts)


def _acdc(condition: str) -> DomainSpec:
    return DomainSpec(
        name=f"acdc/{condition}",
        title=f"ACDC, {condition}",
        layouts=(
            Layout(
                f"rgb_anon/{condition}/{{split}}/{{id}}_rgb_anon",
                (
                    LabelFiles(f"gt/{condition}/{{split}}/{{id}}_gt_labelIds", LABEL_IDS),
                    LabelFiles(f"gt/{condition}/{{split}}/{{id}}_gt_labelTrainIds", TRAIN_IDS),
                ),
            ),
        ),
    )


def _cityscapes_labels(folder: str, part: str, split: str = "{split}") -> tuple[LabelFiles, ...]:
    """Label ids before instance ids before train ids, as cityscapesScripts writes them."""
    kinds = (("labelIds", LABEL_IDS), ("instanceIds", INSTANCE_IDS), ("labelTrainIds", TRAIN_IDS))
    return tuple(LabelFiles(f"{folder}/{split}/{{id}}_{part}_{kind}", encoding) for kind, encoding in kinds)


_CITYSCAPES_FINE = Layout("leftImg8bit/{split}/{id}_leftImg8bit", _cityscapes_labels("gtFine", "gtFine"))
_CITYSCAPES_COARSE = Layout(
    "leftImg8bit/{split}/{id}_leftImg8bit", _cityscapes_labels("gtCoarse", "gtCoarse")
)
_CITYSCAPES_EXTRA = replace(_CITYSCAPES_COARSE, only="train_extra")


def _foggy(name: str, beta: str) -> DomainSpec:
    return DomainSpec(
        name=name,
        title=f"Foggy Cityscapes, beta {beta}",
        layouts=(
            Layout(
                f"leftImg8bit_foggy/{{split}}/{{id}}_leftImg8bit_foggy_beta_{beta}",
                _cityscapes_labels("gtFine", "gtFine"),
            ),
        ),
    )


ACDC_CONDITIONS = ("fog", "night", "rain", "snow")
_ACDC = tuple(_acdc(condition) for condition in ACDC_CONDITIONS)
MINIWORLD_SOURCE = "miniworld/clean"
APPEARANCES = ("clean", "night", "fog", "rain", "snow", "photo")
"""In which the miniature world can be rendered; their order seeds the renderer, so that new ones go to the end."""
_MINIWORLD = tuple(
    DomainSpec(
        name=f"miniworld/{appearance}",
        title=f"Miniature world, {appearance} (rendered)",
        rendered=appearance,
    )
    for appearance in APPEARANCES
)

_SPECS: tuple[DomainSpec, ...] = (
    DomainSpec(name="cityscapes", title="Cityscapes", layouts=(_CITYSCAPES_EXTRA, _CITYSCAPES_FINE)),
    DomainSpec(
        name="cityscapes/coarse",
        title="Cityscapes, coarse labels",
        layouts=(_CITYSCAPES_COARSE,),
    ),
    _foggy("foggy_cityscapes", "0.02"),
    _foggy("foggy_cityscapes/0.01", "0.01"),
    _foggy("foggy_cityscapes/0.005", "0.005"),
    DomainSpec(
        name="gta5",
        title="GTA5 (Playing for Data)",
        source_only=True,
        eval_split="train",
        labels_may_differ=True,
        layouts=(
            Layout(
                "images",
                (LabelFiles("labels", GTA5_IDS), LabelFiles("labels/{id}_labelTrainIds", TRAIN_IDS)),
            ),
        ),
    ),
    DomainSpec(
        name="synthia",
        title="SYNTHIA (RAND-CITYSCAPES)",
        source_only=True,
        eval_split="train",
        layouts=(
            Layout(
                "RGB",
                (LabelFiles("GT/LABELS", SYNTHIA), LabelFiles("GT/LABELS/{id}_labelTrainIds", TRAIN_IDS)),
            ),
            Layout("RGB", (LabelFiles("GT/COLOR", SYNTHIA),)),
            Layout("RGB", (LabelFiles("GT", SYNTHIA), LabelFiles("SemSeg", SYNTHIA))),
            Layout("RGBLeft", (LabelFiles("GTLeft", SYNTHIA_SF),)),
        ),
    ),
    DomainSpec(
        name="bdd100k",
        title="BDD100K",
        layouts=(
            Layout("images/10k/{split}", (LabelFiles("labels/sem_seg/masks/{split}", TRAIN_IDS),)),
            Layout("seg/images/{split}", (LabelFiles("seg/labels/{split}/{id}_train_id", TRAIN_IDS),)),
        ),
        not_these={
            "images/100k": "the 100k images have no segmentation labels: download the 10k images (images/10k) and the "
            "labels of semantic segmentation (labels/sem_seg)",
        },
    ),
    _vistas("mapillary", "Mapillary Vistas (1.2 before 2.0)", "v1.2", "v2.0"),
    _vistas("mapillary/v1.2", "Mapillary Vistas 1.2", "v1.2"),
    _vistas("mapillary/v2.0", "Mapillary Vistas 2.0", "v2.0"),
    DomainSpec(name="acdc", title="ACDC, the four conditions together", members=tuple(s.name for s in _ACDC)),
    *_ACDC,
    DomainSpec(
        name="dark_zurich",
        title="Dark Zurich",
        layouts=(
            Layout(
                "rgb_anon/{split}/night/{id}_rgb_anon",
                (
                    LabelFiles("gt/{split}/night/{id}_gt_labelIds", LABEL_IDS),
                    LabelFiles("gt/{split}/night/{id}_gt_labelTrainIds", TRAIN_IDS),
                ),
            ),
        ),
    ),
    DomainSpec(
        name="nighttime_driving",
        title="Nighttime Driving",
        eval_split="test",
        layouts=(
            Layout(
                "leftImg8bit/{split}/{id}_leftImg8bit",
                _cityscapes_labels("gtCoarse_daytime_trainvaltest", "gtCoarse"),
            ),
        ),
    ),
    DomainSpec(
        name="idd",
        title="IDD (Indian Driving Dataset)",
        classes=IDD_CLASSES,
        layouts=(
            Layout(
                "leftImg8bit/{split}/{id}_leftImg8bit",
                (
                    LabelFiles("gtFine/{split}/{id}_gtFine_labelids", IDD_IDS, own=IDD_OWN_IDS),
                    LabelFiles("gtFine/{split}/{id}_gtFine_labelIds", IDD_IDS, own=IDD_OWN_IDS),
                    LabelFiles("gtFine/{split}/{id}_gtFine_labellevel3Ids", IDD_LEVEL3, own=IDD_OWN_LEVEL3),
                    LabelFiles("gtFine/{split}/{id}_gtFine_labelcsTrainIds", TRAIN_IDS),
                ),
            ),
        ),
    ),
    DomainSpec(
        name="urbansyn",
        title="UrbanSyn",
        source_only=True,
        eval_split="train",
        layouts=(Layout("rgb/rgb_{id}", (LabelFiles("ss/ss_{id}", URBANSYN),)),),
    ),
    DomainSpec(
        name="camvid",
        title="CamVid",
        layouts=(
            Layout("{split}", (LabelFiles("{split}annot", CAMVID_ANY),)),
            Layout(
                "{split}",
                (LabelFiles("{split}_labels/{id}_L", CAMVID_32), LabelFiles("{split}_labels", CAMVID_32)),
            ),
            Layout("701_StillsRaw_full", (LabelFiles("LabeledApproved_full/{id}_L", CAMVID_32),)),
            Layout(
                "images", (LabelFiles("labels/{id}_P", CAMVID_32), LabelFiles("labels/{id}_L", CAMVID_32))
            ),
        ),
    ),
    DomainSpec(
        name="kitti",
        title="KITTI semantics",
        eval_split="train",
        layouts=(
            Layout(
                "{split}/image_2",
                (LabelFiles("{split}/semantic", LABEL_IDS), LabelFiles("{split}/instance", KITTI_INSTANCES)),
            ),
        ),
    ),
    DomainSpec(
        name="miniworld",
        title="Miniature world: clean to train on, the others together to evaluate",
        members=tuple(s.name for s in _MINIWORLD if s.name != MINIWORLD_SOURCE),
    ),
    *_MINIWORLD,
    DomainSpec(name="folder", title="Your own images/ and labels/"),
)

DOMAINS: Mapping[str, DomainSpec] = {spec.name: spec for spec in _SPECS}
"""Every domain by the name that YAML and `--domain` use."""
