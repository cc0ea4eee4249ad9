"""The evaluation loop on a real tiny network: what it counts, what it leaves out, and how it tells it."""

import json
from collections.abc import Callable
from pathlib import Path

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
from diffcli.drawing.pictures import blend, class_palette, mask_image
from diffcli.errors import DataError, DiffError
from diffcli.evaluation.report import (
    blocks,
    markdown,
    means_table,
    print_table,
    report,
    summary_table,
    write_picture,
)
from diffcli.evaluation.scoring import DomainScores, Shown, evaluate_domain, evaluate_sample
from diffcli.prediction.inference import predicted_ids

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


# --------------------------------------------------------------------------------------------- evaluating


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
    scores = evaluate_domain(model, domain, SETTINGS, progress=lambda: calls.append(1))
    expected = by_hand(model, domain)
    assert torch.equal(scores.counts, expected.counts)
    assert int((expected.counts.sum(0) > 0).sum()) > 1, "the test's model predicts one class only"
    assert scores.samples == len(calls) == 3
    assert scores.evaluations_per_image == 1
    assert scores.seconds_per_image > 0
    assert scores.scores.mean_iou_present == pytest.approx(expected.scores().mean_iou_present)


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (3, 2)])
def test_batches_and_workers_change_nothing(
    model: SegmentationModel, make_domain: MakeDomain, batch_size: int, workers: int
) -> None:
    domain = make_domain((128, 64), (96, 48), (48, 96), (128, 64))
    settings = SETTINGS.model_copy(update={"batch_size": batch_size})
    scores = evaluate_domain(model, domain, settings, workers=workers)
    moved = int((scores.counts - by_hand(model, domain).counts).abs().sum())
    assert moved <= 0.01 * int(scores.counts.sum())  # another batch size rounds differently


def test_images_of_their_own_sizes(model: SegmentationModel, make_domain: MakeDomain) -> None:
    """size: null: images go at their own size, so that only equal ones share a batch."""
    domain = make_domain((128, 64), (96, 48), (96, 48), (64, 64))
    scores = evaluate_domain(model, domain, EvalConfig(size=None, batch_size=4))
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
    entry = domain_config(domain="folder", root=root.parent.parent, eval_size="64x32")
    domain = open_domain(entry, purpose="eval")
    scores = evaluate_domain(model, domain, SETTINGS)
    evaluate_sample(model, domain, 0, SETTINGS)
    assert seen == [(32, 64)] * 3
    assert int(scores.counts.sum()) == sum(int((domain.load(i)[1] != 255).sum()) for i in range(2))
    told = report([scores], model=ModelConfig(), settings=SETTINGS)
    assert told["domains"][0]["size"] == "64x32"


def test_a_bad_label_is_left_out_and_told(model: SegmentationModel, make_domain: MakeDomain) -> None:
    domain = make_domain((64, 64), (64, 64), (64, 64), values={1: 77})
    scores = evaluate_domain(model, domain, SETTINGS)
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
    domain = make_domain((64, 64), (64, 64), values={0: 77, 1: 78})
    with pytest.raises(DataError, match="77") as caught:
        evaluate_domain(model, domain, SETTINGS, workers=workers)
    assert "0.png" in str(caught.value.where)


def test_without_labels_there_is_nothing_to_evaluate(
    model: SegmentationModel, make_domain: MakeDomain
) -> None:
    with pytest.raises(DataError, match="no labels"):
        evaluate_domain(model, make_domain((64, 64), labels=False), SETTINGS)


@pytest.mark.parametrize(("reference", "at_least"), [("none", 1), ("labels", 2), ("prediction", 2)])
def test_references(model: SegmentationModel, make_domain: MakeDomain, reference: str, at_least: int) -> None:
    """Labels hold sidewalk, which has a prompt: one more evaluation. A prediction costs its own pass first."""
    domain = make_domain((64, 64), values={0: 1})
    settings = SETTINGS.model_copy(update={"reference": reference})
    scores = evaluate_domain(model, domain, settings)
    assert scores.evaluations_per_image >= at_least
    assert (scores.evaluations_per_image == 1) == (reference == "none")


def test_an_output_that_is_not_finite_is_an_error(
    model: SegmentationModel, make_domain: MakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        SegmentationModel, "logits", lambda self, images, **_: images.mean(1, keepdim=True) / 0
    )
    with pytest.raises(DiffError, match="not finite"):
        evaluate_domain(model, make_domain((64, 64)), SETTINGS)


def test_a_sample_again_is_the_same(model: SegmentationModel, make_domain: MakeDomain) -> None:
    domain = make_domain((64, 64), (96, 48))
    scores = evaluate_domain(model, domain, SETTINGS)
    again = evaluate_sample(model, domain, 1, SETTINGS)
    assert np.array_equal(again.prediction, scores.shown.prediction)
    assert again.iou == pytest.approx(float(scores.image_iou[1]), abs=1e-6)


def test_predicted_ids_are_the_argmax_of_all_classes_resized() -> None:
    logits = torch.randn(19, 9, 17, generator=torch.Generator().manual_seed(0))
    logits[3] = logits[7]  # a tie goes to the first class
    for size in ((20, 40), (9, 17), (5, 9)):
        full = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(predicted_ids(logits, size), full.argmax(0).to(torch.uint8))


# ------------------------------------------------------------------------------------------------ telling


def made_up(name: str, *, classes: int = 19, present: int = 12, seed: int = 0) -> DomainScores:
    """Scores without a network; classes from `present` on occur nowhere."""
    matrix = ConfusionMatrix(classes)
    matrix.counts[:present, :present] = torch.randint(
        0, 90, (present, present), generator=torch.Generator().manual_seed(seed)
    )
    picture = np.random.default_rng(seed).integers(0, 255, (60, 120, 3), dtype=np.uint8)
    mask = (picture[..., 0] % present).astype(np.uint8)
    truth = mask.copy()
    truth[:9] = 255
    return DomainScores(
        name=name,
        samples=3,
        skipped=0,
        problems=(),
        counts=matrix.counts,
        scores=matrix.scores(),
        image_iou=np.array([0.1, 0.5, 0.3], np.float32),
        shown=Shown("a", picture, truth, mask, 0.5),
        seconds_per_image=0.5,
        evaluations_per_image=34.0,
    )


def test_the_report_states_each_mean_and_is_plain_json() -> None:
    scores = [made_up("one"), made_up("two", present=19, seed=1)]
    told = report(scores, model=ModelConfig(), settings=EvalConfig())
    text = json.dumps(told, allow_nan=False)
    first, second = json.loads(text)["domains"]
    ious = [values["iou"] for values in first["per_class"].values()]
    assert ious[12:] == [None] * 7
    assert first["mean_iou_present"] == pytest.approx(sum(ious[:12]) / 12, abs=1e-5)
    assert first["mean_iou_all"] == pytest.approx(sum(ious[:12]) / 19, abs=1e-5)
    assert first["mean_iou"] == first["mean_iou_present"]
    assert first["classes_present"] == 12
    assert np.sum(first["confusion"]) == sum(values["pixels"] for values in first["per_class"].values())
    assert set(second["mean_iou_of"]) == {"16 classes (SYNTHIA)", "13 classes (SYNTHIA)"}
    means = told["mean_over_domains"]
    assert means["mean_iou_all"] == pytest.approx(
        (first["mean_iou_all"] + second["mean_iou_all"]) / 2, abs=1e-5
    )


def test_groups_of_domains_are_averaged() -> None:
    names = ["acdc/fog", "acdc/night", "acdc", "bdd100k", "camvid/only"]
    scores = [made_up(name, seed=i) for i, name in enumerate(names)]
    told = report(scores, model=ModelConfig(), settings=EvalConfig())
    [acdc] = told["groups"]
    assert (acdc["name"], acdc["domains"]) == ("acdc/*", ["acdc/fog", "acdc/night"])
    values = [one["mean_iou"] for one in told["domains"]]
    assert acdc["mean_iou"] == pytest.approx(sum(values[:2]) / 2, abs=1e-5)
    overall = told["mean_over_domains"]
    assert overall["domains"] == ["acdc/fog", "acdc/night", "bdd100k", "camvid/only"]
    assert overall["mean_iou"] == pytest.approx((sum(values) - values[2]) / 4, abs=1e-5)
    assert [row[0] for row in means_table(scores, model=ModelConfig()).rows] == ["acdc/*", "all domains"]
    assert [row[0] for row in means_table(scores[:3], model=ModelConfig()).rows] == ["all domains"]


def test_six_domains_are_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cityscapes", "bdd100k", "mapillary", "dark_zurich", "acdc_night", "camvid_dusk"]
    monkeypatch.setenv("COLUMNS", "80")
    print_table([made_up(name) for name in names], model=ModelConfig())
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert all(name in printed for name in names)
    absent = next(line for line in printed.splitlines() if line.startswith("train"))
    assert absent.split()[1:] == ["-"] * (len(absent.split()) - 1)
    assert "mean, all 19" in printed
    assert "mean, present" in printed


def test_a_family_of_domains_is_named_once() -> None:
    table = summary_table([made_up(f"acdc/{name}") for name in ("fog", "night")], model=ModelConfig())
    assert table.columns == ["class", "fog", "night"]
    assert "acdc" in table.title
    mixed = summary_table([made_up("acdc/fog"), made_up("bdd100k")], model=ModelConfig())
    assert mixed.columns == ["class", "acdc/fog", "bdd100k"]


def test_a_name_wider_than_the_terminal_gets_a_block_of_its_own() -> None:
    table = summary_table([made_up("x" * 100), made_up("y")], model=ModelConfig())
    assert [len(block.columns) for block in blocks(table, width=80)] == [2, 2]


def test_markdown_keeps_pipes_in_names_apart() -> None:
    text = markdown(summary_table([made_up("a|b")], model=ModelConfig()))
    assert "a\\|b" in text
    assert "| train | - |" in text


def test_the_picture_has_a_row_a_domain(tmp_path: Path) -> None:
    one, three = tmp_path / "one.png", tmp_path / "three.png"
    write_picture(one, [made_up("a")], model=ModelConfig())
    write_picture(three, [made_up(name) for name in "abc"], model=ModelConfig())
    with Image.open(one) as small, Image.open(three) as large:
        assert small.width == large.width
        assert large.height > 2 * small.height * 0.8


def test_colours_of_own_classes() -> None:
    config = ModelConfig.model_validate(
        {"classes": ["road", "tram", "kiosk"], "inversion": {"class_prompts": {}}}
    )
    palette = class_palette(config)
    assert palette.shape == (256, 3)
    assert tuple(palette[0]) == (128, 64, 128), "a class that Cityscapes names has its colour"
    assert len(np.unique(palette[:3], axis=0)) == 3
    own = config.model_copy(update={"palette": ((1, 2, 3), (4, 5, 6), (7, 8, 9))})
    assert class_palette(own)[2].tolist() == [7, 8, 9]
    many = ModelConfig(classes=tuple(map(str, range(255))), inversion=config.inversion)
    assert len(np.unique(class_palette(many)[:255], axis=0)) > 200


def test_masks_and_overlays() -> None:
    palette = class_palette(ModelConfig())
    mask = np.array([[0, 10], [255, 18]], np.uint8)
    assert np.array_equal(np.asarray(mask_image(mask, palette)), mask)
    image = np.full((2, 2, 3), 100, np.uint8)
    blended = blend(image, mask, palette)
    assert blended[1, 0].tolist() == [100, 100, 100]
    assert blended[0, 0].tolist() == [114, 82, 114]
