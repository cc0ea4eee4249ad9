"""`backbone.unet_weights`: another state dict for the U-Net, which fits, or one clear error before it is read."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcli.backbone import hub, unet_weights
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.backbone.locate import EMBEDDED_FOLDER
from diffcli.config.settings import EMBEDDED, BackboneConfig, ModelConfig
from diffcli.core.model import build_model
from diffcli.errors import BackboneError, CheckpointError
from diffcli.runs.checkpoint import save_checkpoint
from diffcli.runs.opening import open_run
from diffcli.runtime import memory

UNET = "unet/diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")
State = dict[str, Tensor]


def load(source: Path | str, path: Path | None, dtype: torch.dtype = torch.float32) -> DiffusionBackbone:
    config = BackboneConfig(source=str(source), unet_weights=path)
    return load_backbone(config, prompts=("",), device=CPU, dtype=dtype)


def tuned(state: State, *, by: float) -> State:
    """The state dict after a little fine-tuning: every weight moved by a share of its size."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (x.float() + by * x.float().abs().mean() * torch.randn(x.shape, generator=generator)).to(
            x.dtype
        )
        for name, x in state.items()
    }


@pytest.fixture
def tiny(parity_data: Path) -> Path:
    return parity_data / "tiny-sd"


@pytest.fixture
def tiny_state(tiny: Path) -> State:
    return load_file(tiny / UNET)


@pytest.fixture
def weights(tiny_state: State, tmp_path: Path) -> Path:
    path = tmp_path / "tuned.safetensors"
    save_file(tuned(tiny_state, by=0.1), path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_replace_those_of_the_source(tiny: Path, weights: Path, dtype: torch.dtype) -> None:
    plain, replaced = load(tiny, None, dtype), load(tiny, weights, dtype)
    expected = {name: x.to(dtype) for name, x in load_file(weights).items()}
    own = replaced.unet.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in own.items())
    assert all(
        torch.equal(x, y) for x, y in zip(plain.vae.parameters(), replaced.vae.parameters(), strict=True)
    )
    assert torch.equal(plain.prompt_embeddings[""], replaced.prompt_embeddings[""])
    assert not any(x.requires_grad for x in replaced.unet.parameters())
    noise = [one.predict_noise(torch.ones(1, 4, 8, 8), 10, [""]) for one in (plain, replaced)]
    assert not torch.allclose(*noise)


def test_a_copy_of_the_own_weights_changes_nothing_on_the_embedded_model(tmp_path: Path) -> None:
    save_file(load_file(EMBEDDED_FOLDER / UNET), tmp_path / "same.safetensors")
    plain = load(EMBEDDED, None)
    latent = torch.randn(1, plain.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    same = load(EMBEDDED, tmp_path / "same.safetensors")
    assert torch.equal(plain.predict_noise(latent, 10, [""]), same.predict_noise(latent, 10, [""]))


def _without(state: State, *names: str) -> State:
    return {name: x for name, x in state.items() if name not in names}


def _renamed(state: State) -> State:
    return {f"model.diffusion_model.{name}": x for name, x in state.items()}


MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        lambda state: _without(state, "conv_in.bias", "conv_out.bias"),
        r"2 tensors missing \(conv_in.bias, conv_out.bias\)$",
    ),
    "unexpected": (lambda state: {**state, "lora": torch.zeros(1)}, r"1 tensor unexpected \(lora\)"),
    "shape": (
        lambda state: {**state, "conv_in.bias": torch.zeros(5)},
        r"1 tensor of another shape \(conv_in.bias is 5, not 16\)",
    ),
    "other names": (_renamed, r"\d+ tensors missing \(conv_in.bias, .*, \.\.\.\); \d+ tensors unexpected"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_another_networks_weights(
    tiny: Path, tiny_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Names and shapes, first few and counts; found by the header, before any weight is read."""
    change, message = MISFITS[case]
    path = tmp_path / "other.safetensors"
    save_file(change(tiny_state), path)
    monkeypatch.setattr(unet_weights, "load_file", lambda _: pytest.fail("weights were read"))
    with pytest.raises(BackboneError) as caught:
        load(tiny, path)
    assert caught.value.where == str(path)
    assert "diffusers' names" in str(caught.value.hint)
    assert re.search(message, caught.value.message)


def test_files_that_hold_no_state_dict(tiny: Path, weights: Path, tmp_path: Path) -> None:
    cut, text = tmp_path / "cut.safetensors", tmp_path / "text.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    torch.save({}, text)
    pickled = tmp_path / "clean.pth"
    torch.save({}, pickled)
    for path, message in (
        (tmp_path / "none.safetensors", "no such file"),
        (tmp_path, "this is a folder"),
        (pickled, "a pickled file, which may hold code as well as weights"),
        (text, "not a safetensors file"),
        (cut, "cut off"),
    ):
        with pytest.raises(BackboneError, match=message) as caught:
            load(tiny, path)
        assert caught.value.where == str(path)


def test_they_contradict_random_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unet_weights and random_weights contradict each other"):
        BackboneConfig(unet_weights=tmp_path / "x.safetensors", random_weights=True)


def test_the_sources_own_weights_are_not_needed(tiny: Path, weights: Path, tmp_path: Path) -> None:
    """Neither from a folder, whose U-Net has settings alone, nor from the hub."""
    for file in tiny.rglob("*"):
        if file.is_file() and file.relative_to(tiny) != Path(UNET):
            target = tmp_path / "sd" / file.relative_to(tiny)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    with pytest.raises(BackboneError, match="the weights are missing"):
        load(tmp_path / "sd", None)
    assert load(tmp_path / "sd", weights).unet.conv_in.weight.shape[0] == 16
    names = [str(file.relative_to(tiny)) for file in tiny.rglob("*") if file.is_file()]
    assert UNET in hub.choose_files(names, variant=None, where="x")
    assert UNET not in hub.choose_files(names, variant=None, where="x", components=("vae", "text_encoder"))


def test_their_memory_is_counted(tiny: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(tiny, weights)
    needed = 4 * sum(x.numel() for net in (backbone.unet, backbone.vae) for x in net.parameters())
    monkeypatch.setattr(memory, "host_memory", lambda: needed - 1)
    with pytest.raises(BackboneError, match="not enough memory"):
        load(tiny, weights)
    monkeypatch.setattr(memory, "host_memory", lambda: needed)
    load(tiny, weights)


@pytest.mark.slow
def test_a_run_is_refused_on_other_weights(
    small: Callable[..., ModelConfig], tiny_state: State, tmp_path: Path
) -> None:
    """As little as fine-tuning moves them: a decoder of the plain U-Net on the tuned one, and the other way round."""
    path = tmp_path / "tuned.safetensors"
    save_file(tuned(tiny_state, by=0.03), path)
    plain = small()
    backbone = plain.backbone.model_copy(update={"unet_weights": path})
    replaced = plain.model_copy(update={"backbone": backbone})
    for name, config, other in (("a", plain, replaced), ("b", replaced, plain)):
        checkpoint = tmp_path / f"{name}.safetensors"
        save_checkpoint(checkpoint, build_model(config))
        for precision in ("float32", "bf16"):
            assert open_run(checkpoint).load_model(device="cpu", precision=precision).config == config
        change = f"model.backbone.unet_weights={other.backbone.unet_weights or 'null'}"
        with pytest.raises(CheckpointError, match="another diffusion model"):
            open_run(checkpoint, overrides=[change]).load_model(device="cpu")
