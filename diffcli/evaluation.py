"""Scores of a model on a domain, and how they are told (table, report, picture); train and evaluate share it."""

import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli import console
from diffcli.config import EvalConfig, ModelConfig, Size, as_plain
from diffcli.core.metrics import ConfusionMatrix, Scores
from diffcli.core.model import SegmentationModel
from diffcli.data.batches import single_threaded
from diffcli.data.dataset import Domain
from diffcli.data.transforms import resize_image, resize_label
from diffcli.domains import CLASS_SUBSETS
from diffcli.errors import DataError
from diffcli.files import write_atomically
from diffcli.inference import network_image, segment_images
from diffcli.pictures import Pixels, Row, side_by_side

SHOWN_WIDTH = 1024
"""Samples for pictures are at most this wide."""
MAX_PROBLEMS = 20
"""Unreadable samples that are kept by name; the others are counted."""


class Shown(NamedTuple):
    """One evaluated sample, for a picture: image, truth and prediction of one size, none larger than a screen."""

    identity: str
    image: Pixels
    truth: Pixels
    prediction: Pixels
    iou: float
    """Mean IoU of this image over the classes in its label."""


@dataclass(frozen=True)
class DomainScores:
    """What one domain's evaluation found."""

    name: str
    samples: int
    """Images that were scored."""
    skipped: int
    """Images left out because they or their labels are unreadable or wrong."""
    problems: tuple[DataError, ...]
    """Why: the first of them."""
    counts: Tensor
    """(classes, classes) int64 on the CPU: pixels by true and predicted class."""
    scores: Scores
    image_iou: NDArray[np.float32]
    """Mean IoU of each image over the classes in its label; nan where skipped or unlabelled."""
    shown: Shown
    """The sample in the middle, for the picture."""
    seconds_per_image: float
    """Of the model, not of loading."""
    evaluations_per_image: float
    """U-Net evaluations."""
    size: Size | None = None
    """At which the network saw the images; None: each at its own."""


# --------------------------------------------------------------------------------------------- evaluating


def evaluate_domain(
    model: SegmentationModel,
    domain: Domain,
    config: EvalConfig,
    *,
    workers: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> DomainScores:
    """Segment every sample of a labelled domain and count its pixels into one confusion matrix.

    A sample that cannot be read, or whose label holds values outside the mapping, is left out and told in `problems`.

    Args:
        workers: processes that load; 0 loads in this one.
        progress: called once an image.

    Raises:
        DataError: the domain has no labels, or not one sample could be read.
        DiffError: the network's output is not finite.
    """
    if all(sample.label is None and sample.scene is None for sample in domain.samples):
        raise DataError(
            "no labels to compare with",
            where=domain.name,
            hint="masks of unlabelled images: diff predict IMAGES -o MASKS",
        )
    config = settings_of(domain, config)
    tally, seconds = _Tally(len(model.config.classes), len(domain)), 0.0
    evaluations = model.extractor.backbone.evaluations
    for batch in _equal_batches(domain, config, workers=workers):
        good = [sample for sample in batch if isinstance(sample, _Loaded)]
        started = time.perf_counter()
        for sample, mask in zip(good, _predict(model, good, config), strict=True):
            tally.add(sample, mask)
        seconds += time.perf_counter() - started
        tally.add_problems([error for error in batch if isinstance(error, DataError)])
        for _ in batch:
            progress()
    if tally.shown is None:
        raise tally.problems[0]
    count = len(domain) - tally.skipped
    return DomainScores(
        name=domain.name,
        samples=count,
        skipped=tally.skipped,
        problems=tuple(tally.problems),
        counts=tally.matrix.counts,
        scores=tally.matrix.scores(),
        image_iou=tally.image_iou,
        shown=_shown(domain, *tally.shown, iou=float(tally.image_iou[tally.shown[0]])),
        seconds_per_image=seconds / count,
        evaluations_per_image=(model.extractor.backbone.evaluations - evaluations) / count,
        size=config.size,
    )


def segment_domain(
    model: SegmentationModel, domain: Domain, config: EvalConfig, *, workers: int = 0
) -> Iterator[tuple[int, Pixels]]:
    """(index, mask of train ids at the image's own size) of every sample in order, labelled or not.

    Raises:
        DataError: the first sample that cannot be read.
        DiffError: the network's output is not finite.
    """
    config = settings_of(domain, config)
    for batch in _equal_batches(domain, config, workers=workers):
        good: list[_Loaded] = []
        for sample in batch:
            if isinstance(sample, DataError):
                raise sample
            good.append(sample)
        for sample, mask in zip(good, _predict(model, good, config), strict=True):
            yield sample.index, mask.cpu().numpy()


def settings_of(domain: Domain, config: EvalConfig) -> EvalConfig:
    """The settings with the domain's own size, where it has one."""
    return config if domain.eval_size is None else config.model_copy(update={"size": domain.eval_size})


class _Tally:
    """What is kept of a domain while it is evaluated; it does not grow but for a number an image."""

    def __init__(self, classes: int, samples: int) -> None:
        self.matrix = ConfusionMatrix(classes)
        self.image_iou = np.full(samples, np.nan, dtype=np.float32)
        self.problems: list[DataError] = []
        self.skipped = 0
        self.shown: tuple[int, Pixels] | None = None
        """Index and mask of the sample in the middle, or of the first one until that has come."""

    def add(self, sample: "_Loaded", mask: Tensor) -> None:
        counts, iou = _compare(mask, sample.label, classes=self.matrix.classes)
        self.matrix.counts += counts
        self.image_iou[sample.index] = iou
        if self.shown is None or sample.index == len(self.image_iou) // 2:
            self.shown = (sample.index, mask.cpu().numpy())

    def add_problems(self, problems: Sequence[DataError]) -> None:
        self.skipped += len(problems)
        self.problems = [*self.problems, *problems][:MAX_PROBLEMS]


def _compare(mask: Tensor, label: Pixels, *, classes: int) -> tuple[Tensor, float]:
    """Confusion counts of one image, and its mean IoU over the classes in its label (nan without any)."""
    matrix = ConfusionMatrix(classes)
    matrix.update(mask, torch.from_numpy(label).to(mask.device))
    return matrix.counts, matrix.scores().mean_iou_present


def evaluate_sample(model: SegmentationModel, domain: Domain, index: int, config: EvalConfig) -> Shown:
    """One sample again, for a picture: the noise is the image's own, so that the mask is the same as before."""
    config = settings_of(domain, config)
    sample = _load(domain, index, config.size)
    [mask] = _predict(model, [sample], config)
    _, iou = _compare(mask, sample.label, classes=len(model.config.classes))
    return _shown(domain, index, mask.cpu().numpy(), iou=iou)


@dataclass(frozen=True)
class _Loaded:
    """One sample as a worker hands it over."""

    index: int
    identity: str
    image: Pixels
    """At the network's size."""
    label: Pixels
    """At its own size."""


class _Samples(Dataset["_Loaded | DataError"]):
    """The domain's samples; a user's fault comes as a value, since exceptions lose their fields between processes."""

    def __init__(self, domain: Domain, size: Size | None) -> None:
        self.domain, self.size = domain, size

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, index: int) -> "_Loaded | DataError":
        try:
            return _load(self.domain, index, self.size)
        except DataError as error:  # a subclass may not survive the way between processes
            return DataError(error.message, where=error.where, hint=error.hint)


def _load(domain: Domain, index: int, size: Size | None) -> _Loaded:
    image, label = domain.load(index)
    return _Loaded(index, domain.identity(index), network_image(image, size), label)


def _equal_batches(
    domain: Domain, config: EvalConfig, *, workers: int
) -> Iterator[list[_Loaded | DataError]]:
    """Samples in order, in batches whose images are of one size; unreadable ones come along."""
    loader = DataLoader(
        _Samples(domain, config.size),
        batch_size=config.batch_size,
        num_workers=min(workers, math.ceil(len(domain) / config.batch_size)),
        collate_fn=list,
        worker_init_fn=single_threaded,
    )
    for samples in loader:
        for _, batch in groupby(samples, lambda s: s.image.shape if isinstance(s, _Loaded) else None):
            yield list(batch)


def _predict(model: SegmentationModel, samples: Sequence[_Loaded], config: EvalConfig) -> list[Tensor]:
    """Masks (H,W) of samples of one size, each at its label's size."""
    if not samples:
        return []
    return segment_images(
        model,
        [sample.image for sample in samples],
        sizes=[(sample.label.shape[0], sample.label.shape[1]) for sample in samples],
        identities=[sample.identity for sample in samples],
        config=config,
        references=[sample.label for sample in samples] if config.reference == "labels" else None,
    )


def _shown(domain: Domain, index: int, mask: Pixels, *, iou: float) -> Shown:
    image, label = domain.load(index)
    height, width = label.shape
    scale = min(1.0, SHOWN_WIDTH / width)
    size = Size(round(width * scale), max(1, round(height * scale)))
    truth, prediction = resize_label(label, size), resize_label(mask, size)
    return Shown(domain.identity(index), resize_image(image, size), truth, prediction, iou)


# ------------------------------------------------------------------------------------------------ telling


def report(scores: Sequence[DomainScores], *, model: ModelConfig, settings: EvalConfig) -> dict[str, Any]:
    """What report.json holds. Shares are 0..1, None where a class occurs neither in labels nor in predictions.

    mean_iou averages the classes that occur in labels or predictions (the official Cityscapes rule), mean_iou_all all
    classes of the model (one that never occurs counts 0), mean_iou_present those that occur in the labels.
    """
    domains = [_domain_report(one, model) for one in scores]
    *groups, overall = group_means(domains)
    return {
        "classes": list(model.classes),
        "eval": as_plain(settings),
        "domains": domains,
        "groups": groups,
        "mean_over_domains": overall,
    }


MEANS = ("mean_iou", "mean_iou_all", "mean_iou_present", "pixel_accuracy")


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """Names that share what is before a slash, by it (acdc: acdc/fog, acdc/night), where there are several."""
    heads = Counter(name.partition("/")[0] for name in names if "/" in name)
    return {
        head: [name for name in names if name.startswith(f"{head}/")]
        for head, count in heads.items()
        if count > 1
    }


def counted(names: Sequence[str]) -> list[str]:
    """The names that count in a mean over domains: one that is called like a family holds its images again."""
    known = families(names)
    return [name for name in names if name not in known]


def group_means(domains: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the domains of each family (acdc/fog, acdc/night), then over all domains.

    Args:
        domains: each with its `name` and MEANS.
    """
    names = [one["name"] for one in domains]
    groups = {f"{family}/*": members for family, members in families(names).items()}
    groups["all domains"] = counted(names)
    return [
        {
            "name": title,
            "domains": members,
            **{key: _mean([one[key] for one in domains if one["name"] in members]) for key in MEANS},
        }
        for title, members in groups.items()
    ]


def _domain_report(one: DomainScores, model: ModelConfig) -> dict[str, Any]:
    scores, labelled = one.scores, one.counts.sum(1).tolist()
    columns = {
        "iou": scores.iou,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "dice": scores.dice,
    }
    per_class = {
        name: {**{key: _share(column[i]) for key, column in columns.items()}, "pixels": labelled[i]}
        for i, name in enumerate(model.classes)
    }
    return {
        "name": one.name,
        "samples": one.samples,
        "skipped": one.skipped,
        "size": None if one.size is None else str(one.size),
        "problems": [str(problem) for problem in one.problems],
        "mean_iou": _share(scores.mean_iou),
        "mean_iou_all": _share(scores.mean_iou_all),
        "mean_iou_present": _share(scores.mean_iou_present),
        "classes_present": int(scores.present.sum()),
        "mean_iou_of": subset_means(one, model),
        "pixel_accuracy": _share(scores.pixel_accuracy),
        "mean_accuracy": _share(scores.mean_accuracy),
        "per_class": per_class,
        "confusion": one.counts.tolist(),
        "seconds_per_image": round(one.seconds_per_image, 4),
        "unet_evaluations_per_image": round(one.evaluations_per_image, 2),
    }


def subset_means(one: DomainScores, model: ModelConfig) -> dict[str, float | None]:
    """Mean IoU over the class subsets that this field reports, where the model knows all of their classes."""
    return {
        title: _share(float(one.scores.iou[[model.classes.index(name) for name in names]].nanmean()))
        for title, names in CLASS_SUBSETS.items()
        if set(names) <= set(model.classes)
    }


def _share(value: float | Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else round(number, 6)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return round(statistics.fmean(defined), 6) if defined else None


class Table(NamedTuple):
    """A table before it is printed or written: names left, percentages right."""

    title: str
    columns: list[str]
    rows: list[list[object]]
    footer: list[list[object]]


def summary_table(scores: Sequence[DomainScores], *, model: ModelConfig) -> Table:
    """IoU in percent of each class, a column a domain, and the means below."""
    prefix, names = _common_prefix([one.name for one in scores])

    def row(name: str, values: Sequence[float | Tensor]) -> list[object]:
        return [name, *(100 * float(value) for value in values)]

    rows = [row(name, [one.scores.iou[i] for one in scores]) for i, name in enumerate(model.classes)]
    footer = [
        row(f"mean, all {len(model.classes)}", [one.scores.mean_iou_all for one in scores]),
        row("mean, present", [one.scores.mean_iou_present for one in scores]),
        row("pixel accuracy", [one.scores.pixel_accuracy for one in scores]),
        ["images", *(one.samples for one in scores)],
    ]
    return Table(f"IoU in percent{f' on {prefix}' if prefix else ''}", ["class", *names], rows, footer)


def means_table(scores: Sequence[DomainScores], *, model: ModelConfig) -> Table:
    """The means over each group of domains and over all of them, in percent."""
    groups = group_means([_domain_report(one, model) for one in scores])
    everything = groups[-1]["domains"]
    groups = [one for one in groups[:-1] if one["domains"] != everything] + groups[-1:]
    heads = [f"mean, all {len(model.classes)}", "mean, present", "pixel accuracy"]
    rows: list[list[object]] = [
        [one["name"], *(one[key] and 100 * one[key] for key in MEANS[1:]), len(one["domains"])]
        for one in groups
    ]
    return Table("Mean over domains, in percent", ["mean over", *heads, "domains"], rows, [])


def print_table(scores: Sequence[DomainScores], *, model: ModelConfig) -> None:
    """Print the table of classes and domains on stdout; for several domains also their means."""
    print_blocks(summary_table(scores, model=model))
    if len(scores) > 1:
        console.print_text("")
        print_blocks(means_table(scores, model=model))


def print_blocks(table: Table) -> None:
    """Print a table on stdout, in blocks of columns that fit the terminal."""
    for i, block in enumerate(blocks(table, width=shutil.get_terminal_size().columns)):
        if i:
            console.print_text("")
        console.table(*block[:3], footer=block.footer)


def blocks(table: Table, *, width: int) -> list[Table]:
    """The table in blocks of columns, each after the first column, no wider than `width` where that is possible.

    The fewest blocks that do, and of about one width.
    """
    everything: list[Sequence[object]] = [table.columns, *table.rows, *table.footer]
    widths = [max(len(_text(row[i])) for row in everything) for i in range(len(table.columns))]
    fewest = _split(widths, width)
    narrower = (_split(widths, limit) for limit in range(widths[0], width))
    return [_columns(table, taken) for taken in next((s for s in narrower if len(s) == len(fewest)), fewest)]


def _split(widths: Sequence[int], limit: int) -> list[list[int]]:
    """Columns from the second on, in runs that fit into `limit` together with the first."""
    split: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if split[-1] and widths[0] + sum(widths[j] + 2 for j in [*split[-1], i]) > limit:
            split.append([])
        split[-1].append(i)
    return split


def _columns(table: Table, chosen: Sequence[int]) -> Table:
    """The first column and the chosen ones."""
    places = [0, *chosen]
    return Table(
        table.title,
        [table.columns[i] for i in places],
        [[row[i] for i in places] for row in table.rows],
        [[row[i] for i in places] for row in table.footer],
    )


def _text(value: object) -> str:
    """A cell as it is shown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _common_prefix(names: Sequence[str]) -> tuple[str, list[str]]:
    """The family that all names share ("acdc" of acdc/fog and acdc/night), and the names without it."""
    families = {name.partition("/")[0] for name in names if "/" in name}
    if len(families) != 1 or len(names) < 2 or not all("/" in name for name in names):
        return "", list(names)
    return families.pop(), [name.partition("/")[2] for name in names]


def markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [f"**{table.title}**", "", _markdown_row(table.columns)]
    lines.append("|" + "|".join([" --- ", *([" ---: "] * (len(table.columns) - 1))]) + "|")
    lines += [_markdown_row(row) for row in [*table.rows, *table.footer]]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Sequence[object]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in row) + " |"


def write_picture(path: Path, scores: Sequence[DomainScores], *, model: ModelConfig) -> None:
    """Write image | truth | prediction as a PNG, a row a domain."""
    rows = [
        Row(one.name, one.shown.image, one.shown.truth, one.shown.prediction) for one in scores if one.shown
    ]
    with write_atomically(path) as temporary:
        side_by_side(rows, model=model).save(temporary)
