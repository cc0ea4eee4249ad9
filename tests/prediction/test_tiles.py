"""Tiles: they cover the image on the latent grid and blend to the whole."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from diffcli.prediction.tiles import blend_weights, blended_bands, tile_starts


@pytest.mark.parametrize("length", [1, 255, 256, 257, 320, 448, 449, 1000, 1003])
def test_tiles_cover_a_side_on_the_grid_and_weigh_one(length: int) -> None:
    starts = tile_starts(length, tile=256, overlap=64, multiple=64)
    assert all(start % 64 == 0 for start in starts)
    assert starts[-1] + 256 >= length
    assert all(second - first <= 256 - 64 for first, second in pairwise(starts))
    total = np.zeros(length)
    for start, weights in zip(starts, blend_weights(length, starts, tile=256, overlap=64), strict=True):
        assert len(weights) == min(256, length - start)
        total[start : start + len(weights)] += weights
    assert np.allclose(total, 1)


def test_a_tile_s_border_weighs_nothing() -> None:
    left, right = blend_weights(448, [0, 192], tile=256, overlap=64)
    assert left[0] == right[-1] == 1
    assert left[-1] < 0.001
    assert right[0] < 0.001
    assert np.abs(np.diff(left[192:])).max() < 0.03  # smooth


@pytest.mark.parametrize("size", [(100, 130), (256, 128), (577, 700), (1003, 90)])
def test_blending_what_tiles_agree_on_gives_the_whole(size: tuple[int, int]) -> None:
    whole = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)

    def evaluate(rows: slice, columns: slice) -> NDArray[np.float32]:
        return whole[:, rows, columns]

    bands = list(blended_bands(size, evaluate, tile=(256, 128), overlap=(64, 64), multiple=64))
    starts = tile_starts(size[0], tile=256, overlap=64, multiple=64)
    assert [band.shape[1] for band in bands] == np.diff([*starts, size[0]]).tolist()
    assert np.allclose(np.concatenate(bands, 1), whole, atol=1e-5)
