"""Damaged and hostile files through every reader: a result or a DiffError with its place, never anything else."""

import io
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffcli.config.file import dump_config, load_config
from diffcli.data.images import read_image
from diffcli.data.labels import read_pixels
from diffcli.errors import CheckpointError, ConfigError, DataError, DiffError
from diffcli.runs.checkpoint import read_checkpoint
from diffcli.runs.folder import LAST
from diffcli.runs.published import read_published
from tests.fixtures.training import tiny_config

SHORT = pytest.param(40, id="short")
LONG = pytest.param(2000, id="long", marks=pytest.mark.nightly)
both_forms = pytest.mark.parametrize("inputs", [SHORT, LONG])

Edit = tuple[float, int, bytes]
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=6)), min_size=1, max_size=4)
"""Where (a share of the file), how many bytes go, what comes instead."""


def edited(data: bytes, edits: list[Edit], *, keep: float) -> bytes:
    """The bytes after these edits, cut to the share `keep`."""
    for place, gone, new in edits:
        start = int(place * len(data))
        data = data[:start] + new + data[start + gone :]
    return data[: max(1, int(keep * len(data)))]


def fuzz(inputs: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run the decorated function on so many inputs, here and now."""

    def run(check: Callable[..., None]) -> None:
        quiet = settings(max_examples=inputs, suppress_health_check=list(HealthCheck))
        tried, begun = 0, time.monotonic()

        def counted(**values: Any) -> None:
            nonlocal tried
            tried += 1
            check(**values)

        quiet(given(**strategies)(counted))()
        print(f"{tried} inputs in {time.monotonic() - begun:.0f} s, and nothing but an answer or a DiffError")

    return run


KEEP = st.one_of(st.just(1.0), st.floats(0, 1))


# ------------------------------------------------------------------------------------------------- settings

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12),
    st.sampled_from(["auto", "null", "1e3", "..", "/dev/null", "~", "${HOME}", "64x64", "0x0", "\x1b[2J"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3)
)


def leaves(tree: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys of every value of a tree, nodes as well."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in items for found in leaves(value, (*path, key)))]


TREE = yaml.safe_load(dump_config(tiny_config()))
PLACES = leaves(TREE)[1:]


def refusal(read: Callable[[], object], kind: type[DiffError]) -> DiffError | None:
    """The error of this kind, short enough to be read; None where the input is taken."""
    try:
        read()
    except kind as error:
        refused = error
    else:
        return None
    assert refused.message
    assert len(str(refused)) < 5000
    return refused


@both_forms
def test_any_value_at_any_setting(tmp_path: Path, inputs: int) -> None:
    @fuzz(inputs, changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
    def check(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        tree = json.loads(json.dumps(TREE))
        for (*path, last), value in changes:
            node = tree
            for key in path:
                node = node[key] if isinstance(node, dict) and key in node else {}
            if isinstance(node, dict):
                node[last] = value
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        refusal(lambda: load_config(tmp_path / "a.yaml"), ConfigError)


@both_forms
def test_any_bytes_as_settings(tmp_path: Path, inputs: int) -> None:
    whole = dump_config(tiny_config()).encode()

    @fuzz(inputs, edits=EDITS, keep=KEEP)
    def check(edits: list[Edit], keep: float) -> None:
        (tmp_path / "a.yaml").write_bytes(edited(whole, edits, keep=keep))
        refusal(lambda: load_config(tmp_path / "a.yaml"), ConfigError)


@both_forms
def test_any_override(tmp_path: Path, inputs: int) -> None:
    (tmp_path / "a.yaml").write_text(dump_config(tiny_config()))
    keys = st.one_of(st.sampled_from([".".join(map(str, place)) for place in PLACES]), st.text(max_size=20))

    @fuzz(inputs, key=keys, value=st.one_of(st.text(max_size=20), VALUES.map(repr)))
    def check(key: str, value: str) -> None:
        refusal(lambda: load_config(tmp_path / "a.yaml", overrides=[f"{key}={value}"]), ConfigError)


# --------------------------------------------------------------------------------------- images and labels


def encoded(kind: str) -> bytes:
    """A small picture or label file."""
    random = np.random.default_rng(0)
    pixels: dict[str, Any] = {
        "jpeg": random.integers(0, 256, (16, 24, 3)),
        "png": random.integers(0, 256, (16, 24, 3)),
        "label": random.integers(0, 19, (16, 24)),
        "webp": random.integers(0, 256, (16, 24, 3)),
        "tiff": random.integers(0, 19, (16, 24)),
        "bmp": random.integers(0, 19, (16, 24)),
        "gif": random.integers(0, 19, (16, 24)),
    }
    stream = io.BytesIO()
    Image.fromarray(pixels[kind].astype(np.uint8)).save(stream, "PNG" if kind == "label" else kind.upper())
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "label", "webp", "tiff", "bmp", "gif"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # what Pillow says of a damaged TIFF
@both_forms
def test_any_bytes_as_a_picture_or_a_label(tmp_path: Path, kind: str, inputs: int) -> None:
    whole = encoded(kind)

    @fuzz(inputs, edits=EDITS, keep=KEEP)
    def check(edits: list[Edit], keep: float) -> None:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(edited(whole, edits, keep=keep))
        for read in (read_image, read_pixels):
            refused = refusal(lambda read=read: read(path), DataError)
            assert refused is None or refused.where == str(path)


# ---------------------------------------------------------------------------------------------- checkpoints


@both_forms
def test_any_bytes_as_a_checkpoint(tiny_run: Path, tmp_path: Path, inputs: int) -> None:
    """Anywhere in the file, and more often in its header."""
    whole = (tiny_run / LAST).read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]

    @fuzz(inputs, edits=EDITS, keep=KEEP, in_header=st.booleans())
    def check(edits: list[Edit], keep: float, in_header: bool) -> None:
        path = tmp_path / "a.safetensors"
        end = header if in_header else len(whole)
        path.write_bytes(edited(whole[:end], edits, keep=1 if in_header else keep) + whole[end:])
        refused = refusal(lambda: read_checkpoint(path), CheckpointError)
        assert refused is None or refused.where == str(path)


@both_forms
def test_any_bytes_as_a_published_checkpoint(tmp_path: Path, inputs: int) -> None:
    import torch

    torch.save({"state_dict": {"a.weight": torch.zeros(3, 4)}, "meta": {"iter": 4}}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()

    @fuzz(inputs, edits=EDITS, keep=KEEP)
    def check(edits: list[Edit], keep: float) -> None:
        path = tmp_path / "a.pth"
        path.write_bytes(edited(whole, edits, keep=keep))
        refused = refusal(lambda: read_published(path), CheckpointError)
        assert refused is None or refused.where == str(path)
