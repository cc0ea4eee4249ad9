"""A split is what was asked for, or an error that lists what is there; never silently another one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffcli.config.domain import domain_config
from diffcli.data.dataset import find_splits, open_domain
from diffcli.data.domain import Domain
from diffcli.data.patterns import split_name
from diffcli.errors import ConfigError, DataError

SavePair = Callable[..., None]


def opened(root: Path, purpose: str = "eval", **settings: object) -> Domain:
    config = domain_config("folder", root=root, **settings)
    return open_domain(config, purpose=purpose)  # type: ignore[arg-type]


def ids(domain: Domain) -> list[str]:
    return [sample.id for sample in domain.samples]


@pytest.fixture(params=["images/{}", "{}/images"])
def make(tmp_path: Path, save_pair: SavePair, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """make("train", "valid"): a folder with these splits, in either order of the folders."""

    def write(*splits: str) -> Path:
        for split in splits:
            folder = request.param.format(split)
            for name in ("a", "b"):
                image = tmp_path / folder / f"{split}_{name}.png"
                label = tmp_path / folder.replace("images", "labels") / f"{split}_{name}.png"
                save_pair(image, label, [[0]])
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("training_set", "train"),
        ("train2017", "train"),
        ("VAL", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("val-01", "val"),
        ("test", "test"),
        ("testing", "test"),
        ("train_extra", "train_extra"),
        ("trainannot", None),
        ("train_labels", None),
        ("trains", None),
        ("city", None),
        ("testimonials", None),
    ],
)
def test_names_of_splits(folder: str, split: str | None) -> None:
    assert split_name(folder) == split


def test_test_and_valid_alone_are_not_trained_on(make: Callable[..., Path]) -> None:
    root = make("test", "valid")
    with pytest.raises(DataError, match="no train images here, but there is") as caught:
        opened(root, "train")
    assert all(split in caught.value.message for split in ("test", "valid"))
    assert ids(opened(root)) == ["val/valid_a", "val/valid_b"]


def test_train_alone_is_not_evaluated_on(make: Callable[..., Path]) -> None:
    root = make("train")
    with pytest.raises(DataError, match="no val images here, but there is train") as caught:
        opened(root)
    assert "val_fraction" in str(caught.value.hint)


@pytest.mark.parametrize("asked", ["train", "training", "test", "testing"])
def test_an_explicit_split_is_never_another_one(make: Callable[..., Path], asked: str) -> None:
    root = make("val")
    for purpose in ("train", "eval"):
        with pytest.raises(DataError, match=f"no {asked} images here, but there is val"):
            opened(root, purpose, split=asked)


@pytest.mark.parametrize("asked", ["val", "valid", "validation"])
@pytest.mark.parametrize("there", ["val", "valid", "validation", "Val"])
def test_one_split_has_many_names(make: Callable[..., Path], there: str, asked: str) -> None:
    assert len(opened(make("train", there), split=asked)) == 2


def test_two_folders_of_one_split(make: Callable[..., Path]) -> None:
    root = make("train", "valid", "validation")
    with pytest.raises(DataError, match="several folders are the val split: valid, validation") as caught:
        opened(root)
    assert "split: valid" in str(caught.value.hint)
    assert ids(opened(root, split="validation")) == ["val/validation_a", "val/validation_b"]


def test_any_folder_of_the_user_can_be_a_split(make: Callable[..., Path]) -> None:
    root = make("fold1", "fold2")
    assert ids(opened(root, "train", split="fold1")) == ["fold1/fold1_a", "fold1/fold1_b"]
    with pytest.raises(DataError, match="no fold3 images here"):
        opened(root, split="fold3")


def test_mapillary_with_validation_alone(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "validation/images/a.jpg", tmp_path / "validation/labels/a.png", [[13]])
    config = domain_config("mapillary", root=tmp_path)
    assert find_splits(config) == ["val"]
    with pytest.raises(DataError, match="no train images here, but there is validation"):
        open_domain(config, purpose="train")


def test_a_set_without_splits(own_folder: Callable[..., Path]) -> None:
    root = own_folder({"a": [[0]], "b": [[0]]})
    assert ids(opened(root)) == ids(opened(root, "train")) == ids(opened(root, split="train")) == ["a", "b"]
    for split in ("val", "test"):
        with pytest.raises(DataError, match=f"no {split} images here, but there is a set without splits"):
            opened(root, split=split)


def test_a_held_out_part(own_folder: Callable[..., Path]) -> None:
    root = own_folder({f"{i:02}": [[0]] for i in range(20)})
    train, val = opened(root, "train", val_fraction=0.1), opened(root, val_fraction=0.1)
    assert (len(train), len(val)) == (18, 2)
    assert (train.split, val.split) == ("train", "val")
    assert not {s.image for s in train.samples} & {s.image for s in val.samples}
    assert ids(opened(root, val_fraction=0.1, split="val")) == ids(val)
    assert ids(opened(root, val_fraction=0.1)) == ids(val)  # the same at every time
    assert ids(opened(root, val_fraction=0.1, val_seed=1)) != ids(val)
    assert find_splits(domain_config("folder", root=root, val_fraction=0.1)) == ["train", "val"]


def test_a_held_out_part_of_a_train_split(make: Callable[..., Path]) -> None:
    root = make("train", "test")
    assert [len(opened(root, p, val_fraction=0.5)) for p in ("train", "eval")] == [1, 1]
    assert len(opened(root, val_fraction=0.5, split="test")) == 2


def test_nothing_is_held_out_beside_a_val_split(make: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="there is a val split"):
        opened(make("train", "valid"), "train", val_fraction=0.1)


def test_a_held_out_part_of_one_image(own_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="two samples at least"):
        opened(own_folder({"a": [[0]]}), val_fraction=0.1)


def test_a_held_out_part_of_a_known_domain(tmp_path: Path, save_pair: SavePair) -> None:
    for name in "abcd":
        save_pair(tmp_path / f"images/{name}.png", tmp_path / f"labels/{name}.png", [[7]])
    config = domain_config("gta5", root=tmp_path, val_fraction=0.25)
    assert [len(open_domain(config, purpose=p)) for p in ("train", "eval")] == [3, 1]  # type: ignore[arg-type]


def test_two_sets_below_the_root_are_not_chosen_from(tmp_path: Path, save_pair: SavePair) -> None:
    for farm in ("east", "west"):
        save_pair(tmp_path / farm / "images/a.png", tmp_path / farm / "labels/a.png", [[0]])
    with pytest.raises(DataError, match="several folders here hold images and labels: east, west"):
        opened(tmp_path)
