"""COCO's run-length encoding of masks, compressed, as its tools read it; and a mask of classes as COCO annotations.

A mask's pixels are taken column by column; `counts` are the lengths of its runs of 0, 1, 0 ... beginning with 0. From
the fourth on, a count is stored as its difference from the last but one; each number is written in groups of five
bits, lowest first: bit 5 says that more follow, and 48 makes a letter of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcli.drawing.pictures import Pixels

GROUP_BITS, MORE, FIRST_LETTER = 5, 32, 48
MAX_GROUPS = 13
"""Groups of five bits in 64."""


def annotations(mask: Pixels, *, classes: Sequence[str], image_id: str) -> list[dict[str, Any]]:
    """An annotation for every class in a mask (H,W train ids): category_id is the train id.

    Each holds segmentation {size: [H, W], counts: text}, area and bbox [x, y, width, height].
    """
    runs = _runs(mask)
    return [
        {
            "image_id": image_id,
            "category_id": train_id,
            "category": classes[train_id],
            "area": int(counts[1::2].sum()),
            "bbox": _box(mask == train_id),
            "segmentation": {"size": list(mask.shape), "counts": compress(counts)},
        }
        for train_id, counts in runs.items()
    ]


def compress(counts: NDArray[np.int64]) -> str:
    """COCO's compressed text of run lengths."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    letters = np.zeros((len(values), MAX_GROUPS), dtype=np.uint8)
    open_rows = np.ones(len(values), dtype=bool)
    for group in range(MAX_GROUPS):
        bits = values & 31
        values >>= GROUP_BITS
        more = open_rows & np.where(bits & 16, values != -1, values != 0)
        letters[open_rows, group] = (bits + MORE * more + FIRST_LETTER)[open_rows]
        open_rows = more
        if not more.any():
            break
    return letters[letters > 0].tobytes().decode("ascii")


def _runs(mask: Pixels) -> dict[int, NDArray[np.int64]]:
    """Train id -> run lengths, 0s first, of every class that occurs."""
    columns = mask.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    stops, ids = np.append(starts[1:], columns.size), columns[starts]
    runs = {}
    for train_id in np.unique(ids).tolist():
        own = ids == train_id
        edges = np.stack([starts[own], stops[own]], axis=1).ravel()
        ends = edges if edges[-1] == columns.size else np.append(edges, columns.size)
        runs[train_id] = ends - np.concatenate([[0], ends[:-1]])
    return runs


def _box(inside: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
