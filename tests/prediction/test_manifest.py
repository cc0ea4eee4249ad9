"""predictions.jsonl: one line for each image, whoever writes it, and how often."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffcli.errors import DiffError
from diffcli.prediction.manifest import Manifest


def test_lines_of_other_images_stay_and_torn_ones_go(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin([])
    for name in ("a", "b"):
        manifest.add(Path(name), status="done", outputs={"mask": tmp_path / f"{name}.png"}, size=(2, 3))
    with manifest.path.open("a") as file:
        file.write('{"input": "c", "sta')
    manifest.begin([Path("b")])
    manifest.add(Path("b"), status="failed", error="damaged")
    lines = [json.loads(line) for line in manifest.path.read_text().splitlines()]
    assert [(line["input"], line["status"]) for line in lines] == [("a", "done"), ("b", "failed")]
    assert lines[0]["outputs"] == {"mask": "a.png"}
    assert lines[0]["size"] == [3, 2]
    assert {line["schema_version"] for line in lines} == {1}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiffError, match="cannot write here"):
        Manifest(tmp_path / "file" / "out").begin([])


def test_two_calls_into_one_folder_leave_one_line_for_each_image(tmp_path: Path) -> None:
    """Both begin, then both segment the same images, as two processes do that run at once."""
    first, second = Manifest(tmp_path), Manifest(tmp_path)
    images = [Path(name) for name in "abc"]
    first.begin(images)
    second.begin(images)
    for manifest, seconds in ((first, 1.0), (second, 2.0)):
        for image in images:
            manifest.add(image, status="done", seconds=seconds)
        manifest.add(images[0], status="done", frame=0, seconds=seconds)
    first.finish()
    second.finish()
    keys = [(entry.input, entry.frame, entry.seconds) for entry in first.entries()]
    assert keys == [("a", None, 2.0), ("b", None, 2.0), ("c", None, 2.0), ("a", 0, 2.0)]


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    manifest, image = Manifest(tmp_path), Path(os.fsdecode(b"stra\xdfe.png"))
    manifest.begin([image])
    manifest.add(image, status="done", outputs={"mask": tmp_path / image})
    [entry] = manifest.entries()
    assert entry.input == "stra\\xdfe.png"
    manifest.begin([image])
    assert not list(manifest.entries())


def test_lines_written_at_once_stay_whole(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin([])
    with ThreadPoolExecutor(8) as pool:
        for i in range(200):
            pool.submit(manifest.add, Path(f"{i}.png"), status="done")
            if i % 50 == 0:
                pool.submit(manifest.finish)
    assert sorted(int(Path(entry.input).stem) for entry in manifest.entries()) == list(range(200))
