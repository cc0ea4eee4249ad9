"""The noise field of a tiled image: tiles see the same values where they overlap."""

import torch

from diffcli.core.noise_field import BLOCK, field_noise


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
