"""Writing beside the network: bounded, in order where it matters, and no error is lost; the manifest."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.errors import DiffError
from diffcli.prediction.video import open_video
from diffcli.prediction.writers import WriterPool, is_whole


def test_a_writer_s_error_is_raised_and_the_others_are_written() -> None:
    done: list[int] = []

    def write(number: int) -> None:
        if number == 2:
            raise DiffError("the disk is full")
        done.append(number)

    def hand_over(pool: WriterPool) -> None:
        for number in range(5):
            pool.submit(lambda number=number: write(number), nbytes=1)

    with pytest.raises(DiffError, match="disk is full"), WriterPool(1) as pool:
        hand_over(pool)
    assert done[:2] == [0, 1]


def test_what_is_handed_over_is_written_when_the_work_breaks_off() -> None:
    done: list[int] = []

    def numbers() -> Iterator[int]:
        yield from range(10)
        raise KeyboardInterrupt

    def hand_over(pool: WriterPool) -> None:
        for number in numbers():
            pool.submit(lambda number=number: done.append(number), nbytes=1)

    with pytest.raises(KeyboardInterrupt), WriterPool(2) as pool:
        hand_over(pool)
    assert sorted(done) == list(range(10))


@pytest.mark.parametrize(("limits", "expected"), [({"waiting": 3}, 3), ({"nbytes": 25}, 2)])
def test_no_more_waits_than_was_said(limits: dict[str, int], expected: int) -> None:
    """The writer stands still until as many wait as may; the next call has to wait for it."""
    go, started, most = threading.Event(), [0, 0], 0
    lock = threading.Lock()

    def write() -> None:
        go.wait(20)
        with lock:
            started[1] += 1

    with WriterPool(1, **limits) as pool:
        for number in range(9):
            if number == expected:
                go.set()
            pool.submit(write, nbytes=10)
            with lock:
                started[0] += 1
                most = max(most, started[0] - started[1])
    assert started == [9, 9]
    assert most <= expected + 1


def test_one_thread_keeps_the_order() -> None:
    done: list[int] = []
    with WriterPool(1) as pool:
        for number in range(200):
            pool.submit(lambda number=number: done.append(number), nbytes=1)
    assert done == list(range(200))


def test_a_file_that_was_cut_off_is_not_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    files = [tmp_path / name for name in ("mask.png", "overlay.jpg", "stats.json", "street.mp4")]
    Image.fromarray(pixels).save(files[0])
    Image.fromarray(pixels).save(files[1])
    files[2].write_text(json.dumps({"classes": {}}))
    with open_video(files[3], rate=5) as video:
        for _ in range(4):
            video.add(pixels)
    for path in files:
        assert is_whole(path), path
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert not is_whole(path), path
        path.write_bytes(b"")
        assert not is_whole(path), path
    assert not is_whole(tmp_path / "none.png")
