"""Memory and open files stay flat, however many images predict segments."""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.commands import predict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "images", [pytest.param(150, id="short"), pytest.param(20_000, id="long", marks=pytest.mark.nightly)]
)
def test_predict_of_many_images(images: int, tiny_run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "first.png")
    for i in range(images):
        os.link(tmp_path / "first.png", tmp_path / "in" / f"{i}.png")

    def segment(inputs: list[str], output: str) -> None:
        request = predict.Request(
            images=inputs, run=tiny_run, output=tmp_path / output, overrides=["eval.size=64x64"], device="cpu"
        )
        predict.run(request)

    segment([str(tmp_path / "in" / f"{i}.png") for i in range(30)], "warm")
    memory, files = resident(), open_files()
    segment([str(tmp_path / "in")], "out")
    assert open_files() == files
    assert resident() - memory < 64 * 2**20
    assert len(list((tmp_path / "out").glob("*.png"))) == images
