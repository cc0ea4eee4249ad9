"""Classes of IDD (Indian Driving Dataset) and what they are called in Cityscapes. Data, no behaviour.

Source: the label table of the AutoNUE benchmark (ids, level 3 ids, Cityscapes train ids).
"""

from typing import NamedTuple

IDD_CLASSES: tuple[str, ...] = (
    "road",
    "drivable fallback",
    "sidewalk",
    "non-drivable fallback",
    "person",
    "rider",
    "motorcycle",
    "bicycle",
    "autorickshaw",
    "car",
    "truck",
    "bus",
    "vehicle fallback",
    "curb",
    "wall",
    "fence",
    "guard rail",
    "billboard",
    "traffic sign",
    "traffic light",
    "pole",
    "obs-str-bar-fallback",
    "building",
    "bridge",
    "vegetation",
    "sky",
)
"""The 26 classes of the benchmark (level 3), in the order of their ids."""


class IddLabel(NamedTuple):
    """One label id."""

    name: str
    level3: int | None
    """Position in IDD_CLASSES; None is ignored."""
    cityscapes: str | None
    """The class of Cityscapes; None is ignored."""


IDD_LABELS: tuple[IddLabel, ...] = (
    IddLabel("road", 0, "road"),
    IddLabel("parking", 1, None),
    IddLabel("drivable fallback", 1, None),
    IddLabel("sidewalk", 2, "sidewalk"),
    IddLabel("rail track", 3, None),
    IddLabel("non-drivable fallback", 3, "terrain"),
    IddLabel("person", 4, "person"),
    IddLabel("animal", 4, None),
    IddLabel("rider", 5, "rider"),
    IddLabel("motorcycle", 6, "motorcycle"),
    IddLabel("bicycle", 7, "bicycle"),
    IddLabel("autorickshaw", 8, None),
    IddLabel("car", 9, "car"),
    IddLabel("truck", 10, "truck"),
    IddLabel("bus", 11, "bus"),
    IddLabel("caravan", 12, None),
    IddLabel("trailer", 12, None),
    IddLabel("train", 12, "train"),
    IddLabel("vehicle fallback", 12, None),
    IddLabel("curb", 13, None),
    IddLabel("wall", 14, "wall"),
    IddLabel("fence", 15, "fence"),
    IddLabel("guard rail", 16, None),
    IddLabel("billboard", 17, None),
    IddLabel("traffic sign", 18, "traffic sign"),
    IddLabel("traffic light", 19, "traffic light"),
    IddLabel("pole", 20, "pole"),
    IddLabel("polegroup", 20, None),
    IddLabel("obs-str-bar-fallback", 21, None),
    IddLabel("building", 22, "building"),
    IddLabel("bridge", 23, None),
    IddLabel("tunnel", 23, None),
    IddLabel("vegetation", 24, "vegetation"),
    IddLabel("sky", 25, "sky"),
    IddLabel("fallback background", 25, None),
    IddLabel("unlabeled", None, None),
    IddLabel("ego vehicle", None, None),
    IddLabel("rectification border", None, None),
    IddLabel("out of roi", None, None),
    IddLabel("license plate", None, None),
)
"""The labels in the order of their ids (files named _labelids)."""
