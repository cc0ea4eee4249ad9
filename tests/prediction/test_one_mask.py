"""One image, one mask: predict, eval, compare, submit and the Python call agree, also where an image goes in tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffcli.api.model import TrainedModel
from diffcli.commands import evaluate, predict
from diffcli.config.domain import domain_config
from diffcli.core.metrics import ConfusionMatrix
from diffcli.data.dataset import open_domain
from diffcli.data.miniworld import render
from diffcli.evaluation.evaluator import evaluate_sample, segment_domain
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.opening import open_run

Mask = NDArray[np.uint8]


def save_labelled(folder: Path, *, size: tuple[int, int]) -> Path:
    """A folder of one image of `size` (W,H), with its label; returns the image."""
    image, label = render(0, 3, "rain", size=(128, 256))
    for name, pixels, how in (
        ("images", image, Image.Resampling.BICUBIC),
        ("labels", label, Image.Resampling.NEAREST),
    ):
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels).resize(size, how).save(folder / name / "street.png")
    return folder / "images" / "street.png"


def masks_of_every_path(image: Path, run: Path, overrides: list[str]) -> dict[str, Mask]:
    """What writes or returns a mask -> the mask; eval and compare, which give numbers, are checked against `predict`."""
    out = image.parent.parent / "out"
    predict.run(predict.Request(images=[str(image)], run=run, output=out, overrides=overrides, device="cpu"))
    masks = {"predict": np.asarray(Image.open(out / "street.png"))}
    trained = open_run(run, overrides=overrides)
    model, settings = trained.load_model(device="cpu"), trained.config.eval
    masks["load(run).predict"] = TrainedModel(model, settings).predict(image)
    entry = domain_config("folder", name="streets", root=image.parent.parent)
    domain = open_domain(entry, purpose="eval", classes=model.config.classes)
    segmenter = trained_segmenter(model, settings)
    [(_, masks["submit"])] = segment_domain(segmenter, domain)

    label = domain.load(0)[1]
    counts = ConfusionMatrix(len(model.config.classes))
    counts.update(torch.from_numpy(masks["predict"].copy()), torch.from_numpy(label))
    shown = evaluate_sample(segmenter, domain, 0)  # as compare draws and scores it
    assert shown.iou == pytest.approx(counts.scores().mean_iou_present, abs=1e-9)
    request = evaluate.Request(
        runs=[run],
        domains=evaluate.DomainChoice(names="folder", root=image.parent.parent),
        overrides=overrides,
        output=out / "eval",
        device="cpu",
    )
    evaluate.run(request)
    report = json.loads((out / "eval" / "report.json").read_text())
    assert report["domains"][0]["confusion"] == counts.counts.tolist()
    return masks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        ((2300, 1200), ["eval.size=null"]),
        ((460, 240), ["eval.size=null", "eval.mode=slide", "eval.window=256x192", "eval.stride=192x128"]),
        ((300, 200), ["eval.flip=true", "eval.reference=prediction"]),
    ],
    ids=["tiles", "slide", "one piece"],
)
def test_every_path_gives_the_same_mask(
    size: tuple[int, int], overrides: list[str], tiny_run: Path, tmp_path: Path
) -> None:
    image = save_labelled(tmp_path / "streets", size=size)
    masks = masks_of_every_path(image, tiny_run, overrides)
    written = masks.pop("predict")
    assert written.shape == size[::-1]
    assert len(np.unique(written)) > 1
    for name, mask in masks.items():
        assert np.array_equal(mask, written), name
