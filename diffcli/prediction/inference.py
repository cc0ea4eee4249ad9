"""From a model to masks: images of one size in one piece."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.core.model import SegmentationModel, segment, to_model_range
from diffcli.data.transforms import resize_image
from diffcli.errors import DiffError
from diffcli.runtime.memory import is_out_of_memory


def network_image(image: NDArray[np.uint8], size: Size | None) -> NDArray[np.uint8]:
    """An image (H,W,3) at the size that the network sees."""
    return image if size is None else resize_image(image, size)


def segment_images(
    model: SegmentationModel,
    images: Sequence[NDArray[np.uint8]],
    *,
    sizes: Sequence[tuple[int, int]],
    identities: Sequence[str],
    config: EvalConfig,
    references: Sequence[NDArray[np.uint8]] | None = None,
) -> list[Tensor]:
    """Masks of images (h,w,3) of one size: train ids, uint8, at `sizes` (H,W), on the model's device.

    Args:
        identities: what seeds each image's noise.
        references: train ids of the conditional branch, of any size; None leaves it to `config.reference`.

    Raises:
        DiffError: the network's output is not finite, or memory ran out.
    """
    own = None if references is None else [torch.from_numpy(reference) for reference in references]
    try:
        batch = to_model_range(torch.from_numpy(np.stack(images)).to(model.device))
        output = segment(model, batch, config=config, identities=identities, references=own)
        refuse_not_finite(output, model=model, where=identities[0])
        return [predicted_ids(one, size) for one, size in zip(output, sizes, strict=True)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise not_enough_memory(model, images[0], count=len(images), where=identities[0]) from error


def refuse_not_finite(output: Tensor, *, model: SegmentationModel, where: str) -> None:
    """Raise a DiffError where an output holds what is no number."""
    if not torch.isfinite(output).all():
        raise DiffError(
            f"the network's output is not finite in {model.precision}",
            where=where,
            hint="compute more precisely: --set runtime.precision=float32 (or bf16, where the GPU has it)",
        )


def not_enough_memory(
    model: SegmentationModel, image: NDArray[np.uint8], *, count: int, where: str
) -> DiffError:
    """The error for `count` images (h,w,3) of a size that memory does not hold."""
    height, width = image.shape[:2]
    return DiffError(
        f"not enough memory on {model.device} for {count} x {width}x{height} pixels",
        where=where,
        hint="--set eval.batch_size=1, a smaller eval.size (--set eval.size=1024x512), or --set eval.mode=slide",
    )


def predicted_ids(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """classes,h,w logits to H,W uint8: the argmax of the logits resized bilinearly.

    One class is resized at a time: all of them at a photograph's full size would take gigabytes.
    """
    best, ids = None, torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for train_id, plane in enumerate(logits):
        full = F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        if best is None:
            best = full
        else:
            ids.masked_fill_(full > best, train_id)
            best = torch.maximum(best, full)
    return ids
