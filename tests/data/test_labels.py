"""Label files of every kind become the same train ids."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_ID_OF_TRAIN_ID
from diffcli.data.domains import INSTANCE_IDS, KITTI_INSTANCES, LABEL_IDS, SYNTHIA, TRAIN_IDS, LabelEncoding
from diffcli.data.labels import LabelReader, read_pixels, train_ids_by_name
from diffcli.errors import DataError

Save = Callable[..., Path]
PLAIN = (*range(19),)


def reader(encoding: LabelEncoding) -> LabelReader:
    return LabelReader(encoding, PLAIN)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_train_ids_of_any_depth(tmp_path: Path, save_image: Save, dtype: type) -> None:
    path = save_image(tmp_path / "a.tif", np.array([[0, 18], [7, 255]], dtype=dtype))
    assert reader(TRAIN_IDS).read(path).tolist() == [[0, 18], [7, 255]]


def test_label_ids_become_train_ids(tmp_path: Path, save_image: Save) -> None:
    values = np.array([[*CITYSCAPES_ID_OF_TRAIN_ID.values(), 0, 1, 34]], dtype=np.uint8)
    path = save_image(tmp_path / "a.png", values)
    assert reader(LABEL_IDS).read(path).tolist() == [[*range(19), 255, 255, 255]]


def test_minus_one_and_254_are_ignored(tmp_path: Path, save_image: Save) -> None:
    small = save_image(tmp_path / "small.png", np.array([[254, 255, 3]], dtype=np.uint8))
    deep = save_image(tmp_path / "deep.tif", np.array([[-1, 65535, 3]], dtype=np.int32))
    assert reader(TRAIN_IDS).read(small).tolist() == [[255, 255, 3]]
    assert reader(TRAIN_IDS).read(deep).tolist() == [[255, 255, 3]]


def test_palette_indexes_are_the_values(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 13, 255]], dtype=np.uint8)).convert("P")
    image.putdata([0, 13, 255])
    image.putpalette([value % 251 for value in range(768)])
    image.save(tmp_path / "a.png")
    assert reader(TRAIN_IDS).read(tmp_path / "a.png").tolist() == [[0, 13, 255]]


@pytest.mark.parametrize("alpha", [False, True])
def test_colors(tmp_path: Path, save_image: Save, alpha: bool) -> None:
    pixels = np.array([[[128, 64, 128], [0, 0, 142], [0, 0, 0]]], dtype=np.uint8)
    if alpha:
        pixels = np.dstack([pixels, np.full((1, 3), 7, np.uint8)])
    assert reader(TRAIN_IDS).read(save_image(tmp_path / "a.png", pixels)).tolist() == [[0, 13, 255]]


def test_colors_of_a_palette_where_only_colors_are_known(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    encoding = LabelEncoding(colors=(((10, 20, 30), 5), ((40, 50, 60), 6)))
    assert reader(encoding).read(tmp_path / "a.png").tolist() == [[5, 6]]


def test_ids_saved_as_grey_rgb(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.repeat(np.array([[[7], [18]]], dtype=np.uint8), 3, axis=2))
    assert reader(TRAIN_IDS).read(path).tolist() == [[7, 18]]
    assert reader(LABEL_IDS).read(
        save_image(tmp_path / "b.png", np.array([[[7, 0, 0]]], np.uint8))
    ).tolist() == [[0]]


def test_synthia_keeps_ids_in_the_first_channel_of_16_bits(tmp_path: Path) -> None:
    values = np.zeros((1, 3, 3), dtype=np.uint16)
    values[0, :, 2] = (3, 22, 10)  # OpenCV writes blue, green, red
    values[0, :, 1] = (1, 500, 2)  # the instance
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert reader(SYNTHIA).read(tmp_path / "a.png").tolist() == [[0, 255, 11]]


def test_instances(tmp_path: Path, save_image: Save) -> None:
    city = save_image(tmp_path / "a.png", np.array([[7, 26003, 24000, 0]], dtype=np.uint16))
    kitti = save_image(tmp_path / "b.png", np.array([[7 * 256, 26 * 256 + 3, 0]], dtype=np.uint16))
    assert reader(INSTANCE_IDS).read(city).tolist() == [[0, 13, 11, 255]]
    assert reader(KITTI_INSTANCES).read(kitti).tolist() == [[0, 13, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_outside_the_mapping_are_listed_with_the_file(
    tmp_path: Path, save_image: Save, dtype: type
) -> None:
    path = save_image(tmp_path / "frame.tif", np.array([[0, 19, 77, 19]], dtype=dtype))
    with pytest.raises(DataError, match="19, 77") as caught:
        reader(TRAIN_IDS).read(path)
    assert "frame.tif" in str(caught.value.where)


def test_numbers_that_no_label_holds_are_listed(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.tif", np.array([[0, 70000, -9]], dtype=np.int32))
    with pytest.raises(DataError, match=r"-9, 70000"):
        reader(TRAIN_IDS).read(path)


def test_colors_outside_the_mapping_are_listed(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[[128, 64, 128], [1, 2, 3]]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"\(1, 2, 3\)"):
        reader(TRAIN_IDS).read(path)


def test_color_file_without_known_colors(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[[128, 64, 128]]], dtype=np.uint8))
    with pytest.raises(DataError, match="colour image") as caught:
        reader(LABEL_IDS).read(path)
    assert "label_colors" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"empty|damaged"):
        read_pixels(path)


def test_cut_short(tmp_path: Path, save_image: Save) -> None:
    noise = np.random.default_rng(0).integers(0, 19, (40, 40), dtype=np.uint8)
    path = save_image(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged"):
        reader(TRAIN_IDS).read(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_pixels(tmp_path / "none.png")


def test_other_class_lists_go_by_name(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[0, 10, 13]], dtype=np.uint8))
    by_name = LabelReader(TRAIN_IDS, train_ids_by_name(("sky", "tree", "road")))
    assert by_name.read(path).tolist() == [[2, 0, 255]]
    assert train_ids_by_name(CITYSCAPES_CLASSES) == PLAIN


def test_255_may_be_a_class_of_the_users_own(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8))
    assert reader(LabelEncoding(ids={0: 0, 255: 1})).read(path).tolist() == [[0, 1]]
