"""Whatever shows an image in Python, as the array that the rest of the program takes."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcli.data.images import PIXEL_MEAN, PIXEL_SCALE, read_image
from diffcli.errors import DataError

AnyImage = str | Path | PIL.Image.Image | NDArray[np.uint8] | Tensor
_KINDS = "a path, a PIL image, a uint8 array or tensor (H,W,3), or a float tensor (3,H,W) in [-1,1]"


def any_image(image: AnyImage) -> NDArray[np.uint8]:
    """The image (H,W,3), RGB, 0..255: grey is spread, alpha dropped, 16 bits scaled to 8, EXIF rotation applied.

    Args:
        image: a file's path; a PIL image; an array or uint8 tensor (H,W,3), (H,W,4) or (H,W), a tensor with channels
            first too; or a float tensor (3,H,W) in [-1,1].

    Raises:
        DataError: unreadable, or of another type, shape or range.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, PIL.Image.Image):
        return _from_pil(image)
    pixels = _from_tensor(image) if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not pixels.size:
        raise DataError(f"no image: {pixels.dtype}, shape {pixels.shape}", hint=f"give {_KINDS}")
    return np.ascontiguousarray(pixels[..., :3], dtype=np.uint8)


def _from_pil(image: PIL.Image.Image) -> NDArray[np.uint8]:
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits of grey, which PIL would clip at 255
        return any_image((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def _from_tensor(image: Tensor) -> NDArray[np.uint8]:
    """H,W,C of a tensor whose channels may come first."""
    image = image.detach().cpu()
    if image.is_floating_point():
        if image.ndim != 3 or len(image) != 3 or not bool((image.abs() <= 1).all()):
            raise DataError(f"a float tensor is no image: shape {tuple(image.shape)}", hint=f"give {_KINDS}")
        image = (image.float() * PIXEL_SCALE + PIXEL_MEAN).round().to(torch.uint8).movedim(0, -1)
    elif image.ndim == 3 and image.shape[2] not in (3, 4):
        image = image.movedim(0, -1)
    pixels: NDArray[np.uint8] = image.numpy()
    return pixels
