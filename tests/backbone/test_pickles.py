"""Pickled weights: their tensors are read when that is allowed, and no code in them is ever run."""

import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffcli.backbone.pickles import read_pickle, read_tensors
from diffcli.errors import BackboneError
from tests.fixtures.sd_layouts import Original, load_source, same_networks

CONVERSION = "model.backbone.allow_pickle: true"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


def to_pickles(folder: Path, suffix: str = ".bin") -> None:
    """Every .safetensors file as a pickled one."""
    for path in list(folder.rglob("*.safetensors")):
        name = path.name.replace("model.safetensors", "pytorch_model.safetensors")
        target = path.with_name(name if path.parent.name == "text_encoder" else path.name).with_suffix(suffix)
        torch.save(load_file(path), target)
        path.unlink()


def test_a_folder_of_pickled_weights(original: Original, folder: Path) -> None:
    to_pickles(folder)
    with pytest.raises(BackboneError, match="only pickled weights") as caught:
        load_source(folder)
    assert CONVERSION in str(caught.value.hint)
    assert same_networks(load_source(folder, allow_pickle=True), original("sd-2"))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_single_pickled_file(
    built: Path, original: Original, tmp_path: Path, suffix: str, legacy: bool
) -> None:
    path = (tmp_path / "model").with_suffix(suffix)
    state = load_file(built / "sd-1-file" / "model.safetensors")
    torch.save({"state_dict": state, "global_step": 7}, path, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "tokenizer").symlink_to(built / "sd-1" / "tokenizer")
    with pytest.raises(BackboneError, match="a pickled file") as caught:
        load_source(path)
    assert CONVERSION in str(caught.value.hint)
    assert same_networks(load_source(path, allow_pickle=True), original("sd-1"))


def test_pickled_weights_of_the_unet(built: Path, original: Original, tmp_path: Path) -> None:
    path = tmp_path / "unet.bin"
    torch.save(load_file(built / "sd-1/unet/diffusion_pytorch_model.safetensors"), path)
    other = load_source(built / "sd-1", unet_weights=path, allow_pickle=True)
    assert same_networks(other, original("sd-1"))


def test_objects_of_a_trainer_become_placeholders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As checkpoints of PyTorch Lightning hold them, which need not be installed."""
    module: Any = ModuleType("a_trainer")
    module.Callback = type("Callback", (), {"__module__": "a_trainer", "__reduce_ex__": object.__reduce_ex__})
    monkeypatch.setitem(__import__("sys").modules, "a_trainer", module)
    callback = module.Callback()
    callback.best = 0.5
    weights = {"x": torch.ones(3)}
    torch.save({"state_dict": weights, "callbacks": {module.Callback: callback}}, tmp_path / "a.ckpt")
    monkeypatch.delitem(__import__("sys").modules, "a_trainer")
    assert torch.equal(read_tensors(tmp_path / "a.ckpt")["x"], weights["x"])


@pytest.mark.parametrize("place", ["bare", "beside", "legacy"])
def test_code_is_never_run(tmp_path: Path, place: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    content: Any = Touch(ran) if place == "bare" else {"state_dict": {"x": torch.ones(1)}, "y": Touch(ran)}
    torch.save(content, path, _use_new_zipfile_serialization=place != "legacy")
    with pytest.raises(BackboneError, match="not executed"):
        read_pickle(path)
    assert not ran.exists()


def test_odd_files(tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    cyclic: dict[str, Any] = {}
    cyclic["state_dict"] = cyclic
    bomb = torch.zeros(1).expand(2**40)
    for content, message in (
        (cyclic, "holds itself"),
        ([1, 2], "no named tensors"),
        ({1: torch.ones(1)}, "no named tensors"),
        ({"x": 1}, "no named tensors"),
        ({"x": bomb}, "more than is stored of it"),
        ({"x": torch.ones(3).to_sparse()}, "not a dense tensor"),
    ):
        torch.save(content, path)
        with pytest.raises(BackboneError, match=message):
            read_tensors(path)
    for junk in (b"", b"PK\x03\x04junk", b"\x80\x02junk", b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(junk)
        with pytest.raises(BackboneError):
            read_tensors(path)


def test_an_archive_that_would_grow(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(BackboneError, match="not a whole weight file"):
        read_tensors(path)
