"""report.json: the scores of one run as pydantic models. Shares are 0..1 and unrounded; tables round them, once.

mean_iou averages the classes that occur in labels or predictions (the official Cityscapes rule), mean_iou_all all
classes of the model (one that never occurs counts 0), mean_iou_present those that occur in the labels.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from diffcli.classes import CLASS_SUBSETS
from diffcli.config.base import as_plain
from diffcli.config.settings import EvalConfig, ModelConfig
from diffcli.drawing.pictures import Row, side_by_side
from diffcli.evaluation.domains import ClassMatch
from diffcli.evaluation.evaluator import DomainScores
from diffcli.files import write_atomically

ALL_DOMAINS = "all domains"
Share = float | None
"""0..1; None where it is undefined (0/0)."""


class Record(BaseModel):
    """One object of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassReport(Record):
    """Scores of one class on one domain."""

    iou: Share
    accuracy: Share
    precision: Share
    dice: Share
    pixels: int
    """Labelled pixels of the class."""


class Means(Record):
    """Means over classes."""

    mean_iou: Share
    mean_iou_all: Share
    mean_iou_present: Share
    pixel_accuracy: Share


class DomainReport(Means):
    """Scores of one domain."""

    name: str
    samples: int
    skipped: int
    size: str | None
    """WIDTHxHEIGHT at which the network saw the images; null: each at its own."""
    problems: list[str]
    classes_present: int
    shared_images: int = 0
    """Images that the run was trained on: with any, the domain is no test of generalisation."""
    class_match: ClassMatch | None = None
    """How the run's classes and the domain's were matched; null where they are the same."""
    mean_iou_of: dict[str, Share]
    """Class subsets that this field reports -> mean IoU."""
    mean_accuracy: Share
    per_class: dict[str, ClassReport]
    confusion: list[list[int]]
    """Pixels by true (row) and predicted class."""
    seconds_per_image: float
    unet_evaluations_per_image: float


class GroupReport(Means):
    """Means over the domains of a group (acdc/fog, acdc/night), or over all domains."""

    name: str
    domains: list[str]


class Report(Record):
    """The whole file."""

    schema_version: Literal[1] = 1
    """A change that breaks readers of the file counts it up."""
    diffcli: str | None = None
    run: str | None = None
    checkpoint: str | None = None
    iteration: int | None = None
    backbone: str | None = None
    device: str | None = None
    precision: str | None = None
    time: str | None = None
    classes: list[str]
    eval: dict[str, Any]
    """The settings of `eval:`."""
    domains: list[DomainReport]
    groups: list[GroupReport]
    mean_over_domains: GroupReport
    training: dict[str, Any] | None = None
    """Of the report that `diff train` writes."""

    def as_json(self) -> dict[str, Any]:
        """What the file holds; what is not known of the whole (run, training ...) is left out."""
        unknown = {name for name in type(self).model_fields if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unknown)


def build_report(
    scores: Sequence[DomainScores],
    *,
    model: ModelConfig,
    settings: EvalConfig,
    matches: Mapping[str, ClassMatch] | None = None,
    shared: Mapping[str, int] | None = None,
    **about: Any,
) -> Report:
    """The report of one run.

    Args:
        matches: name of a domain -> how its classes were matched, where they are not the run's.
        shared: name of a domain -> its images that the run was trained on.
        about: further fields of `Report`.
    """
    domains = [
        _domain_report(one, model, (matches or {}).get(one.name), (shared or {}).get(one.name, 0))
        for one in scores
    ]
    *groups, overall = group_means(domains)
    return Report(
        classes=list(model.classes),
        eval=as_plain(settings),
        domains=domains,
        groups=groups,
        mean_over_domains=overall,
        **about,
    )


def groups_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Names that share what is before a slash, by it (acdc: acdc/fog, acdc/night), where there are several."""
    heads = Counter(name.partition("/")[0] for name in names if "/" in name)
    return {
        head: [name for name in names if name.startswith(f"{head}/")]
        for head, count in heads.items()
        if count > 1
    }


def counted(names: Sequence[str]) -> list[str]:
    """The names that count in a mean over domains: one that is called like a group holds its images again."""
    groups = groups_of(names)
    return [name for name in names if name not in groups]


def group_means(domains: Sequence[DomainReport]) -> list[GroupReport]:
    """Means over the domains of each group (acdc/fog, acdc/night), then over all domains."""
    names = [one.name for one in domains]
    groups = {f"{head}/*": members for head, members in groups_of(names).items()}
    groups[ALL_DOMAINS] = counted(names)
    return [
        GroupReport(
            name=title,
            domains=members,
            **{
                key: _mean([getattr(one, key) for one in domains if one.name in members])
                for key in Means.model_fields
            },
        )
        for title, members in groups.items()
    ]


def _domain_report(
    one: DomainScores, model: ModelConfig, match: ClassMatch | None, shared: int
) -> DomainReport:
    scores, labelled = one.scores, one.counts.sum(1).tolist()
    columns = {
        "iou": scores.iou,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "dice": scores.dice,
    }
    return DomainReport(
        name=one.name,
        samples=one.samples,
        skipped=one.skipped,
        size=None if one.size is None else str(one.size),
        problems=[str(problem) for problem in one.problems],
        mean_iou=_defined(scores.mean_iou),
        mean_iou_all=_defined(scores.mean_iou_all),
        mean_iou_present=_defined(scores.mean_iou_present),
        pixel_accuracy=_defined(scores.pixel_accuracy),
        mean_accuracy=_defined(scores.mean_accuracy),
        classes_present=int(scores.present.sum()),
        class_match=match,
        shared_images=shared,
        mean_iou_of=subset_means(one, model),
        per_class={
            name: ClassReport(
                **{key: _defined(column[i]) for key, column in columns.items()}, pixels=labelled[i]
            )
            for i, name in enumerate(model.classes)
        },
        confusion=one.counts.tolist(),
        seconds_per_image=round(one.seconds_per_image, 4),
        unet_evaluations_per_image=round(one.evaluations_per_image, 2),
    )


def subset_means(one: DomainScores, model: ModelConfig) -> dict[str, Share]:
    """Mean IoU over the class subsets that this field reports, where the model knows all of their classes."""
    return {
        title: _defined(float(one.scores.iou[[model.classes.index(name) for name in names]].nanmean()))
        for title, names in CLASS_SUBSETS.items()
        if set(names) <= set(model.classes)
    }


def _defined(value: float | Tensor) -> Share:
    number = float(value)
    return None if math.isnan(number) else number


def _mean(values: Sequence[Share]) -> Share:
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None


def write_picture(path: Path, scores: Sequence[DomainScores], *, model: ModelConfig) -> None:
    """Write image | truth | prediction as a PNG, a row a domain."""
    rows = [
        Row(one.name, one.shown.image, one.shown.truth, one.shown.prediction) for one in scores if one.shown
    ]
    with write_atomically(path) as temporary:
        side_by_side(rows, model=model).save(temporary)
