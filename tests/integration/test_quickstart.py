"""The first thing a user runs, shortened: the embedded model, from training to masks, in real processes."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from PIL import Image

from diffcli.data.miniworld import render
from tests.fixtures import processes

ROOT = Path(__file__).parents[2]
SHORT = ["train.iterations=2", "data.train.count=24", *(f"data.eval.{i}.count=1" for i in range(6))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the shortened quickstart has run."""
    folder = tmp_path_factory.mktemp("quickstart")
    overrides = [word for override in SHORT for word in ("--set", override)]
    running = processes.diff("train", ROOT / "examples" / "quickstart.yaml", *overrides, cwd=folder)
    table, words = running.communicate()
    assert running.returncode == 0, words
    (folder / "table.txt").write_text(table)
    return folder


def test_the_table_names_every_domain_and_the_mean_over_unseen_ones(workplace: Path) -> None:
    table = (workplace / "table.txt").read_text()
    assert table.splitlines()[1].split() == ["class", "clean", "night", "fog", "rain", "snow", "photo"]
    assert "mean mIoU over 5 domains never seen in training" in table
    assert max(map(len, table.splitlines())) <= 80


def test_one_step_costs_one_evaluation_an_image(workplace: Path) -> None:
    report = json.loads((workplace / "runs" / "quickstart" / "report.json").read_text())
    assert [domain["unet_evaluations_per_image"] for domain in report["domains"]] == [1.0] * 6


RUNNABLE = {
    "diff init": [],
    "diff check": [],
    "diff eval --domain miniworld": ["--set", "eval.size=64x64", "--limit", "2"],
    "diff predict photos/": [],
    "diff export": [],
    "diff domains": [],
    "diff doctor": [],
}
"""README's commands that need nothing but the quickstart's run, and what shortens them here."""


def test_readme_commands_run(cli: Any, workplace: Path) -> None:
    shutil.copytree(workplace / "runs" / "quickstart", workplace / "runs" / "first")
    for folder in ("photos", "data", "mine/images", "mine/labels"):
        (workplace / folder).mkdir(parents=True)
    for index in range(4):
        image, label = render(7, index, "night")
        for folder in ("photos", "mine/images"):
            cv2.imwrite(str(workplace / folder / f"{index}.png"), image[..., ::-1])
        cv2.imwrite(str(workplace / "mine/labels" / f"{index}.png"), label)
    lines = re.findall(r"^diff .+$", (ROOT / "README.md").read_text(), flags=re.M)
    for start, shortened in RUNNABLE.items():
        [line, *_] = [line for line in lines if line.startswith(start)]
        words = shlex.split(line.replace("/data", str(workplace / "data")))[1:]
        done = cli(*words, *shortened, cwd=workplace)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    with Image.open(workplace / "masks" / "0.png") as mask:
        assert (mask.mode, mask.size) == ("P", (256, 128))
    assert (workplace / "exported" / "model.safetensors").is_file()
