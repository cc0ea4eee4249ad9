"""File names that are not UTF-8, or that a terminal would obey, through every command that reads images."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names"),
]

NAMES = (b"a\xff.png", b"b\x1b[31m.png", b"c\nd.png", "e \u00e9.png".encode())
SETTINGS = """\
model:
  backbone: {source: embedded}
  inversion: {schedule: clean, class_prompts: {}}
  decoder: {channels: [32, 64, 64, 64], head_channels: 32}
  classes: [a, b]
data:
  train: {domain: folder, root: data}
  eval: [{domain: folder, root: data}]
augmentation: {crop: 64x64}
train: {iterations: 1, warmup_iterations: 0, loss: {ipkl: false}, rare_class_sampling: null}
eval: {size: 64x64}
runtime: {data_workers: 0, device: cpu}
"""


def test_every_command_takes_them(cli: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in NAMES:
            label = np.kron(rng.integers(0, 2, (4, 4)), np.ones((16, 16))).astype(np.uint8)
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) if folder == "images" else label
            with open(os.path.join(os.fsencode(tmp_path / "data" / folder), name), "wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
    (tmp_path / "odd.yaml").write_text(SETTINGS)
    for command in (
        ("check", "odd.yaml"),
        ("data", "inspect", "--config", "odd.yaml"),
        ("train", "odd.yaml"),
        ("eval",),
        ("predict", "data/images", "-o", "masks", "--write", "mask,stats,rle"),
    ):
        result = cli(*command)
        assert result.returncode == 0, (command, result.stderr)
        assert "\x1b" not in result.stdout + result.stderr
    written = {name for name in os.listdir(os.fsencode(tmp_path / "masks")) if name.endswith(b".png")}
    assert written == set(NAMES)
