"""Evaluate: which domains, what is printed and written, and that one bad domain or file never costs the others."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.commands import evaluate
from diffcli.config.domain import domain_config
from diffcli.config.file import dump_config, load_config
from diffcli.config.settings import DataConfig, RunConfig
from diffcli.core.model import build_model
from diffcli.errors import CheckpointError, ConfigError, DataError, DiffError
from diffcli.evaluation.comparison import Comparison
from diffcli.evaluation.domains import DomainChoice, wanted_domains
from diffcli.evaluation.report import Report
from diffcli.files import LOCK
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import CONFIG, LAST
from diffcli.runs.opening import open_run
from diffcli.runtime import console


@pytest.fixture
def own_domain(tmp_path: Path) -> Callable[..., Path]:
    """make(values): a folder of three labelled pictures; the label of the second holds `value` as well."""

    def make(value: int = 0) -> Path:
        root = tmp_path / "own"
        for i in range(3):
            label = np.zeros((32, 64), np.uint8)
            label[8:] = i
            label[:2] = value if i == 1 else 0
            picture = np.random.default_rng(i).integers(0, 255, (32, 64, 3))
            for folder, pixels in (("images", picture), ("labels", label)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{i}.png")
        return root

    return make


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    told: dict[str, object] = json.loads(capsys.readouterr().out)
    return told


def test_the_runs_own_domains_by_default(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.run(evaluate.Request(runs=[tiny_run], output=tmp_path / "out"))
    captured = capsys.readouterr()
    assert "miniworld/night" in captured.out
    assert "mean, all 19" in captured.out
    assert "evaluate miniworld/night 2/2" in captured.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "picture.png",
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
    ]
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["iteration"] == 7
    assert told["domains"][0]["samples"] == 2
    assert told["domains"][0]["unet_evaluations_per_image"] == 1
    assert told["eval"]["size"] == "128x64"


def test_json_is_all_of_stdout(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console.json_only():
        evaluate.run(evaluate.Request(runs=[tiny_run], output=tmp_path / "out"))
    assert printed_json(capsys) == json.loads((tmp_path / "out" / "report.json").read_text())


def test_csv_has_a_line_a_class(tiny_run: Path, tmp_path: Path) -> None:
    evaluate.run(evaluate.Request(runs=[tiny_run], output=tmp_path / "out"))
    with (tmp_path / "out" / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 19 + 2
    told = json.loads((tmp_path / "out" / "report.json").read_text())["domains"][0]
    assert float(lines[0]["iou"]) == told["per_class"]["road"]["iou"]
    assert float(lines[-2]["iou"]) == told["mean_iou_all"]


def test_domains_by_name_and_overrides(
    tiny_run: Path, tmp_path: Path, own_domain: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of the run's own means that entry (two scenes, not the default); `folder` takes --root."""
    with console.json_only():
        evaluate.run(
            evaluate.Request(
                runs=[tiny_run], domains=DomainChoice(names="miniworld/night"), output=tmp_path / "a"
            )
        )
    assert printed_json(capsys)["domains"][0]["samples"] == 2  # type: ignore[index]
    overrides = ["eval.size=64x64", "eval.flip=true"]
    with console.json_only():
        evaluate.run(
            evaluate.Request(
                runs=[tiny_run],
                domains=DomainChoice(names="folder", root=own_domain()),
                overrides=overrides,
                output=tmp_path / "b",
            )
        )
    told = printed_json(capsys)
    assert told["domains"][0]["samples"] == 3  # type: ignore[index]
    assert told["domains"][0]["unet_evaluations_per_image"] == 2  # type: ignore[index]
    with pytest.raises(ConfigError, match="nonsense"):
        evaluate.run(
            evaluate.Request(runs=[tiny_run], domains=DomainChoice(names="nonsense"), output=tmp_path / "c")
        )


def test_a_bad_label_is_told_at_the_end_after_the_work(
    tiny_run: Path, tmp_path: Path, own_domain: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="not every domain was evaluated in full") as caught:
        evaluate.run(
            evaluate.Request(
                runs=[tiny_run],
                domains=DomainChoice(names="folder", root=own_domain(99)),
                output=tmp_path / "out",
            )
        )
    assert "99" in caught.value.message
    assert "1.png" in caught.value.message
    assert "1 of 3 images" in caught.value.message
    assert "pixel accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["domains"][0]["skipped"] == 1


def test_a_missing_domain_does_not_cost_the_others(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"{{domain: cityscapes, root: {tmp_path / 'nowhere'}}}"
    overrides = [f"data.eval=[{missing}, {{domain: miniworld/fog, count: 1}}]"]
    with pytest.raises(DataError, match="nowhere"), console.json_only():
        evaluate.run(evaluate.Request(runs=[tiny_run], overrides=overrides, output=tmp_path / "out"))
    assert [one["name"] for one in printed_json(capsys)["domains"]] == ["miniworld/fog"]  # type: ignore[attr-defined]


def test_one_missing_domain_is_said_before_anything_is_loaded(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        evaluate.run(
            evaluate.Request(
                runs=[tiny_run],
                domains=DomainChoice(names="cityscapes", root=tmp_path / "nowhere"),
                output=tmp_path / "out",
            )
        )
    assert not (tmp_path / "out").exists()


def test_several_runs_in_one_table(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    trained = load_config(other / CONFIG, overrides=["train.learning_rate=0.5", "runtime.data_workers=1"])
    (other / CONFIG).write_text(dump_config(trained))
    evaluate.run(evaluate.Request(runs=[tiny_run, other], output=tmp_path / "out"))
    printed = capsys.readouterr().out
    comparison = printed[printed.index("mean IoU in percent") :].splitlines()
    assert comparison[1].split() == ["domain", "tiny", "other"]
    _, first, second = comparison[3].split()
    assert first == second
    assert (tmp_path / "out" / "other" / "report.json").is_file()
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| domain | tiny | other |" in text
    assert "| train.learning_rate | 6e-05 | 0.5 |" in text
    assert "| class | tiny | other | other - tiny |" in text
    compared = Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text())
    assert compared.settings == {"train.learning_rate": {"tiny": 6e-5, "other": 0.5}}
    report = Report.model_validate_json((tmp_path / "out" / "tiny" / "report.json").read_text())
    assert compared.domains[0].iou["road"]["tiny"] == report.domains[0].per_class["road"].iou
    assert "train.<wbr>learning_<wbr>rate" in (tmp_path / "out" / "comparison.html").read_text()
    with pytest.raises(ConfigError, match="two runs are named tiny"):
        evaluate.run(evaluate.Request(runs=[tiny_run, tiny_run], output=tmp_path / "out"))


def test_runs_with_other_classes_do_not_compare(
    tiny_run: Path, tmp_path: Path, tiny_config: RunConfig
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    few = tiny_config.model.model_copy(update={"classes": CITYSCAPES_CLASSES[:17]})
    few = few.model_copy(update={"inversion": few.inversion.model_copy(update={"class_prompts": {}})})
    save_checkpoint(other / LAST, build_model(few), info={})
    with pytest.raises(ConfigError, match="other classes") as caught:
        evaluate.run(evaluate.Request(runs=[tiny_run, other], output=tmp_path / "out"))
    assert caught.value.where == str(other)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_joined_domain_is_the_sum_of_its_parts(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`miniworld` and its five looks: the same scores as alone, and no image is segmented twice."""
    looks = ["night", "fog", "rain", "snow", "photo"]
    entries = ", ".join(
        f"{{domain: {name}, count: 1}}" for name in ["miniworld", *(f"miniworld/{x}" for x in looks)]
    )
    with console.json_only():
        evaluate.run(
            evaluate.Request(runs=[tiny_run], overrides=[f"data.eval=[{entries}]"], output=tmp_path / "all")
        )
    captured = capsys.readouterr()
    assert "evaluate miniworld/fog 1/1" in captured.err
    assert "evaluate miniworld " not in captured.err
    told = json.loads(captured.out)
    joined, *parts = told["domains"]
    alone = "data.eval=[{domain: miniworld, count: 1}]"
    with console.json_only():
        evaluate.run(evaluate.Request(runs=[tiny_run], overrides=[alone], output=tmp_path / "one"))
    [expected] = printed_json(capsys)["domains"]  # type: ignore[misc]
    timeless = {key for key in joined if key != "seconds_per_image"}
    assert {key: joined[key] for key in timeless} == {key: expected[key] for key in timeless}
    [group] = told["groups"]
    assert (group["name"], len(group["domains"])) == ("miniworld/*", 5)
    mean = sum(part["mean_iou_all"] for part in parts) / 5
    assert group["mean_iou_all"] == pytest.approx(mean, abs=1e-5)
    assert (
        told["mean_over_domains"]["mean_iou_all"] == group["mean_iou_all"]
    )  # the whole is not counted again
    assert "\nminiworld/*,mean of all 19,0." in (tmp_path / "all" / "report.csv").read_text()
    assert "| all domains |" in (tmp_path / "all" / "report.md").read_text()
    assert "mean over miniworld/<wbr>*" in (tmp_path / "all" / "report.html").read_text()


@pytest.mark.slow
def test_reports_go_into_the_run_folder_by_default(tiny_run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own-run"
    shutil.copytree(tiny_run, own)
    for _ in range(2):
        evaluate.run(evaluate.Request(runs=[own]))
    assert len(list(own.glob("eval/*/report.json"))) == 2


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(CheckpointError):
            evaluate.run(evaluate.Request(runs=[path]))
    (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate.run(evaluate.Request(runs=[tmp_path / "damaged.safetensors"]))


def test_an_unwritable_folder_is_said_before_the_work(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiffError, match="cannot write"):
        evaluate.run(evaluate.Request(runs=[tiny_run], output=tmp_path / "file" / "out"))
    assert capsys.readouterr().err == ""


class Page(HTMLParser):
    """Collects what a browser would look up elsewhere, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_needs_no_network_and_escapes_names(
    tiny_run: Path, tmp_path: Path, own_domain: Callable[..., Path]
) -> None:
    root = own_domain(99)
    name = "<script>alert(1)</script>&co"
    overrides = [f"data.eval=[{{domain: folder, root: {root}, name: '{name}'}}]"]
    with pytest.raises(DataError, match="not every domain"):
        evaluate.run(evaluate.Request(runs=[tiny_run], overrides=overrides, output=tmp_path / "out"))
    page = Page()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert name in page.words
    assert "1 of 3 images left out of its scores" in page.words
    assert page.tags.count("img") == 2 * 4  # the other two images: image, truth, prediction, errors
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "url(" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_one_data_file_split_and_limit_for_a_run(tiny_run: Path, own_domain: Callable[..., Path]) -> None:
    """--config takes the file's data.eval, a name chooses among it; --split and --limit go for every domain."""
    data = DataConfig(
        eval=(domain_config("folder", root=own_domain(), name="mine"), domain_config("miniworld/fog"))
    )
    trained = open_run(tiny_run)
    both = wanted_domains(trained, DomainChoice(data=data, limit=1))
    assert [(entry.name or entry.domain, entry.limit) for entry in both] == [
        ("mine", 1),
        ("miniworld/fog", 1),
    ]
    [one] = wanted_domains(trained, DomainChoice(names="mine", data=data, split="test"))
    assert (one.name, one.split) == ("mine", "test")
    with pytest.raises(ConfigError, match="do not go together"):
        wanted_domains(trained, DomainChoice(data=data, root=Path("x")))
    with pytest.raises(ConfigError, match=r"data\.eval of this file is empty"):
        wanted_domains(trained, DomainChoice(data=DataConfig()))


def test_repeated_domains_are_all_kept(cli: Any, tiny_run: Path, own_domain: Callable[..., Path]) -> None:
    mine = own_domain()
    (mine.parent / "data.yaml").write_text(
        f"data: {{eval: [{{domain: folder, root: {mine}, name: mine}}]}}\n"
    )
    words = ["--domain", "mine", "--domain", "miniworld/fog,miniworld/rain", "--limit", "1", "--json"]
    result = cli("eval", "--run", tiny_run, "--config", mine.parent / "data.yaml", *words)
    assert result.returncode == 0, result.stderr
    found = [(one["name"], one["samples"]) for one in json.loads(result.stdout)["domains"]]
    assert found == [("mine", 1), ("miniworld/fog", 1), ("miniworld/rain", 1)]


def test_a_failed_eval_leaves_no_empty_folder(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for output in (tmp_path / "new" / "folders", tmp_path / "kept" / "inside"):
        with pytest.raises(DiffError):
            evaluate.run(
                evaluate.Request(
                    runs=[tiny_run], output=output, overrides=["model.inversion.prompt=new"], device="cuda:7"
                )
            )
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert not list((tmp_path / "kept").iterdir())


def test_two_evals_into_one_folder_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from diffcli.files import hold_lock
with hold_lock(Path({str(tmp_path / LOCK)!r}), where=Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DiffError, match=str(tmp_path)):
            evaluate.run(evaluate.Request(runs=[tiny_run], output=tmp_path, device="cpu"))
        other.communicate()
    assert not (tmp_path / "report.json").exists()


def test_values_outside_the_mapping_come_together(tiny_run: Path, tmp_path: Path) -> None:
    """Not as so many damaged images: once, with their share and the line to add."""
    root = tmp_path / "own"
    for i in range(3):
        label = np.full((32, 64), i, np.uint8)
        label[:8] = 30 if i else 0
        for folder, pixels in (("images", np.zeros((32, 64, 3), np.uint8)), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    choice = DomainChoice(names="folder", root=root)
    with pytest.raises(DataError) as caught:
        evaluate.run(evaluate.Request(runs=[tiny_run], domains=choice, output=tmp_path / "out"))
    words = str(caught.value)
    assert words.count("outside the mapping") == 1
    assert "30: 255  # 25 % of pixels in 2 files" in words


def test_a_domain_that_the_run_was_trained_on(
    tiny_run: Path, own_domain: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = own_domain(), tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = load_config(run / CONFIG)
    source = domain_config("folder", root=root)
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": source})})
    (run / CONFIG).write_text(dump_config(config))
    choice = DomainChoice(names="folder", root=root)
    evaluate.run(evaluate.Request(runs=[run], domains=choice, output=tmp_path / "out"))
    assert "own: 3 of its images are in the run's training set" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/report.json").read_text())["domains"][0]["shared_images"] == 3
    for name in ("report.md", "report.html"):
        assert "3 of its images are in the run" in (tmp_path / "out" / name).read_text()
