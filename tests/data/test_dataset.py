"""Domains as arrays, names as domains, and the stream of training samples."""

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import diffcli.data.dataset as dataset_module
from diffcli.config.domain import domain_config
from diffcli.config.settings import AugmentationConfig, RareClassConfig
from diffcli.data.batches import training_batches
from diffcli.data.dataset import Domain, TrainingSet, expand_domains, known_domains, locate, open_domain
from diffcli.data.images import read_image
from diffcli.data.statistics import ClassStatistics
from diffcli.errors import ConfigError, DataError

Save = Callable[..., Path]
SavePair = Callable[..., None]
OwnFolder = Callable[[dict[str, object]], Path]


def opened(root: Path, **settings: object) -> Domain:
    return open_domain(domain_config(**{"domain": "folder", "root": root, **settings}), purpose="train")


# images


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((1, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((1, 1), 0x0A55, np.uint16), [10, 10, 10]),
        (np.array([[[1, 2, 3]]], np.uint8), [1, 2, 3]),
        (np.array([[[1, 2, 3, 0]]], np.uint8), [1, 2, 3]),
    ],
    ids=["grey", "16 bits", "RGB", "RGBA"],
)
def test_any_image_becomes_8_bit_rgb(
    tmp_path: Path, save_image: Save, pixels: np.ndarray, expected: list[int]
) -> None:
    image = read_image(save_image(tmp_path / "a.png", pixels))
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == expected


def rotated(path: Path, pixels: np.ndarray) -> Path:
    """A JPEG that says "turn me by 90 degrees"."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_exif_rotation(tmp_path: Path) -> None:
    path = rotated(tmp_path / "a.jpg", np.zeros((2, 4, 3), np.uint8))
    assert read_image(path).shape == (4, 2, 3)
    assert read_image(path, upright=False).shape == (2, 4, 3)


@pytest.mark.parametrize("shape", [(2, 4), (4, 2)], ids=["label as stored", "label upright"])
def test_the_label_decides_whether_a_rotation_applies(
    tmp_path: Path, save_image: Save, shape: tuple[int, int]
) -> None:
    rotated(tmp_path / "images/a.jpg", np.zeros((2, 4, 3), np.uint8))
    save_image(tmp_path / "labels/a.png", np.zeros(shape, np.uint8))
    image, label = opened(tmp_path).load(0)
    assert image.shape[:2] == label.shape == shape


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_images_cut_short_are_errors(tmp_path: Path, save_image: Save, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save_image(tmp_path / f"a{ending}", noise)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged") as caught:
        read_image(path)
    assert caught.value.where == str(path)


# domains


def test_resize(own_folder: OwnFolder) -> None:
    domain = opened(own_folder({"a": [[0, 1], [1, 0]]}), resize="6x4")
    image, label = domain.load(0)
    assert image.shape == (4, 6, 3)
    assert label.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[1, 1, 1, 0, 0, 0]] * 2
    assert domain.read_label(0).shape == (2, 2)


def test_labels_of_the_same_shape_follow_their_image(tmp_path: Path, save_image: Save) -> None:
    save_image(tmp_path / "images/a.png", np.zeros((4, 8, 3), np.uint8))
    save_image(tmp_path / "labels/a.png", np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.uint8))
    image, label = opened(tmp_path).load(0)
    assert image.shape[:2] == label.shape == (4, 8)
    assert label[::2, ::2].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_labels_of_another_shape_are_errors(tmp_path: Path, save_image: Save) -> None:
    save_image(tmp_path / "images/a.png", np.zeros((4, 8, 3), np.uint8))
    save_image(tmp_path / "labels/a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="the image is 8x4, but its label 4x4") as caught:
        opened(tmp_path).load(0)
    assert "a.png" in str(caught.value.where)


def test_gta5_pairs_of_unequal_size(tmp_path: Path, save_image: Save) -> None:
    """Some GTA5 frames are 1914x1046 where their labels are 1914x1052."""
    save_image(tmp_path / "images/15188.png", np.zeros((1046, 1914, 3), np.uint8))
    save_image(tmp_path / "labels/15188.png", np.full((1052, 1914), 7, np.uint8))
    image, label = open_domain(domain_config("gta5", root=tmp_path), purpose="train").load(0)
    assert image.shape[:2] == label.shape == (1046, 1914)


def test_own_classes_ids_and_colors(tmp_path: Path, save_image: Save) -> None:
    save_image(tmp_path / "photos/a.png", np.zeros((1, 3, 3), np.uint8))
    save_image(tmp_path / "masks/a.png", np.array([[10, 20, 30]], np.uint8))
    save_image(tmp_path / "painted/a.png", np.array([[[9, 9, 9], [1, 0, 0], [0, 1, 0]]], np.uint8))
    classes = ("crop", "weed")
    by_id = domain_config(
        "folder", root=tmp_path, images="photos", labels="masks", label_ids={10: 0, 20: 1, 30: 255}
    )
    by_color = domain_config(
        domain="folder",
        root=tmp_path,
        images="photos",
        labels="painted",
        label_colors=[[[9, 9, 9], 0], [[1, 0, 0], 1], [[0, 1, 0], 255]],
    )
    for config in (by_id, by_color):
        domain = open_domain(config, purpose="train", classes=classes)
        assert domain.load(0)[1].tolist() == [[0, 1, 255]]
        assert domain.name == tmp_path.name


def test_train_ids_beyond_the_own_classes_are_errors(own_folder: OwnFolder) -> None:
    domain = open_domain(
        domain_config("folder", root=own_folder({"a": [[0, 2]]})),
        purpose="train",
        classes=("crop", "weed"),
    )
    with pytest.raises(DataError, match="outside the mapping: 2"):
        domain.load(0)


def test_a_subset_of_cityscapes_classes_goes_by_name(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "images/1.png", tmp_path / "labels/1.png", [[7, 26, 8]])
    config = domain_config("gta5", root=tmp_path)
    assert open_domain(config, purpose="train", classes=("car", "road")).load(0)[1].tolist() == [[1, 0, 255]]


# names


def names(text: str) -> list[str]:
    return [config.domain for config in expand_domains(text)]


def test_expand_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFCLI_DATA", raising=False)
    unseen = ["miniworld/night", "miniworld/fog", "miniworld/rain", "miniworld/snow", "miniworld/photo"]
    assert names("mapillary") == ["mapillary"]
    assert names("acdc/night, bdd100k,acdc/night") == ["acdc/night", "bdd100k"]
    assert names("acdc") == ["acdc/fog", "acdc/night", "acdc/rain", "acdc/snow", "acdc"]
    assert names("miniworld") == unseen
    assert names("all") == unseen
    assert all(spec.name in names(spec.name) for spec in known_domains() if not spec.members)


def test_all_is_what_lies_under_the_data_folder(
    tmp_path: Path, save_pair: SavePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pair(tmp_path / "kitti/training/image_2/a.png", tmp_path / "kitti/training/semantic/a.png", [[7]])
    save_pair(tmp_path / "gta5/images/a.png", tmp_path / "gta5/labels/a.png", [[7]])
    acdc = tmp_path / "acdc"
    save_pair(acdc / "rgb_anon/fog/val/G/a_rgb_anon.png", acdc / "gt/fog/val/G/a_gt_labelIds.png", [[7]])
    monkeypatch.setenv("DIFFCLI_DATA", str(tmp_path))
    assert names("all") == ["acdc/fog", "kitti"]
    located = {place.spec.name: place for place in locate()}
    assert located["gta5"].images == {"train": 1}
    assert located["kitti"].root == tmp_path / "kitti"
    assert not located["cityscapes"].found
    assert located["miniworld/fog"].found


def test_one_root_for_several_domains(tmp_path: Path, save_pair: SavePair) -> None:
    """It is the folder that holds the domains' folders, or the domain's folder itself, in YAML too."""
    save_pair(tmp_path / "kitti/training/image_2/0.png", tmp_path / "kitti/training/semantic/0.png", [[7]])
    save_pair(
        tmp_path / "Dark-Zurich/rgb_anon/val/night/G/0_rgb_anon.png",
        tmp_path / "Dark-Zurich/gt/val/night/G/0_gt_labelIds.png",
        [[7]],
    )
    save_pair(tmp_path / "gta5/images/0.png", tmp_path / "gta5/labels/0.png", [[7]])
    opened = [
        open_domain(entry, purpose="eval")
        for entry in expand_domains("kitti,dark_zurich,gta5", root=tmp_path)
    ]
    assert [(one.name, len(one)) for one in opened] == [("kitti", 1), ("dark_zurich", 1), ("gta5", 1)]
    (alone,) = expand_domains("kitti", root=tmp_path / "kitti")
    assert len(open_domain(alone, purpose="eval")) == 1
    assert [entry.domain for entry in expand_domains("all", root=tmp_path)] == ["dark_zurich", "kitti"]
    (absent,) = expand_domains("camvid", root=tmp_path)  # whose layout images/ with labels/ is that of gta5
    with pytest.raises(DataError, match="no val images here"):
        open_domain(absent, purpose="eval")


def test_expand_domains_rejects() -> None:
    with pytest.raises(ConfigError, match="unknown domain 'mapilary'") as caught:
        names("mapilary")
    assert "mapillary" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no domain"):
        names(" , ")
    assert [config.root for config in expand_domains("acdc", root=Path("x"))] == [Path("x")] * 5


# training samples


def statistics_of(domain: Domain) -> ClassStatistics:
    pixels = [np.bincount(domain.read_label(i).ravel(), minlength=256) for i in range(len(domain))]
    counts = np.array(pixels)
    return ClassStatistics(domain.classes, counts[:, :19], counts[:, 255])


@pytest.fixture
def streets(tmp_path: Path, save_image: Save) -> Domain:
    """Six pictures; number 5 alone holds class 12."""
    rng = np.random.default_rng(0)
    for i in range(6):
        label = np.kron(rng.integers(0, 4, (6, 8)), np.ones((8, 8))).astype(np.uint8)
        if i == 5:
            label[:16, :16] = 12
        image = np.stack([label * 10] * 3, axis=-1)
        save_image(tmp_path / f"images/{i}.png", image)
        save_image(tmp_path / f"labels/{i}.png", label)
    return opened(tmp_path)


def training_set(domain: Domain, *, rare: bool, seed: int = 0, **augmentation: object) -> TrainingSet:
    return TrainingSet(
        domain,
        augmentation=AugmentationConfig.model_validate({"crop": "32x32", **augmentation}),
        rare_classes=RareClassConfig(min_pixels=100, min_crop_pixels=50) if rare else None,
        statistics=statistics_of(domain) if rare else None,
        seed=seed,
    )


def equal(a: dict[str, object], b: dict[str, object]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)  # type: ignore[arg-type]


@pytest.mark.parametrize("rare", [True, False])
def test_a_draw_depends_on_its_number_and_the_seed_alone(streets: Domain, rare: bool) -> None:
    first = training_set(streets, rare=rare)
    in_order = [first[draw] for draw in range(12)]
    worker = pickle.loads(pickle.dumps(training_set(streets, rare=rare)))
    for draw in reversed(range(12)):
        assert equal(worker[draw], in_order[draw])  # type: ignore[arg-type]
    other = training_set(streets, rare=rare, seed=1)
    assert not all(equal(other[draw], in_order[draw]) for draw in range(12))  # type: ignore[arg-type]


def test_samples_are_complete(streets: Domain) -> None:
    sample = training_set(streets, rare=True)[3]
    assert sample["image"].shape == (32, 32, 3)
    assert sample["label"].shape == (32, 32)
    assert sample["image"].dtype == sample["label"].dtype == np.uint8
    assert sample["identity"] == f"{sample['id']}#3"
    assert sample["file"].endswith(f"{sample['id']}.png")
    assert sample["image"].flags["C_CONTIGUOUS"]
    assert sample["label"].flags["C_CONTIGUOUS"]


def test_without_rare_classes_every_image_comes_once_an_epoch(streets: Domain) -> None:
    samples = training_set(streets, rare=False)
    epochs = [[samples[epoch * 6 + i]["id"] for i in range(6)] for epoch in range(3)]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(samples) == 6


def test_rare_classes_come_often_and_are_inside_the_crop(streets: Domain) -> None:
    samples = training_set(streets, rare=True)
    drawn = [samples[i] for i in range(40)]
    assert Counter(sample["id"] for sample in drawn)["5"] > 20
    held = [np.count_nonzero(sample["label"] == 12) > 50 for sample in drawn if sample["id"] == "5"]
    assert np.mean(held) > 0.8


def test_image_and_label_stay_together(streets: Domain) -> None:
    samples = training_set(streets, rare=False, photometric=0, flip=1)
    for draw in range(12):
        sample = samples[draw]
        assert np.array_equal(sample["image"][..., 0], sample["label"] * 10)


def test_small_images_are_padded(streets: Domain) -> None:
    sample = training_set(streets, rare=False, crop="80x50")[0]
    assert sample["label"].shape == (50, 80)
    assert (sample["label"][48:] == 255).all()
    assert (sample["label"][:, 64:] == 255).all()
    assert (sample["image"][48:] == 0).all()
    assert (sample["image"][:, 64:] == 0).all()


def test_rare_class_sampling_needs_statistics(streets: Domain) -> None:
    with pytest.raises(ConfigError, match="statistics"):
        TrainingSet(
            streets,
            augmentation=AugmentationConfig(),
            rare_classes=RareClassConfig(),
            statistics=None,
            seed=0,
        )


def test_a_bad_sample_is_named(streets: Domain) -> None:
    bad = streets.samples[2].label
    assert bad is not None
    cv2.imwrite(str(bad), np.full((48, 64), 99, np.uint8))
    samples = training_set(streets, rare=False)
    with pytest.raises(DataError, match="99") as caught:
        [samples[draw] for draw in range(6)]
    assert caught.value.where == str(bad)


@pytest.mark.slow
def test_workers_survive_a_parent_that_used_opencv_threads(tmp_path: Path) -> None:
    """A forked worker hangs in OpenCV's thread pool if its parent had one; counting classes used to make one."""
    script = tmp_path / "load.py"
    script.write_text(
        "import cv2, numpy as np\n"
        "from diffcli.config.domain import domain_config\n"
        "from diffcli.config.settings import AugmentationConfig\n"
        "from diffcli.data.batches import training_batches\n"
        "from diffcli.data.dataset import TrainingSet, open_domain\n"
        "cv2.setNumThreads(4)\n"
        "cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 3)\n"
        "domain = open_domain(domain_config('miniworld/clean', count=4), purpose='train')\n"
        "augmentation = AugmentationConfig(crop='64x64')\n"
        "samples = TrainingSet(domain, augmentation=augmentation, rare_classes=None, statistics=None, seed=0)\n"
        "print(len(list(training_batches(samples, draws=range(4), batch_size=2, workers=2))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(dataset_module.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "2\n", done.stderr


@pytest.mark.cuda
def test_batches_for_a_gpu_lie_in_pinned_memory(streets: Domain) -> None:
    batches = training_batches(
        training_set(streets, rare=False), draws=range(2), batch_size=2, workers=1, pin=True
    )
    for batch in batches:
        assert batch.images.is_pinned()
        assert batch.labels.is_pinned()
        assert batch.to(torch.device("cuda")).images.is_cuda
