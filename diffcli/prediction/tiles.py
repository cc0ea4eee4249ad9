"""An image in overlapping tiles: where the tiles are and how their outputs are blended.

Weights that fall smoothly to nothing at a tile's border are what removes seams: a plain mean of the same tiles jumps
there by six times as much. This is the only tiling: `eval.mode: slide`, `--tile` and images above the limit use it.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def tile_starts(length: int, *, tile: int, overlap: int, multiple: int) -> list[int]:
    """First pixels of tiles that cover `length` and overlap by at least `overlap`; all multiples of `multiple`.

    The last tile reaches the end, and may be shorter than the others by less than `multiple`.
    """
    if length <= tile:
        return [0]
    last = math.ceil((length - tile) / multiple) * multiple
    return [*range(0, last, tile - overlap), last]


def blend_weights(length: int, starts: Sequence[int], *, tile: int, overlap: int) -> list[Floats]:
    """Each tile's weights along one side: raised cosines over the overlap, and together 1 at every pixel."""
    total = np.zeros(length, dtype=np.float32)
    ramp = np.sin(math.pi / 2 * (np.arange(overlap, dtype=np.float32) + 0.5) / overlap) ** 2
    windows = []
    for start in starts:
        stop = min(start + tile, length)
        window = np.ones(stop - start, dtype=np.float32)
        if start > 0:
            window[:overlap] *= ramp
        if stop < length:
            window[-overlap:] *= ramp[::-1]
        total[start:stop] += window
        windows.append(window)
    return [
        window / total[start : start + len(window)] for start, window in zip(starts, windows, strict=True)
    ]


def blended_bands(
    size: tuple[int, int],
    evaluate: Callable[[slice, slice], Floats],
    *,
    tile: tuple[int, int],
    overlap: tuple[int, int],
    multiple: int,
) -> Iterator[Floats]:
    """Evaluate an image of `size` (H,W) tile by tile; yields its outputs C,rows,W from top to bottom.

    Memory is bounded by one row of tiles, C x tile height x W, whatever the image's height.

    Args:
        evaluate: rows and columns of a tile -> its C,h,w float32 output.
        tile: height and width.
        overlap: of neighbouring tiles, vertically and horizontally; less than the tile.
        multiple: what the tiles' first rows and columns are multiples of.
    """
    height, width = size
    tops = tile_starts(height, tile=tile[0], overlap=overlap[0], multiple=multiple)
    lefts = tile_starts(width, tile=tile[1], overlap=overlap[1], multiple=multiple)
    down = blend_weights(height, tops, tile=tile[0], overlap=overlap[0])
    across = blend_weights(width, lefts, tile=tile[1], overlap=overlap[1])
    band: Floats | None = None
    for row, top in enumerate(tops):
        bottom = min(top + tile[0], height)
        for left, weights in zip(lefts, across, strict=True):
            right = left + len(weights)
            output = evaluate(slice(top, bottom), slice(left, right))
            if band is None:
                band = np.zeros((len(output), tile[0], width), dtype=np.float32)
            band[:, : bottom - top, left:right] += output * down[row][:, None] * weights
        assert band is not None
        finished = (tops[row + 1] if row + 1 < len(tops) else height) - top
        yield band[:, :finished].copy()
        band = np.concatenate([band[:, finished:], np.zeros_like(band[:, :finished])], axis=1)
