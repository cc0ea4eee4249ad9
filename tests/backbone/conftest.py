"""Tiny Stable Diffusion models, and a hub's cache that is empty and asks no network."""

import functools
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest

from diffcli.backbone import loading, single_file
from tests.fixtures.sd_layouts import (
    LAYOUTS,
    Original,
    load_source,
    shrink_layouts,
    write_pipeline,
    write_single_file,
)


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrink_layouts(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="session")
def built(layouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pipelines of both layouts as folders sd-1, sd-2, and files sd-1.safetensors, sd-2.safetensors."""
    root = tmp_path_factory.mktemp("models")
    with loading.quiet():
        for name, prediction_type in LAYOUTS.items():
            write_pipeline(root / name, layout=layouts / name, prediction_type=prediction_type, seed=5)
            write_single_file(root / name, root / f"{name}-file" / "model.safetensors")
    return root


@pytest.fixture(scope="session")
def original(built: Path) -> Original:
    """original("sd-1"): a pipeline of `built`, loaded once; nothing may change it."""
    return functools.cache(lambda name: load_source(built / name))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layouts: Path) -> None:
    """Toy layouts, an empty cache, and no way out."""

    def refuse(*_: object) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(single_file, "LAYOUTS", layouts)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the tiny SD 2 pipeline, to be damaged."""
    return Path(shutil.copytree(built / "sd-2", tmp_path / "model"))
