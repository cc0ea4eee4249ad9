"""Masks of classes as COCO annotations with compressed run lengths (RLE), by COCO's own tools."""

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from diffcli.drawing.pictures import Pixels
from diffcli.errors import DiffError
from diffcli.files import write_text
from diffcli.prediction.manifest import Entry, text_path

COCO = "predictions_coco.json"


def require_pycocotools() -> None:
    """Raises DiffError where COCO's tools are not installed; says how to install them."""
    if find_spec("pycocotools") is None:
        raise DiffError(
            "--write rle needs pycocotools, not installed here", hint="pip install 'diffcli[coco]'"
        )


def annotations(mask: Pixels, *, classes: Sequence[str], image_id: str) -> list[dict[str, Any]]:
    """An annotation for every class in a mask (H,W train ids): category_id is the train id.

    Each holds segmentation {size: [H, W], counts: text}, area and bbox [x, y, width, height].
    """
    from pycocotools import mask as coco

    found = []
    for train_id in np.unique(mask).tolist():
        encoded = coco.encode(np.asfortranarray(mask == train_id, dtype=np.uint8))
        found.append(
            {
                "image_id": image_id,
                "category_id": train_id,
                "category": classes[train_id],
                "area": int(coco.area(encoded)),
                "bbox": [int(side) for side in coco.toBbox(encoded)],
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
            }
        )
    return found


def write_coco(folder: Path, entries: Iterable[Entry], *, classes: Sequence[str]) -> Path:
    """Write one COCO file of all images of a folder, from the `rle` files beside their masks.

    Images are numbered from 1, as COCO's tools expect.
    """
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for entry in entries:
        if "rle" not in entry.outputs:
            continue
        number = len(images) + 1
        of_image = json.loads((folder / text_path(entry.outputs["rle"])).read_text(encoding="utf-8"))
        width, height = entry.size or (0, 0)
        images.append({"id": number, "file_name": entry.input, "width": width, "height": height})
        for annotation in of_image:
            found.append({**annotation, "id": len(found) + 1, "image_id": number, "iscrowd": 0})
    categories = [{"id": train_id, "name": name} for train_id, name in enumerate(classes)]
    file = folder / COCO
    write_text(file, json.dumps({"images": images, "annotations": found, "categories": categories}))
    return file
