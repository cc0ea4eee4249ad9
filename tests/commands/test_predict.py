"""Predict: which mask goes where, what it holds, and that one bad file never costs the others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.api import model as api
from diffcli.classes import CITYSCAPES_PALETTE
from diffcli.commands import predict
from diffcli.config.settings import EvalConfig
from diffcli.core.model import SegmentationModel
from diffcli.drawing.figures import score_colors, score_picture
from diffcli.drawing.pictures import TEXT_HEIGHT
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.prediction.index import INDEX
from diffcli.prediction.inputs import Job, Read
from diffcli.prediction.manifest import MANIFEST
from diffcli.prediction.segmenter import Segmenter
from diffcli.prediction.trained import TrainedNetwork
from diffcli.runtime import console


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> SegmentationModel:
    return api.load(tiny_run, device="cpu")


def picture(seed: int = 0, size: tuple[int, int] = (96, 48)) -> Image.Image:
    """A street-like random picture: smooth, so that JPEG changes it little."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def ids(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


def written(folder: Path) -> list[str]:
    """What lies in a folder of results, beside its manifest and its page."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert not [name for name in names if ".part-" in name]
    return [name for name in names if name not in (MANIFEST, INDEX)]


def targets(jobs: list[Job], output: Path) -> list[str]:
    return sorted(job.mask.relative_to(output).as_posix() for job in jobs)


# ------------------------------------------------------------------------------------------------- planning


def test_a_folder_keeps_its_tree_and_skips_what_is_no_image(tmp_path: Path) -> None:
    for name in ("a.png", "UPPER.JPG", "sub/b.jpeg", "sub/deep/ünï 空.png"):
        save(tmp_path / "in" / name, picture())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    save(tmp_path / "in" / ".hidden.png", picture())
    jobs = predict.plan([str(tmp_path / "in")], output=tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["UPPER.png", "a.png", "sub/b.png", "sub/deep/ünï 空.png"]


def test_files_globs_and_folders_share_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("day/1.png", "night/1.png", "night/2.png", "other/3.png"):
        save(tmp_path / name, picture())
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    assert targets(predict.plan(["day", "night"], output=out), out) == [
        "day/1.png",
        "night/1.png",
        "night/2.png",
    ]
    assert targets(predict.plan(["day/1.png", "night/1.png"], output=out), out) == [
        "day/1.png",
        "night/1.png",
    ]
    assert targets(predict.plan(["*/1.png"], output=out), out) == ["day/1.png", "night/1.png"]
    assert targets(predict.plan(["night/1.png", "night"], output=out), out) == ["1.png", "2.png"]
    assert targets(predict.plan(["**/*.png"], output=out), out) == [
        "day/1.png",
        "night/1.png",
        "night/2.png",
        "other/3.png",
    ]


def test_two_images_of_one_stem_get_a_mask_each(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        save(tmp_path / "in" / name, picture())
    jobs = predict.plan([str(tmp_path / "in")], output=tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png"]


def test_masks_of_an_earlier_call_inside_the_folder_are_no_input(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", picture())
    save(tmp_path / "in" / "masks" / "a.png", picture())
    jobs = predict.plan([str(tmp_path / "in")], output=tmp_path / "in" / "masks")
    assert targets(jobs, tmp_path / "in" / "masks") == ["a.png"]
    globbed = predict.plan([str(tmp_path / "in" / "**" / "*.png")], output=tmp_path / "in" / "masks")
    assert [job.image for job in globbed] == [tmp_path / "in" / "a.png"]


def test_an_image_is_never_overwritten(tmp_path: Path) -> None:
    image = save(tmp_path / "in" / "a.png", picture())
    with pytest.raises(DataError, match="share this folder"):
        predict.plan([str(tmp_path / "in")], output=tmp_path / "in")
    with pytest.raises(DataError, match="would replace an image"):
        predict.plan([str(image)], output=tmp_path / "in")


@pytest.mark.parametrize("name", ["missing", "missing/*.png", "empty"])
def test_nothing_to_segment_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images found|no such file") as caught:
        predict.plan([str(tmp_path / name)], output=tmp_path / "out")
    assert caught.value.hint


def test_a_link_to_the_parent_ends(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", picture())
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    assert len(predict.plan([str(tmp_path / "in")], output=tmp_path / "out")) == 1


# ---------------------------------------------------------------------------------------------------- masks


def test_masks_overlays_and_json(tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.jpg", picture(size=(100, 40)))
    save(tmp_path / "in" / "sub" / "b.png", picture(1, size=(40, 100)))
    with console.json_only():
        predict.run(
            predict.Request(
                images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", overlay=True
            )
        )
    told = json.loads(capsys.readouterr().out)
    assert len(told["images"]) == 2
    assert all(Path(entry[key]).is_file() for entry in told["images"] for key in ("mask", "overlay"))
    assert told["failed"] == []
    assert ids(tmp_path / "out" / "a.png").shape == (40, 100)
    assert ids(tmp_path / "out" / "sub" / "b.png").shape == (100, 40)
    assert ids(tmp_path / "out" / "a.png").max() < 19
    with Image.open(tmp_path / "out" / "a.png") as mask:
        palette = np.reshape(mask.getpalette(), (-1, 3))
    assert np.array_equal(palette[:19], CITYSCAPES_PALETTE)
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as overlay:
        assert overlay.size[1] > 40  # the legend is below


def test_a_mask_depends_on_the_image_and_its_name_alone(tmp_path: Path, tiny_run: Path) -> None:
    for name in ("first/x.png", "second/deep/x.png"):
        save(tmp_path / name, picture(3))
    for seed in range(3):
        save(tmp_path / "second" / f"{seed}.png", picture(seed, size=(96 + 8 * seed, 48)))
    predict.run(predict.Request(images=[str(tmp_path / "first")], run=tiny_run, output=tmp_path / "out1"))
    batched = ["eval.batch_size=3"]
    predict.run(
        predict.Request(
            images=[str(tmp_path / "second")], run=tiny_run, output=tmp_path / "out2", overrides=batched
        )
    )
    one, two = ids(tmp_path / "out1" / "x.png"), ids(tmp_path / "out2" / "deep" / "x.png")
    assert len(np.unique(one)) > 1
    assert (one != two).mean() < 0.005  # another batch size rounds differently, no more


def test_modes_and_rotations_give_the_mask_of_the_plain_image(tmp_path: Path, tiny_run: Path) -> None:
    """RGBA, palette, 16 bits and EXIF are read as what they show: each variant's mask is that of its RGB twin."""
    image = picture(5)
    grey16 = np.asarray(image.convert("L")).astype(np.uint16) * 257
    opaque = image.copy()
    opaque.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = image.quantize(64)
    variants = {
        "rgb": (image, image),
        "rgba": (opaque, image),
        "grey": (image.convert("L"), image.convert("L").convert("RGB")),
        "grey16": (Image.fromarray(grey16), image.convert("L").convert("RGB")),
        "palette": (palette, palette.convert("RGB")),
        "turned": (image, image.transpose(Image.Transpose.ROTATE_270)),
    }
    for name, (variant, twin) in variants.items():
        save(tmp_path / "in" / f"{name}.png", variant, **({"exif": exif} if name == "turned" else {}))
        save(tmp_path / "twins" / f"{name}.png", twin)
    for folder in ("in", "twins"):
        predict.run(
            predict.Request(images=[str(tmp_path / folder)], run=tiny_run, output=tmp_path / f"{folder}-out")
        )
    for name in variants:
        mask, twin_mask = (ids(tmp_path / f"{folder}-out" / f"{name}.png") for folder in ("in", "twins"))
        assert np.array_equal(mask, twin_mask), name


def test_bad_files_are_named_and_the_rest_is_done(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save(tmp_path / "in" / "good.png", picture())
    (tmp_path / "in" / "empty.jpg").touch()
    (tmp_path / "in" / "text.png").write_text("no image")
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:-40])
    with pytest.raises(DataError, match="3 of 4 images") as caught, console.json_only():
        predict.run(predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out"))
    assert all(name in str(caught.value) for name in ("empty.jpg", "text.png", "cut.png"))
    assert written(tmp_path / "out") == ["good.png"]
    told = json.loads(capsys.readouterr().out)
    assert len(told["images"]) == 1
    assert len(told["failed"]) == 3


def test_writing_twice_replaces_and_says_so(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.png", picture())
    for _ in range(2):
        predict.run(predict.Request(images=[str(tmp_path / "a.png")], run=tiny_run, output=tmp_path / "out"))
    assert "replaced" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- references


def test_reference_masks_turn_the_conditional_branch_on(
    tmp_path: Path, tiny_run: Path, evaluations: list[int]
) -> None:
    save(tmp_path / "in" / "sub" / "a.png", picture())
    save(tmp_path / "in" / "b.png", picture(1))
    mask = np.zeros((24, 48), np.uint8)
    mask[:12] = 1  # sidewalk has a prompt, road has none
    for name in ("sub/a.png", "elsewhere/b.png"):
        save(tmp_path / "masks" / name, Image.fromarray(mask))
    predict.run(
        predict.Request(
            images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", reference=tmp_path / "masks"
        )
    )
    assert sum(evaluations) == 2 * 2


def test_a_first_prediction_can_be_the_reference(
    tmp_path: Path, tiny_run: Path, evaluations: list[int]
) -> None:
    save(tmp_path / "a.png", picture())
    options = ["eval.reference=prediction"]
    predict.run(
        predict.Request(
            images=[str(tmp_path / "a.png")], run=tiny_run, output=tmp_path / "out", overrides=options
        )
    )
    assert sum(evaluations) >= 2


def test_bad_references(tmp_path: Path, tiny_run: Path) -> None:
    image = save(tmp_path / "in" / "a.png", picture())
    masks = tmp_path / "masks"
    save(masks / "other.png", Image.new("L", (4, 4)))

    def run(*overrides: str) -> None:
        predict.run(
            predict.Request(
                images=[str(image)],
                run=tiny_run,
                output=tmp_path / "out",
                reference=masks,
                overrides=overrides,
            )
        )

    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        run()
    save(masks / "a.png", Image.new("L", (4, 4), 77))
    with pytest.raises(DataError, match="no train ids: 77"):
        run()
    with pytest.raises(ConfigError, match="contradict"):
        run("eval.reference=prediction")
    with pytest.raises(ConfigError, match="images to predict have none"):
        predict.run(
            predict.Request(
                images=[str(image)], run=tiny_run, output=tmp_path / "o", overrides=["eval.reference=labels"]
            )
        )


def test_an_output_that_is_not_finite_ends_the_work(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save(tmp_path / "a.png", picture())
    monkeypatch.setattr(
        SegmentationModel, "logits", lambda self, images, **_: images.mean(1, keepdim=True) / 0
    )
    with pytest.raises(DiffError, match="not finite in float32"):
        predict.run(predict.Request(images=[str(image)], run=tiny_run, output=tmp_path / "out"))
    assert written(tmp_path / "out") == []


def test_one_image_too_large_for_memory_does_not_cost_the_others(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png", picture(size=(70, 70) if name == "b" else (64, 64)))
    real = SegmentationModel.logits

    def logits(self: SegmentationModel, images: torch.Tensor, **options: Any) -> torch.Tensor:
        if images.shape[-1] == 70:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, images, **options)

    monkeypatch.setattr(SegmentationModel, "logits", logits)
    with pytest.raises(DataError, match=r"b\.png.*not enough memory on cpu for 1 x 70x70"):
        predict.run(
            predict.Request(
                images=[str(tmp_path / "in")],
                run=tiny_run,
                output=tmp_path / "out",
                overrides=["eval.size=null"],
            )
        )
    assert written(tmp_path / "out") == ["a.png", "c.png"]


# ------------------------------------------------------------------------------------------------ heat maps


def test_heat_maps_lie_beside_the_masks(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "a.png", picture(size=(100, 40)))
    for output in ("one", "two"):
        with console.json_only():
            predict.run(
                predict.Request(
                    images=[str(tmp_path / "in")],
                    run=tiny_run,
                    output=tmp_path / output,
                    heatmap="Traffic_Light",
                    overrides=["eval.reference=prediction"] if output == "two" else [],
                )
            )
        told = json.loads(capsys.readouterr().out)
        capsys.readouterr()
        assert [Path(entry["heatmap"]).name for entry in told["images"]] == ["a_traffic_light_heatmap.png"]
    first, second = (tmp_path / name / "a_traffic_light_heatmap.png" for name in ("one", "two"))
    assert written(tmp_path / "one") == ["a.png", first.name]
    with Image.open(first) as drawn:
        assert drawn.size == (100, 40 + TEXT_HEIGHT)
    assert first.read_bytes() != second.read_bytes()  # the reference acts
    predict.run(
        predict.Request(
            images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "three", heatmap="traffic light"
        )
    )
    assert (tmp_path / "three" / first.name).read_bytes() == first.read_bytes()
    assert np.array_equal(ids(tmp_path / "one" / "a.png"), ids(tmp_path / "three" / "a.png"))


@pytest.mark.parametrize("flip", [False, True])
def test_scores_are_softmax_maps_whatever_the_passes(model: SegmentationModel, flip: bool) -> None:
    image, settings = np.array(picture(size=(64, 64))), EvalConfig(flip=flip)
    network = TrainedNetwork(model, settings)
    read = Read(Job(Path("a.png"), Path("out/a.png")), image, image.shape[:2], None, None)
    output = network.maps([image], identities=["a"], references=None, origin=None).output[0]
    probabilities = output if flip else output.softmax(0)
    [planes] = Segmenter(network, settings, score_of=6, confidence=True).segment([read])
    assert planes.score is not None
    assert planes.confidence is not None
    assert np.allclose(planes.score, probabilities[6], atol=1e-6)
    assert np.allclose(planes.confidence, probabilities.amax(0), atol=1e-6)
    assert np.array_equal(planes.mask, output.argmax(0))


def test_an_unknown_class_is_named_before_anything_loads(tmp_path: Path, tiny_run: Path) -> None:
    image = save(tmp_path / "in" / "a.png", picture())
    with pytest.raises(ConfigError, match="no class 'sidewak'") as caught:
        predict.run(
            predict.Request(images=[str(image)], run=tiny_run, output=tmp_path / "out", heatmap="sidewak")
        )
    assert caught.value.hint == "did you mean sidewalk?"


def test_a_heat_map_replaces_no_mask(tmp_path: Path, tiny_run: Path) -> None:
    for name in ("a.png", "a_road_heatmap.png"):
        save(tmp_path / "in" / name, picture())
    with pytest.raises(DataError, match="two images would write this file"):
        predict.run(
            predict.Request(
                images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", heatmap="road"
            )
        )


def test_equal_scores_have_equal_colours_and_the_bar_shows_them() -> None:
    image = np.full((40, 200, 3), 128, np.uint8)
    score = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (40, 1))
    drawn = np.asarray(score_picture(image, score, name="road"))
    assert drawn.shape == (40 + TEXT_HEIGHT, 200, 3)
    assert (drawn[0, :200] == drawn[39, :200]).all()
    bar = drawn[40 + TEXT_HEIGHT // 2]
    ends = [drawn[0, 0], drawn[0, 199]]
    assert all((np.abs(bar.astype(int) - end).sum(-1) < 12).any() for end in ends)
    assert not np.array_equal(*score_colors(np.array([[0.2, 0.8]], np.float32))[0])


def test_a_run_on_the_embedded_model_says_that_it_knows_a_toy_world_only(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.png", picture(0))
    request = predict.Request(
        images=[str(tmp_path / "a.png")],
        run=tiny_run,
        output=tmp_path / "out",
        overrides=["model.backbone.source=embedded"],
    )
    with pytest.raises(DiffError):  # the tiny run's weights do not fit it
        predict.run(request)
    assert "knows a toy world only" in capsys.readouterr().err
