"""`diff submit`: a test set, segmented and zipped as its evaluation server takes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcli.data.dataset import Domain
from diffcli.drawing.pictures import Pixels
from diffcli.evaluation.evaluator import segment_domain
from diffcli.evaluation.submission import find_server, open_unlabelled, png_names, server_ids, write_zip
from diffcli.files import check_output
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime import console
from diffcli.runtime.device import resolve_data_workers
from diffcli.runtime.words import counted


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
    server = find_server(domain)
    check_output(output, suffixes=(".zip",))
    trained = open_run(request.run, overrides=request.overrides)
    ids = server_ids(trained, server)
    opened = open_unlabelled(trained, domain, request.root, split)
    names = png_names(opened, server)
    if split == "test" and len(names) != server.images:
        found = counted(len(names), "image")
        console.warn(f"{domain}: {found} here, but the server's test set has {server.images}")
    write_zip(output, _masks(trained, opened, device=request.device), names=names, ids=ids)
    console.say(f"{counted(len(names), 'label map')} in {output}")
    record = {"run": request.run, "domain": domain, "split": split, "images": len(names), "output": output}
    console.print_record(record)


def _masks(trained: OpenRun, domain: Domain, *, device: str | None) -> Iterator[tuple[int, Pixels]]:
    """(index, H,W train ids) of every image, while the progress is shown."""
    model = trained.load_model(device=device, images=len(domain))
    segmenter = trained_segmenter(model, trained.config.eval)
    workers = resolve_data_workers(trained.config.runtime.data_workers)
    with console.progress(f"submit {domain.name}", len(domain), unit="images") as bar:
        for index, mask in segment_domain(segmenter, domain, workers=workers):
            yield index, mask
            bar.update()
