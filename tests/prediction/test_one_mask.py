"""One image, one mask: predict, eval, compare, submit and the Python call agree, also where an image goes in tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffcli.api.model import TrainedModel
from diffcli.commands import compare, evaluate, predict
from diffcli.config.domain import domain_config
from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.core.metrics import ConfusionMatrix
from diffcli.core.model import build_model
from diffcli.data.dataset import Domain, open_domain
from diffcli.data.miniworld import render
from diffcli.evaluation.domains import DomainChoice
from diffcli.evaluation.evaluator import DomainScores, evaluate_domain, segment_domain
from diffcli.prediction.trained import trained_segmenter
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.folder import CONFIG, LAST
from diffcli.runs.opening import open_run
from diffcli.runtime import console

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


@pytest.fixture(scope="module")
def quick_run(tiny_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the VAE's latent alone, whose decoder sees a million pixels in a second."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    decoder = tiny_config.model.decoder.model_copy(update={"features": "latent"})
    config = tiny_config.model_copy(
        update={"model": tiny_config.model.model_copy(update={"decoder": decoder})}
    )
    model = build_model(config.model)
    torch.manual_seed(0)
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(folder / LAST, model)
    (folder / CONFIG).write_text(dump_config(config))
    return folder


def predicted(image: Path, run: Path, overrides: list[str]) -> Mask:
    """What `diff predict` writes."""
    out = image.parent.parent / "out"
    predict.run(predict.Request(images=[str(image)], run=run, output=out, overrides=overrides, device="cpu"))
    return np.asarray(Image.open(out / "street.png"))


def check_every_path(image: Path, run: Path, overrides: list[str]) -> DomainScores:
    """Compare what the Python call, eval and submit make of an image with the mask that predict writes."""
    written = predicted(image, run, overrides)
    with Image.open(image) as photo:
        assert written.shape == (photo.height, photo.width)
    assert len(np.unique(written)) > 1
    trained = open_run(run, overrides=overrides)
    model, settings = trained.load_model(device="cpu"), trained.config.eval
    assert np.array_equal(TrainedModel(model, settings).predict(image), written)
    segmenter = trained_segmenter(model, settings)
    domain = open_streets(image)
    [(_, submitted)] = segment_domain(segmenter, domain)
    assert np.array_equal(submitted, written)
    scores = evaluate_domain(segmenter, domain)
    counts = ConfusionMatrix(segmenter.network.classes)
    counts.update(torch.from_numpy(written.copy()), torch.from_numpy(domain.load(0)[1]))
    assert torch.equal(scores.counts, counts.counts)
    return scores


def open_streets(image: Path) -> Domain:
    return open_domain(domain_config("folder", name="streets", root=image.parent.parent), purpose="eval")


@pytest.mark.slow
def test_every_path_gives_the_same_mask_in_tiles(quick_run: Path, tmp_path: Path) -> None:
    image = save_labelled(tmp_path / "streets", size=(2300, 1200))
    check_every_path(image, quick_run, ["eval.size=null"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["eval.size=null", "eval.mode=slide", "eval.window=256x192", "eval.stride=192x128"],
        ["eval.flip=true", "eval.reference=prediction"],
    ],
    ids=["slide", "one piece"],
)
def test_every_path_and_command_gives_the_same_mask(
    overrides: list[str], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save_labelled(tmp_path / "streets", size=(460, 240))
    scores = check_every_path(image, tiny_run, overrides)
    streets = DomainChoice(names="folder", root=image.parent.parent)
    evaluate.run(
        evaluate.Request(
            runs=[tiny_run], domains=streets, overrides=overrides, output=tmp_path / "eval", device="cpu"
        )
    )
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["domains"][0]["confusion"] == scores.counts.tolist()
    capsys.readouterr()
    with console.json_only():
        compare.run(
            compare.Request(
                runs=[tiny_run],
                domains=streets,
                overrides=overrides,
                output=tmp_path / "compare.png",
                device="cpu",
            )
        )
    [compared] = json.loads(capsys.readouterr().out)["domains"]
    assert compared["mean_iou"] == {"tiny": pytest.approx(scores.scores.mean_iou_present, abs=1e-6)}
