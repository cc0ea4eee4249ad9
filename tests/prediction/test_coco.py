"""Run-length encoding: COCO's own tools decode what we write, bit for bit."""

import numpy as np
import pytest
from pycocotools import mask as coco

from diffcli.prediction.coco import annotations

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of pycocotools


def street(seed: int, size: tuple[int, int], cell: int) -> np.ndarray:
    """Blocks of a few classes: runs from one pixel to whole columns."""
    small = np.random.default_rng(seed).integers(0, 5, (size[0] // cell + 1, size[1] // cell + 1), np.uint8)
    return np.kron(small, np.ones((cell, cell), np.uint8))[: size[0], : size[1]]


@pytest.mark.parametrize(
    "mask",
    [
        street(0, (40, 60), 1),
        street(1, (97, 131), 7),
        street(2, (600, 900), 250),
        np.zeros((3, 4), np.uint8),
        np.array([[4]], np.uint8),
        np.eye(70, dtype=np.uint8),
    ],
    ids=["noise", "blocks", "long runs", "one class", "one pixel", "diagonal"],
)
def test_coco_s_tools_read_every_class(mask: np.ndarray) -> None:
    found = annotations(mask, classes=list("abcde"), image_id="x")
    assert [entry["category_id"] for entry in found] == np.unique(mask).tolist()
    for entry in found:
        own = mask == entry["category_id"]
        segmentation = entry["segmentation"]
        assert np.array_equal(coco.decode(segmentation), own)
        assert segmentation["counts"].encode() == coco.encode(np.asfortranarray(own, np.uint8))["counts"]
        assert entry["area"] == own.sum() == coco.area(segmentation)
        assert entry["bbox"] == coco.toBbox(segmentation).tolist()
        assert entry["category"] == "abcde"[entry["category_id"]]
