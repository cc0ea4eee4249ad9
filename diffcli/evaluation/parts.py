"""A domain whose samples are those of other domains (acdc: its four conditions) is scored from their counts."""

from collections.abc import Callable, Sequence

import numpy as np

from diffcli.core.metrics import ConfusionMatrix
from diffcli.data.dataset import Domain
from diffcli.evaluation.evaluator import MAX_PROBLEMS, DomainScores


def score_all(
    domains: Sequence[Domain], score: Callable[[Domain], DomainScores | None]
) -> list[DomainScores | None]:
    """What `score` finds of each domain (None: it cannot be scored), without segmenting any image twice."""
    parts = [parts_of(domain, domains) for domain in domains]
    scores: list[DomainScores | None] = [None] * len(domains)
    for i in sorted(range(len(domains)), key=lambda i: len(parts[i])):  # a whole after its parts
        scored = [one for one in (scores[j] for j in parts[i]) if one is not None]
        is_complete = scored and len(scored) == len(parts[i])
        scores[i] = add_up(domains[i].name, scored) if is_complete else score(domains[i])
    return scores


def parts_of(whole: Domain, domains: Sequence[Domain]) -> list[int]:
    """Indexes of the `domains` whose samples, one after the other, are those of `whole`; empty where there are none."""
    smaller = {
        i: _samples(one)
        for i, one in enumerate(domains)
        if len(one) < len(whole) and (one.resize, one.eval_size) == (whole.resize, whole.eval_size)
    }
    rest, parts = _samples(whole), []
    while rest:
        part = next((i for i, samples in smaller.items() if samples == rest[: len(samples)]), None)
        if part is None:
            return []
        parts.append(part)
        rest = rest[len(smaller.pop(part)) :]
    return parts


def _samples(domain: Domain) -> list[object]:
    """What each sample is read from: its id and reader differ between a domain and a part of it."""
    return [(sample.image, sample.label, sample.scene) for sample in domain.samples]


def add_up(name: str, parts: Sequence[DomainScores]) -> DomainScores:
    """Scores of all images of the parts: from the sum of their confusion matrices, never a mean of their scores."""
    matrix = ConfusionMatrix(len(parts[0].counts))
    for part in parts:
        matrix.counts += part.counts
    samples = sum(part.samples for part in parts)
    return DomainScores(
        name=name,
        samples=samples,
        skipped=sum(part.skipped for part in parts),
        problems=tuple(problem for part in parts for problem in part.problems)[:MAX_PROBLEMS],
        counts=matrix.counts,
        scores=matrix.scores(),
        image_iou=np.concatenate([part.image_iou for part in parts]),
        shown=parts[len(parts) // 2].shown,
        seconds_per_image=sum(part.seconds_per_image * part.samples for part in parts) / samples,
        evaluations_per_image=sum(part.evaluations_per_image * part.samples for part in parts) / samples,
        size=parts[0].size,
    )
