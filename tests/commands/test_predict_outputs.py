"""Predict: every kind of output tells the same masks, and nothing that goes wrong costs what is done."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.classes import CITYSCAPES_CLASSES, CITYSCAPES_ID_OF_TRAIN_ID, CITYSCAPES_PALETTE
from diffcli.commands import predict
from diffcli.core.model import SegmentationModel
from diffcli.errors import ConfigError, DataError, DiffError
from diffcli.prediction.coco import COCO
from diffcli.prediction.index import INDEX
from diffcli.prediction.inputs import plan
from diffcli.prediction.manifest import MANIFEST
from diffcli.prediction.outputs import Outputs


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


def pixels(seed: int = 0, size: tuple[int, int] = (96, 48)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (6, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def save(path: Path, seed: int = 0, size: tuple[int, int] = (96, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).save(path)
    return path


def save_video(path: Path, frames: int = 5, size: tuple[int, int] = (96, 64)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 12, size)
    for seed in range(frames):
        writer.write(np.ascontiguousarray(pixels(seed, size)[..., ::-1]))
    writer.release()
    return path


def frames_of(path: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield read[1][..., ::-1]
    capture.release()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / MANIFEST).read_text().splitlines()]


def written(output: Path) -> list[str]:
    names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    return [name for name in names if name not in (MANIFEST, INDEX, COCO)]


# -------------------------------------------------------------------------------------------------- outputs


def test_no_legend_leaves_pictures_at_the_size_of_the_image(tmp_path: Path, tiny_run: Path) -> None:
    save(tmp_path / "a.png", size=(100, 40))
    request = predict.Request(
        images=[str(tmp_path / "a.png")],
        run=tiny_run,
        output=tmp_path / "out",
        write="color,overlay",
        legend=False,
    )
    predict.run(request)
    assert read(tmp_path / "out" / "a_color.png").shape == (40, 100, 3)
    assert read(tmp_path / "out" / "a_overlay.jpg").shape == (40, 100, 3)


def test_the_index_shows_every_image_and_links_its_files(tmp_path: Path, tiny_run: Path) -> None:
    save(tmp_path / "in" / "a & b.png", size=(100, 40))
    save(tmp_path / "in" / "c.png", 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    request = predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out")
    with pytest.raises(DataError):
        predict.run(request)
    page = (tmp_path / "out" / INDEX).read_text(encoding="utf-8")
    assert page.count("data-confidence=") == 3
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'href="a%20%26%20b.png"' in page
    assert "a &amp; b.png" in page
    assert "failed: " in page
    lines = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()]
    for line in (line for line in lines if line["status"] == "done"):
        assert 0 < line["confidence"] <= 1
        assert f"confidence {100 * line['confidence']:.1f} %" in page


def test_run_lengths_come_as_one_coco_file_too(tmp_path: Path, tiny_run: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name, size=(100, 40))
    request = predict.Request(
        images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", write="rle,mask"
    )
    predict.run(request)
    found = json.loads((tmp_path / "out" / COCO).read_text())
    assert [(one["id"], one["width"], one["height"]) for one in found["images"]] == [
        (1, 100, 40),
        (2, 100, 40),
    ]
    assert [one["id"] for one in found["annotations"]] == [*range(1, len(found["annotations"]) + 1)]
    assert {one["id"] for one in found["categories"]} == set(range(19))
    for number, name in enumerate(("a", "b"), start=1):
        own = [one for one in found["annotations"] if one["image_id"] == number]
        assert sum(one["area"] for one in own) == 100 * 40
        assert {one["category_id"] for one in own} == set(np.unique(read(tmp_path / "out" / f"{name}.png")))


def test_every_kind_tells_the_same_mask(tmp_path: Path, tiny_run: Path) -> None:
    save(tmp_path / "in" / "sub" / "a.png", size=(100, 40))
    save(tmp_path / "in" / "b.png", 1)
    out = tmp_path / "out"
    kinds = "stats, rle,mask,label_ids,colour,overlay,confidence"
    predict.run(predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=out, write=kinds))
    mask = read(out / "sub" / "a.png")
    assert mask.shape == (40, 100)
    assert len(np.unique(mask)) > 1
    table = np.array([CITYSCAPES_ID_OF_TRAIN_ID[i] for i in range(19)])
    assert np.array_equal(read(out / "sub" / "a_label_ids.png"), table[mask])
    color = read(out / "sub" / "a_color.png")  # with a legend below, and a margin where it is wider
    assert np.array_equal(color[:40, :100], np.array(CITYSCAPES_PALETTE)[mask])
    assert color.shape[0] > 40
    assert read(out / "sub" / "a_overlay.jpg").shape == color.shape
    confidence = read(out / "sub" / "a_confidence.png")
    assert confidence.dtype == np.uint8
    stats = json.loads((out / "sub" / "a_stats.json").read_text())
    assert (stats["width"], stats["height"]) == (100, 40)
    assert stats["mean_confidence"] == pytest.approx(confidence.mean() / 255, abs=0.002)
    counts = {CITYSCAPES_CLASSES[i]: n for i, n in enumerate(np.bincount(mask.ravel())) if n}
    assert {name: told["pixels"] for name, told in stats["classes"].items()} == counts
    for name, told in stats["classes"].items():
        own = confidence[mask == CITYSCAPES_CLASSES.index(name)]
        assert told["mean_confidence"] == pytest.approx(own.mean() / 255, abs=0.002)
    rle = json.loads((out / "sub" / "a_rle.json").read_text())
    assert {entry["category"]: entry["area"] for entry in rle} == counts
    first, second = sorted(lines(out), key=lambda line: line["input"], reverse=True)
    assert first["input"] == str(tmp_path / "in" / "sub" / "a.png")
    assert first["outputs"] == {
        "mask": "sub/a.png",
        "label-ids": "sub/a_label_ids.png",
        "color": "sub/a_color.png",
        "overlay": "sub/a_overlay.jpg",
        "confidence": "sub/a_confidence.png",
        "stats": "sub/a_stats.json",
        "rle": "sub/a_rle.json",
    }
    assert first["size"] == [100, 40]
    assert first["status"] == second["status"] == "done"
    assert first["seconds"] > 0


def test_only_what_is_named_is_written(tmp_path: Path, tiny_run: Path) -> None:
    image = save(tmp_path / "a.png")
    predict.run(predict.Request(images=[str(image)], run=tiny_run, output=tmp_path / "one", write="color"))
    assert written(tmp_path / "one") == ["a_color.png"]
    predict.run(
        predict.Request(
            images=[str(image)], run=tiny_run, output=tmp_path / "two", write="stats", overlay=True
        )
    )
    assert written(tmp_path / "two") == ["a_overlay.jpg", "a_stats.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": "mask,overlai"}, "no 'overlai'"),
        ({"write": ","}, "names nothing"),
        ({"write": "uncertainty"}, "several draws"),
        ({"write": "video"}, "no input is a video"),
        ({"tile": "512"}, "not a size"),
        ({"tile": "64x64"}, "too small"),
        ({"batch": "many"}, "neither a number"),
        ({"batch": "0"}, "neither a number"),
        ({"samples": 0}, "from 1 to 1000"),
        ({"samples": 1001}, "from 1 to 1000"),
        ({"refine": -1}, "from 0 to 100"),
        ({"refine": 101}, "from 0 to 100"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, tiny_run: Path, options: dict[str, Any], message: str
) -> None:
    image = save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=message):
        predict.run(predict.Request(images=[str(image)], run=tiny_run, output=tmp_path / "out", **options))


def test_a_class_list_of_one_s_own_has_no_label_ids() -> None:
    with pytest.raises(ConfigError, match="no label id for lawn, pond"):
        Outputs(("label-ids",), (), ("road", "lawn", "pond"), np.zeros((256, 3), np.uint8))


def test_outputs_of_two_images_never_meet(tmp_path: Path, tiny_run: Path) -> None:
    for name in ("a.png", "a_color.png"):
        save(tmp_path / "in" / name)
    with pytest.raises(DataError, match=r"two images would write this file: .*a\.png and .*a_color\.png"):
        predict.run(
            predict.Request(
                images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", write="mask,color"
            )
        )
    assert not (tmp_path / "out").exists()
    predict.run(
        predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", write="color")
    )
    assert written(tmp_path / "out") == ["a_color.png", "a_color_color.png"]


# --------------------------------------------------------------------------------------------------- inputs


def test_lists_name_images_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/1.png", "y/ünï 空.png", "y/3.png"):
        save(tmp_path / name)
    (tmp_path / "list.txt").write_text("x/1.png\r\n\ny/ünï 空.png\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = [job.mask.relative_to("out").as_posix() for job in plan(["@list.txt"], output=Path("out"))]
    assert names == ["x/1.png", "y/ünï 空.png"]
    jobs = plan(["@list.txt", "y/3.png", "x/1.png"], output=Path("out"))
    assert len(jobs) == 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("x/1.png\ny/3.png\n"))
    assert [job.image.name for job in plan(["-"], output=Path("out"))] == ["1.png", "3.png"]


def test_a_missing_path_of_a_list_costs_only_itself(tmp_path: Path, tiny_run: Path) -> None:
    good = save(tmp_path / "good.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/gone[1].png\n{good}\n")
    with pytest.raises(DataError, match=r"1 of 2 images(?s:.*)gone\[1\]\.png.*No such file"):
        predict.run(predict.Request(images=[f"@{tmp_path}/list.txt"], run=tiny_run, output=tmp_path / "out"))
    assert written(tmp_path / "out") == ["good.png"]
    assert [line["status"] for line in lines(tmp_path / "out")] == ["failed", "done"]


def test_lists_that_are_none(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png")
    with pytest.raises(DataError, match="list cannot be read: No such file") as caught:
        plan([f"@{tmp_path}/none.txt"], output=tmp_path / "out")
    assert "./@" in str(caught.value.hint)
    with pytest.raises(DataError, match="no list of paths"):
        plan([f"@{image}"], output=tmp_path / "out")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="no images found"):
        plan([f"@{tmp_path}/empty.txt"], output=tmp_path / "out")


def test_a_video_becomes_a_video(tmp_path: Path, tiny_run: Path) -> None:
    clip = save_video(tmp_path / "clip.mp4", frames=7)
    predict.run(predict.Request(images=[str(clip)], run=tiny_run, output=tmp_path / "out"))
    assert written(tmp_path / "out") == ["clip_segmented.mp4"]
    made = list(frames_of(tmp_path / "out" / "clip_segmented.mp4"))
    assert len(made) == 7
    assert made[0].shape == (488, 240, 3)  # all classes of the legend, at the same height in each frame
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip_segmented.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    capture.release()
    [line] = lines(tmp_path / "out")
    assert (line["status"], line["frames"], line["size"]) == ("done", 7, [96, 64])
    assert line["outputs"] == {"video": "clip_segmented.mp4"}


@pytest.mark.slow
def test_frames_come_in_order_and_are_segmented_as_images(tmp_path: Path, tiny_run: Path) -> None:
    clip = save_video(tmp_path / "clip.mp4")
    out = tmp_path / "out"
    predict.run(predict.Request(images=[str(clip)], run=tiny_run, output=out, write="mask,video", batch="2"))
    assert written(out) == [*(f"clip/{i:06d}.png" for i in range(5)), "clip_segmented.mp4"]
    told = [line.get("frame") for line in lines(out)]  # as their files came onto the disk
    assert sorted(told, key=lambda frame: 5 if frame is None else frame) == [*range(5), None]
    for number, frame in enumerate(frames_of(clip)):
        Image.fromarray(np.ascontiguousarray(frame)).save(tmp_path / "clip.png")
        predict.run(
            predict.Request(images=[str(tmp_path / "clip.png")], run=tiny_run, output=tmp_path / "one")
        )
        mask = read(tmp_path / "one" / "clip.png")
        assert (mask != read(out / "clip" / f"{number:06d}.png")).mean() < 0.005


def test_videos_without_frames_cost_only_themselves(tmp_path: Path, tiny_run: Path, repository: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.avi").write_text("no video")
    whole = save_video(tmp_path / "whole.mp4", frames=40)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    inputs = [str(tmp_path / name) for name in ("empty.mp4", "text.avi", "cut.mp4", "whole.mp4")]
    with pytest.raises(DataError, match="3 of 4"):
        predict.run(predict.Request(images=inputs, run=tiny_run, output=tmp_path / "out"))
    assert written(tmp_path / "out") == ["whole_segmented.mp4"]
    assert [line["status"] for line in lines(tmp_path / "out")] == ["failed"] * 3 + ["done"]
    code = (
        "import sys\nfrom pathlib import Path\nfrom diffcli.prediction.video import count_frames\n"
        "print([count_frames(Path(path)) for path in sys.argv[1:]], 'torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, *inputs],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "[1, 1, 1, 40] False\n"
    assert told.stderr == ""  # what OpenCV and FFmpeg have to say is no user's business


def test_a_video_s_frames_have_their_folder_to_themselves(tmp_path: Path) -> None:
    save(tmp_path / "in" / "clip" / "000000.png")
    (tmp_path / "in" / "clip.mp4").touch()
    with pytest.raises(DataError, match="folder of the frames"):
        plan([str(tmp_path / "in" / "clip.mp4"), str(tmp_path / "in")], output=tmp_path / "out")


# ------------------------------------------------------------------------------------ what is there already


def test_skip_existing_goes_on_where_a_call_was_interrupted(
    tmp_path: Path, tiny_run: Path, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        save(tmp_path / "in" / f"{number}.png", number)
    out = tmp_path / "out"
    counted = SegmentationModel.logits

    def interrupted(self: SegmentationModel, images: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(passes) == 2:
            raise KeyboardInterrupt
        return counted(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModel, "logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict.run(predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=out))
    assert written(out) == ["0.png", "1.png"]
    assert [line["status"] for line in lines(out)] == ["done", "done"]
    before = (out / "0.png").stat().st_mtime_ns
    predict.run(predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=out, skip_existing=True))
    assert len(passes) == 4
    assert (out / "0.png").stat().st_mtime_ns == before
    assert [line["status"] for line in lines(out)] == ["done"] * 4
    predict.run(predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=out, skip_existing=True))
    assert len(passes) == 4
    predict.run(
        predict.Request(
            images=[str(tmp_path / "in")], run=tiny_run, output=out, skip_existing=True, write="mask,color"
        )
    )
    assert len(passes) == 8
    (out / MANIFEST).unlink()
    predict.run(predict.Request(images=[str(tmp_path / "in")], run=tiny_run, output=out, skip_existing=True))
    assert [line["status"] for line in lines(out)] == ["skipped"] * 4


def test_skip_existing_knows_frames_and_videos(tmp_path: Path, tiny_run: Path, passes: list[Any]) -> None:
    clip, out = save_video(tmp_path / "clip.mp4"), tmp_path / "out"
    predict.run(predict.Request(images=[str(clip)], run=tiny_run, output=out, write="mask"))
    (out / "clip" / "000003.png").unlink()
    predict.run(
        predict.Request(images=[str(clip)], run=tiny_run, output=out, write="mask", skip_existing=True)
    )
    assert len(passes) == 5 + 1
    assert written(out) == [f"clip/{i:06d}.png" for i in range(5)]
    predict.run(predict.Request(images=[str(clip)], run=tiny_run, output=out))
    predict.run(predict.Request(images=[str(clip)], run=tiny_run, output=out, skip_existing=True))
    assert len(passes) == 5 + 1 + 5


def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, tiny_run: Path, passes: list[Any]
) -> None:
    image = save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(DiffError, match="cannot write here: Not a directory"):
        predict.run(predict.Request(images=[str(image)], run=tiny_run, output=tmp_path / "file" / "out"))
    assert passes == []


def test_a_file_that_cannot_be_written_ends_the_work_and_keeps_what_is_done(
    tmp_path: Path, tiny_run: Path
) -> None:
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "out" / "b_color.png").mkdir(parents=True)
    with pytest.raises(DiffError, match=r"b_color\.png"):
        predict.run(
            predict.Request(
                images=[str(tmp_path / "in")], run=tiny_run, output=tmp_path / "out", write="color"
            )
        )
    assert "a_color.png" in written(tmp_path / "out")
    told = {(Path(line["input"]).stem, line["status"]) for line in lines(tmp_path / "out")}
    assert told == {("a", "done"), ("b", "failed")}
