"""Several runs side by side: differences of settings and classes."""

from diffcli.config.file import override
from diffcli.config.settings import RunConfig
from diffcli.evaluation.comparison import (
    ComparedDomain,
    build_comparison,
    class_table,
    difference,
    settings_table,
)
from diffcli.evaluation.report import Report, build_report


def empty_report() -> Report:
    return build_report([], model=RunConfig().model, settings=RunConfig().eval)


def test_only_settings_that_differ_are_listed() -> None:
    first = RunConfig()
    second = override(
        first, ["train.loss.ipkl=false", "model.inversion.class_prompts={1: kerb}", "runtime.data_workers=3"]
    )
    found = build_comparison(
        {"a": empty_report(), "b": empty_report()}, {"a": first, "b": second.model_copy(update={"name": "x"})}
    )
    assert found.settings["train.loss.ipkl"] == {"a": True, "b": False}
    assert {key for key in found.settings if not key.startswith("model.inversion.class_prompts.")} == {
        "train.loss.ipkl"
    }
    rows = {str(row[0]): row[1:] for row in settings_table(found).rows}
    assert rows["train.loss.ipkl"] == ["true", "false"]
    assert rows["model.inversion.class_prompts.1"][1] == "kerb"
    assert rows["model.inversion.class_prompts.3"][1] == "null"


def test_differences_are_to_the_first_run() -> None:
    domain = ComparedDomain(
        name="fog",
        mean_iou_present={"a": 0.5, "b": 0.4, "c": None},
        iou={"road": {"a": 0.5, "b": 0.75, "c": None}, "sky": {"a": None, "b": 0.5, "c": None}},
    )
    table = class_table(domain)
    assert table.columns == ["class", "a", "b", "b - a", "c", "c - a"]
    assert table.rows == [["road", 50, 75, 25, None, None], ["sky", None, 50, None, None, None]]
    assert difference(0.25, 0.5) == -0.25
