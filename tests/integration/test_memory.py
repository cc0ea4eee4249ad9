"""Memory and open files stay flat, however many images predict segments."""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def watched() -> Iterator[list[tuple[int, int]]]:
    """Memory and open files while the block runs, ten times a second."""
    seen: list[tuple[int, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.append((resident(), open_files()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


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
    gc.collect()
    memory, files, begun = resident(), open_files(), time.monotonic()
    with watched() as seen:
        segment([str(tmp_path / "in")], "out")
    gc.collect()
    rate = images / (time.monotonic() - begun)
    (middle, _), (late, _) = (seen[int(share * len(seen))] for share in (0.5, 0.9))
    most = max(open for _, open in seen)
    mib = " -> ".join(f"{size / 2**20:.0f}" for size in (memory, middle, late, resident()))
    print(f"{images} images, {rate:.1f}/s, memory {mib} MiB, {files} files open before, at most {most}")
    assert open_files() == files
    assert most < files + 32
    assert late - middle < 8 * 2**20, "nothing grows while images are segmented"
    listed = images * 3 * 1024  # names before, the index page afterwards
    assert resident() - memory < 64 * 2**20 + listed
    assert len(list((tmp_path / "out").glob("*.png"))) == images
