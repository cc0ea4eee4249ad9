"""`index.html` of a folder of predictions: a thumbnail of each image, sortable by confidence, in one file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from diffcli.drawing.pages import css_color, data_url, render
from diffcli.drawing.pictures import Pixels
from diffcli.files import write_text
from diffcli.prediction.manifest import Entry, Manifest, text_path

INDEX = "index.html"
THUMBNAIL_WIDTH = 240
LARGEST_INDEX = 1000
"""Images with a thumbnail: about 10 kB each in the page. Further ones are listed without."""


def write_index(
    manifest: Manifest,
    *,
    title: str,
    classes: Sequence[str],
    palette: Pixels,
    progress: Callable[[], object] = lambda: None,
) -> Path:
    """Write the page of everything that the manifest lists; videos and failed images are listed without a picture.

    Args:
        title: what made the masks.
        progress: called once for each entry.
    """
    entries = [entry for entry in manifest.entries() if entry.frame is None]
    cards = []
    for number, (entry, name) in enumerate(zip(entries, _names(entries), strict=True)):
        cards.append(_card(entry, name, manifest.folder, palette, thumbnail=number < LARGEST_INDEX))
        progress()
    page = render(
        "predictions.html",
        title=title,
        cards=cards,
        classes=[{"name": name, "color": css_color(palette[i])} for i, name in enumerate(classes)],
    )
    file = manifest.folder / INDEX
    write_text(file, page)
    return file


def _names(entries: Sequence[Entry]) -> list[str]:
    """The inputs from their common folder on."""
    try:
        common = os.path.commonpath([os.path.dirname(entry.input) for entry in entries])
    except ValueError:  # there are none, or only some begin at the root
        return [entry.input for entry in entries]
    return [os.path.relpath(entry.input, common or ".") for entry in entries]


def _card(entry: Entry, name: str, folder: Path, palette: Pixels, *, thumbnail: bool) -> dict[str, Any]:
    picture = _thumbnail(entry, folder, palette) if thumbnail and entry.status != "failed" else None
    return {
        "name": name,
        "path": entry.input,
        "status": entry.status,
        "error": entry.error,
        "confidence": entry.confidence,
        "outputs": [
            (kind, quote(os.fsencode(text_path(file).replace(os.sep, "/"))))
            for kind, file in entry.outputs.items()
        ],
        "source": None if picture is None else data_url(picture, width=THUMBNAIL_WIDTH, photograph=True),
    }


def _thumbnail(entry: Entry, folder: Path, palette: Pixels) -> Pixels | None:
    """The image with its mask laid over it; another picture that was written where there is no mask."""
    try:
        if "mask" in entry.outputs:
            image = _small(Path(text_path(entry.input)))
            with Image.open(folder / text_path(entry.outputs["mask"])) as file:
                mask = np.asarray(file.resize(image.size, Image.Resampling.NEAREST))
            return np.asarray(Image.blend(image, Image.fromarray(palette[mask]), 0.5), dtype=np.uint8)
        for kind in ("overlay", "color", "heatmap", "confidence-map"):
            if kind in entry.outputs:
                return np.asarray(_small(folder / text_path(entry.outputs[kind])), dtype=np.uint8)
    except (OSError, ValueError):  # moved or changed since: the page goes without its picture
        pass
    return None


def _small(path: Path) -> Image.Image:
    """A picture at the thumbnail's width, upright; a JPEG is decoded at a fraction of its size."""
    with Image.open(path) as file:
        file.draft("RGB", (2 * THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
        image = ImageOps.exif_transpose(file).convert("RGB")
    height = max(1, round(image.height * THUMBNAIL_WIDTH / image.width))
    return image.resize((THUMBNAIL_WIDTH, height), Image.Resampling.BILINEAR)
