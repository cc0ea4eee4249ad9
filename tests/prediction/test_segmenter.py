"""The segmenter on a real tiny model: batches that fit, tiles without seams, refinement, several draws of noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.core.model import SegmentationModel, to_model_range
from diffcli.core.noise_field import field_noise
from diffcli.errors import DiffError
from diffcli.prediction.inputs import Job, Read
from diffcli.prediction.planes import Planes
from diffcli.prediction.segmenter import Segmenter
from diffcli.prediction.trained import TrainedNetwork


@pytest.fixture
def model(tiny_model: SegmentationModel) -> SegmentationModel:
    return tiny_model


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(batch, height, width) of every call of the network."""
    seen: list[tuple[int, int, int]] = []
    real = SegmentationModel.logits

    def logits(self: SegmentationModel, images: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((len(images), images.shape[-2], images.shape[-1]))
        return real(self, images, **options)

    monkeypatch.setattr(SegmentationModel, "logits", logits)
    return seen


def limit_memory(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """The network runs out of memory where a batch has more pixels."""
    real = SegmentationModel.logits

    def logits(self: SegmentationModel, images: torch.Tensor, **options: Any) -> torch.Tensor:
        if images[:, 0].numel() > pixels:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, images, **options)

    monkeypatch.setattr(SegmentationModel, "logits", logits)


def picture(
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    name: str = "a",
    *,
    file: tuple[int, int] | None = None,
    reference: np.ndarray | None = None,
) -> Read:
    """A smooth random image that the network sees at size (W,H); its file has the size (H,W)."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 12, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
    job = Job(Path(f"{name}.png"), Path(f"out/{name}.png"))
    return Read(job, image, file or image.shape[:2], None, reference)


def made(model: SegmentationModel, settings: EvalConfig, *, samples: int = 1, **options: Any) -> Segmenter:
    return Segmenter(TrainedNetwork(model, settings, samples=samples), settings, **options)


def one(segmenter: Segmenter, read: Read) -> Planes:
    [planes] = segmenter.segment([read])
    return planes


# -------------------------------------------------------------------------------------------------- batches


def test_auto_batches_shrink_until_they_fit_and_stay_so(
    model: SegmentationModel, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 2 * 64 * 64)
    segmenter = made(model, EvalConfig(), batch=None)
    reads = [picture(seed, name=str(seed)) for seed in range(7)]
    found = list(segmenter.segment(reads))
    assert [count for count, _, _ in passes] == [1] * 7  # 7 and 3 do not fit
    assert segmenter.batch_size == 1
    alone = made(model, EvalConfig())
    assert all((one(alone, read).mask != p.mask).mean() < 0.01 for read, p in zip(reads, found, strict=True))


def test_on_a_cpu_an_auto_batch_is_a_number_of_pixels(model: SegmentationModel, passes: list[Any]) -> None:
    segmenter = made(model, EvalConfig(), batch=None)
    list(segmenter.segment([picture(i, size=(128, 128), name=str(i)) for i in range(6)]))
    list(segmenter.segment([picture(size=(320, 320))]))
    assert [count for count, _, _ in passes] == [4, 2, 1]


def test_a_batch_that_was_asked_for_is_not_made_smaller(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 2 * 64 * 64)
    reads = [picture(seed) for seed in range(3)]
    with pytest.raises(DiffError, match="not enough memory on cpu for 3 x 64x64"):
        list(made(model, EvalConfig(), batch=3).segment(reads))


# ---------------------------------------------------------------------------------------------------- tiles


def test_large_images_go_in_tiles_and_small_ones_do_not(model: SegmentationModel, passes: list[Any]) -> None:
    segmenter = made(model, EvalConfig(), tile=Size(130, 128), confidence=True, score_of=3, samples=2)
    planes = one(segmenter, picture(size=(300, 200)))
    tiles = [(128, 192), (128, 172), (128, 192), (128, 172), (72, 192), (72, 172)]
    assert [
        tuple(shape) for _, *shape in passes[::2]
    ] == tiles  # from 0, 64 and 128 down, from 0 and 128 across
    assert passes[::2] == passes[1::2]
    for plane in (planes.mask, planes.confidence, planes.score, planes.uncertainty):
        assert plane is not None
        assert plane.shape == (200, 300)
    assert planes.confidence is not None
    assert planes.confidence.min() >= 1 / 19 - 1e-5
    small = picture(size=(120, 90))
    tiled, plain = made(model, EvalConfig(), tile=Size(130, 128)), made(model, EvalConfig())
    assert np.array_equal(one(tiled, small).mask, one(plain, small).mask)


def test_one_tile_of_the_whole_image_is_the_whole_image(model: SegmentationModel) -> None:
    """Under the field's noise, blending adds nothing of its own."""
    read = picture(size=(192, 128))
    segmenter = made(model, EvalConfig(), tile=Size(192, 128), confidence=True)
    segmenter._is_tiled = lambda read: True  # type: ignore[method-assign]
    output = model.logits(
        to_model_range(torch.from_numpy(read.image)[None]),
        identities=["a"],
        noise_source=lambda seed, names: field_noise(seed, names, origin=(0, 0)),
    )
    planes = one(segmenter, read)
    assert np.array_equal(planes.mask, output[0].argmax(0))
    assert planes.confidence is not None
    assert np.allclose(planes.confidence, output[0].softmax(0).amax(0), atol=1e-5)


def test_an_image_that_memory_does_not_hold_goes_in_tiles(
    model: SegmentationModel, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 512 * 512)
    said: list[str] = []
    segmenter = made(model, EvalConfig(), on_retile=said.append)
    planes = one(segmenter, picture(size=(640, 448)))
    assert said == ["memory does not hold 640x448 pixels: in tiles of 512x512 from here on"]
    assert planes.mask.shape == (448, 640)
    assert [shape for _, *shape in passes] == [[448, 512], [448, 512]]


def test_planes_of_tiles_are_brought_to_the_file_s_size(model: SegmentationModel) -> None:
    segmenter = made(model, EvalConfig(), tile=Size(128, 128), samples=2, confidence=True)
    planes = one(segmenter, picture(size=(200, 150), file=(75, 100)))
    for plane in (planes.mask, planes.confidence, planes.uncertainty):
        assert plane is not None
        assert plane.shape == (75, 100)


def test_tiles_take_their_part_of_a_reference(model: SegmentationModel) -> None:
    """Sidewalk on the left half alone: tiles on the right evaluate one prompt less."""
    reference = np.zeros((64, 128), np.uint8)
    reference[:, :32] = 1
    read = picture(size=(256, 128), reference=reference)
    before = model.extractor.backbone.evaluations
    one(made(model, EvalConfig(), tile=Size(128, 128)), read)
    assert model.extractor.backbone.evaluations - before == 2 + 1 + 1  # tiles at 0, 64 and 128


# ---------------------------------------------------------------------------------- refinement and draws


@pytest.mark.parametrize("tile", [None, Size(128, 128)])
def test_refinement_feeds_the_prediction_back(
    model: SegmentationModel, tile: Size | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = picture(size=(192, 128)), []
    real = SegmentationModel.logits

    def logits(self: SegmentationModel, images: torch.Tensor, **options: Any) -> torch.Tensor:
        references = options["references"]
        seen.append(None if references is None else references[0])
        return real(self, images, **options)

    monkeypatch.setattr(SegmentationModel, "logits", logits)
    first = one(made(model, EvalConfig(), tile=tile), read).mask
    count = len(seen)
    one(made(model, EvalConfig(), tile=tile, refine=2), read)
    assert len(seen) == count + 3 * count
    assert all(reference is None for reference in seen[: 2 * count])
    assert np.array_equal(seen[2 * count], first[:, : seen[2 * count].shape[1]])
    assert all(reference is not None for reference in seen[2 * count :])


def test_eval_reference_prediction_is_one_refinement(model: SegmentationModel) -> None:
    read = picture(size=(128, 64))
    setting = one(made(model, EvalConfig(reference="prediction")), read)
    option = one(made(model, EvalConfig(), refine=1), read)
    images = to_model_range(torch.from_numpy(read.image)[None])
    first = model.logits(images, identities=["a"])
    output = model.logits(images, identities=["a"], references=list(first.argmax(1)))
    assert np.array_equal(setting.mask, option.mask)
    assert np.array_equal(setting.mask, output[0].argmax(0))


def test_draws_are_averaged_and_their_disagreement_is_mutual_information(model: SegmentationModel) -> None:
    read = picture(size=(128, 64))
    planes = one(made(model, EvalConfig(), samples=3, confidence=True), read)
    images = to_model_range(torch.from_numpy(read.image)[None])
    maps = torch.stack(
        [model.logits(images, identities=[name])[0].softmax(0) for name in ("a", "a#1", "a#2")]
    )
    mean = maps.mean(0)
    entropy = -(mean * mean.log()).sum(0)
    own = -(maps * maps.clamp(min=1e-30).log()).sum(1).mean(0)
    assert np.array_equal(planes.mask, mean.argmax(0))
    assert planes.confidence is not None
    assert planes.uncertainty is not None
    assert np.allclose(planes.confidence, mean.amax(0), atol=1e-5)
    assert np.allclose(planes.uncertainty, (entropy - own) / np.log(3), atol=1e-4)
    assert planes.uncertainty.max() > 0.01


# ------------------------------------------------------------------------------------- modes and variants


def slide(window: int, stride: int) -> EvalConfig:
    return EvalConfig(mode="slide", window=Size(window, window), stride=Size(stride, stride))


def test_slide_is_the_same_tiling(model: SegmentationModel, passes: list[Any]) -> None:
    """Windows are tiles: blended, under one field of noise; the stride says how much they overlap."""
    read = picture(size=(256, 128))
    windows = one(made(model, slide(128, 96)), read)
    tiles = one(made(model, EvalConfig(), tile=Size(128, 128)), read)
    assert np.array_equal(windows.mask, tiles.mask)
    assert len(passes) == 2 * 3
    passes.clear()
    one(made(model, slide(192, 64)), read)
    assert [shape[1:] for shape in passes] == [(128, 192), (128, 192)]
    small = picture(size=(128, 64))
    assert np.array_equal(
        one(made(model, slide(128, 96)), small).mask, one(made(model, EvalConfig()), small).mask
    )


def test_a_tile_that_memory_does_not_hold_is_an_error(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 128 * 128)
    for settings, options in ((EvalConfig(), {"tile": Size(256, 256)}), (slide(256, 192), {})):
        segmenter = made(model, settings, on_retile=pytest.fail, **options)
        for size in ((320, 320), (256, 192)):
            with pytest.raises(DiffError, match="not enough memory on cpu"):
                one(segmenter, picture(size=size))
    with pytest.raises(DiffError, match="not enough memory on cpu"):
        one(made(model, EvalConfig()), picture(size=(640, 448)))


def test_mirroring_and_scales_average_softmax_maps(model: SegmentationModel) -> None:
    read = picture(size=(128, 64))
    images = to_model_range(torch.from_numpy(read.image)[None])
    straight = model.logits(images, identities=["a"]).softmax(1)
    mirrored = model.logits(images.flip(-1), identities=["a"]).flip(-1).softmax(1)
    planes = one(made(model, EvalConfig(flip=True), score_of=2), read)
    assert planes.score is not None
    assert np.allclose(planes.score, ((straight + mirrored) / 2)[0, 2], atol=1e-6)
    before = model.extractor.backbone.evaluations
    scaled = one(made(model, EvalConfig(scales=(0.5, 1.0, 1.3), flip=True), confidence=True), read)
    assert model.extractor.backbone.evaluations - before == 6
    assert scaled.mask.shape == (64, 128)
