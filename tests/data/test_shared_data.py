"""Real street scenes and single files in the original layouts, where they lie beside the repository."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffcli.config.domain import domain_config
from diffcli.data.dataset import open_domain
from diffcli.data.domains import CAMVID_11

DATA = Path(__file__).parents[3] / "shared/data"
LAYOUTS = DATA / "layout_samples"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="../shared/data is not here: real images are never committed"
)
DOMAINS = sorted(path.parent.name for path in DATA.glob("*/labels_train_ids"))


@pytest.mark.parametrize("name", DOMAINS)
def test_every_folder_is_read(name: str) -> None:
    config = domain_config("folder", root=DATA / name, labels="labels_train_ids")
    domain = open_domain(config, purpose="train")
    manifest = json.loads((DATA / "MANIFEST.json").read_text())["domains"][name]
    assert domain.name == name
    assert len(domain) == manifest["count"]
    assert not domain.missing
    counts = np.zeros(256, dtype=np.int64)
    for index in range(len(domain)):
        counts += np.bincount(domain.read_label(index).ravel(), minlength=256)
    for index in range(0, len(domain), 20):
        image, label = domain.load(index)
        assert image.shape == (*label.shape, 3)
    assert counts[255] / counts.sum() == pytest.approx(manifest["ignore_fraction"], abs=1e-4)


LABELME_COLORS = [
    ((128, 0, 0), 2),
    ((128, 64, 0), 0),
    ((0, 128, 128), 10),
    ((0, 128, 0), 8),
    ((0, 0, 0), 255),
    ((128, 0, 128), 13),
    ((128, 128, 128), 1),
    ((0, 0, 128), 2),
    ((128, 128, 0), 2),
]
COMMA_COLORS = [
    ((64, 32, 32), 0),
    ((255, 0, 0), 0),
    ((128, 128, 96), 255),
    ((204, 0, 255), 255),
    ((0, 255, 102), 255),
]
ENCODINGS: dict[str, dict[str, object]] = {
    "bdd100k": {},
    "camvid_day": {"label_ids": dict(CAMVID_11.ids)},
    "camvid_dusk": {"label_ids": dict(CAMVID_11.ids)},
    "idd_lite": {"label_ids": {0: 0, 1: 255, 2: 255, 3: 255, 4: 255, 5: 255, 6: 10}},
    "labelme_facade": {"label_colors": LABELME_COLORS},
    "comma10k": {"label_colors": COMMA_COLORS},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_own_encodings_agree_with_the_train_ids(name: str) -> None:
    config = {"domain": "folder", "root": DATA / name}
    own = open_domain(domain_config(**{**config, **ENCODINGS[name]}), purpose="train")
    known = open_domain(domain_config(**{**config, "labels": "labels_train_ids"}), purpose="train")
    for index in range(0, len(own), 5):
        assert np.array_equal(own.read_label(index), known.read_label(index))


SAMPLES = [
    ("cityscapes", "datumaro/cityscapes_dataset/dataset", {"train": 1, "val": 1, "test": 2}),
    ("cityscapes", "datumaro/cityscapes_dataset/train_dataset", {"train": 1, "val": 1, "test": 2}),
    ("cityscapes", "mmseg/pseudo_cityscapes_dataset", {"val": 1}),
    ("bdd100k", "mmseg/pseudo_bdd100k_dataset", {"train": 3, "val": 3}),
    ("mapillary", "mmseg/pseudo_mapillary_dataset", {"train": 1}),
    ("mapillary/v2.0", "mmseg/pseudo_mapillary_dataset", {"train": 1}),
    ("mapillary", "datumaro/mapillary_vistas_dataset", {"train": 1, "val": 2}),
    ("mapillary/v2.0", "datumaro/mapillary_vistas_dataset", {"train": 1, "val": 2}),
    ("synthia", "datumaro/synthia_dataset/rand", {"train": 2}),
    ("synthia", "datumaro/synthia_dataset/al", {"train": 2}),
    ("synthia", "datumaro/synthia_dataset/sf", {"train": 2}),
    ("camvid", "datumaro/camvid_dataset", {"train": 1, "val": 1, "test": 2}),
    ("kitti", "datumaro/kitti_dataset", {"train": 2}),
]


@pytest.mark.parametrize(("name", "folder", "splits"), SAMPLES)
def test_original_layouts(name: str, folder: str, splits: dict[str, int]) -> None:
    for split, count in splits.items():
        domain = open_domain(domain_config(name, root=LAYOUTS / folder, split=split), purpose="train")
        assert len(domain) == count
        assert not domain.missing
        for index in range(count):
            image, label = domain.load(index)
            assert image.shape == (*label.shape, 3)


@pytest.mark.parametrize("folder", ["rand_custom_labelmap", "rand_meta_file"])
def test_own_colors_of_a_known_layout(folder: str) -> None:
    colors = [[[0, 0, 0], 255], [[0, 0, 64], 10], [[0, 128, 128], 2], [[128, 0, 64], 11], [[0, 192, 128], 0]]
    config = {"domain": "folder", "images": "RGB", "labels": "GT", "label_colors": colors}
    root = LAYOUTS / "datumaro/synthia_dataset" / folder
    domain = open_domain(domain_config(**{**config, "root": root}), purpose="train")
    assert [domain.load(i)[1].tolist() for i in range(2)] == [[[10, 10, 10, 0, 0]], [[2, 2, 11, 11, 0]]]
