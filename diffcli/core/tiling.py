"""An image in overlapping tiles: where they lie, how their outputs are blended, and the noise that they share.

Weights that fall smoothly to nothing at a tile's border are what removes seams: a plain mean of the same tiles jumps
there by six times as much. All tiles of an image see one field of noise, each its own part of it, on a latent grid that
they share; beside noise of each tile's own, this changes little under a one-step schedule.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from diffcli.core.inversion import Noise, noise_seed

BLOCK = 64
"""Latent cells on a side of one block of a noise field; each block has a seed of its own."""


def tile_starts(length: int, *, tile: int, overlap: int, multiple: int) -> list[int]:
    """First pixels of tiles that cover `length` and overlap by at least `overlap`; all multiples of `multiple`.

    The last tile reaches the end, and may be shorter than the others by less than `multiple`.
    """
    if length <= tile:
        return [0]
    last = math.ceil((length - tile) / multiple) * multiple
    return [*range(0, last, tile - overlap), last]


def blend_weights(length: int, starts: Sequence[int], *, tile: int, overlap: int) -> list[Tensor]:
    """Each tile's weights along one side: raised cosines over the overlap, and together 1 at every pixel."""
    total = torch.zeros(length)
    windows = []
    for start in starts:
        stop = min(start + tile, length)
        window = torch.ones(stop - start)
        ramp = torch.sin(math.pi / 2 * (torch.arange(overlap) + 0.5) / overlap) ** 2
        if start > 0:
            window[:overlap] *= ramp
        if stop < length:
            window[-overlap:] *= ramp.flip(0)
        total[start:stop] += window
        windows.append(window)
    return [
        window / total[start : start + len(window)] for start, window in zip(starts, windows, strict=True)
    ]


def blended_bands(
    size: tuple[int, int],
    evaluate: Callable[[slice, slice], Tensor],
    *,
    tile: tuple[int, int],
    overlap: tuple[int, int],
    multiple: int,
) -> Iterator[tuple[int, Tensor]]:
    """Evaluate an image of `size` (H,W) tile by tile; yields (first row, C,rows,W) from top to bottom, on the CPU.

    Memory is bounded by one row of tiles, C x tile height x W, whatever the image's height.

    Args:
        evaluate: rows and columns of a tile -> its C,h,w output.
        tile: height and width.
        overlap: of neighbouring tiles, vertically and horizontally; less than half a tile.
        multiple: what the tiles' first rows and columns are multiples of.
    """
    height, width = size
    tops = tile_starts(height, tile=tile[0], overlap=overlap[0], multiple=multiple)
    lefts = tile_starts(width, tile=tile[1], overlap=overlap[1], multiple=multiple)
    down = blend_weights(height, tops, tile=tile[0], overlap=overlap[0])
    across = blend_weights(width, lefts, tile=tile[1], overlap=overlap[1])
    band: Tensor | None = None
    for row, top in enumerate(tops):
        bottom = min(top + tile[0], height)
        for left, weights in zip(lefts, across, strict=True):
            right = left + len(weights)
            output = evaluate(slice(top, bottom), slice(left, right)).float().cpu()
            if band is None:
                band = torch.zeros(len(output), tile[0], width)
            band[:, : bottom - top, left:right] += output * down[row][:, None] * weights
        assert band is not None
        finished = (tops[row + 1] if row + 1 < len(tops) else height) - top
        yield top, band[:, :finished]
        band = torch.cat([band[:, finished:], torch.zeros(len(band), finished, width)], dim=1)


def field_noise(seed: int, identities: Sequence[str], *, origin: tuple[int, int]) -> Noise:
    """The noise of tiles at `origin` (row, column of the latent grid): parts of one endless field an image and draw.

    Two tiles of an image see the same values where they overlap. A field is made of blocks with a seed each, so that
    no tile costs more than its own size.
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
