"""Tiny datasets on disk for the data tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WritePair = Callable[..., None]


def save(path: Path, pixels: object, **options: object) -> Path:
    """Write an array as an image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """`save`, for tests."""
    return save


@pytest.fixture
def save_pair() -> WritePair:
    """write(image path, label path, label values): a grey picture of the label's size and the label as 8-bit PNG."""

    def write(image: Path, label: Path, values: object) -> None:
        pixels = np.asarray(values, dtype=np.uint8)
        save(image, np.full((*pixels.shape[:2], 3), 128, np.uint8))
        save(label, pixels)

    return write


@pytest.fixture
def own_folder(tmp_path: Path, save_pair: WritePair) -> Callable[[dict[str, object]], Path]:
    """make({name: label values}): a folder of the domain `folder`."""

    def make(labels: dict[str, object]) -> Path:
        for name, values in labels.items():
            save_pair(tmp_path / "images" / f"{name}.png", tmp_path / "labels" / f"{name}.png", values)
        return tmp_path

    return make
