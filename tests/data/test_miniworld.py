"""The miniature world: deterministic, one geometry for all domains, every class, ranges apart."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from diffcli.data.miniworld import (
    APPEARANCES,
    DOMAIN_RANGES,
    PARAMETERS,
    PRETRAINING_RANGES,
    random_appearance,
    render,
    render_depth,
    render_random,
    write_cityscapes,
)
from diffcli.data.miniworld.scene import FAR, ROAD, SKY
from diffcli.data.miniworld.street import draw_scene

SMALL = (64, 128)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 256), (256, 512)])
def test_render_returns_an_image_and_train_ids(size: tuple[int, int]) -> None:
    image, label = render(0, 0, "clean", size=size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(19), 255}


@pytest.mark.parametrize("domain", APPEARANCES)
def test_render_is_deterministic(domain: str) -> None:
    first, second = render(3, 5, domain, size=SMALL), render(3, 5, domain, size=SMALL)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_depth_belongs_to_the_labels() -> None:
    """Infinite in the sky alone, on flat ground what the camera's height and horizon say, the same when asked again."""
    for index in range(4):
        label, depth = render(7, index, "fog", size=SMALL)[1], render_depth(7, index, size=SMALL)
        assert depth.dtype == np.float32
        assert depth.shape == label.shape
        assert np.isinf(depth[label == SKY]).all()
        assert (depth[label != SKY] >= 0.5).all()
        assert (depth[label != SKY] <= 3 * FAR).all()
        camera = draw_scene(np.random.default_rng([7, index]), SMALL).camera
        _, down = camera.rays(SMALL)
        ground = np.broadcast_to(camera.height / np.maximum(down, 1e-6), SMALL)
        road = (label == ROAD) & (ground < FAR)
        assert road.any()
        np.testing.assert_allclose(depth[road], ground[road], rtol=1e-4)
        np.testing.assert_array_equal(depth, render_depth(7, index, size=SMALL))


def test_seed_and_index_change_the_scene() -> None:
    label = render(0, 0, "clean", size=SMALL)[1]
    assert (label != render(0, 1, "clean", size=SMALL)[1]).any()
    assert (label != render(1, 0, "clean", size=SMALL)[1]).any()


def test_domains_share_geometry_and_differ_in_appearance() -> None:
    for index in range(4):
        scenes = [render(7, index, domain, size=SMALL) for domain in APPEARANCES]
        for number, (image, label) in enumerate(scenes):
            np.testing.assert_array_equal(label, scenes[0][1])
            for other, _ in scenes[:number]:
                assert np.abs(image.astype(float) - other).mean() > 4


def test_pretraining_scenes_share_the_geometry_too() -> None:
    np.testing.assert_array_equal(render_random(7, 2, size=SMALL)[1], render(7, 2, "fog", size=SMALL)[1])


@pytest.mark.slow
def test_every_class_occurs_with_a_long_tail() -> None:
    pixels, scenes = np.zeros(19), np.zeros(19)
    count = 150
    for index in range(count):
        scene = draw_scene(np.random.default_rng([0, index]), (128, 256))
        label = np.array([part.label for part in scene.parts])[scene.ids]
        found = np.bincount(label.ravel(), minlength=19)
        pixels += found
        scenes += found > 100
    share = pixels / pixels.sum()
    assert scenes.min() >= 0.2 * count, "a class is too rare to learn"
    assert share.min() < 0.005
    assert share.max() > 0.25
    assert np.argmin(share) not in (0, 2, 8, SKY)


def test_night_is_dark_but_readable() -> None:
    images = np.stack([render(0, index, "night", size=SMALL)[0] for index in range(8)])
    assert 25 < images.mean() < 80
    assert images.std() > 18


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_pretraining_ranges_are_apart_from_every_domain(parameter: str) -> None:
    for low, high in PRETRAINING_RANGES[parameter]:
        assert low < high
        for domain in APPEARANCES:
            domain_low, domain_high = DOMAIN_RANGES[domain][parameter]
            assert high < domain_low or low > domain_high, f"{parameter} overlaps {domain}"


def test_random_appearance_keeps_to_its_ranges() -> None:
    for seed in range(50):
        look = random_appearance(np.random.default_rng(seed))
        for name in PARAMETERS:
            assert any(low <= getattr(look, name) <= high for low, high in PRETRAINING_RANGES[name])


def test_tables_name_every_parameter() -> None:
    assert set(DOMAIN_RANGES) == set(APPEARANCES)
    for ranges in (*DOMAIN_RANGES.values(), PRETRAINING_RANGES):
        assert set(ranges) == set(PARAMETERS)


@pytest.mark.parametrize("size", [(100, 256), (0, 64)])
def test_render_refuses_other_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        render(0, 0, "clean", size=size)


def test_render_refuses_unknown_domains() -> None:
    with pytest.raises(ValueError, match="unknown domain 'dusk'"):
        render(0, 0, "dusk")


def test_write_cityscapes_layout(tmp_path: Path) -> None:
    written: list[int] = []
    write_cityscapes(
        tmp_path, domain="rain", split="val", count=3, seed=4, size=SMALL, progress=written.append
    )
    images = sorted(tmp_path.glob("leftImg8bit/val/*/*_leftImg8bit.png"))
    labels = sorted(tmp_path.glob("gtFine/val/*/*_gtFine_labelTrainIds.png"))
    assert written == [1, 2, 3]
    assert [path.name.removesuffix("_leftImg8bit.png") for path in images] == [
        path.name.removesuffix("_gtFine_labelTrainIds.png") for path in labels
    ]
    image, label = render(4, 1, "rain", size=SMALL)
    np.testing.assert_array_equal(cv2.imread(str(images[1]))[..., ::-1], image)
    np.testing.assert_array_equal(cv2.imread(str(labels[1]), cv2.IMREAD_UNCHANGED), label)
