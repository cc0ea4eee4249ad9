"""`diff compare`: what several runs make of the same image, side by side, a row a domain."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffcli.data.dataset import Domain, open_domain
from diffcli.drawing.figures import Compared, compared_picture
from diffcli.errors import ConfigError
from diffcli.evaluation.domains import DomainChoice, wanted_domains
from diffcli.evaluation.evaluator import Shown, evaluate_sample
from diffcli.files import check_output, write_atomically
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime import console


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff compare` is asked for."""

    runs: Sequence[Path]
    """Run folders, exported folders or checkpoint files."""
    domains: DomainChoice = field(default_factory=DomainChoice)
    """The domains; by default the first run's data.eval."""
    index: int | None = None
    """Number of the image in its domain, from 0; None takes the middle one."""
    output: Path = Path("compare.png")
    """The PNG to write."""
    overrides: Sequence[str] = ()
    """Settings to change for every run, as in "eval.reference=prediction"."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; None takes auto."""


def run(request: Request) -> None:
    """Segment one image a domain with every run, with the same noise, and write image | truth | a column a run.

    The models are loaded one after the other: memory has to hold one.

    Raises:
        ConfigError: the runs have different classes, or there is no such image.
        DiffError: the output may not be replaced or written; see also `open_run`, `open_domain`, `evaluate_sample`.
    """
    check_output(request.output, suffixes=(".png",))
    runs, overrides = request.runs, request.overrides
    seed = open_run(runs[0], overrides=overrides).config.model.inversion.seed
    opened = [open_run(path, overrides=[f"model.inversion.seed={seed}", *overrides]) for path in runs]
    _refuse_other_classes(opened)
    known = next((one.config.data.eval for one in opened if one.config.data.eval), ())
    entries = wanted_domains(opened[0], request.domains, otherwise=known)
    targets = [
        open_domain(entry, purpose="eval", classes=opened[0].config.model.classes) for entry in entries
    ]
    chosen = [_chosen(domain, request.index) for domain in targets]
    shown = {
        name: _predictions(one, targets, chosen, device=request.device)
        for name, one in zip(_names(opened), opened, strict=True)
    }
    rows = [
        _compared(domain, {name: images[i] for name, images in shown.items()})
        for i, domain in enumerate(targets)
    ]
    with write_atomically(request.output) as temporary:
        compared_picture(rows, model=opened[0].config.model).save(temporary, format="PNG")
    _tell(rows, chosen, output=request.output)


def _predictions(
    trained: OpenRun, domains: Sequence[Domain], chosen: Sequence[int], *, device: str | None
) -> list[Shown]:
    """One run's prediction on the chosen image of every domain; the model is let go of at the end."""
    segmenter = trained_segmenter(trained.load_model(device=device), trained.config.eval)
    with console.progress(f"segment with {trained.name}", len(domains), unit="images") as bar:
        shown = []
        for domain, index in zip(domains, chosen, strict=True):
            shown.append(evaluate_sample(segmenter, domain, index))
            bar.update()
    return shown


def _compared(domain: Domain, shown: dict[str, Shown]) -> Compared:
    first = next(iter(shown.values()))
    return Compared(
        domain.name,
        first.identity,
        first.image,
        first.truth,
        {name: one.prediction for name, one in shown.items()},
        {name: one.iou for name, one in shown.items()},
    )


def _chosen(domain: Domain, index: int | None) -> int:
    if index is None:
        return len(domain) // 2
    if not 0 <= index < len(domain):
        raise ConfigError(
            f"there is no image {index}", where=domain.name, hint=f"--index 0 to {len(domain) - 1}"
        )
    return index


def _names(opened: Sequence[OpenRun]) -> list[str]:
    """What the columns are called: the runs' names where they differ, else their paths.

    Raises:
        ConfigError: the same run twice.
    """
    names = [one.name for one in opened]
    if len(set(names)) < len(names):
        names = [str(one.path) for one in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} is named twice", hint="name each run once")
    return names


def _refuse_other_classes(opened: Sequence[OpenRun]) -> None:
    first = opened[0].config.model.classes
    for one in opened[1:]:
        if one.config.model.classes != first:
            raise ConfigError(
                f"it knows other classes than {opened[0].path}",
                where=str(one.path),
                hint="compare runs of one class list",
            )


def _tell(rows: Sequence[Compared], chosen: Sequence[int], *, output: Path) -> None:
    records: list[dict[str, Any]] = [
        {"name": row.domain, "image": row.identity, "index": index, "mean_iou": dict(row.iou)}
        for row, index in zip(rows, chosen, strict=True)
    ]
    console.print_record({"picture": output, "domains": records})
    columns = ["domain", "image", *rows[0].iou]
    table = [[row.domain, row.identity, *(100 * value for value in row.iou.values())] for row in rows]
    console.table("mean IoU of the image in percent (classes present)", columns, table)
    console.say(f"picture: {output}")
