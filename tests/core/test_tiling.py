"""Tiles: they cover the image on the latent grid, blend to the whole, and share one field of noise."""

from itertools import pairwise

import pytest
import torch

from diffcli.core.tiling import BLOCK, blend_weights, blended_bands, field_noise, tile_starts


@pytest.mark.parametrize("length", [1, 255, 256, 257, 320, 448, 449, 1000, 1003])
def test_tiles_cover_a_side_on_the_grid_and_weigh_one(length: int) -> None:
    starts = tile_starts(length, tile=256, overlap=64, multiple=64)
    assert all(start % 64 == 0 for start in starts)
    assert starts[-1] + 256 >= length
    assert all(second - first <= 256 - 64 for first, second in pairwise(starts))
    total = torch.zeros(length)
    for start, weights in zip(starts, blend_weights(length, starts, tile=256, overlap=64), strict=True):
        assert len(weights) == min(256, length - start)
        total[start : start + len(weights)] += weights
    assert torch.allclose(total, torch.ones(length))


def test_a_tile_s_border_weighs_nothing() -> None:
    left, right = blend_weights(448, [0, 192], tile=256, overlap=64)
    assert left[0] == right[-1] == 1
    assert left[-1] < 0.001
    assert right[0] < 0.001
    assert (left[192:] - left[192:].roll(1)).abs()[1:].max() < 0.03  # smooth


@pytest.mark.parametrize("size", [(100, 130), (256, 128), (577, 700), (1003, 90)])
def test_blending_what_tiles_agree_on_gives_the_whole(size: tuple[int, int]) -> None:
    whole = torch.randn(3, *size)
    rows: list[int] = []

    def evaluate(rows: slice, columns: slice) -> torch.Tensor:
        return whole[:, rows, columns]

    bands = []
    for top, band in blended_bands(size, evaluate, tile=(256, 128), overlap=(64, 64), multiple=64):
        rows.append(top)
        assert band.shape[1] <= 256
        bands.append(band.clone())
    assert rows == tile_starts(size[0], tile=256, overlap=64, multiple=64)
    assert torch.allclose(torch.cat(bands, 1), whole, atol=1e-5)


def test_tiles_see_the_same_noise_where_they_overlap() -> None:
    size = BLOCK + 20
    one = field_noise(3, ["a"], origin=(0, 0))
    two = field_noise(3, ["a"], origin=(30, 50))
    for groups in (1, 1, 3):  # the draws of a pass, one after the other
        first, second = one(0, (groups, 4, size, size)), two(0, (groups, 4, size, size))
        assert torch.equal(first[..., 30:, 50:], second[..., : size - 30, : size - 50])


def test_a_field_is_gaussian_and_each_draw_group_and_image_has_its_own() -> None:
    noise = field_noise(0, ["a", "b"], origin=(7, 9))
    draws = [noise(0, (2, 4, 150, 150)), noise(0, (2, 4, 150, 150)), noise(1, (2, 4, 150, 150))]
    parts = torch.stack([part for draw in draws for part in draw])
    assert parts.mean().abs() < 0.01
    assert (parts.std() - 1).abs() < 0.01
    flat = parts.reshape(len(parts), -1)
    assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.02
    blocks = parts[0, 0, :BLOCK, :BLOCK], parts[0, 0, BLOCK : 2 * BLOCK, :BLOCK]
    assert not torch.equal(*blocks)
