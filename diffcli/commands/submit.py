"""`diff submit`: a test set, whose labels others keep, segmented and zipped as its evaluation server takes it."""

import io
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_ID_OF_TRAIN_ID
from diffcli.config.domain import domain_config
from diffcli.data.dataset import Domain, Sample, open_domain
from diffcli.drawing.pictures import Pixels
from diffcli.errors import ConfigError, DataError
from diffcli.evaluation.evaluator import segment_domain
from diffcli.files import check_output, write_atomically
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime import console
from diffcli.runtime.device import resolve_data_workers


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
    "dark_zurich": Server(images=151, label_ids=False, folder="labelTrainIds/"),
}
"""Cityscapes: its evaluation finds <city>_<sequence>_<frame>*.png in any folder. ACDC and Dark Zurich: as the published
code of this field hands them in (HRDA, "Testing & Predictions")."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff submit` is asked for."""

    domain: str
    """One of SERVERS."""
    run: Path
    """A run folder, an exported folder or a checkpoint file."""
    output: Path
    """The zip file to write."""
    root: Path | None = None
    """Where the domain is; None takes the run's entry, or DIFFCLI_DATA/<domain>."""
    split: str = "test"
    """The split to segment."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; None takes auto."""
    overrides: Sequence[str] = ()
    """Settings to change, as in "eval.flip=true"."""


def run(request: Request) -> None:
    """Segment every image of a split, labelled or not, and write the zip: whole, or not at all.

    Raises:
        ConfigError: no server is known for this domain, or the run's classes or settings do not suit it.
        DataError: an image is missing or damaged; servers take complete sets only.
        DiffError: see `open_run`, `OpenRun.load_model` and `segment_domain`.
    """
    domain, split, output = request.domain, request.split, request.output
    server = _server(domain)
    check_output(output, suffixes=(".zip",))
    trained = open_run(request.run, overrides=request.overrides)
    pixels = _pixels(trained, server)
    opened = _open_unlabelled(trained, domain, request.root, split)
    names = _names(opened, server)
    if split == "test" and len(names) != server.images:
        console.warn(f"{domain}: {len(names)} images here, but the server's test set has {server.images}")
    with write_atomically(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        segmenter = trained_segmenter(trained.load_model(device=request.device), trained.config.eval)
        with console.progress(f"submit {domain}", len(names), unit="images") as bar:
            for index, mask in segment_domain(
                segmenter, opened, workers=resolve_data_workers(trained.config.runtime.data_workers)
            ):
                archive.writestr(names[index], _png(pixels[mask]))
                bar.update()
    console.say(f"{len(names)} label maps in {output}")
    record = {"run": request.run, "domain": domain, "split": split, "images": len(names), "output": output}
    console.print_record(record)


def _server(domain: str) -> Server:
    if domain not in SERVERS:
        raise ConfigError(
            f"no evaluation server is known for {domain}",
            hint=f"known: {', '.join(SERVERS)}; plain masks of train ids: diff predict IMAGES -o masks",
        )
    return SERVERS[domain]


def _pixels(trained: OpenRun, server: Server) -> Pixels:
    """The run's train id -> what the server calls that class."""
    classes, settings = trained.config.model.classes, trained.config.eval
    strange = [name for name in classes if name not in CITYSCAPES_CLASSES]
    if strange:
        raise ConfigError(
            f"the server has Cityscapes' classes, and this run has {', '.join(strange)}",
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


def _open_unlabelled(trained: OpenRun, name: str, root: Path | None, split: str) -> Domain:
    """Every image of the split at its own size; labels, if there are any, are left alone."""
    entries = trained.config.data.eval
    own = next((entry for entry in entries if entry.domain == name), domain_config(name))
    entry = own.model_copy(update={"root": root or own.root, "split": split, "resize": None, "limit": None})
    domain = open_domain(entry, purpose="eval", classes=trained.config.model.classes)
    images = {sample.image for sample in domain.samples if sample.image} | set(domain.missing.labels)
    domain.samples = tuple(Sample(id=str(path), image=path, label=None) for path in sorted(images))
    return domain


def _names(domain: Domain, server: Server) -> list[str]:
    """The PNG of each image in the zip."""
    names = [f"{server.folder}{domain.identity(i)}.png" for i in range(len(domain))]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError("two images of one name", where=twice[0], hint="the server tells them apart by name")
    return names


def _png(pixels: Pixels) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()
