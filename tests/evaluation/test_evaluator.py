"""The evaluation loop on a real tiny network: what it counts and what it leaves out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffcli.config.domain import domain_config
from diffcli.config.settings import EvalConfig, ModelConfig
from diffcli.core.metrics import ConfusionMatrix
from diffcli.core.model import SegmentationModel, to_model_range
from diffcli.data.dataset import Domain, open_domain
from diffcli.data.transforms import resize_image
from diffcli.errors import DataError, DiffError
from diffcli.evaluation.evaluator import DomainScores, evaluate_domain, evaluate_sample
from diffcli.evaluation.report import build_report
from diffcli.prediction.trained import trained_segmenter

SETTINGS = EvalConfig.model_validate({"size": "128x64"})


@pytest.fixture
def model(tiny_model: SegmentationModel) -> SegmentationModel:
    return tiny_model


MakeDomain = Callable[..., Domain]


@pytest.fixture
def make_domain(tmp_path: Path) -> MakeDomain:
    """make(sizes): a folder of random pictures with labels of some classes; `values` replaces labels by name."""

    def make(*sizes: tuple[int, int], values: dict[int, int] | None = None, labels: bool = True) -> Domain:
        for i, (width, height) in enumerate(sizes):
            random = np.random.default_rng(i)
            small = random.integers(0, 255, (6, 12, 3), dtype=np.uint8)
            label = random.choice([0, 1, 2, 10, 13, 255], (height // 8, width // 8)).astype(np.uint8)
            label = np.kron(label, np.ones((8, 8), np.uint8))
            label[:4] = (values or {}).get(i, label[0, 0])
            for folder, pixels in (("images", small), ("labels", label)):
                (tmp_path / folder).mkdir(exist_ok=True)
                if folder == "images" or labels:
                    image = Image.fromarray(pixels)
                    image = image.resize((width, height)) if folder == "images" else image
                    image.save(tmp_path / folder / f"{i}.png")
        return open_domain(domain_config("folder", name="made", root=tmp_path), purpose="eval")

    return make


def scored(model: SegmentationModel, domain: Domain, settings: EvalConfig, **options: Any) -> DomainScores:
    return evaluate_domain(trained_segmenter(model, settings), domain, **options)


def by_hand(model: SegmentationModel, domain: Domain) -> ConfusionMatrix:
    """The same counts, spelled out: one image at a time, all classes resized at once."""
    matrix = ConfusionMatrix(19)
    for i in range(len(domain)):
        image, label = domain.load(i)
        assert SETTINGS.size is not None
        batch = to_model_range(torch.from_numpy(resize_image(image, SETTINGS.size))[None])
        logits = model.logits(batch, identities=[domain.identity(i)])
        full = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        matrix.update(full.argmax(1)[0], torch.from_numpy(label))
    return matrix


def test_counts_are_those_of_plain_code(model: SegmentationModel, make_domain: MakeDomain) -> None:
    domain = make_domain((128, 64), (96, 48), (48, 96))
    calls = []
    scores = scored(model, domain, SETTINGS, progress=lambda: calls.append(1))
    expected = by_hand(model, domain)
    assert torch.equal(scores.counts, expected.counts)
    assert int((expected.counts.sum(0) > 0).sum()) > 1, "the test's model predicts one class only"
    assert scores.samples == len(calls) == 3
    assert scores.evaluations_per_image == 1
    assert scores.seconds_per_image > 0
    assert scores.scores.mean_iou_present == pytest.approx(expected.scores().mean_iou_present)


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (1, 2)])
def test_batches_and_workers_change_nothing(
    model: SegmentationModel, make_domain: MakeDomain, batch_size: int, workers: int
) -> None:
    domain = make_domain(*[(128, 64), (96, 48), (48, 96), (128, 64)] * 2)
    settings = SETTINGS.model_copy(update={"batch_size": batch_size})
    scores = scored(model, domain, settings, workers=workers)
    moved = int((scores.counts - by_hand(model, domain).counts).abs().sum())
    assert moved <= 0.01 * int(scores.counts.sum())  # another batch size rounds differently


def test_images_of_their_own_sizes(model: SegmentationModel, make_domain: MakeDomain) -> None:
    """size: null: images go at their own size, so that only equal ones share a batch."""
    domain = make_domain((128, 64), (96, 48), (96, 48), (64, 64))
    scores = scored(model, domain, EvalConfig(size=None, batch_size=4))
    assert scores.samples == 4


def test_a_domain_may_have_its_own_size(
    model: SegmentationModel, make_domain: MakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    logits = SegmentationModel.logits

    def spied(self: SegmentationModel, images: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(tuple(images.shape[-2:]))
        return logits(self, images, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentationModel, "logits", spied)
    root = make_domain((96, 48), (48, 96)).samples[0].image
    assert root is not None
    entry = domain_config("folder", root=root.parent.parent, eval_size="64x32")
    domain = open_domain(entry, purpose="eval")
    scores = scored(model, domain, SETTINGS)
    evaluate_sample(trained_segmenter(model, SETTINGS), domain, 0)
    assert seen == [(32, 64)] * 3
    assert int(scores.counts.sum()) == sum(int((domain.load(i)[1] != 255).sum()) for i in range(2))
    assert build_report([scores], model=ModelConfig(), settings=SETTINGS).domains[0].size == "64x32"


def test_a_bad_label_is_left_out_and_told(model: SegmentationModel, make_domain: MakeDomain) -> None:
    domain = make_domain((64, 64), (64, 64), (64, 64), values={1: 77})
    scores = scored(model, domain, SETTINGS)
    assert (scores.samples, scores.skipped) == (2, 1)
    assert "77" in str(scores.problems[0])
    assert "1.png" in str(scores.problems[0])
    assert np.isnan(scores.image_iou[1])
    assert int(scores.counts.sum()) == int(
        (domain.load(0)[1] != 255).sum() + (domain.load(2)[1] != 255).sum()
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_only_bad_labels_are_an_error(
    model: SegmentationModel, make_domain: MakeDomain, workers: int
) -> None:
    domain = make_domain(*[(64, 64)] * 4, values=dict.fromkeys(range(4), 77))
    with pytest.raises(DataError, match="77") as caught:
        scored(model, domain, SETTINGS, workers=workers)
    assert "0.png" in str(caught.value.where)


def test_without_labels_there_is_nothing_to_evaluate(
    model: SegmentationModel, make_domain: MakeDomain
) -> None:
    with pytest.raises(DataError, match="no labels"):
        scored(model, make_domain((64, 64), labels=False), SETTINGS)


@pytest.mark.parametrize(("reference", "at_least"), [("none", 1), ("labels", 2), ("prediction", 2)])
def test_references(model: SegmentationModel, make_domain: MakeDomain, reference: str, at_least: int) -> None:
    """Labels hold sidewalk, which has a prompt: one more evaluation. A prediction costs its own pass first."""
    domain = make_domain((64, 64), values={0: 1})
    settings = SETTINGS.model_copy(update={"reference": reference})
    scores = scored(model, domain, settings)
    assert scores.evaluations_per_image >= at_least
    assert (scores.evaluations_per_image == 1) == (reference == "none")


def test_an_output_that_is_not_finite_is_an_error(
    model: SegmentationModel, make_domain: MakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        SegmentationModel, "logits", lambda self, images, **_: images.mean(1, keepdim=True) / 0
    )
    with pytest.raises(DiffError, match="not finite"):
        scored(model, make_domain((64, 64)), SETTINGS)


def test_a_sample_again_is_the_same(model: SegmentationModel, make_domain: MakeDomain) -> None:
    domain = make_domain((64, 64), (96, 48))
    scores = scored(model, domain, SETTINGS)
    again = evaluate_sample(trained_segmenter(model, SETTINGS), domain, 1)
    assert np.array_equal(again.prediction, scores.shown.prediction)
    assert again.iou == pytest.approx(float(scores.image_iou[1]), abs=1e-6)
