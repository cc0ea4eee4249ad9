"""The fast order of loading (decode once, crop before colour work, tables) gives what the plain order gives."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.config.domain import domain_config
from diffcli.config.settings import AugmentationConfig
from diffcli.config.size import Size
from diffcli.data.dataset import TrainingSet, open_domain
from diffcli.data.domains import LABEL_IDS
from diffcli.data.transforms import (
    draw_crop,
    flip_horizontally,
    pad,
    photometric_distortion,
    resize_image,
    resize_label,
)

SIZE = (64, 128)
"""Widths are multiples of 64, as the recipe's are: OpenCV rounds the rest of a row's last vector otherwise (by 1)."""


def write_pairs(root: Path) -> None:
    """RGB, RGBA, grey and palette images with 8-bit, palette and 16-bit labels of ids."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "labels").mkdir()
    ids = [i for i in range(34) if i != 29]
    for index, mode in enumerate(("RGB", "RGBA", "L", "P")):
        pixels = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        pixels.convert(mode).save(root / f"images/{index}.png")
        values = np.repeat(np.repeat(rng.choice(ids, (8, 16)), 8, axis=0), 8, axis=1)
        label = Image.fromarray(values.astype(np.uint16 if index == 2 else np.uint8))
        if index in (0, 3):
            label.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        label.save(root / f"labels/{index}.png")


def in_plain_order(
    root: Path, settings: AugmentationConfig, resize: Size | None, draw: int
) -> tuple[np.ndarray, ...]:
    """PIL for everything, a mask an id, colours of the whole image, and only then the crop."""
    rng = np.random.default_rng([0, draw, 0])
    epoch, position = divmod(draw, 4)
    index = np.random.default_rng([0, epoch, 1]).permutation(4)[position]
    with Image.open(root / f"images/{index}.png") as file:
        image = np.array(file.convert("RGB"))
    with Image.open(root / f"labels/{index}.png") as file:
        stored = np.array(file)
    label = np.full(stored.shape, 255, dtype=np.uint8)
    for value, train_id in LABEL_IDS.ids.items():
        label[stored == value] = train_id
    if resize is not None:
        image, label = resize_image(image, resize), resize_label(label, resize)
    crop = draw_crop(label, size=settings.crop, rng=rng, tries=10, max_share=0.75)
    flipped = rng.random() < settings.flip
    image = photometric_distortion(image, rng=rng, probability=settings.photometric)
    image, label = image[crop], label[crop]
    if flipped:
        image, label = image[:, ::-1], label[:, ::-1]
    missing = [(0, settings.crop.height - image.shape[0]), (0, settings.crop.width - image.shape[1])]
    return np.pad(image, [*missing, (0, 0)]), np.pad(label, missing, constant_values=255)


@pytest.mark.parametrize("resize", [None, Size(192, 96)], ids=["as stored", "resized"])
@pytest.mark.parametrize("crop", [Size(64, 48), Size(256, 128)], ids=["inside", "with padding"])
def test_the_fast_order_changes_no_pixel(tmp_path: Path, resize: Size | None, crop: Size) -> None:
    write_pairs(tmp_path)
    settings = AugmentationConfig(crop=crop)
    domain = open_domain(domain_config("gta5", root=tmp_path, resize=resize), purpose="train")
    samples = TrainingSet(domain, augmentation=settings, rare_classes=None, statistics=None, seed=0)
    for draw in range(24):
        image, label = in_plain_order(tmp_path, settings, resize, draw)
        assert np.array_equal(samples[draw]["image"], image)
        assert np.array_equal(samples[draw]["label"], label)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 2)])
def test_flip_and_pad_equal_numpy(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = pixels.copy()
    assert np.array_equal(flip_horizontally(pixels), pixels[:, ::-1])
    assert np.array_equal(flip_horizontally(pixels[:, :4]), pixels[:, :4][:, ::-1])
    widths = [(0, 3), (0, 0), *[(0, 0)] * (len(shape) - 2)]
    padded = pad(pixels, Size(shape[1], shape[0] + 3), value=9)
    assert np.array_equal(padded, np.pad(pixels, widths, constant_values=9))
    assert np.array_equal(pad(pixels[:, 1:], Size(1, 1), value=9), pixels[:, 1:])
    assert pad(pixels[:, 1:], Size(1, 1), value=9).flags["C_CONTIGUOUS"]
    assert np.array_equal(pixels, before)
