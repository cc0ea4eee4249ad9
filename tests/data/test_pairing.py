"""Images and labels whose names differ: prefixes, suffixes, patterns, list files; and what is said when none pair."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffcli.config.domain import domain_config
from diffcli.data.dataset import find_splits, open_domain
from diffcli.data.domain import Domain
from diffcli.data.patterns import pattern
from diffcli.errors import ConfigError, DataError

SavePair = Callable[..., None]


def opened(root: Path, purpose: str = "eval", **settings: object) -> Domain:
    config = domain_config("folder", root=root, **settings)
    return open_domain(config, purpose=purpose)  # type: ignore[arg-type]


def ids(domain: Domain) -> list[str]:
    return [sample.id for sample in domain.samples]


@pytest.mark.parametrize(
    ("text", "folder", "file", "key"),
    [
        ("images", "images", "city/a.png", "city/a"),
        ("rgb/rgb_{id}.png", "rgb", "rgb_0001.png", "0001"),
        ("rgb/rgb_{id}.png", "rgb", "city/rgb_0001.png", "city/0001"),
        ("rgb/rgb_{id}.png", "rgb", "rgb_0001.jpg", None),
        ("rgb/rgb_{id}", "rgb", "rgb_0001.JPG", "0001"),
        ("rgb/rgb_{id}", "rgb", "0001.png", None),
        ("{id}/left.png", "", "scene1/left.png", "scene1"),
        ("{id}/left.png", "", "a/scene1/left.png", "a/scene1"),
        ("{id}/{id}_rgb.png", "", "s1/s1_rgb.png", "s1"),
        ("{id}/{id}_rgb.png", "", "s1/s2_rgb.png", None),
        ("cam/*/{id}.jpg", "cam", "front/7.jpg", "7"),
        ("./a/{id}.v2.*", "a", "x.v2.png", "x"),
    ],
)
def test_patterns(text: str, folder: str, file: str, key: str | None) -> None:
    one = pattern(text, "")
    stem, _, ending = file.rpartition(".")
    assert one.folder == folder
    assert one.key(stem, f".{ending.lower()}") == key


NAMINGS: list[dict[str, object]] = [
    {"images": "rgb/rgb_{id}.png", "labels": "ss/ss_{id}.png"},
    {"images": "rgb", "labels": "ss", "image_prefix": "rgb_", "label_prefix": "ss_"},
    {"images": "rgb/rgb_{id}", "labels": "ss", "label_prefix": "ss_", "label_suffix": ".png"},
]


@pytest.mark.parametrize("settings", NAMINGS)
def test_prefixes(tmp_path: Path, save_pair: SavePair, settings: dict[str, object]) -> None:
    for i in ("0001", "0002"):
        save_pair(tmp_path / f"rgb/rgb_{i}.png", tmp_path / f"ss/ss_{i}.png", [[3]])
    domain = opened(tmp_path, "train", **settings)
    assert ids(domain) == ["0001", "0002"]
    assert domain.load(0)[1].tolist() == [[3]]
    assert not domain.missing


@pytest.mark.parametrize("suffix", ["_mask", "_mask.png"])
def test_suffixes(tmp_path: Path, save_pair: SavePair, suffix: str) -> None:
    save_pair(tmp_path / "images/a_rgb.jpg", tmp_path / "labels/a_mask.png", [[3]])
    assert ids(opened(tmp_path, image_suffix="_rgb", label_suffix=suffix)) == ["a"]


def test_images_and_labels_in_one_folder(tmp_path: Path, save_pair: SavePair) -> None:
    for name in ("a", "b"):
        save_pair(tmp_path / f"all/{name}.png", tmp_path / f"all/{name}_seg.png", [[3]])
    domain = opened(tmp_path, images="all", labels="all", label_suffix="_seg")
    assert ids(domain) == ["a", "b"]
    assert not domain.missing


def test_a_folder_for_each_scene(tmp_path: Path, save_pair: SavePair) -> None:
    for split in ("train", "val"):
        save_pair(tmp_path / f"{split}/s1/img.png", tmp_path / f"{split}/s1/label.png", [[3]])
    settings = {"images": "{split}/{id}/img.png", "labels": "{split}/{id}/label.png"}
    assert ids(opened(tmp_path, "train", **settings)) == ["train/s1"]
    assert ids(opened(tmp_path, **settings)) == ["val/s1"]


def test_the_split_in_a_files_name(tmp_path: Path, save_pair: SavePair) -> None:
    for split in ("train", "valid"):
        save_pair(tmp_path / f"img/{split}_7.png", tmp_path / f"ann/{split}_7.png", [[3]])
    settings = {"images": "img/{split}_{id}.png", "labels": "ann/{split}_{id}.png"}
    assert find_splits(domain_config("folder", root=tmp_path, **settings)) == [
        "train",
        "val",
    ]
    assert ids(opened(tmp_path, **settings)) == ["val/7"]


@pytest.mark.parametrize(
    "settings",
    [
        {"images": "rgb/{id}.png", "image_suffix": "_x"},
        {"images": "rgb/{name}.png"},
    ],
)
def test_settings_that_contradict_a_pattern(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        opened(tmp_path, **settings)


# list files


@pytest.fixture
def voc(tmp_path: Path, save_pair: SavePair) -> Path:
    """Three images of VOC's layout."""
    for name in ("2007_01", "2007_02", "2007_03"):
        save_pair(tmp_path / f"JPEGImages/{name}.jpg", tmp_path / f"SegmentationClass/{name}.png", [[3]])
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    return tmp_path


VOC = {
    "images": "JPEGImages",
    "labels": "SegmentationClass",
    "list_file": "ImageSets/Segmentation/{split}.txt",
}


@pytest.mark.parametrize(
    "text",
    [
        b"2007_03\n2007_01\n",
        b"2007_03\r\n2007_01\r\n",
        b"\xef\xbb\xbf2007_03\r\n\r\n# a comment\r\n2007_01",
        "2007_03\r\n2007_01\r\n".encode("utf-16"),
        b"2007_03.jpg\n2007_01.jpg\n",
        b"JPEGImages/2007_03.jpg\nJPEGImages/2007_01.jpg\n",
        b"JPEGImages/2007_03.jpg SegmentationClass/2007_03.png\r\n"
        b"JPEGImages/2007_01.jpg\tSegmentationClass/2007_01.png\r\n",
        b"JPEGImages\\2007_03.jpg,SegmentationClass\\2007_03.png\r\n"
        b"/JPEGImages/2007_01.jpg /SegmentationClass/2007_01.png",
    ],
    ids=["lf", "crlf", "bom", "utf-16", "endings", "paths", "pairs", "windows pairs"],
)
def test_lists_of_samples(voc: Path, text: bytes) -> None:
    (voc / "ImageSets/Segmentation/train.txt").write_bytes(text)
    domain = opened(voc, "train", **VOC)
    assert [sample.image.name for sample in domain.samples if sample.image] == ["2007_03.jpg", "2007_01.jpg"]
    assert [domain.load(i)[1].tolist() for i in range(2)] == [[[3]]] * 2


def test_splits_are_those_that_have_a_list(voc: Path) -> None:
    for split in ("train", "val"):
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("2007_01\n")
    config = domain_config("folder", root=voc, **VOC)
    assert find_splits(config) == ["train", "val"]
    with pytest.raises(DataError, match="no test images here, but there is train, val"):
        opened(voc, split="test", **VOC)


def test_lines_that_name_nothing(voc: Path) -> None:
    path = voc / "ImageSets/Segmentation/train.txt"
    path.write_text("2007_01\n2007_99\n")
    assert opened(voc, "train", **VOC).missing.listed == ("2007_99",)
    path.write_text("2007_98\n2007_99\n")
    with pytest.raises(DataError, match="the list names no image that is here: 2007_98, 2007_99"):
        opened(voc, "train", **VOC)
    path.write_text("JPEGImages/2007_01.jpg SegmentationClass/gone.png\n")
    with pytest.raises(DataError, match=r"there is no label SegmentationClass/gone\.png") as caught:
        opened(voc, "train", **VOC)
    assert str(caught.value.where).endswith("train.txt, line 1")


# nothing pairs


def test_both_sides_are_listed(tmp_path: Path, save_pair: SavePair) -> None:
    for i in range(5):
        save_pair(tmp_path / f"images/rgb_{i}.png", tmp_path / f"labels/ss_{i}.png", [[3]])
    for purpose in ("train", "eval"):
        with pytest.raises(DataError, match="no image here has a label") as caught:
            opened(tmp_path, purpose)
        assert "images: rgb_0.png, rgb_1.png, rgb_2.png, ... (5)" in caught.value.message
        assert "labels: ss_0.png, ss_1.png, ss_2.png, ... (5)" in caught.value.message
        assert "names would pair with image_prefix: rgb_, label_prefix: ss_" in str(caught.value.hint)
    assert len(opened(tmp_path, image_prefix="rgb_", label_prefix="ss_")) == 5


def test_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"archives: images\.zip"):
        opened(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/part1.tar.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert caught.value.hint == "unpack part1.tar.gz"
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "images.zip")
    assert caught.value.hint == "unpack this archive"


def test_the_detection_images_of_bdd100k(tmp_path: Path, save_image: Callable[..., Path]) -> None:
    save_image(tmp_path / "images/100k/train/a.jpg", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match="images/100k is not the labelled set") as caught:
        open_domain(domain_config("bdd100k", root=tmp_path), purpose="train")
    assert "10k" in str(caught.value.hint)
