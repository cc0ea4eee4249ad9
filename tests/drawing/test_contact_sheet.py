"""The picture of a dataset: bars of its classes, whatever they are called, above its samples."""

import numpy as np
from PIL import Image

from diffcli.config.settings import InversionConfig, ModelConfig
from diffcli.drawing.contact_sheet import Panel, inspection_picture
from diffcli.drawing.curves import curves_picture

MODEL = ModelConfig(
    classes=("road", "a name of a class that goes on and on and on", "$x_1$ \u9053"),
    palette=((10, 200, 30), (200, 10, 30), (30, 10, 200)),
    inversion=InversionConfig(class_prompts={}),
)


def pixels_of(picture: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == color).all(axis=-1).sum())


def test_bars_have_the_colours_of_their_classes() -> None:
    shares = np.array([0.5, 0.005, 0.0])
    picture = inspection_picture("a $set$", shares, [], model=MODEL)
    road, rare, none = (pixels_of(picture, color) for color in MODEL.palette or ())
    assert road > 1.5 * rare > 0  # 4.7 of 5.6 powers of ten against 2.7
    assert none == 0
    assert picture.width == 1200


def test_without_labels_and_with_panels() -> None:
    image, label = np.full((40, 60, 3), 90, np.uint8), np.full((40, 60), 255, np.uint8)
    empty = inspection_picture("nothing", np.zeros(3), [], model=MODEL)
    picture = inspection_picture("nothing", np.zeros(3), [Panel("a", image, label)] * 4, model=MODEL)
    assert picture.height > empty.height + 2 * 200


def test_curves_of_domains_with_any_name() -> None:
    names = ("mean_iou/$a_$ \u9053", "mean_iou/b")
    lines = [{"iteration": i, "loss": 1.0, **dict.fromkeys(names, 0.1 * i)} for i in range(3)]
    lines.append({"iteration": 3, "mean_iou/b": float("nan")})  # no class occurred
    assert curves_picture(lines, title="$run_1$").size == (1500, 450)
