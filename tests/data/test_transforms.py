"""Augmentations keep types, ranges and the tie between image and label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffcli.config.size import Size
from diffcli.data.transforms import (
    CONTRAST,
    class_counts,
    draw_crop,
    flip_horizontally,
    pad,
    photometric_distortion,
    resize_image,
    resize_label,
)

sides = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)
labels = st.tuples(sides, sides).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
)
images = st.tuples(sides, sides, st.just(3)).flatmap(lambda shape: arrays(np.uint8, shape))


@given(labels, sides, sides, seeds, st.sampled_from([None, 0, 1]))
@settings(max_examples=80, deadline=None)
def test_crops_are_as_large_as_they_can_be(
    label: np.ndarray, width: int, height: int, seed: int, wanted: int | None
) -> None:
    rng = np.random.default_rng(seed)
    crop = draw_crop(
        label, size=Size(width, height), rng=rng, tries=3, max_share=0.75, wanted=wanted, min_pixels=2
    )
    assert label[crop].shape == (min(height, label.shape[0]), min(width, label.shape[1]))


@given(labels, sides, sides)
@settings(max_examples=50, deadline=None)
def test_resized_labels_hold_no_new_value(label: np.ndarray, width: int, height: int) -> None:
    resized = resize_label(label, Size(width, height))
    assert resized.shape == (height, width)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= set(np.unique(label))


@given(images, seeds, st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=80, deadline=None)
def test_photometric_distortion_keeps_type_shape_and_input(
    image: np.ndarray, seed: int, probability: float
) -> None:
    before = image.copy()
    distorted = photometric_distortion(image, rng=np.random.default_rng(seed), probability=probability)
    again = photometric_distortion(image, rng=np.random.default_rng(seed), probability=probability)
    assert distorted.dtype == np.uint8
    assert distorted.shape == image.shape
    assert np.array_equal(distorted, again)
    assert np.array_equal(image, before)
    if probability == 0:
        assert np.array_equal(distorted, image)


@given(images, sides, sides)
@settings(max_examples=50, deadline=None)
def test_padding_is_on_the_right_and_at_the_bottom(image: np.ndarray, width: int, height: int) -> None:
    padded = pad(image, Size(width, height), value=9)
    h, w = image.shape[:2]
    assert padded.shape == (max(h, height), max(w, width), 3)
    assert np.array_equal(padded[:h, :w], image)
    assert (padded[h:] == 9).all()
    assert (padded[:, w:] == 9).all()


@pytest.mark.parametrize("shape", [(1, 1), (37, 5), (4100, 4100)])
def test_class_counts(shape: tuple[int, int]) -> None:
    label = np.full(shape, 18, np.uint8)
    label[0, 0] = 255
    counts = class_counts(label)
    assert counts[18] == label.size - 1
    assert counts[255] == 1
    assert counts.sum() == label.size


@given(labels)
@settings(max_examples=30, deadline=None)
def test_flipping_twice_is_nothing(label: np.ndarray) -> None:
    assert np.array_equal(flip_horizontally(flip_horizontally(label)), label)


def test_crop_is_redrawn_while_one_class_fills_it() -> None:
    label = np.zeros((64, 640), np.uint8)
    label[:, 300:364] = np.arange(64)[None] % 4  # the only place where classes mix

    def share(tries: int) -> float:
        found = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            crop = draw_crop(label, size=Size(64, 64), rng=rng, tries=tries, max_share=0.75)
            found += np.count_nonzero(label[crop] == 0) <= 0.75 * 64 * 64
        return found / 60

    assert share(1) < 0.5 < 0.8 < share(20)


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    label = np.full((8, 8), 255, np.uint8)
    label[0, :4] = (0, 1, 2, 3)
    rng = np.random.default_rng(0)
    untouched = rng.bit_generator.state
    draw_crop(label, size=Size(8, 8), rng=rng, tries=1, max_share=0.75)
    draws = np.random.default_rng(0)
    assert untouched == draws.bit_generator.state
    draws.integers(1), draws.integers(1)
    assert rng.bit_generator.state == draws.bit_generator.state


def test_crop_is_redrawn_until_the_wanted_class_is_inside() -> None:
    label = (np.indices((64, 1024)).sum(axis=0) % 2).astype(np.uint8)
    label[:, 500:560] = 7
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crop = draw_crop(
            label, size=Size(128, 64), rng=rng, tries=40, max_share=0.75, wanted=7, min_pixels=100
        )
        inside.append(np.count_nonzero(label[crop] == 7) > 100)
    assert np.mean(inside) > 0.95


def test_each_distortion_comes_as_often_as_asked_and_within_its_range() -> None:
    """Grey pictures: saturation and hue do nothing, so that brightness and contrast can be told from two levels."""
    image = np.full((1, 2, 3), 100, np.uint8)
    image[0, 1] = 140
    scales, shifts = [], []
    for seed in range(400):
        dark, light = photometric_distortion(image, rng=np.random.default_rng(seed))[0, :, 0].astype(float)
        scales.append((light - dark) / 40)
        shifts.append(dark - 100)
    unscaled = np.abs(np.array(scales) - 1) < 0.03
    assert 0.35 < unscaled.mean() < 0.65
    assert CONTRAST[0] - 0.04 <= min(scales) < 0.6
    assert 1.4 < max(scales) <= CONTRAST[1] + 0.04
    moved = np.array(shifts)[unscaled]
    assert 0.3 < (np.abs(moved) > 1).mean() < 0.7
    assert moved.min() >= -33
    assert moved.max() <= 33


def test_saturation_and_hue_move_a_coloured_picture() -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    image[:] = (200, 80, 80)
    seen = {
        tuple(photometric_distortion(image, rng=np.random.default_rng(s))[0, 0].tolist()) for s in range(200)
    }
    hues = [r - b for r, g, b in seen if g > b + 10]
    assert len(seen) > 80
    assert hues, "hue never turned towards yellow"


@pytest.mark.parametrize(("size", "expected"), [(Size(4, 2), (2, 4, 3)), (Size(2, 2), (2, 2, 3))])
def test_resize_image(size: Size, expected: tuple[int, ...]) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert resize_image(image, size).shape == expected
