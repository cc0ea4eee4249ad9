"""Class names, colours, prompts and ids of the Cityscapes classes, which every room uses. Data, no behaviour."""

from collections.abc import Mapping

CITYSCAPES_CLASSES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)

CITYSCAPES_PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)

CLASS_PROMPTS: Mapping[int, str] = {
    0: "a street scene with a wide asphalt road and lane markings",
    1: "a street scene with a paved sidewalk beside the road",
    2: "a street scene lined with tall buildings",
    3: "a street scene with a long wall standing on its own",
    4: "a street scene with a fence along the roadside",
    5: "a street scene with thin upright poles",
    6: "a street scene with traffic lights above a crossing",
    7: "a street scene with traffic signs on posts",
    8: "a street scene with trees and bushes",
    9: "a street scene with grass and bare soil beside the road",
    10: "a street scene under an open sky",
    11: "a street scene with people walking",
    12: "a street scene with a person riding a bicycle or a motorcycle",
    13: "a street scene with parked and driving cars",
    14: "a street scene with a truck carrying goods",
    15: "a street scene with a bus full of passengers",
    16: "a street scene with a train or a tram on rails",
    17: "a street scene with a motorcycle at the kerb",
    18: "a street scene with bicycles leaning at the side",
}
"""Train id -> prompt of the conditional branch, for each of the 19 classes; `PROMPTED_CLASSES` act by default."""

PROMPTED_CLASSES = (1, 3, 12, 14, 16)
"""Train ids whose prompts act by default (method section 1.3)."""

IGNORE_ID = 255
"""Label value that no loss and no score counts."""

CLASS_SUBSETS: Mapping[str, tuple[str, ...]] = {
    "16 classes (SYNTHIA)": tuple(c for c in CITYSCAPES_CLASSES if c not in ("terrain", "truck", "train")),
    "13 classes (SYNTHIA)": tuple(
        c for c in CITYSCAPES_CLASSES if c not in ("wall", "fence", "pole", "terrain", "truck", "train")
    ),
}
"""Classes over which models trained on SYNTHIA are averaged: terrain, truck and train do not occur in it."""

Color = tuple[int, int, int]

CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label id of each train id, in their order."""
CITYSCAPES_ID_OF_TRAIN_ID: Mapping[int, int] = dict(enumerate(CITYSCAPES_LABEL_IDS))
"""Train id -> Cityscapes label id, as the evaluation servers want it."""
