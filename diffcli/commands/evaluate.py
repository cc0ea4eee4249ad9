"""`diff eval`: scores of trained runs on labelled domains: tables, a page, report.json, CSV, Markdown, a picture."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffcli import __version__
from diffcli.config.domain import DomainConfig
from diffcli.config.settings import EvalConfig
from diffcli.core.model import SegmentationModel
from diffcli.data.dataset import Domain, open_domain
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.evaluation.domains import wanted_domains
from diffcli.evaluation.groups import score_all
from diffcli.evaluation.html import html_report
from diffcli.evaluation.report import (
    Table,
    group_means,
    markdown,
    means_table,
    print_blocks,
    print_table,
    report,
    summary_table,
    write_picture,
)
from diffcli.evaluation.scoring import DomainScores, Shown, evaluate_domain, evaluate_sample
from diffcli.files import write_text
from diffcli.runs.folder import PICTURE, REPORT
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime import console, distributed
from diffcli.runtime.device import resolve_data_workers

WORST = 2
"""Images with the lowest score that the page shows of each domain."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff eval` is asked for."""

    runs: Sequence[Path]
    """Run folders, exported folders or checkpoint files."""
    domains: str | None = None
    """A name, "all" or a comma list; None takes each run's data.eval."""
    root: Path | None = None
    """Where the one named domain is."""
    overrides: Sequence[str] = ()
    """Settings to change, as in "eval.flip=true"."""
    output: Path | None = None
    """Folder of the reports; None takes RUN/eval/<time>."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; None takes auto."""


def run(request: Request) -> None:
    """Evaluate every run on every domain; print the tables and write a folder of reports for each run.

    Several runs are put into one table, which is also written with -o.

    Raises:
        ConfigError: several runs have one name, or other classes.
        DiffError: nothing could be evaluated; or, after all else is done and written, something could not.
    """
    output = request.output
    opened = [open_run(path, overrides=request.overrides) for path in request.runs]
    _refuse_equal_names(opened)
    _refuse_other_classes(opened)
    known = next((trained.config.data.eval for trained in opened if trained.config.data.eval), ())
    wanted = [wanted_domains(trained, request.domains, request.root, otherwise=known) for trained in opened]
    results = []
    for trained, entries in zip(opened, wanted, strict=True):
        folder = distributed.broadcast(partial(_output_folder, trained, output, several=len(opened) > 1))
        result = _evaluate(trained, entries, folder=folder, device=request.device)
        results.append(result)
        with distributed.raise_together():
            if result.scores and distributed.is_main_process():
                write_reports(result)
        _tell(result, heading=len(opened) > 1)
    reports = [result.report for result in results]
    console.print_record({"runs": reports} if len(opened) > 1 else reports[0])
    if len(opened) > 1:
        print_blocks(comparison(results))
    with distributed.raise_together():
        if output is not None and len(opened) > 1 and distributed.is_main_process():
            write_text(output / "comparison.md", markdown(comparison(results)))
    _raise_problems(results)


@dataclass
class Result:
    """One run's evaluation."""

    run: OpenRun
    folder: Path
    scores: list[DomainScores] = field(default_factory=list)
    errors: list[DiffError] = field(default_factory=list)
    """Domains that could not be evaluated at all."""
    report: dict[str, Any] = field(default_factory=dict)
    examples: list[list[tuple[str, Shown]]] = field(default_factory=list)
    """For the page: the worst images and the median one of each domain."""


def comparison(results: Sequence[Result]) -> Table:
    """Mean IoU over the classes present, in percent: a row a domain, a column a run."""
    means = [{one.name: 100 * one.scores.mean_iou_present for one in result.scores} for result in results]
    names = list(dict.fromkeys(name for own in means for name in own))
    rows: list[list[object]] = [[name, *(own.get(name) for own in means)] for name in names]
    everywhere = [name for name in names if all(name in own for own in means)]
    averages = [_comparable_means(result, everywhere) for result in results]
    footer: list[list[object]] = [
        [f"mean over {title}", *(own[title] for own in averages)] for title in averages[0]
    ]
    title = "mean IoU in percent (classes present)"
    return Table(title, ["domain", *(r.run.name for r in results)], rows, footer)


def _comparable_means(result: Result, names: Sequence[str]) -> dict[str, float | None]:
    """Means over groups of the domains that every run was scored on."""
    groups = group_means([one for one in result.report["domains"] if one["name"] in names])
    values = {one["name"]: one["mean_iou_present"] for one in groups}
    return {title: None if value is None else 100 * value for title, value in values.items()}


def write_reports(result: Result) -> None:
    """Write report.html, .json, .csv and .md, and picture.png into the result's folder."""
    model, scores = result.run.config.model, result.scores
    write_text(result.folder / REPORT, json.dumps(result.report, indent=2, ensure_ascii=False))
    write_text(result.folder / "report.csv", _csv(result.report))
    write_text(result.folder / "report.md", _markdown(result))
    page = html_report(result.report, scores, model=model, examples=result.examples)
    write_text(result.folder / "report.html", page)
    write_picture(result.folder / PICTURE, scores, model=model)


def _evaluate(
    trained: OpenRun, entries: Sequence[DomainConfig], *, folder: Path, device: str | None
) -> Result:
    """Evaluate one run on every domain that can be opened; what cannot is kept in `errors`."""
    result = Result(trained, folder)
    domains = _open_domains(result, entries)
    distributed.require_same([domain.samples for domain in domains], what="samples")
    distributed.broadcast(lambda: _make_folder(folder))
    model, settings = trained.load_model(device=device), trained.config.eval
    workers = resolve_data_workers(trained.config.runtime.data_workers)

    def score(domain: Domain) -> DomainScores | None:
        try:
            with console.progress(f"evaluate {domain.name}", len(domain), unit="images") as bar:
                return evaluate_domain(model, domain, settings, workers=workers, progress=bar.update)
        except DiffError as error:
            result.errors.append(error)
            console.warn(str(error))
            return None

    for domain, scores in zip(domains, score_all(domains, score), strict=True):
        if scores is not None:
            result.scores.append(scores)
            examples = partial(_examples, model, domain, scores, settings)
            result.examples.append(distributed.broadcast(examples))
    told = report(result.scores, model=model.config, settings=settings)
    result.report = {**_about(trained, model), **told}
    return result


def _examples(
    model: SegmentationModel, domain: Domain, scores: DomainScores, settings: EvalConfig
) -> list[tuple[str, Shown]]:
    """The worst images and the median one, segmented again (their masks come out the same)."""
    order = [int(i) for i in np.argsort(scores.image_iou) if not np.isnan(scores.image_iou[i])]
    if not order:
        return []
    chosen = dict.fromkeys(order[:WORST], "worst")
    if len(order) > 1:
        chosen[order[len(order) // 2]] = "median"
    return [(what, evaluate_sample(model, domain, i, settings)) for i, what in chosen.items()]


def _open_domains(result: Result, entries: Sequence[DomainConfig]) -> list[Domain]:
    """The domains that are there; raises where none is."""
    domains = []
    for entry in entries:
        try:
            domains.append(open_domain(entry, purpose="eval", classes=result.run.config.model.classes))
        except DataError as error:
            if len(entries) == 1:
                raise
            result.errors.append(error)
            console.warn(str(error))
    if not domains:
        raise DataError(
            "none of the domains can be read",
            hint="`diff domains` says what is there; DIFFCLI_DATA names their folder",
        )
    return domains


def _output_folder(trained: OpenRun, output: Path | None, *, several: bool) -> Path:
    """Where the reports go: fresh by default, as told with -o (a sub-folder a run, if there are several)."""
    if output is not None:
        return output / trained.name if several else output
    base = trained.folder / "eval" if trained.folder is not None else Path("eval") / trained.name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    taken = sum(1 for _ in base.glob(f"{stamp}*"))
    return base / (f"{stamp}-{taken + 1}" if taken else stamp)


def _make_folder(folder: Path) -> None:
    """Make the folder of the reports, before the work that they tell of."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffError(
            f"cannot write here: {error.strerror or error}",
            where=str(folder),
            hint="choose another folder: -o DIR",
        ) from error


def _refuse_equal_names(opened: Sequence[OpenRun]) -> None:
    names = [trained.name for trained in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two runs are named {', '.join(twice)}", hint="one table cannot tell them apart: rename a folder"
        )


def _refuse_other_classes(opened: Sequence[OpenRun]) -> None:
    first, *others = opened
    for other in others:
        if other.config.model.classes != first.config.model.classes:
            raise ConfigError(
                f"it knows other classes than {first.path}",
                where=str(other.path),
                hint="means over different classes do not compare: evaluate these runs one by one",
            )


def _about(trained: OpenRun, model: SegmentationModel) -> dict[str, Any]:
    """What was evaluated, with what, when."""
    info = trained.checkpoint.info
    return {
        "diffcli": __version__,
        "run": str(trained.path),
        "checkpoint": trained.weights.name,
        "iteration": info.get("iteration"),
        "backbone": model.config.backbone.source,
        "device": str(model.device),
        "precision": model.precision,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _tell(result: Result, *, heading: bool) -> None:
    if heading:
        console.say(f"run {result.run.name}")
    if not result.scores:
        return
    print_table(result.scores, model=result.run.config.model)
    console.say(f"reports: {result.folder}")


def _csv(told: dict[str, Any]) -> str:
    """One line a domain and class, shares 0..1, then the domain's means; several domains' means at the end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["domain", "class", "iou", "accuracy", "precision", "dice", "pixels"])
    for one in told["domains"]:
        for name, values in one["per_class"].items():
            writer.writerow([one["name"], name, *values.values()])
        writer.writerows(_csv_means(one, told))
    for group in [*told["groups"], told["mean_over_domains"]] if len(told["domains"]) > 1 else ():
        writer.writerows(_csv_means(group, told))
    return text.getvalue()


def _csv_means(one: dict[str, Any], told: dict[str, Any]) -> list[list[object]]:
    means = {
        f"mean of all {len(told['classes'])}": one["mean_iou_all"],
        "mean of classes present": one["mean_iou_present"],
    }
    return [[one["name"], title, mean, "", "", "", ""] for title, mean in means.items()]


def _markdown(result: Result) -> str:
    about = result.report
    facts = {
        key: about[key]
        for key in ("run", "checkpoint", "iteration", "backbone", "precision", "diffcli", "time")
    }
    settings = [f"- {key}: {value}" for key, value in {**facts, **about["eval"]}.items()]
    model = result.run.config.model
    tables = [summary_table(result.scores, model=model), means_table(result.scores, model=model)]
    return "\n".join([*map(markdown, tables if len(result.scores) > 1 else tables[:1]), *settings, ""])


def _raise_problems(results: Sequence[Result]) -> None:
    """End with an error if anything was left out, after all the rest is done."""
    errors = [error for result in results for error in result.errors]
    skipped = [one for result in results for one in result.scores if one.skipped]
    if not errors and not skipped:
        return
    lines = [f"  - {str(error).splitlines()[0]}" for error in errors]
    for one in skipped:
        lines.append(
            f"  - {one.name}: {one.skipped} of {one.skipped + one.samples} images are not in its scores:"
        )
        lines += [f"      {str(problem).splitlines()[0]}" for problem in one.problems]
    done = any(result.scores for result in results)
    what = "not every domain was evaluated in full" if done else "nothing was evaluated"
    raise DataError(
        "\n".join([what, *lines]), hint="mend or take out these files; the rest is evaluated and written"
    )
