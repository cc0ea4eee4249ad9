"""The noise of an image that is segmented in tiles: one endless field, of which each tile sees its own part."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcli.core.inversion import Noise, noise_seed

BLOCK = 64
"""Latent cells on a side of one block of a noise field; each block has its own seed."""


def field_noise(seed: int, identities: Sequence[str], *, origin: tuple[int, int]) -> Noise:
    """The noise of tiles at `origin` (row, column of the latent grid): parts of one endless field an image and draw.

    Two tiles of an image see the same values where they overlap. A field is made of blocks with a seed each, so that
    a tile costs no more than its size.
    """
    draws = [0] * len(identities)

    def noise(image: int, shape: tuple[int, ...]) -> Tensor:
        draw, draws[image] = draws[image], draws[image] + 1
        groups, channels, height, width = shape
        names = [f"{seed}:{identities[image]}:{draw}:{group}" for group in range(groups)]
        return torch.stack([_field_part(name, origin, (channels, height, width)) for name in names])

    return noise


def _field_part(name: str, origin: tuple[int, int], shape: tuple[int, int, int]) -> Tensor:
    """C,h,w values of the field `name` from `origin` on."""
    channels, height, width = shape
    (top, left), generator = origin, torch.Generator()
    rows = range(top // BLOCK, (top + height - 1) // BLOCK + 1)
    columns = range(left // BLOCK, (left + width - 1) // BLOCK + 1)

    def block(row: int, column: int) -> Tensor:
        generator.manual_seed(noise_seed(row, f"{column}:{name}"))
        return torch.randn((channels, BLOCK, BLOCK), generator=generator)

    whole = torch.cat([torch.cat([block(row, column) for column in columns], 2) for row in rows], 1)
    first, begin = top - rows[0] * BLOCK, left - columns[0] * BLOCK
    return whole[:, first : first + height, begin : begin + width]
