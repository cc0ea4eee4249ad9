"""Class maps to masks: one function for the arrays of PyTorch and of NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffcli.prediction.planes import NumpyArrays, planes_of
from diffcli.prediction.trained import TorchArrays


@pytest.mark.parametrize("size", [(20, 40), (9, 17), (5, 9)])
def test_masks_are_the_argmax_of_all_classes_resized(size: tuple[int, int]) -> None:
    logits = torch.randn(19, 9, 17, generator=torch.Generator().manual_seed(0))
    logits[3] = logits[7]  # a tie goes to the first class
    full = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    found = planes_of(logits, size, arrays=TorchArrays(), confidence=True, score_of=4)
    assert found.mask.dtype == np.uint8
    assert np.array_equal(found.mask, full.argmax(0))
    shares = F.interpolate(logits.softmax(0)[None], size, mode="bilinear", align_corners=False)[0]
    assert found.score is not None
    assert found.confidence is not None
    assert np.allclose(found.score, shares[4], atol=1e-6)
    assert np.allclose(found.confidence, shares.gather(0, full.argmax(0)[None])[0], atol=1e-6)
    same = planes_of(logits.numpy(), size, arrays=NumpyArrays(), confidence=True, score_of=4)
    assert same.score is not None
    assert same.confidence is not None
    assert np.array_equal(same.mask, found.mask)
    assert np.allclose(same.score, found.score, atol=1e-6)
    assert np.allclose(same.confidence, found.confidence, atol=1e-6)
