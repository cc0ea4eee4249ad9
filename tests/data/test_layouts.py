"""Every layout as its archive unpacks, built with tiny files."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CLASS_SUBSETS
from diffcli.config.domain import domain_config
from diffcli.data.dataset import open_domain
from diffcli.data.domains import (
    DOMAINS,
    SYNTHIA,
    VISTAS_1_2,
    VISTAS_2_0,
    VISTAS_ENCODING_1_2,
    VISTAS_ENCODING_2_0,
)
from diffcli.data.idd import IDD_CLASSES
from diffcli.errors import ConfigError, DataError

SavePair = Callable[..., None]
ROAD_CAR_ID = [[7, 26]]
ROAD_CAR = [[0, 13]]

# (domain, split, image, label, values in the label file, sample id): each label says road, car
LAYOUTS = [
    (
        "cityscapes",
        "val",
        "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
        ROAD_CAR_ID,
        "val/ulm/ulm_000000_000019",
    ),
    (
        "cityscapes",
        "train",
        "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png",
        ROAD_CAR,
        "train/ulm/ulm_000000_000019",
    ),
    ("gta5", "train", "images/00001.png", "labels/00001.png", ROAD_CAR_ID, "00001"),
    ("gta5", "train", "images/00001.png", "labels/00001_labelTrainIds.png", ROAD_CAR, "00001"),
    ("synthia", "train", "RGB/0000000.png", "GT/LABELS/0000000_labelTrainIds.png", ROAD_CAR, "0000000"),
    ("bdd100k", "val", "images/10k/val/a.jpg", "labels/sem_seg/masks/val/a.png", ROAD_CAR, "val/a"),
    ("bdd100k", "val", "seg/images/val/a.jpg", "seg/labels/val/a_train_id.png", ROAD_CAR, "val/a"),
    ("mapillary", "val", "validation/images/a.jpg", "validation/labels/a.png", [[13, 55]], "val/a"),
    ("mapillary", "val", "validation/images/a.jpg", "validation/v1.2/labels/a.png", [[13, 55]], "val/a"),
    ("mapillary", "train", "training/images/a.jpg", "training/v2.0/labels/a.png", [[21, 108]], "train/a"),
    (
        "mapillary/v2.0",
        "train",
        "training/images/a.jpg",
        "training/v2.0/labels/a.png",
        [[21, 108]],
        "train/a",
    ),
    (
        "acdc/night",
        "val",
        "rgb_anon/night/val/GOPR0356/GOPR0356_frame_000324_rgb_anon.png",
        "gt/night/val/GOPR0356/GOPR0356_frame_000324_gt_labelIds.png",
        ROAD_CAR_ID,
        "val/GOPR0356/GOPR0356_frame_000324",
    ),
    (
        "acdc/fog",
        "train",
        "rgb_anon/fog/train/G/a_rgb_anon.png",
        "gt/fog/train/G/a_gt_labelTrainIds.png",
        ROAD_CAR,
        "train/G/a",
    ),
    (
        "dark_zurich",
        "val",
        "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png",
        "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelIds.png",
        ROAD_CAR_ID,
        "val/GOPR0356/GOPR0356_frame_000321",
    ),
    ("camvid", "test", "test/a.png", "testannot/a.png", [[3, 8]], "test/a"),
    ("camvid", "train", "701_StillsRaw_full/a.png", "LabeledApproved_full/a_L.png", [[17, 5]], "a"),
    ("camvid", "train", "images/a.png", "labels/a_P.png", [[17, 5]], "a"),
    (
        "camvid",
        "val",
        "val/a.png",
        "val_labels/a_L.png",
        [[[128, 64, 128], [64, 0, 128]]],
        "val/a",
    ),
    ("urbansyn", "train", "rgb/rgb_0001.png", "ss/ss_0001.png", ROAD_CAR, "0001"),
    (
        "foggy_cityscapes",
        "val",
        "leftImg8bit_foggy/val/ulm/ulm_000000_000019_leftImg8bit_foggy_beta_0.02.png",
        "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
        ROAD_CAR_ID,
        "val/ulm/ulm_000000_000019",
    ),
    (
        "nighttime_driving",
        "test",
        "leftImg8bit/test/night/0_leftImg8bit.png",
        "gtCoarse_daytime_trainvaltest/test/night/0_gtCoarse_labelTrainIds.png",
        ROAD_CAR,
        "test/night/0",
    ),
    (
        "idd",
        "val",
        "leftImg8bit/val/7/frame0029_leftImg8bit.jpg",
        "gtFine/val/7/frame0029_gtFine_labelids.png",
        [[0, 12]],
        "val/7/frame0029",
    ),
    (
        "idd",
        "train",
        "leftImg8bit/train/7/a_leftImg8bit.png",
        "gtFine/train/7/a_gtFine_labellevel3Ids.png",
        [[0, 9]],
        "train/7/a",
    ),
    (
        "cityscapes/coarse",
        "train",
        "leftImg8bit/train/ulm/a_leftImg8bit.png",
        "gtCoarse/train/ulm/a_gtCoarse_labelIds.png",
        ROAD_CAR_ID,
        "train/ulm/a",
    ),
    (
        "cityscapes",
        "train_extra",
        "leftImg8bit/train_extra/ulm/a_leftImg8bit.png",
        "gtCoarse/train_extra/ulm/a_gtCoarse_labelIds.png",
        ROAD_CAR_ID,
        "train_extra/ulm/a",
    ),
    (
        "kitti",
        "train",
        "training/image_2/000000_10.png",
        "training/semantic/000000_10.png",
        ROAD_CAR_ID,
        "train/000000_10",
    ),
]


@pytest.mark.parametrize("below", ["", "unpacked"], ids=["at the root", "one folder below"])
@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: f"{case[0]}-{case[3].replace('/', '_')}")
def test_layout(tmp_path: Path, save_pair: SavePair, case: tuple[str, ...], below: str) -> None:
    name, split, image, label, values, sample_id = case
    save_pair(tmp_path / below / image, tmp_path / below / label, values)
    for purpose in ("train", "eval"):
        domain = open_domain(domain_config(name, root=tmp_path, split=split), purpose=purpose)
        assert [sample.id for sample in domain.samples] == [sample_id]
        pixels, train_ids = domain.load(0)
        assert pixels.shape == (1, 2, 3)
        assert train_ids.tolist() == ROAD_CAR
        assert domain.name == name
        assert not domain.missing


def test_synthia_16_bit_labels(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "RGB/0.png", tmp_path / "GT/COLOR/0.png", [[0, 0]])
    values = np.zeros((1, 2, 3), np.uint16)
    values[..., 2] = (3, 8)
    (tmp_path / "GT/LABELS").mkdir()
    cv2.imwrite(str(tmp_path / "GT/LABELS/0.png"), values)
    domain = open_domain(domain_config("synthia", root=tmp_path), purpose="train")
    assert domain.load(0)[1].tolist() == ROAD_CAR


def test_archives_unpacked_side_by_side(tmp_path: Path, save_pair: SavePair) -> None:
    image = "leftImg8bit_trainvaltest/leftImg8bit/val/ulm/a_leftImg8bit.png"
    save_pair(
        tmp_path / image, tmp_path / "gtFine_trainvaltest/gtFine/val/ulm/a_gtFine_labelIds.png", ROAD_CAR_ID
    )
    domain = open_domain(domain_config("cityscapes", root=tmp_path), purpose="eval")
    assert domain.load(0)[1].tolist() == ROAD_CAR


def test_gta5_labels_in_palette_in_colours_and_as_grey_rgb(
    tmp_path: Path, save_image: Callable[..., Path]
) -> None:
    colors = np.array([[[128, 64, 128], [0, 0, 142], [20, 20, 20]]], np.uint8)
    palette = Image.fromarray(np.array([[7, 26, 4]], np.uint8))
    palette.putpalette([value % 251 for value in range(768)])
    (tmp_path / "labels").mkdir()
    palette.save(tmp_path / "labels/a.png")
    save_image(tmp_path / "labels/b.png", colors)
    save_image(tmp_path / "labels/c.png", np.repeat(np.array([[[7], [26], [4]]], np.uint8), 3, axis=2))
    for name in "abc":
        save_image(tmp_path / f"images/{name}.png", np.zeros((1, 3, 3), np.uint8))
    domain = open_domain(domain_config("gta5", root=tmp_path), purpose="train")
    assert [domain.load(i)[1].tolist() for i in range(3)] == [[[0, 13, 255]]] * 3


def test_the_archives_of_gta5_in_a_folder_each(tmp_path: Path, save_pair: SavePair) -> None:
    for part in ("01", "02", "10"):
        image = tmp_path / f"{part}_images/images/{part}000.png"
        save_pair(image, tmp_path / f"{part}_labels/labels/{part}000.png", ROAD_CAR_ID)
    save_pair(tmp_path / "mine/images/a.png", tmp_path / "mine/masks/a.png", ROAD_CAR)  # something else
    domain = open_domain(domain_config("gta5", root=tmp_path), purpose="train")
    assert [sample.id for sample in domain.samples] == ["01000", "02000", "10000"]
    assert all(domain.load(i)[1].tolist() == ROAD_CAR for i in range(3))
    assert not domain.missing


def test_label_ids_go_before_train_ids_and_each_image_takes_what_it_has(
    tmp_path: Path, save_pair: SavePair
) -> None:
    for name, suffix, values in (
        ("a", "", ROAD_CAR_ID),
        ("a", "_labelTrainIds", [[1, 1]]),
        ("b", "_labelTrainIds", ROAD_CAR),
    ):
        save_pair(tmp_path / f"images/{name}.png", tmp_path / f"labels/{name}{suffix}.png", values)
    domain = open_domain(domain_config("gta5", root=tmp_path), purpose="train")
    assert [sample.id for sample in domain.samples] == ["a", "b"]
    assert [domain.load(i)[1].tolist() for i in range(2)] == [ROAD_CAR, ROAD_CAR]
    assert not domain.missing


def test_mapillary_goes_by_the_names_in_its_config(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "validation/images/a.jpg", tmp_path / "validation/labels/a.png", [[0, 2, 1]])
    names = ("object--vehicle--car", "animal--bird", "construction--flat--road")
    (tmp_path / "config.json").write_text(json.dumps({"labels": [{"name": name} for name in names]}))
    domain = open_domain(domain_config("mapillary", root=tmp_path), purpose="eval")
    assert domain.load(0)[1].tolist() == [[13, 0, 255]]
    (tmp_path / "config.json").write_text('{"classes": []}')
    with pytest.raises(DataError, match="class list") as caught:
        open_domain(domain_config("mapillary", root=tmp_path), purpose="eval")
    assert str(caught.value.where).endswith("config.json")


def test_idd_in_its_own_classes(tmp_path: Path, save_pair: SavePair) -> None:
    folder = tmp_path / "gtFine/train/7"
    for name, kind, values in (("a", "labelids", [[11, 12, 35]]), ("b", "labellevel3Ids", [[8, 9, 255]])):
        image = tmp_path / f"leftImg8bit/train/7/{name}_leftImg8bit.png"
        save_pair(image, folder / f"{name}_gtFine_{kind}.png", values)
    config = domain_config("idd", root=tmp_path)
    own = open_domain(config, purpose="train", classes=IDD_CLASSES)
    assert [own.load(i)[1].tolist() for i in range(2)] == [[[8, 9, 255]]] * 2
    streets = open_domain(config, purpose="train")
    assert [streets.load(i)[1].tolist() for i in range(2)] == [[[255, 13, 255]]] * 2


def test_coarse_labels_are_never_taken_for_fine_ones(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(
        tmp_path / "leftImg8bit/val/ulm/a_leftImg8bit.png",
        tmp_path / "gtCoarse/val/ulm/a_gtCoarse_labelIds.png",
        ROAD_CAR_ID,
    )
    domain = open_domain(domain_config("cityscapes", root=tmp_path), purpose="eval")
    assert domain.samples[0].label is None


def test_mapillary_value_beyond_the_table(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "validation/images/a.jpg", tmp_path / "validation/labels/a.png", [[13, 70]])
    domain = open_domain(domain_config("mapillary", root=tmp_path), purpose="eval")
    with pytest.raises(DataError, match="70"):
        domain.load(0)


def test_built_in_vistas_tables_agree_where_their_names_do() -> None:
    assert (len(VISTAS_1_2), len(VISTAS_2_0)) == (66, 124)
    first = {name: VISTAS_ENCODING_1_2.ids[i] for i, name in enumerate(VISTAS_1_2)}
    second = {name: VISTAS_ENCODING_2_0.ids[i] for i, name in enumerate(VISTAS_2_0)}
    assert all(first[name] == second[name] for name in first.keys() & second.keys())
    assert set(first.values()) == set(second.values()) == {*range(19), 255}


@pytest.fixture
def acdc(tmp_path: Path, save_pair: SavePair) -> Path:
    for condition, value in (("fog", 7), ("night", 8), ("rain", 11), ("snow", 23)):
        image = tmp_path / f"rgb_anon/{condition}/val/G/a_rgb_anon.png"
        save_pair(image, tmp_path / f"gt/{condition}/val/G/a_gt_labelIds.png", [[value]])
    return tmp_path


def test_acdc_together(acdc: Path) -> None:
    domain = open_domain(domain_config("acdc", root=acdc), purpose="eval")
    assert [sample.id for sample in domain.samples] == [
        f"{c}/val/G/a" for c in ("fog", "night", "rain", "snow")
    ]
    assert [int(domain.load(i)[1][0, 0]) for i in range(4)] == [0, 1, 2, 10]
    assert [
        len(open_domain(domain_config("acdc", root=acdc, limit=n), purpose="eval")) for n in (1, 3, 9)
    ] == [1, 3, 4]


def test_test_sets_open_without_labels(tmp_path: Path, save_image: Callable[..., Path]) -> None:
    save_image(tmp_path / "rgb_anon/fog/test/G/a_rgb_anon.png", np.zeros((2, 3, 3), np.uint8))
    config = domain_config("acdc/fog", root=tmp_path, split="test")
    domain = open_domain(config, purpose="eval")
    assert domain.samples[0].label is None
    assert domain.load(0)[1].tolist() == [[255] * 3] * 2
    with pytest.raises(DataError, match="no image here has a label"):
        open_domain(config, purpose="train")


def test_kitti_is_evaluated_on_its_labelled_split(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "training/image_2/0_10.png", tmp_path / "training/semantic/0_10.png", ROAD_CAR_ID)
    assert len(open_domain(domain_config("kitti", root=tmp_path), purpose="eval")) == 1


def test_miniworld_splits_never_share_a_scene() -> None:
    def scenes(**settings: object) -> set[object]:
        config = domain_config(**{"domain": "miniworld/clean", "count": 5, **settings})
        return {sample.scene for sample in open_domain(config, purpose="train").samples}

    assert not scenes(split="train") & scenes(split="val")
    assert not scenes(split="val") & scenes(split="test")
    assert scenes() == scenes(split="train")


def test_miniworld_is_clean_to_train_and_the_five_others_to_evaluate() -> None:
    source = open_domain(domain_config("miniworld", count=3), purpose="train")
    assert {sample.scene.appearance for sample in source.samples if sample.scene} == {"clean"}
    unseen = open_domain(domain_config("miniworld", count=3), purpose="eval")
    assert {sample.scene.appearance for sample in unseen.samples if sample.scene} == {
        "night",
        "fog",
        "rain",
        "snow",
        "photo",
    }
    assert len(unseen) == 15
    assert len({sample.id for sample in unseen.samples}) == 15
    image, label = unseen.load(0)
    assert image.shape == (*label.shape, 3)
    assert unseen.identity(0) == "miniworld_0_1000000"


def test_miniworld_at_any_size() -> None:
    domain = open_domain(domain_config("miniworld/fog", count=1, resize="150x70"), purpose="eval")
    image, label = domain.load(0)
    assert image.shape == (70, 150, 3)
    assert label.shape == (70, 150)


def test_every_domain_is_described() -> None:
    for name, spec in DOMAINS.items():
        assert spec.name == name
        assert bool(spec.layouts) + bool(spec.members) + (spec.rendered is not None) == (name != "folder")
        assert all(member in DOMAINS for member in spec.members)


def test_class_subsets_are_those_of_synthia() -> None:
    assert [len(names) for names in CLASS_SUBSETS.values()] == [16, 13]
    assert all(set(names) < set(CITYSCAPES_CLASSES) for names in CLASS_SUBSETS.values())
    occurring = {i for i in SYNTHIA.ids.values() if i != 255} - {
        CITYSCAPES_CLASSES.index(c) for c in ("terrain", "truck", "train")
    }
    assert {CITYSCAPES_CLASSES[i] for i in occurring} == set(CLASS_SUBSETS["16 classes (SYNTHIA)"])


def test_unknown_domain() -> None:
    with pytest.raises(ConfigError, match="unknown domain") as caught:
        open_domain(domain_config("citscapes"), purpose="eval")
    assert "did you mean cityscapes" in str(caught.value.hint)


def test_missing_root_and_wrong_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFCLI_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        open_domain(domain_config("cityscapes"), purpose="eval")
    assert "DIFFCLI_DATA" in str(caught.value.hint)
    monkeypatch.setenv("DIFFCLI_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        open_domain(domain_config("acdc/fog"), purpose="eval")
    assert caught.value.where == str(tmp_path / "acdc")
    assert "rgb_anon/fog/{split}" in str(caught.value.hint)
    (tmp_path / "acdc").mkdir()
    with pytest.raises(DataError, match="no val images here"):
        open_domain(domain_config("acdc/fog"), purpose="eval")


@pytest.mark.parametrize(
    "settings",
    [
        {"domain": "cityscapes", "split": "trian"},
        {"domain": "folder", "label_ids": {0: 19}},
        {"domain": "folder"},
    ],
)
def test_settings_that_do_not_belong(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_domain(domain_config(**settings), purpose="eval")
    assert caught.value.hint


def test_street_domains_need_a_class_of_cityscapes() -> None:
    with pytest.raises(ConfigError, match="none of them"):
        open_domain(domain_config("miniworld"), purpose="eval", classes=("cat", "dog"))
