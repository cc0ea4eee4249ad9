"""Our scores are those of the official Cityscapes evaluation (package cityscapesscripts), on the same files."""

import importlib
import json
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_ID_OF_TRAIN_ID
from diffcli.commands import evaluate, submit
from diffcli.config.domain import domain_config
from diffcli.core.metrics import ConfusionMatrix
from diffcli.data.dataset import open_domain
from diffcli.evaluation.domains import DomainChoice

IMAGES = 5


@pytest.fixture(scope="module")
def official() -> ModuleType:
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of importing it
        pytest.importorskip(name, reason="cityscapesscripts is not installed (extra dev)")
        module = importlib.import_module(name)
    module.args.quiet, module.args.JSONOutput, module.args.evalInstLevelScore = True, False, False
    return module


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Cityscapes' own layout: labels of every label id, 0 to 33, some classes in no label at all."""
    random, absent = np.random.default_rng(0), (27, 31)  # truck and train
    for i in range(IMAGES):
        name = f"frankfurt_{i:06}_000019"
        label = random.choice(np.setdiff1d(np.arange(34), absent), (8, 16)).astype(np.uint8)
        for folder, suffix, pixels in (
            ("leftImg8bit", "leftImg8bit", random.integers(0, 256, (32, 64, 3), np.uint8)),
            ("gtFine", "gtFine_labelIds", np.kron(label, np.ones((4, 4), np.uint8))),
        ):
            path = tmp_path / folder / "val" / "frankfurt" / f"{name}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


def test_scores_equal_the_official_ones(official: ModuleType, cityscapes: Path) -> None:
    """Predictions right in half of the pixels, of every class; every IoU and the mean to 4 decimals."""
    domain = open_domain(domain_config("cityscapes", root=cityscapes), purpose="eval")
    matrix, random = ConfusionMatrix(19), np.random.default_rng(1)
    id_of = np.array([CITYSCAPES_ID_OF_TRAIN_ID[i] for i in range(19)], np.uint8)
    pairs = []
    for i, sample in enumerate(domain.samples):
        label = domain.load(i)[1]
        # train is neither labelled nor predicted
        guess = random.choice(np.setdiff1d(np.arange(19), [16]), label.shape)
        mask = np.where((label != 255) & (random.random(label.shape) < 0.5), label, guess).astype(np.uint8)
        matrix.update(torch.from_numpy(mask), torch.from_numpy(label))
        path = cityscapes / "results" / f"{domain.identity(i)}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(id_of[mask]).save(path)
        pairs.append((str(path), str(sample.label)))
    theirs = official.evaluateImgLists(*map(list, zip(*pairs, strict=True)), official.args)
    ours = matrix.scores()
    for name, iou in zip(CITYSCAPES_CLASSES, ours.iou.tolist(), strict=True):
        assert iou == pytest.approx(theirs["classScores"][name], abs=5e-5, nan_ok=True), name
    assert ours.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=5e-5)
    assert float(ours.iou[14]) == 0  # truck was predicted, and occurs in no label
    assert np.isnan(float(ours.iou[16]))


def test_a_submission_of_labelled_images_scores_as_diff_eval_says(
    official: ModuleType, cityscapes: Path, tiny_run: Path
) -> None:
    """Network, resizing, encoding and zip: the official scores of the files that would be handed in."""
    zipped, told = cityscapes / "val.zip", cityscapes / "report"
    submit.run(
        submit.Request(
            domain="cityscapes", run=tiny_run, output=zipped, root=cityscapes, split="val", device="cpu"
        )
    )
    evaluate.run(
        evaluate.Request(
            runs=[tiny_run],
            domains=DomainChoice(names="cityscapes", root=cityscapes),
            output=told,
            device="cpu",
        )
    )
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(cityscapes / "results")
    labels = sorted(map(str, cityscapes.glob("gtFine/val/*/*_labelIds.png")))
    masks = sorted(map(str, (cityscapes / "results").iterdir()))
    assert len(masks) == IMAGES
    theirs = official.evaluateImgLists(masks, labels, official.args)
    [ours] = json.loads((told / "report.json").read_text())["domains"]
    assert ours["mean_iou"] == pytest.approx(theirs["averageScoreClasses"], abs=5e-5)
    for name, values in ours["per_class"].items():
        assert (np.nan if values["iou"] is None else values["iou"]) == pytest.approx(
            theirs["classScores"][name], abs=5e-5, nan_ok=True
        )
