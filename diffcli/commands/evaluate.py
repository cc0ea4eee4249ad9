"""`diff eval`: scores of trained runs on labelled domains: tables, a page, report.json, CSV, Markdown, a picture."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path

from diffcli import __version__
from diffcli.commands.tables import print_report, print_table
from diffcli.config.domain import DomainConfig
from diffcli.data.dataset import Domain, open_domain
from diffcli.data.mapping import problem_lines
from diffcli.data.overlap import shared_samples
from diffcli.drawing.pictures import class_palette
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.evaluation.comparison import COMPARISON, build_comparison, write_comparison
from diffcli.evaluation.domains import DomainChoice, match_classes, wanted_domains
from diffcli.evaluation.evaluator import DomainScores, Shown, evaluate_domain
from diffcli.evaluation.files import choose_examples, write_reports
from diffcli.evaluation.parts import score_all
from diffcli.evaluation.report import Report, build_report
from diffcli.evaluation.tables import comparison, overlap_lines
from diffcli.files import LOCK, hold_lock
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.opening import OpenRun, open_run
from diffcli.runtime import console, distributed
from diffcli.runtime.device import resolve_data_workers
from diffcli.runtime.words import counted


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff eval` is asked for."""

    runs: Sequence[Path]
    """Run folders, exported folders or checkpoint files."""
    domains: DomainChoice = field(default_factory=DomainChoice)
    """The domains; by default each run's data.eval."""
    overrides: Sequence[str] = ()
    """Settings to change, as in "eval.flip=true"."""
    output: Path | None = None
    """Folder of the reports; None takes RUN/eval/<time>."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps; None takes auto."""


def run(request: Request) -> list[Report]:
    """Evaluate every run on every domain; print the tables, write a folder of reports for each run, and return them.

    Several runs are also compared: in a table, and in a page with their settings and the IoU of every class.

    Raises:
        ConfigError: several runs have one name, or other classes.
        DiffError: nothing could be evaluated; or, after all else is done and written, something could not.
    """
    output = request.output
    opened = [open_run(path, overrides=request.overrides) for path in request.runs]
    several = len(opened) > 1
    _refuse_equal_names(opened)
    _refuse_other_classes(opened)
    known = next((trained.config.data.eval for trained in opened if trained.config.data.eval), ())
    wanted = [wanted_domains(trained, request.domains, otherwise=known) for trained in opened]
    results = []
    for trained, entries in zip(opened, wanted, strict=True):
        result = Result(trained)
        domains = _open_domains(result, entries)
        distributed.require_same([domain.samples for domain in domains], what="samples")
        with _report_folder(trained, output, several=several) as folder:
            _evaluate(result, domains, entries, device=request.device)
            results.append(result)
            with distributed.raise_together():
                if result.scores and distributed.is_main_process():
                    write_reports(
                        folder,
                        result.report,
                        result.scores,
                        model=result.run.config.model,
                        examples=result.examples,
                    )
        if several:
            console.print_text("")
            console.say(f"run {trained.name}")
        if result.scores:
            print_report(result.report)
            for line in overlap_lines(result.report):
                console.warn(line)
            console.say(f"reports: {folder}")
    records = [result.report.as_json() for result in results]
    console.print_record({"runs": records} if several else records[0])
    if several:
        _compare(results, output)
    _raise_problems(results)
    return [result.report for result in results]


@dataclass
class Result:
    """One run's evaluation."""

    run: OpenRun
    report: Report = field(init=False)
    scores: list[DomainScores] = field(default_factory=list)
    errors: list[DiffError] = field(default_factory=list)
    """Domains that could not be evaluated at all."""
    examples: list[list[tuple[str, Shown]]] = field(default_factory=list)
    """For the page: the worst images and the median one of each domain."""


def _compare(results: Sequence[Result], output: Path | None) -> None:
    """Print the table of several runs, and write their page to -o or to a new folder below eval/comparison."""
    reports = {result.run.name: result.report for result in results}
    console.print_text("")
    print_table(comparison(reports))
    if not any(result.scores for result in results):
        return
    with distributed.raise_together():
        if distributed.is_main_process():
            found = build_comparison(reports, {result.run.name: result.run.config for result in results})
            made: list[Path] = []
            folder = _make(output or _unused(Path("eval") / "comparison"), made)
            model = results[0].run.config.model
            write_comparison(folder, found, reports, palette=class_palette(model))
            console.say(f"comparison: {folder / COMPARISON}")


def _evaluate(
    result: Result, domains: Sequence[Domain], entries: Sequence[DomainConfig], *, device: str | None
) -> None:
    """Evaluate one run on the domains and build its report; a domain that cannot be scored is kept in `errors`."""
    trained = result.run
    images = sum(len(domain) for domain in domains) // distributed.world_size()
    model, settings = trained.load_model(device=device, images=images), trained.config.eval
    segmenter = trained_segmenter(model, settings)
    workers = resolve_data_workers(trained.config.runtime.data_workers)
    matches = {}
    for entry in entries:
        match = match_classes(entry, model.config.classes)
        if match is not None:
            matches[entry.name or entry.domain] = match
            console.say(f"{entry.name or entry.domain}: {match}")

    def score(domain: Domain) -> DomainScores | None:
        try:
            with console.progress(f"evaluate {domain.name}", len(domain), unit="images") as bar:
                return evaluate_domain(
                    segmenter,
                    domain,
                    workers=workers,
                    progress=bar.update,
                )
        except DiffError as error:
            result.errors.append(error)
            console.warn(str(error))
            return None

    for domain, scores in zip(domains, score_all(domains, score), strict=True):
        if scores is not None:
            result.scores.append(scores)
            result.examples.append(distributed.broadcast(partial(choose_examples, segmenter, domain, scores)))
    shared = _trained_on(trained, domains)
    result.report = build_report(
        result.scores,
        model=model.config,
        settings=settings,
        matches=matches,
        shared=shared,
        diffcli=__version__,
        run=str(trained.path),
        checkpoint=trained.weights.name,
        iteration=trained.checkpoint.info.get("iteration"),
        backbone=model.config.backbone.source,
        device=str(model.device),
        precision=model.precision,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _trained_on(trained: OpenRun, domains: Sequence[Domain]) -> dict[str, int]:
    """Domain -> images that the run was trained on, as far as its training set is on this machine."""
    try:
        source = open_domain(trained.config.data.train, purpose="train", classes=trained.config.model.classes)
    except DiffError:
        return {}
    return {domain.name: len(shared_samples(source, domain)) for domain in domains}


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


# -------------------------------------------------------------------------------------------------- reports


@contextmanager
def _report_folder(trained: OpenRun, output: Path | None, *, several: bool) -> Iterator[Path]:
    """Where the reports go, made before the work: -o (a sub-folder for each of several runs), or a new folder.

    A folder that stays empty is removed again, with the empty folders above it that were made for it.

    Raises:
        DiffError: it cannot be made.
    """
    made: list[Path] = []

    def make() -> Path:
        if output is not None:
            return _make(output / trained.name if several else output, made)
        base = trained.folder / "eval" if trained.folder is not None else Path("eval") / trained.name
        return _make(_unused(base), made)

    folder = distributed.broadcast(make)
    main = distributed.is_main_process()
    try:
        with hold_lock(folder / LOCK, where=folder) if main else nullcontext():
            yield folder
    finally:
        for path in reversed(made):
            with suppress(OSError):  # it holds something
                path.rmdir()


def _unused(base: Path) -> Path:
    """A folder below `base` named after the time, which is not there yet."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    numbered = (base / (stamp if i == 1 else f"{stamp}-{i}") for i in count(1))
    return next(folder for folder in numbered if not folder.exists())


def _make(folder: Path, made: list[Path]) -> Path:
    """Make a folder and those above it; each one that was not there is appended to `made`."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            made.append(path)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
    except OSError as error:
        raise DiffError(
            f"cannot write here: {error.strerror or error}",
            where=str(folder),
            hint="choose another folder: -o DIR",
        ) from error
    return folder


# --------------------------------------------------------------------------------------------------- errors


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
                f"it has other classes than {first.path}",
                where=str(other.path),
                hint="means over different classes do not compare: evaluate these runs one by one",
            )


def _raise_problems(results: Sequence[Result]) -> None:
    """End with an error if anything was left out, after all the rest is done."""
    errors = [error for result in results for error in result.errors]
    skipped = [one for result in results for one in result.scores if one.skipped]
    if not errors and not skipped:
        return
    lines = [f"  - {str(error).splitlines()[0]}" for error in errors]
    for one in skipped:
        lines.append(
            f"  - {one.name}: {one.skipped} of {counted(one.skipped + one.samples, 'image')} left out of its scores:"
        )
        lines += [f"      {line}" for line in problem_lines(one.problems)]
    done = any(result.scores for result in results)
    what = "not every domain was evaluated in full" if done else "nothing was evaluated"
    raise DataError("\n".join([what, *lines]), hint="fix these; the rest is evaluated and written")
