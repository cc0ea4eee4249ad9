"""What a folder really looks like: links, leftovers, upper case, holes, and very many files."""

import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffcli.config.domain import domain_config
from diffcli.data.dataset import open_domain
from diffcli.data.statistics import class_statistics
from diffcli.errors import DataError

SavePair = Callable[..., None]
needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
OwnFolder = Callable[[dict[str, object]], Path]


def opened(root: Path, purpose: str = "eval", **settings: object):  # type: ignore[no-untyped-def]
    config = domain_config(**{"domain": "folder", "root": root, **settings})
    return open_domain(config, purpose=purpose)  # type: ignore[arg-type]


def test_missing_partners_are_reported(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0]], "b": [[1]], "c": [[2]]})
    (root / "labels/a.png").unlink()
    (root / "images/b.png").unlink()
    for purpose in ("train", "eval"):
        domain = opened(root, purpose)
        assert [sample.id for sample in domain.samples] == ["c"]
        assert domain.missing.labels == (root / "images/a.png",)
        assert domain.missing.images == (root / "labels/b.png",)
        assert len(domain.missing) == 2


def test_extra_files_are_passed_over(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0]]})
    for name in ("Thumbs.db", ".DS_Store", "._a.png", "readme.txt", "a.json", "png"):
        (root / "images" / name).write_bytes(b"x")
        (root / "labels" / name).write_bytes(b"x")
    domain = opened(root)
    assert [sample.id for sample in domain.samples] == ["a"]
    assert not domain.missing


def test_upper_case_suffixes_and_other_formats(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "images/a.JPG", tmp_path / "labels/a.PNG", [[3]])
    save_pair(tmp_path / "images/b.jpeg", tmp_path / "labels/b.bmp", [[4]])
    save_pair(tmp_path / "images/c.tiff", tmp_path / "labels/c.tif", [[5]])
    domain = opened(tmp_path)
    assert [int(domain.load(i)[1][0, 0]) for i in range(3)] == [3, 4, 5]


def test_names_with_dots_and_sub_folders(own_folder: OwnFolder) -> None:
    domain = opened(own_folder({"run.1/frame.0001": [[0]], "run.2/frame.0001": [[1]]}))
    assert [sample.id for sample in domain.samples] == ["run.1/frame.0001", "run.2/frame.0001"]
    assert domain.identity(0) == "frame.0001"


@needs_links
def test_links_are_followed_and_loops_end(tmp_path: Path, own_folder: OwnFolder, save_pair: SavePair) -> None:
    own_folder({"a": [[0]]})
    elsewhere = tmp_path / "elsewhere"
    save_pair(elsewhere / "i/b.png", elsewhere / "l/b.png", [[1]])
    (tmp_path / "images/city").symlink_to(elsewhere / "i")
    (tmp_path / "labels/city").symlink_to(elsewhere / "l")
    (tmp_path / "images/c.png").symlink_to(tmp_path / "images/a.png")
    (tmp_path / "labels/c.png").symlink_to(tmp_path / "labels/a.png")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/gone.png").symlink_to(tmp_path / "nowhere.png")
    domain = opened(tmp_path)
    assert [sample.id for sample in domain.samples] == ["a", "c", "city/b"]
    assert domain.missing.labels == (tmp_path / "images/gone.png",)


@needs_links
def test_a_link_without_a_target_is_named(tmp_path: Path, own_folder: OwnFolder) -> None:
    own_folder({"a": [[0]], "b": [[0]]})
    (tmp_path / "labels/b.png").unlink()
    (tmp_path / "labels/b.png").symlink_to(tmp_path / "gone.png")
    domain = opened(tmp_path)
    assert len(domain) == 2
    with pytest.raises(DataError, match=r"a link to .*gone\.png, which is not there"):
        domain.load(1)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes among files")
def test_a_pipe_is_refused_without_waiting(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0]]})
    (root / "images/a.png").unlink()
    os.mkfifo(root / "images/a.png")
    with pytest.raises(DataError, match="not an ordinary file"):
        opened(root).load(0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(tmp_path: Path, own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0, 1]]})
    for folder in (b"images", b"labels"):
        os.rename(
            os.path.join(os.fsencode(root), folder, b"a.png"),
            os.path.join(os.fsencode(root), folder, b"\xff.png"),
        )
    domain = opened(root)
    assert domain.load(0)[1].tolist() == [[0, 1]]
    assert class_statistics(domain, cache=tmp_path / "cache").pixels[0, :2].tolist() == [1, 1]


def test_accents_are_compared_in_one_spelling(tmp_path: Path, save_pair: SavePair) -> None:
    names = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    save_pair(tmp_path / f"images/{names[0]}.png", tmp_path / f"labels/{names[1]}.png", [[3]])
    domain = opened(tmp_path)
    assert [sample.id for sample in domain.samples] == [names[0]]
    assert not domain.missing


def test_two_files_of_one_name(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0]]})
    (root / "images/a.jpg").write_bytes((root / "images/a.png").read_bytes())
    with pytest.raises(DataError, match=r"two files of one name: a\.(jpg|png) and a\.(jpg|png)"):
        opened(root)


def test_own_folder_with_splits_in_either_order(tmp_path: Path, save_pair: SavePair) -> None:
    for split, value in (("train", 1), ("val", 2)):
        save_pair(tmp_path / f"one/images/{split}/a.png", tmp_path / f"one/labels/{split}/a.png", [[value]])
        save_pair(tmp_path / f"two/{split}/images/a.png", tmp_path / f"two/{split}/labels/a.png", [[value]])
    for order in ("one", "two"):
        for purpose, value in (("train", 1), ("eval", 2)):
            domain = opened(tmp_path / order, purpose)
            assert [int(domain.load(i)[1][0, 0]) for i in range(len(domain))] == [value]


def test_a_missing_split_is_never_replaced_by_another(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair(tmp_path / "images/train/a.png", tmp_path / "labels/train/a.png", [[1]])
    with pytest.raises(DataError, match="no val images here, but there is train"):
        opened(tmp_path)
    with pytest.raises(DataError, match="no test images here, but there is train"):
        opened(tmp_path, split="test")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="no images here"):
        opened(tmp_path)


def test_limit_spreads_evenly(own_folder: OwnFolder) -> None:
    domain = opened(own_folder({f"{i}": [[0]] for i in range(10)}), limit=4)
    assert [sample.id for sample in domain.samples] == ["0", "2", "5", "7"]


@pytest.mark.slow
@needs_links
def test_listing_100_000_files_asks_the_disk_for_folders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten cities are links to one of 5000 images and 5000 labels, all empty: looking into one would fail."""
    for part, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        folder = tmp_path / part / "train"
        (folder / "c0").mkdir(parents=True)
        for i in range(5000):
            os.close(os.open(str(folder / f"c0/c_{i:06d}_{ending}.png"), os.O_CREAT | os.O_WRONLY))
        for city in range(1, 10):
            (folder / f"c{city}").symlink_to(folder / "c0")
    asked = {"scandir": 0, "stat": 0, "lstat": 0}
    for name in asked:
        call = getattr(os, name)

        def counted(*args: Any, name: str = name, call: Any = call, **options: Any) -> Any:
            asked[name] += 1
            return call(*args, **options)

        monkeypatch.setattr(os, name, counted)
    assert len(open_domain(domain_config("cityscapes", root=tmp_path), purpose="train")) == 50_000
    assert 20 < asked["scandir"] < 100  # each of 20 folders a few times
    assert asked["stat"] + asked["lstat"] < 1000  # none of the 100 000 files
