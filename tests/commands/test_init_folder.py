"""`diff init --folder`: for any names, splits and encoding, the starter validates and its data is found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.commands import init
from diffcli.config.file import load_config
from diffcli.config.settings import RunConfig
from diffcli.data.dataset import open_domain
from diffcli.errors import DataError, DiffError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("rgb/rgb_{}.png", "ss/ss_{}.png"): six pairs of noise and labels of three values, as these are named."""

    def write(
        image: str,
        label: str,
        *,
        splits: tuple[str, ...] = ("",),
        values: tuple[int, ...] = (0, 1, 5),
        colors: bool = False,
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "mine"
        for split in splits:
            for i in range(6):
                noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
                blocks = np.array(values, np.uint8)[rng.integers(0, len(values), (3, 4))]
                blocks[0, : min(len(values), 4)] = values[:4]
                pixels = np.kron(blocks, np.ones((16, 16), np.uint8))
                if colors:
                    pixels = np.stack([pixels * 20, pixels * 7, 255 - pixels], axis=-1)
                for text, array in ((image, noise), (label, pixels)):
                    path = root / text.format(f"{i:04}", split=split)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path)
        return root

    return write


def starter(root: Path) -> RunConfig:
    """The settings of the starter, with every label read by them: none is outside the mapping."""
    file = root.parent / "starter.yaml"
    init.run(init.Request(folder=root, file=file, force=True))
    config = load_config(file)
    for purpose, entry in (("train", config.data.train), *(("eval", entry) for entry in config.data.eval)):
        domain = open_domain(entry, purpose=purpose, classes=config.model.classes)  # type: ignore[arg-type]
        assert len(domain)
        for i in range(len(domain)):
            _, label = domain.load(i)
            assert {*np.unique(label)} <= {*range(len(config.model.classes)), 255}
    return config


NAMES = [
    ("images/{}.png", "labels/{}.png"),
    ("images/{}.jpg", "masks/{}.png"),
    ("rgb/rgb_{}.png", "ss/ss_{}.png"),
    ("img/{}_leftImg8bit.png", "gt/{}_gtFine_labelIds.png"),
    ("photos/{}.jpg", "photos/{}_mask.png"),
    ("{}.jpg", "{}.png"),
    ("{}.jpg", "{}_seg.png"),
    ("{}/rgb.png", "{}/label.png"),
    ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    ("images/city/{}.png", "labels/city/{}.png"),
]


@pytest.mark.parametrize(("image", "label"), NAMES)
def test_names(make: Make, image: str, label: str) -> None:
    root = make(image, label)
    config = starter(root)
    assert len(config.model.classes) == 3
    sizes = [
        len(open_domain(entry, purpose=purpose, classes=config.model.classes))  # type: ignore[arg-type]
        for purpose, entry in (("train", config.data.train), ("eval", config.data.eval[0]))
    ]
    assert sizes == [5, 1]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{split}/{}.png", "labels/{split}/{}.png"),
        ("{split}/images/{}.png", "{split}/masks/{}.png"),
        ("rgb/{split}/a/{}_rgb.png", "gt/{split}/a/{}_gt.png"),
        ("{split}/{}/img.png", "{split}/{}/ann.png"),
    ],
)
@pytest.mark.parametrize(("splits", "sizes"), [(("train", "valid"), [6, 6]), (("train", "test"), [5, 1])])
def test_splits(make: Make, image: str, label: str, splits: tuple[str, ...], sizes: list[int]) -> None:
    config = starter(make(image, label, splits=splits))
    found = [
        len(open_domain(entry, purpose=purpose, classes=config.model.classes))  # type: ignore[arg-type]
        for purpose, entry in (("train", config.data.train), ("eval", config.data.eval[0]))
    ]
    assert found == sizes


@pytest.mark.parametrize(
    ("values", "classes"), [((0, 255), 2), ((7, 8, 255), 2), ((0, 1, 2, 3), 4), ((1, 2), 2)]
)
def test_values(make: Make, values: tuple[int, ...], classes: int) -> None:
    assert len(starter(make("images/{}.png", "labels/{}.png", values=values)).model.classes) == classes


def test_colors(make: Make) -> None:
    config = starter(make("images/{}.png", "labels/{}.png", colors=True))
    assert len(config.model.classes) == 3


def test_the_file_s_name(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make("images/{}.png", "labels/{}.png")
    monkeypatch.chdir(root.parent)
    init.run(init.Request(folder=Path("mine")))
    assert (root.parent / "mine.yaml").is_file()
    assert "6 images with labels, 64x48, 3 values in 6 labels, no splits" in capsys.readouterr().err
    with pytest.raises(DiffError, match="exists already"):
        init.run(init.Request(folder=Path("mine")))
    init.run(init.Request(folder=Path("mine"), file=Path("-")))
    assert "domain: folder" in capsys.readouterr().out


def test_what_cannot_be_used(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        starter(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/images.zip").touch()
    with pytest.raises(DataError, match="no images here") as caught:
        starter(tmp_path / "empty")
    assert caught.value.hint == "unpack images.zip"
    root = make("images/{}.png", "labels/{}.jpg")  # lossy labels
    with pytest.raises(DataError, match="whose names pair"):
        starter(root)


def test_only_splits_that_are_not_trained_on(make: Make) -> None:
    with pytest.raises(DataError, match="no train split here: test, valid"):
        starter(make("images/{split}/{}.png", "labels/{split}/{}.png", splits=("test", "valid")))
