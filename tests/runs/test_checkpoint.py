"""One file holds the trained weights and the settings that built them; every misfit is one clear error."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcli import __version__
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import ModelConfig
from diffcli.core.model import SegmentationModel, join
from diffcli.errors import CheckpointError
from diffcli.runs.checkpoint import fingerprint, load_state, read_checkpoint, save_checkpoint
from diffcli.runs.opening import open_run
from diffcli.runs.tensor_file import FORMAT, write_tensors

Small = Callable[..., ModelConfig]


@pytest.fixture
def saved(model: SegmentationModel, tmp_path: Path) -> Path:
    """A checkpoint whose running statistics have moved."""
    path = tmp_path / "best.safetensors"
    stacks = [torch.randn(2, c, s, s) for c, s in zip(model.extractor.channels, (2, 4, 8), strict=True)]
    with torch.no_grad():
        model.decoder.train()(stacks)
    model.decoder.eval()
    save_checkpoint(path, model, info={"iteration": 7})
    return path


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, **changes: object) -> None:
    """Write the file again with other entries in its header, whole as far as its checksum tells."""
    stored = json.loads(header(path)["diffcli"])
    del stored["sha256"]
    write_tensors(path, load_file(path), kind="diffcli", header=stored | changes)


def load_model(path: Path, *overrides: str) -> SegmentationModel:
    """As every command loads it."""
    return open_run(path, overrides=overrides).load_model(device="cpu", precision="float32")


def test_a_loaded_model_is_the_saved_one(saved: Path, model: SegmentationModel, images: Tensor) -> None:
    loaded = load_model(saved)
    assert loaded.config == model.config
    own = model.decoder.state_dict()
    assert own.keys() == loaded.decoder.state_dict().keys()
    assert all(torch.equal(x, own[name]) for name, x in loaded.decoder.state_dict().items())
    assert torch.equal(loaded.logits(images), model.logits(images))
    assert not loaded.decoder.training


def test_saving_again_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "again.safetensors", load_model(saved), info={"iteration": 7})
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(saved).keys()
    assert header(tmp_path / "again.safetensors") == header(saved)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_nothing_frozen_is_inside(saved: Path, model: SegmentationModel) -> None:
    inside = load_file(saved)
    trained = dict(model.decoder.named_parameters()) | dict(model.decoder.named_buffers())
    assert inside.keys() == trained.keys()
    frozen = {
        x.data_ptr()
        for net in (model.extractor.backbone.unet, model.extractor.backbone.vae)
        for x in net.parameters()
    }
    assert frozen.isdisjoint(x.data_ptr() for x in trained.values())
    weights = sum(x.numel() * x.element_size() for x in inside.values())
    assert saved.stat().st_size < weights + 64_000


def test_what_is_known_about_it(saved: Path, model: SegmentationModel) -> None:
    checkpoint = read_checkpoint(saved)
    assert checkpoint.info["iteration"] == 7
    assert checkpoint.info["version"] == __version__
    assert checkpoint.info["fingerprint"] == fingerprint(model.extractor.backbone)


def test_nothing_is_left_beside_it(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_failed_save_keeps_the_old_file(
    saved: Path, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("diffcli.runs.tensor_file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, model)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


# --- misfits -------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_damaged_file(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"not a safetensors file|cut off"):
        read_checkpoint(saved)


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.999999])
def test_a_flipped_bit_of_a_weight(saved: Path, place: float) -> None:
    content = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(place * (len(content) - start))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged: its checksum"):
        read_checkpoint(saved)


def test_a_flipped_bit_of_the_header(saved: Path) -> None:
    """Refused wherever it is, unless it is in the blanks that fill the header up."""
    whole = saved.read_bytes()
    text = whole[8 : 8 + int.from_bytes(whole[:8], "little")].rstrip()
    for position in range(0, 8 + len(text), 97):
        content = bytearray(whole)
        content[position] ^= 1
        saved.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(saved)


def test_a_later_format_is_refused_by_name(saved: Path) -> None:
    rewrite(saved, format=FORMAT + 1, info={"version": "99.0"})
    with pytest.raises(CheckpointError, match="format 2, and this version of diffcli reads up to 1"):
        read_checkpoint(saved)


def test_an_absurd_header_takes_no_memory(saved: Path) -> None:
    saved.write_bytes((2**62).to_bytes(8, "little") + saved.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="states a header of 4,611,686,018,427,387,904 bytes"):
        read_checkpoint(saved)


def test_noise_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_checkpoint(path)


def test_a_foreign_file(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="diff import"):
        read_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"config": {}}', '{"config": 3, "info": {}}'])
def test_a_damaged_header(saved: Path, damage: str) -> None:
    save_file(load_file(saved), saved, metadata={"diffcli": damage})
    with pytest.raises(CheckpointError):
        read_checkpoint(saved)


def test_settings_of_another_version(saved: Path) -> None:
    stored = json.loads(header(saved)["diffcli"])
    rewrite(saved, config=stored["config"] | {"from_the_future": 1}, info={"version": "99.0"})
    with pytest.raises(CheckpointError, match=r"from_the_future[\s\S]*99\.0"):
        read_checkpoint(saved)


def test_weights_that_do_not_fit(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the model has \(32"):
        load_model(saved, "model.decoder.head_channels=32")
    with pytest.raises(CheckpointError, match=r"missing|unknown"):
        load_model(saved, "model.decoder.fusion=mixing")


def test_each_misfit_is_named(model: SegmentationModel) -> None:
    state = dict(model.decoder.state_dict())
    state["stray"] = torch.zeros(1)
    del state["head.classifier.bias"]
    state["head.classifier.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load_state(model, state, where="here")
    for name in ("unknown stray", "missing head.classifier.bias", "head.classifier.weight is (1,)"):
        assert name in str(error.value)


def test_another_diffusion_model_is_refused(saved: Path, model: SegmentationModel) -> None:
    other = [x + 0.1 for x in fingerprint(model.extractor.backbone)]
    rewrite(saved, info={"fingerprint": other})
    with pytest.raises(CheckpointError, match="another diffusion model"):
        load_model(saved)


def test_half_precision_is_the_same_diffusion_model(
    small: Small, backbone: DiffusionBackbone, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = fingerprint(backbone)
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "unet", deepcopy(backbone.unet).to(torch.bfloat16))
        rounded = fingerprint(backbone)
    assert rounded != exact
    rewrite(saved, info={"fingerprint": rounded})
    assert load_model(saved).config == join(small(), backbone).config
