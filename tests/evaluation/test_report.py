"""Reports and their tables: what each number is, and that it is the same wherever it is shown."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.commands.tables import print_report
from diffcli.config.domain import domain_config
from diffcli.config.settings import EvalConfig, ModelConfig
from diffcli.core.metrics import ConfusionMatrix
from diffcli.evaluation.domains import match_classes
from diffcli.evaluation.evaluator import DomainScores, Shown
from diffcli.evaluation.html import html_report
from diffcli.evaluation.report import Report, build_report, write_picture
from diffcli.evaluation.tables import (
    blocks,
    csv_report,
    markdown,
    markdown_report,
    means_table,
    summary_table,
)


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


def report_of(scores: Sequence[DomainScores], **about: Any) -> Report:
    return build_report(scores, model=ModelConfig(), settings=EvalConfig(), **about)


def test_the_report_states_each_mean_and_is_plain_json() -> None:
    scores = [made_up("one"), made_up("two", present=19, seed=1)]
    report = report_of(scores).as_json()
    assert report["schema_version"] == 1
    assert Report.model_validate(report).as_json() == report
    text = json.dumps(report, allow_nan=False)
    first, second = json.loads(text)["domains"]
    ious = [values["iou"] for values in first["per_class"].values()]
    assert ious[12:] == [None] * 7
    assert first["mean_iou_present"] == pytest.approx(sum(ious[:12]) / 12, abs=1e-5)
    assert first["mean_iou_all"] == pytest.approx(sum(ious[:12]) / 19, abs=1e-5)
    assert first["mean_iou"] == first["mean_iou_present"]
    assert first["classes_present"] == 12
    assert np.sum(first["confusion"]) == sum(values["pixels"] for values in first["per_class"].values())
    assert set(second["mean_iou_of"]) == {"16 classes (SYNTHIA)", "13 classes (SYNTHIA)"}
    means = report["mean_over_domains"]
    assert means["mean_iou_all"] == pytest.approx(
        (first["mean_iou_all"] + second["mean_iou_all"]) / 2, abs=1e-5
    )


def test_groups_of_domains_are_averaged() -> None:
    names = ["acdc/fog", "acdc/night", "acdc", "bdd100k", "camvid/only"]
    scores = [made_up(name, seed=i) for i, name in enumerate(names)]
    report = report_of(scores)
    [acdc] = report.groups
    assert (acdc.name, acdc.domains) == ("acdc/*", ["acdc/fog", "acdc/night"])
    values = [one.mean_iou or 0 for one in report.domains]
    assert acdc.mean_iou == pytest.approx(sum(values[:2]) / 2)
    overall = report.mean_over_domains
    assert overall.domains == ["acdc/fog", "acdc/night", "bdd100k", "camvid/only"]
    assert overall.mean_iou == pytest.approx((sum(values) - values[2]) / 4)
    assert [row[0] for row in means_table(report_of(scores)).rows] == ["acdc/*", "all domains"]
    assert [row[0] for row in means_table(report_of(scores[:3])).rows] == ["all domains"]


def test_six_domains_are_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cityscapes", "bdd100k", "mapillary", "dark_zurich", "acdc_night", "camvid_dusk"]
    monkeypatch.setenv("COLUMNS", "80")
    print_report(report_of([made_up(name) for name in names]))
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert all(name in printed for name in names)
    absent = next(line for line in printed.splitlines() if line.startswith("train"))
    assert absent.split()[1:] == ["-"] * (len(absent.split()) - 1)
    assert "mean, all 19" in printed
    assert "mean, present" in printed


def test_a_group_of_domains_is_named_once() -> None:
    table = summary_table(report_of([made_up(f"acdc/{name}") for name in ("fog", "night")]))
    assert table.columns == ["class", "fog", "night"]
    assert "acdc" in table.title
    mixed = summary_table(report_of([made_up("acdc/fog"), made_up("bdd100k")]))
    assert mixed.columns == ["class", "acdc/fog", "bdd100k"]


def test_a_name_wider_than_the_terminal_gets_a_block_of_its_own() -> None:
    table = summary_table(report_of([made_up("x" * 100), made_up("y")]))
    assert [len(block.columns) for block in blocks(table, width=80)] == [2, 2]


def test_markdown_keeps_pipes_in_names_apart() -> None:
    text = markdown(summary_table(report_of([made_up("a|b")])))
    assert "a\\|b" in text
    assert "| train | - |" in text


def test_the_picture_has_a_row_a_domain(tmp_path: Path) -> None:
    one, three = tmp_path / "one.png", tmp_path / "three.png"
    write_picture(one, [made_up("a")], model=ModelConfig())
    write_picture(three, [made_up(name) for name in "abc"], model=ModelConfig())
    with Image.open(one) as small, Image.open(three) as large:
        assert small.width == large.width
        assert large.height > 2 * small.height * 0.8


def test_every_form_of_a_number_is_rounded_once_from_the_same_value() -> None:
    """Terminal, Markdown and page show the two decimals that follow from report.json and report.csv."""
    scores = [made_up(name, seed=i) for i, name in enumerate(("acdc/fog", "acdc/night", "bdd100k"))]
    report = report_of(scores)
    page = html_report(report, scores, model=ModelConfig(), examples=[[] for _ in scores])
    text = markdown_report(report)
    lines = list(csv.DictReader(csv_report(report).splitlines()))
    assert len(lines) == 3 * (19 + 2) + 2 * 2
    for line in lines:
        if line["iou"]:
            shown = f"{100 * float(line['iou']):.2f}"
            assert f">{shown}<" in page or "mean of" in line["class"]
            assert f"| {shown} |" in text
    for one in (*report.domains, *report.groups, report.mean_over_domains):
        assert one.mean_iou_present is not None
        assert f">{100 * one.mean_iou_present:.2f}<" in page
        assert f"| {100 * one.mean_iou_present:.2f} |" in text


def test_a_run_of_other_classes_says_what_was_matched() -> None:
    entry = domain_config("cityscapes")
    assert match_classes(entry, CITYSCAPES_CLASSES) is None
    assert match_classes(domain_config("folder"), ("a", "b")) is None
    match = match_classes(entry, ("road", "tram"))
    assert match is not None
    assert (match.matched, match.only_in_run) == (("road",), ("tram",))
    assert "sidewalk" in match.only_in_domain
    report = report_of([made_up("cityscapes")], matches={"cityscapes": match})
    assert report.as_json()["domains"][0]["class_match"]["only_in_run"] == ["tram"]
    for text in (
        markdown_report(report),
        html_report(report, [made_up("cityscapes")], model=ModelConfig(), examples=[[]]),
    ):
        assert "classes matched by name: road;" in text
        assert "always wrong where predicted: tram" in text
