"""Segmenting images: sizes, references, windows and test-time variants."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import (
    SegmentationModel,
    content_identity,
    pad_to_multiple,
    segment,
    to_model_range,
    window_starts,
)


def whole(**changes: object) -> EvalConfig:
    return EvalConfig(size=None, **changes)


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


# --- segment -------------------------------------------------------------------------------------------------------


def test_one_plain_pass_is_logits(model: SegmentationModel, images: Tensor) -> None:
    assert torch.equal(segment(model, images, config=whole()), model.logits(images))


def test_the_first_prediction_is_the_reference_of_a_second_pass(
    model: SegmentationModel, images: Tensor
) -> None:
    first = model.logits(images)
    expected = model.logits(images, references=list(first.argmax(1)))
    assert torch.equal(segment(model, images, config=whole(reference="prediction")), expected)


def test_given_references_are_used_as_they_are(model: SegmentationModel, images: Tensor) -> None:
    references = [half_and_half(64, 64)] * 2
    expected = model.logits(images, references=references)
    for reference in ("none", "labels", "prediction"):
        got = segment(model, images, config=whole(reference=reference), references=references)
        assert torch.equal(got, expected)


def test_mirroring_averages_with_the_mirrored_prediction(model: SegmentationModel, images: Tensor) -> None:
    names, references = ["a", "b"], [half_and_half(64, 64), None]
    straight = model.logits(images, identities=names, references=references).softmax(1)
    mirrored = model.logits(images.flip(-1), identities=names, references=[references[0].flip(-1), None])
    got = segment(model, images, config=whole(flip=True), identities=names, references=references)
    torch.testing.assert_close(got, (straight + mirrored.flip(-1).softmax(1)) / 2)


def test_scales_and_mirror_give_probabilities_at_the_images_size(model: SegmentationModel) -> None:
    images = torch.rand(1, 3, 70, 90)
    model.extractor.backbone.evaluations = 0
    got = segment(model, images, config=whole(scales=(0.5, 1.0, 1.3), flip=True))
    assert model.extractor.backbone.evaluations == 6
    assert got.shape == (1, 5, 70, 90)
    torch.testing.assert_close(got.sum(1), torch.ones(1, 70, 90))


# --- windows -------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 400), window=st.integers(1, 200), stride=st.integers(1, 200))
def test_windows_cover_everything_once_the_stride_allows(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    starts = window_starts(length, window, stride)
    covered = {x for start in starts for x in range(start, min(start + window, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert all(0 <= start <= max(length - window, 0) for start in starts)


def slide(window: int, stride: int) -> EvalConfig:
    return whole(mode="slide", window=Size(window, window), stride=Size(stride, stride))


def test_one_window_over_a_small_image_is_the_whole(model: SegmentationModel, images: Tensor) -> None:
    got = segment(model, images, config=slide(128, 64), identities=["a", "b"])
    assert torch.equal(got, model.logits(images, identities=["a@0,0", "b@0,0"]))


def test_overlapping_windows_are_averaged(model: SegmentationModel) -> None:
    images = torch.rand(1, 3, 64, 96)
    got = segment(model, images, config=slide(64, 32), identities=["a"])
    left = model.logits(images[..., :64], identities=["a@0,0"])
    right = model.logits(images[..., 32:], identities=["a@32,0"])
    torch.testing.assert_close(got[..., :32], left[..., :32])
    torch.testing.assert_close(got[..., 32:64], (left[..., 32:] + right[..., :32]) / 2)
    torch.testing.assert_close(got[..., 64:], right[..., 32:])


def test_windows_see_their_part_of_the_reference(model: SegmentationModel) -> None:
    """Classes 1 on the left and 3 on the right: each window meets one class prompt, or both where they meet."""
    images, backbone = torch.rand(1, 3, 64, 128), model.extractor.backbone
    backbone.evaluations = 0
    segment(model, images, config=slide(64, 64), identities=["a"], references=[half_and_half(64, 128)])
    assert backbone.evaluations == 2 + 2
    backbone.evaluations = 0
    segment(model, images, config=slide(64, 32), identities=["a"], references=[half_and_half(32, 64)])
    assert backbone.evaluations == 2 + 3 + 2


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
