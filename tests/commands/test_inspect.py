"""`diff data inspect` on tiny real files: what is there, what is missing, and every file that is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffcli.cli import classic
from diffcli.commands import inspect_data
from diffcli.config.domain import domain_config
from diffcli.config.size import Size
from diffcli.data.dataset import open_domain
from diffcli.data.statistics import class_statistics, kept_statistics
from diffcli.data.survey import image_size, survey
from diffcli.errors import DataError, DiffError
from diffcli.runtime import console

Folder = Path


def save(path: Path, pixels: object, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **options)
    return path


def save_pair(root: Path, name: str, label: object, split: str = "") -> None:
    values = np.asarray(label, dtype=np.uint8)
    save(root / "images" / split / f"{name}.png", np.full((*values.shape, 3), 128))
    save(root / "labels" / split / f"{name}.png", values)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sound(tmp_path: Path) -> Folder:
    """Three pairs of 4x2 pixels: road and car."""
    for name in "abc":
        save_pair(tmp_path / "mine", name, [[0, 0, 0, 13], [0, 0, 255, 13]])
    return tmp_path / "mine"


@pytest.fixture
def faulty(sound: Folder) -> Folder:
    """One of every fault, and unpaired files."""
    for name in ("bad1", "bad2"):
        save_pair(sound, name, [[0, 34], [0, 77 if name == "bad2" else 34]])
    save_pair(sound, "cut", np.arange(400).reshape(20, 20) % 19)
    (sound / "labels/cut.png").write_bytes((sound / "labels/cut.png").read_bytes()[:-30])
    save_pair(sound, "dark", np.zeros((20, 20)))
    (sound / "images/dark.png").write_bytes((sound / "images/dark.png").read_bytes()[:-20])
    save_pair(sound, "shape", np.zeros((4, 4)))
    save(sound / "labels/shape.png", np.zeros((4, 9)))
    save(sound / "images/alone.png", np.zeros((2, 4, 3)))
    save(sound / "labels/orphan.png", np.zeros((2, 4)))
    return sound


def test_a_sound_folder(cli: Any, sound: Folder, tmp_path: Path) -> None:
    before = sorted(sound.rglob("*"))
    result = cli("data", "inspect", "--domain", "folder", "--root", sound)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "mine" in lines
    assert "samples   3" in lines
    assert "sizes     4x2" in lines
    assert "ignored   12.50 % of pixels" in lines
    road = next(line for line in lines if line.startswith("road "))
    car = next(line for line in lines if line.startswith("car "))
    assert road.split()[1:3] == ["71.43", "3"]
    assert car.split()[1:3] == ["28.57", "3"]
    assert len(road.split()[3]) > 2 * len(car.split()[3]) > 0
    assert max(map(len, (line for line in lines if not line.startswith("images")))) <= 80
    assert "\x1b" not in result.stdout
    assert "inspect mine 3/3" in result.stderr
    with Image.open(tmp_path / "inspected/mine.png") as picture:
        assert picture.size[0] == 1200
    assert sorted(sound.rglob("*")) == before  # nothing was written into the dataset


def test_every_fault_is_found_and_the_exit_code_is_1(cli: Any, faulty: Folder) -> None:
    result = cli("data", "inspect", "--domain", "folder", "--root", faulty, "--json")
    assert result.returncode == 1
    assert "3 of 8 samples cannot be used" in result.stderr
    assert "2 label values outside the mapping, in 2 files" in result.stderr
    assert "34: 255  # 0.64 % of pixels in 2 files" in result.stderr
    (record,) = json.loads(result.stdout)
    names = {value: [Path(file).name for file in files] for value, files in record["outside_mapping"].items()}
    assert names == {"34": ["bad1.png", "bad2.png"], "77": ["bad2.png"]}
    assert [Path(fault["file"]).name for fault in record["faults"]] == [
        *("bad1.png", "bad2.png", "cut.png", "dark.png", "shape.png")
    ]
    assert [Path(file).name for file in record["images_without_label"]] == ["alone.png"]
    assert [Path(file).name for file in record["labels_without_image"]] == ["orphan.png"]
    assert {c["class"]: c["samples"] for c in record["classes"] if c["samples"]} == {"road": 5, "car": 3}


def test_faults_in_words(cli: Any, faulty: Folder) -> None:
    result = cli("data", "inspect", "--domain", "folder", "--root", faulty)
    lines = result.stdout.splitlines()
    assert "no label  1: alone.png" in lines
    assert "no image  1: orphan.png" in lines
    table = lines[lines.index("label values outside the mapping") + 3 :]
    assert [line.split() for line in table[:2]] == [
        ["34", "0.64", "%", "2", "bad1.png,", "bad2.png"],
        ["77", "0.21", "%", "1", "bad2.png"],
    ]
    assert "images/dark.png: the file is damaged" in result.stderr
    assert "the image is 4x4, but its label 9x4" in result.stderr


def test_an_image_that_only_fails_when_decoded(sound: Folder, tmp_path: Path) -> None:
    """Header and end are whole; what lies between is not."""
    path = sound / "images/b.png"
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start - 16) + data[-16:])
    with pytest.raises(DataError, match="1 of 3 samples"), console.json_only():
        inspect_data.run(
            inspect_data.Request(
                domains="folder", root=sound, split=None, config=None, output=tmp_path / "drawn"
            )
        )


def test_every_split_is_looked_at_unless_one_is_named(cli: Any, tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_pair(tmp_path / "mine", split, [[0, 1]], split=split)
    everything = cli("data", "inspect", "--domain", "folder", "--root", tmp_path / "mine", "--json")
    assert [one["domain"] for one in json.loads(everything.stdout)] == ["mine, train", "mine, val"]
    assert {path.name for path in (tmp_path / "inspected").iterdir()} == {"mine-train.png", "mine-val.png"}
    one = cli(
        "data", "inspect", "--domain", "folder", "--root", tmp_path / "mine", "--split", "val", "--json"
    )
    assert [one["domain"] for one in json.loads(one.stdout)] == ["mine"]


def test_a_set_without_labels(cli: Any, tmp_path: Path) -> None:
    save(tmp_path / "kitti/testing/image_2/0_10.png", np.zeros((2, 4, 3)))
    result = cli("data", "inspect", "--domain", "kitti", "--root", tmp_path / "kitti", "-o", "drawn")
    assert result.returncode == 0, result.stderr
    assert "samples  1, 0 labelled" in result.stdout.splitlines()
    assert "classes" not in result.stdout
    assert (tmp_path / "drawn/kitti.png").is_file()


def test_own_classes_come_from_settings(cli: Any, sound: Folder, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "model:\n  classes: [ground, fruit]\n  inversion: {class_prompts: {}}\n"
        "data:\n  train: {domain: folder, root: mine, label_ids: {0: 0, 13: 1}}\n"
        "  eval: [{domain: folder, root: mine, name: again, label_ids: {0: 0, 13: 1}}]\n"
    )
    result = cli("data", "inspect", "--config", "own.yaml", "--json")
    (record,) = json.loads(result.stdout)
    assert {c["class"]: c["pixels"] for c in record["classes"]} == {"ground": 15, "fruit": 6}


def test_miniworld_and_lists(cli: Any, tmp_path: Path) -> None:
    """Domains that are drawn, as many as the settings say; a comma list of those on disk."""
    (tmp_path / "two.yaml").write_text(
        "data: {train: {domain: miniworld/fog, count: 2}, eval: [{domain: miniworld/night, count: 2}]}"
    )
    result = cli("data", "inspect", "--config", "two.yaml", "--json")
    assert [one["domain"] for one in json.loads(result.stdout)] == ["miniworld/fog", "miniworld/night"]
    for condition in ("fog", "night"):
        save(tmp_path / f"acdc/rgb_anon/{condition}/val/G/1_rgb_anon.png", np.zeros((2, 4, 3)))
        save(tmp_path / f"acdc/gt/{condition}/val/G/1_gt_labelTrainIds.png", np.zeros((2, 4)))
    listed = cli("data", "inspect", "--domain", "acdc/fog,acdc/night", "--root", tmp_path / "acdc", "--json")
    assert [one["domain"] for one in json.loads(listed.stdout)] == ["acdc/fog", "acdc/night"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "give either a domain or settings"),
        ({"domains": "citscapes"}, "did you mean cityscapes"),
        ({"domains": "folder", "root": Path("nowhere")}, "no such folder"),
        (
            {"domains": "folder", "root": Path("mine"), "split": "vall"},
            "no vall images here, but there is a set",
        ),
        (
            {"domains": "folder", "root": Path("mine"), "output": Path("mine/images/drawn")},
            "inside the dataset",
        ),
    ],
)
def test_what_a_user_gets_wrong(
    sound: Folder, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(sound.parent)
    nothing = {"domains": None, "root": None, "split": None, "config": None, "output": Path("inspected")}
    with pytest.raises(DiffError) as caught:
        inspect_data.run(inspect_data.Request(**{**nothing, **asked}))
    assert words in str(caught.value)
    assert not (sound / "images/drawn").exists()


def test_statistics_are_shared_with_training_and_notice_a_change(sound: Folder) -> None:
    config = domain_config("folder", root=sound)
    training = open_domain(config, purpose="train")
    found = survey(open_domain(config.model_copy(update={"split": "train"}), purpose="eval"))
    kept = kept_statistics(training)
    assert kept is not None
    assert np.array_equal(kept.pixels, found.statistics.pixels)
    assert np.array_equal(class_statistics(training).pixels, kept.pixels)
    again = survey(training)  # from the cache: sizes by the headers
    assert again.samples == found.samples
    save(sound / "labels/a.png", np.full((2, 4), 5))
    assert kept_statistics(training) is None
    assert survey(training).statistics.pixels[0, 5] == 8


def test_a_faulty_folder_is_never_kept(faulty: Folder) -> None:
    domain = open_domain(domain_config("folder", root=faulty), purpose="train")
    assert len(survey(domain).faults) == 5
    assert kept_statistics(domain) is None


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
def test_sizes_by_the_header(tmp_path: Path, ending: str) -> None:
    assert image_size(save(tmp_path / f"a.{ending}", np.zeros((6, 8, 3)))) == Size(8, 6)


def test_size_of_a_photograph_that_lies_on_its_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_size(save(tmp_path / "a.jpg", np.zeros((6, 8, 3)), exif=exif)) == Size(6, 8)


def test_a_label_of_another_scale_is_no_fault(sound: Folder) -> None:
    save(sound / "labels/a.png", np.zeros((4, 8)))
    domain = open_domain(domain_config("folder", root=sound), purpose="train")
    found = survey(domain)
    assert not found.faults
    assert found.samples[0].label == Size(8, 4)


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["data", "inspect"], True),
        (["data", "--help"], True),
        (["data"], True),
        (["data", "other"], False),
        (["data", "-r", "other"], False),
    ],
)
def test_a_folder_called_data_is_still_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], ours: bool
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert classic.is_for_classic(arguments) != ours


def test_a_mistyped_second_word_is_ours(cli: Any) -> None:
    result = cli("data", "inspct")
    assert result.returncode == 2
    assert "inspect" in result.stderr
