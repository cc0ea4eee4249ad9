"""Label files that would give wrong classes without a word, and files that would take all memory or never end."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffcli.classes import IGNORE_ID
from diffcli.data.domains import LabelEncoding
from diffcli.data.headers import image_size
from diffcli.data.images import read_image
from diffcli.data.labels import LabelReader, read_pixels
from diffcli.data.mapping import ColoredLabel, OutsideMapping, likely_ids
from diffcli.errors import DataError

Save = Callable[..., Path]

IDS = LabelReader(LabelEncoding(ids={0: 0, 1: 1, 3: 3}, setting="label_ids"), range(19))
LABEL = np.kron(np.array([[0, 1], [1, 3]], np.uint8), np.ones((16, 16), np.uint8))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 90}),
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.png", {"format": "JPEG"}),  # whatever it is called
        ("a.webp", {"quality": 90}),
        ("a.tif", {"compression": "jpeg"}),
    ],
)
def test_lossy_formats_are_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    pixels = np.repeat(LABEL[..., None], 3, axis=2) if "webp" in name else LABEL
    Image.fromarray(pixels).save(tmp_path / name, **options)
    with pytest.raises(DataError, match="lossy") as caught:
        IDS.read(tmp_path / name)
    assert "export the labels again as PNG" in str(caught.value.hint)
    read_image(tmp_path / name)  # as an image it is welcome


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", {"lossless": True}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_adobe_deflate"}),
        ("a.bmp", {}),
        ("a.pgm", {}),
    ],
)
def test_formats_that_keep_values(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    pixels = np.repeat(LABEL[..., None], 3, axis=2) if "webp" in name else LABEL
    Image.fromarray(pixels).save(tmp_path / name, **options)
    assert np.array_equal(IDS.read(tmp_path / name), LABEL)


@pytest.mark.parametrize("value", [3.9, 0.5, float("nan"), float("inf"), -3.0, 65536.0, 1e20])
def test_fractions_are_no_labels(tmp_path: Path, value: float) -> None:
    pixels = LABEL.astype(np.float32)
    pixels[0, 0] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="no whole numbers"):
        IDS.read(tmp_path / "a.tif")


def test_whole_numbers_in_floating_point(tmp_path: Path) -> None:
    pixels = LABEL.astype(np.float32)
    pixels[0, 0] = -1
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    expected = LABEL.copy()
    expected[0, 0] = IGNORE_ID
    assert np.array_equal(IDS.read(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth(tmp_path: Path, bits: int) -> None:
    """Decoders stretch values of few bits to 0..255; labels are the stored ones."""
    row = bytes([0b00011011]) if bits == 2 else bytes([0x01, 0x13])
    values = {2: [0, 1, 2, 3], 4: [0, 1, 1, 3]}
    if bits in values:
        path = tmp_path / "a.png"
        path.write_bytes(png(width=4, height=1, bits=bits, rows=[row]))
        assert read_pixels(path).tolist() == [values[bits]]
    else:
        dtype = {1: np.bool_, 8: np.uint8, 16: np.uint16}[bits]
        Image.fromarray(np.array([[0, 1]], dtype)).save(tmp_path / "a.png")
        assert read_pixels(tmp_path / "a.png").tolist() == [[0, 1]]


def png(*, width: int, height: int, bits: int, rows: list[bytes]) -> bytes:
    """A grey PNG, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# mapping


def test_a_rule_for_the_rest(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[0, 7, 200, 255]], np.uint8))
    ignore = LabelReader(LabelEncoding(ids={7: 1}, other_ids=255), range(2))
    assert ignore.read(path).tolist() == [[255, 1, 255, 255]]
    background = LabelReader(LabelEncoding(ids={7: 1}, other_ids=0), range(2))
    assert background.read(path).tolist() == [[0, 1, 0, 0]]
    large = save_image(tmp_path / "b.tif", np.array([[7, 70000, -5]], np.int32))
    assert background.read(large).tolist() == [[1, 0, 0]]


def test_a_rule_for_the_rest_of_the_colours(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[[9, 9, 1], [1, 2, 3]]], np.uint8))
    reader = LabelReader(LabelEncoding(colors=(((1, 2, 3), 1),), other_colors=255), range(2))
    assert reader.read(path).tolist() == [[255, 1]]


def test_the_hint_never_advises_what_is_done_already(tmp_path: Path, save_image: Save) -> None:
    path = save_image(tmp_path / "a.png", np.array([[0, 11, 11, 11]], np.uint8))

    def hint(setting: str) -> str:
        with pytest.raises(OutsideMapping) as caught:
            LabelReader(LabelEncoding(ids={0: 0}, setting=setting), range(2)).read(path)
        return str(caught.value.hint)

    assert hint("label_ids").startswith("add to label_ids")
    assert hint("train ids").startswith("set label_ids")
    assert "11: 255  # 75 % of pixels" in hint("label_ids")
    assert "domain: folder" in hint("")
    assert "domain: folder" not in hint("label_ids")


def test_colours_are_listed_ready_to_paste(tmp_path: Path, save_image: Save) -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:3] = (128, 64, 128)
    path = save_image(tmp_path / "a.png", pixels)
    with pytest.raises(ColoredLabel, match="2 colours") as caught:
        LabelReader(LabelEncoding(ids={0: 0}, setting="train ids"), range(2)).read(path)
    lines = [line.strip() for line in str(caught.value.hint).splitlines()]
    assert lines[0].startswith("set label_colors")
    assert lines[1:] == [
        "- [[0, 0, 0], 255]  # 70 % of pixels",
        "- [[128, 64, 128], 255]  # 30 % of pixels",
    ]


@pytest.mark.parametrize(
    ("values", "classes", "likely"),
    [
        ([0, 255], 2, {0: 0, 255: 1}),
        ([1, 2], 2, {1: 0, 2: 1}),
        ([0, 128, 255], 3, {0: 0, 128: 1, 255: 2}),
        ([1, 2, 255], 2, {1: 0, 2: 1, 255: 255}),
        ([0, 1], 2, None),
        ([0, 1, 255], 2, None),
        ([0], 2, None),
        ([0, 5, 9, 11], 2, None),
    ],
)
def test_the_likely_mapping(values: list[int], classes: int, likely: dict[int, int] | None) -> None:
    assert likely_ids(values, classes) == likely


# files that take everything


def jpeg_that_claims(path: Path, width: int, height: int) -> Path:
    """A JPEG of 8x8 pixels whose header says otherwise."""
    Image.new("RGB", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    path.write_bytes(bytes(data))
    return path


def test_a_jpeg_that_claims_20000x20000(tmp_path: Path) -> None:
    path = jpeg_that_claims(tmp_path / "a.jpg", 20000, 20000)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="claims 20000x20000 pixels, but holds"):
            read(path)  # type: ignore[operator]


def test_a_png_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(width=30000, height=30000, bits=8, rows=[bytes(10)]))
    for read in (read_image, image_size, read_pixels):
        with pytest.raises(DataError):
            read(path)  # type: ignore[operator]


def test_a_gif_that_claims_too_much(tmp_path: Path) -> None:
    """More pixels than Pillow takes without a warning; the error is ours alone."""
    path = tmp_path / "a.gif"
    Image.new("L", (8, 8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:6] + struct.pack("<HH", 10000, 9000) + data[10:])
    for read in (image_size, read_pixels):
        with pytest.raises(DataError, match="claims 10000x9000 pixels, but holds"):
            read(path)  # type: ignore[operator]


def test_large_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (9000, 8000)).save(path)
    assert image_size(path) == (9000, 8000)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="a system without devices as files")
def test_devices_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "zero.png", tmp_path):
        for read in (read_image, image_size, read_pixels):
            with pytest.raises(DataError, match="not an ordinary file"):
                read(path)  # type: ignore[operator]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # it takes no room on the disk
    with pytest.raises(DataError, match="3 GiB are no image"):
        read_image(path)


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read_image(tmp_path / ("a" * 300 + ".png"))
