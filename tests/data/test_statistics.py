"""Rare class sampling equals the recorded probabilities; counts are cached and notice a changed folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffcli.config.domain import domain_config
from diffcli.config.settings import RareClassConfig
from diffcli.data.dataset import Domain, open_domain
from diffcli.data.statistics import (
    ClassStatistics,
    cache_folder,
    class_statistics,
    class_weights,
    rare_class_probabilities,
    rare_classes,
)
from diffcli.errors import DataError

GOLDEN = json.loads((Path(__file__).parent.parent / "parity/data/rcs.json").read_text())
OwnFolder = Callable[[dict[str, object]], Path]


def opened(root: Path) -> Domain:
    return open_domain(domain_config("folder", root=root), purpose="train")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def golden_pixels() -> np.ndarray:
    pixels = np.zeros((len(GOLDEN["sample_class_stats"]), 19), dtype=np.int64)
    for row, sample in zip(pixels, GOLDEN["sample_class_stats"], strict=True):
        for train_id, count in sample.items():
            if train_id != "file":
                row[int(train_id)] = count
    return pixels


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_probabilities_equal_the_recorded_ones(temperature: float) -> None:
    golden = GOLDEN[f"T={temperature}"]
    classes, weights = rare_class_probabilities(golden_pixels().sum(axis=0), temperature=temperature)
    assert classes.tolist() == golden["classes"]
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, golden["probs"], rtol=2e-5)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_class_weights_keep_the_size_of_the_loss(balance: float) -> None:
    shares = np.array([0.7, 0.28, 0.02, 0.0])
    weights = class_weights(shares, balance=balance)
    assert (shares * weights).sum() == pytest.approx(1)
    assert weights[2] / weights[0] == pytest.approx(35**balance, rel=1e-6)
    assert weights[3] == weights[2]


def test_rare_classes_of_the_recorded_counts() -> None:
    pixels = golden_pixels()
    statistics = ClassStatistics(tuple("abcdefghijklmnopqrs"), pixels, np.zeros(len(pixels), dtype=np.int64))
    rare = rare_classes(statistics, RareClassConfig())
    assert set(rare.classes.tolist()) | set(rare.left_out) == set(range(19))
    assert rare.weights.sum() == pytest.approx(1)
    for train_id, samples in rare.samples.items():
        assert (pixels[samples, train_id] > 3000).all()
        assert samples.size == (pixels[:, train_id] > 3000).sum()


def test_classes_that_no_image_holds_enough_of_are_left_out() -> None:
    statistics = ClassStatistics(
        ("a", "b", "c"), np.array([[10, 4000, 0], [10, 0, 0]]), np.zeros(2, dtype=np.int64)
    )
    rare = rare_classes(statistics, RareClassConfig())
    assert rare.classes.tolist() == [1]
    assert rare.weights.tolist() == [1.0]
    assert rare.left_out == (0, 2)


def test_no_class_is_left() -> None:
    statistics = ClassStatistics(("a", "b"), np.array([[10, 20]]), np.zeros(1, dtype=np.int64))
    with pytest.raises(DataError, match="more than 3000 pixels") as caught:
        rare_classes(statistics, RareClassConfig())
    assert "min_pixels" in str(caught.value.hint)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_counts(own_folder: OwnFolder, workers: int) -> None:
    domain = opened(own_folder({"a": [[0, 0, 1]], "b": [[255, 18, 18]]}))
    seen: list[tuple[int, int]] = []
    statistics = class_statistics(
        domain, workers=workers, progress=lambda done, total: seen.append((done, total))
    )
    assert statistics.pixels[:, [0, 1, 18]].tolist() == [[2, 1, 0], [0, 0, 2]]
    assert statistics.ignored.tolist() == [0, 1]
    assert statistics.shares[[0, 1, 18]].tolist() == [0.4, 0.2, 0.4]
    assert seen == [(1, 2), (2, 2)]


def test_counted_once_and_never_beside_the_data(own_folder: OwnFolder, own_cache: Path) -> None:
    root = own_folder({"a": [[0, 1]]})
    before = sorted(path for path in root.rglob("*") if own_cache not in path.parents)
    first = class_statistics(opened(root))
    calls: list[int] = []
    second = class_statistics(opened(root), progress=lambda done, _: calls.append(done))
    assert calls == []
    assert second.pixels.tolist() == first.pixels.tolist()
    assert len(list(own_cache.rglob("*.npy"))) == 1
    assert before == sorted(p for p in root.rglob("*") if own_cache not in (p, *p.parents))
    assert cache_folder() == own_cache


def test_a_changed_folder_is_noticed(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0, 1]]})
    assert class_statistics(opened(root)).pixels[:, 1].tolist() == [1]
    state = (root / "labels/a.png").stat()
    own_folder({"a": [[1, 1]]})
    os.utime(root / "labels/a.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert class_statistics(opened(root)).pixels[:, 1].tolist() == [2]
    own_folder({"b": [[1, 0]]})
    assert class_statistics(opened(root)).pixels[:, 1].tolist() == [2, 1]


def test_another_mapping_is_counted_again(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0, 1]]})
    class_statistics(opened(root))
    mapped = open_domain(domain_config("folder", root=root, label_ids={0: 5, 1: 5}), purpose="train")
    assert class_statistics(mapped).pixels[0, 5] == 2


def test_a_damaged_cache_is_counted_again(own_folder: OwnFolder, own_cache: Path) -> None:
    root = own_folder({"a": [[0, 1]]})
    class_statistics(opened(root))
    for path in own_cache.rglob("*.npy"):
        path.write_bytes(b"\x93NUMPY nonsense")
    assert class_statistics(opened(root)).pixels[0, :2].tolist() == [1, 1]


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(own_folder: OwnFolder, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    assert class_statistics(opened(own_folder({"a": [[0, 1]]}))).pixels[0, 0] == 1


def test_a_bad_label_is_named(own_folder: OwnFolder) -> None:
    root = own_folder({"a": [[0, 1]], "b": [[0, 66]]})
    with pytest.raises(DataError, match="66") as caught:
        class_statistics(opened(root), workers=2)
    assert str(caught.value.where).endswith("b.png")


def test_a_label_that_went_away_is_named(own_folder: OwnFolder) -> None:
    domain = opened(own_folder({"a": [[0, 1]]}))
    for sample in domain.samples:
        assert sample.label is not None
        sample.label.unlink()
    with pytest.raises(DataError, match="cannot be read") as caught:
        class_statistics(domain)
    assert str(caught.value.where).endswith("a.png")


def test_rendered_scenes_are_counted() -> None:
    domain = open_domain(domain_config("miniworld", count=2), purpose="train")
    statistics = class_statistics(domain)
    assert statistics.pixels.sum() + statistics.ignored.sum() == 2 * domain.load(0)[1].size
