"""The zip that an evaluation server takes: one PNG per image of a test set, whose labels are not public."""

import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_ID_OF_TRAIN_ID
from diffcli.config.domain import domain_config
from diffcli.data.dataset import Domain, Sample, open_domain
from diffcli.data.domains import ACDC_CONDITIONS
from diffcli.drawing.pictures import Pixels
from diffcli.errors import ConfigError, DataError
from diffcli.files import write_atomically
from diffcli.runs.opening import OpenRun


@dataclass(frozen=True)
class Server:
    """What an evaluation server takes: single-channel 8-bit PNGs, each named like its image, in a zip."""

    images: int
    """Size of its test set."""
    label_ids: bool
    """Pixels are Cityscapes' label ids (7 is road), else train ids (0 is road)."""
    folder: str = ""
    """Folder of the PNGs in the zip."""


SERVERS: Mapping[str, Server] = {
    "cityscapes": Server(images=1525, label_ids=True),
    "acdc": Server(images=2000, label_ids=False, folder="labelTrainIds/"),
    **{
        f"acdc/{condition}": Server(images=500, label_ids=False, folder="labelTrainIds/")
        for condition in ACDC_CONDITIONS
    },
    "dark_zurich": Server(images=151, label_ids=False, folder="labelTrainIds/"),
}
"""Cityscapes: its evaluation finds <city>_<sequence>_<frame>*.png in any folder. ACDC, also one condition of
it, and Dark Zurich: as the published code of this field hands them in (HRDA, "Testing & Predictions")."""


def find_server(domain: str) -> Server:
    """The server of a domain. Raises ConfigError where none is known."""
    if domain not in SERVERS:
        raise ConfigError(
            f"no evaluation server is known for {domain}",
            hint=f"known: {', '.join(SERVERS)}; plain masks of train ids: diff predict IMAGES -o masks",
        )
    return SERVERS[domain]


def server_ids(trained: OpenRun, server: Server) -> Pixels:
    """(classes,) uint8: the server's id for each train id of the run.

    Raises:
        ConfigError: the run's classes are not Cityscapes', or it is set to read labels.
    """
    classes, settings = trained.config.model.classes, trained.config.eval
    unknown = [name for name in classes if name not in CITYSCAPES_CLASSES]
    if unknown:
        raise ConfigError(
            f"the server has Cityscapes' classes, and this run has {', '.join(unknown)}",
            where=str(trained.path),
        )
    if settings.reference == "labels":
        raise ConfigError(
            "eval.reference is labels, but a test set has none",
            where=str(trained.path),
            hint="--set eval.reference=none (or prediction)",
        )
    train_ids = [CITYSCAPES_CLASSES.index(name) for name in classes]
    ids = [CITYSCAPES_ID_OF_TRAIN_ID[i] for i in train_ids] if server.label_ids else train_ids
    return np.array(ids, dtype=np.uint8)


def open_unlabelled(trained: OpenRun, name: str, root: Path | None, split: str) -> Domain:
    """Every image of the split at the size of its file; labels, if there are any, are not read."""
    entries = trained.config.data.eval
    known = next((entry for entry in entries if entry.domain == name), domain_config(name))
    entry = known.model_copy(
        update={"root": root or known.root, "split": split, "resize": None, "limit": None}
    )
    domain = open_domain(entry, purpose="eval", classes=trained.config.model.classes)
    images = {sample.image for sample in domain.samples if sample.image} | set(domain.missing.labels)
    domain.samples = tuple(Sample(id=str(path), image=path, label=None) for path in sorted(images))
    return domain


def png_names(domain: Domain, server: Server) -> list[str]:
    """The path of each image's PNG in the zip. Raises DataError where two images have one name."""
    names = [f"{server.folder}{domain.identity(i)}.png" for i in range(len(domain))]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            "two images have one name", where=twice[0], hint="the server identifies images by name"
        )
    return names


def write_zip(
    output: Path, masks: Iterable[tuple[int, Pixels]], *, names: Sequence[str], ids: Pixels
) -> None:
    """Write the PNG of every (index, H,W mask of train ids), whole or not at all."""
    with write_atomically(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for index, mask in masks:
            data = io.BytesIO()
            Image.fromarray(ids[mask]).save(data, "PNG")
            archive.writestr(names[index], data.getvalue())
