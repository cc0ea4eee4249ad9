"""Segmenting images: sizes, references, windows and test-time variants."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffcli.core.inversion import seeded_noise
from diffcli.core.model import (
    SegmentationModel,
    content_identity,
    pad_to_multiple,
    to_model_range,
)


def half_and_half(height: int, width: int) -> Tensor:
    """Class 1 on the left, class 3 on the right."""
    labels = torch.ones(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 3
    return labels


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


# --- logits --------------------------------------------------------------------------------------------------------


def test_logits_are_the_decoders_resized(model: SegmentationModel, images: Tensor) -> None:
    noise = seeded_noise(model.config.inversion.seed, ["a", "b"])
    coarse = model.decoder(model.extractor.extract(images, noise=noise))
    logits = model.logits(images, identities=["a", "b"])
    assert not logits.requires_grad
    close(logits, F.interpolate(coarse.detach(), (64, 64), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 130), (1, 1), (63, 200)])
def test_any_size_is_padded_and_cropped_back(model: SegmentationModel, size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size) * 2 - 1
    logits = model.logits(images, identities=["a"])
    assert logits.shape == (1, 5, *size)
    assert logits.isfinite().all()
    padded = model.logits(pad_to_multiple(images, 64, value=0.0), identities=["a"])
    assert torch.equal(logits, padded[..., : size[0], : size[1]])


def test_an_image_without_a_name_is_known_by_its_pixels(model: SegmentationModel, images: Tensor) -> None:
    nameless = model.logits(images)
    names = [content_identity(image) for image in images]
    assert names[0] != names[1]
    assert torch.equal(nameless, model.logits(images, identities=names))
    close(model.logits(images.flip(0)).flip(0), nameless)


def test_order_changes_nothing_and_the_batch_only_the_last_bits(
    model: SegmentationModel, images: Tensor
) -> None:
    """What README says of the same numbers again; resuming and workers are in tests/training."""
    names = ["a", "b"]
    together = model.logits(images, identities=names)
    assert torch.equal(together, model.logits(images, identities=names))
    swapped = model.logits(images.flip(0), identities=names[::-1])
    assert torch.equal(together, swapped.flip(0))
    alone = torch.cat(
        [model.logits(image[None], identities=[name]) for image, name in zip(images, names, strict=True)]
    )
    close(together, alone)
    assert torch.equal(together.argmax(1), alone.argmax(1))


def test_a_reference_turns_the_class_prompts_on(model: SegmentationModel, images: Tensor) -> None:
    plain = model.logits(images, identities=["a", "b"])
    model.extractor.backbone.evaluations = 0
    conditional = model.logits(images, identities=["a", "b"], references=[half_and_half(64, 64), None])
    assert model.extractor.backbone.evaluations == 3 + 1
    assert not torch.allclose(conditional[0], plain[0])
    close(conditional[1], plain[1])


@pytest.mark.parametrize("size", [(32, 40), (200, 260), (100, 130)])
def test_a_reference_may_have_any_size(model: SegmentationModel, size: tuple[int, int]) -> None:
    """Halves of an image are the same halves in whatever size the reference comes."""
    images = torch.rand(1, 3, 100, 130)
    expected = model.logits(images, identities=["a"], references=[half_and_half(100, 130)])
    got = model.logits(images, identities=["a"], references=[half_and_half(*size)])
    assert torch.equal(got, expected)


def test_padding_is_never_a_class(model: SegmentationModel) -> None:
    """A reference of class 0 alone, where 0 had a prompt, would differ if the padding were class 0 of another."""
    images = torch.rand(1, 3, 65, 65)
    absent = torch.full((65, 65), 255)
    plain = model.logits(images, identities=["a"])
    assert torch.equal(plain, model.logits(images, identities=["a"], references=[absent]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_returns_float32(model: SegmentationModel, images: Tensor, precision: str) -> None:
    full = model.logits(images, identities=["a", "b"])
    model.precision = precision  # type: ignore[assignment]
    reduced = model.logits(images, identities=["a", "b"])
    assert reduced.dtype == torch.float32
    assert F.cosine_similarity(full.flatten(), reduced.flatten(), dim=0) > 0.98


# --- small parts ---------------------------------------------------------------------------------------------------


def test_model_range() -> None:
    pixels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).reshape(1, 2, 2, 1).expand(1, 2, 2, 3)
    images = to_model_range(pixels)
    assert images.shape == (1, 3, 2, 2)
    assert images[0, 0].flatten().tolist() == pytest.approx([-1, -1 / 255, 1 / 255, 1])


@given(height=st.integers(1, 130), width=st.integers(1, 130))
def test_padding_goes_right_and_below(height: int, width: int) -> None:
    labels = torch.ones(height, width, dtype=torch.int64)
    padded = pad_to_multiple(labels, 64, value=255)
    assert all(side % 64 == 0 for side in padded.shape)
    assert torch.equal(padded[:height, :width], labels)
    assert int((padded == 255).sum()) == padded.numel() - labels.numel()
    assert all(a - b < 64 for a, b in zip(padded.shape, labels.shape, strict=True))
