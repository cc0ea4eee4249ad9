"""Loading: text, randomness, memory, and what the libraries print."""

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from diffcli.backbone import components, loading
from diffcli.backbone.loading import load_backbone
from diffcli.config.settings import BackboneConfig
from diffcli.errors import BackboneError
from diffcli.runtime import memory
from diffcli.runtime.memory import memory_errors
from tests.fixtures.sd_layouts import LAYOUTS, UNET, edit_json, load_source, same_networks

CPU = torch.device("cpu")


def test_the_text_encoder_runs_once_and_is_released(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encoders: list[weakref.ref[Any]] = []
    original = components.load_text_encoder

    def watched(source: Any) -> Any:
        encoder = original(source)
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["input_ids"])),
            with_kwargs=True,
        )
        encoders.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(components, "load_text_encoder", watched)
    config = BackboneConfig(source=str(built / "sd-1"))
    backbone = load_backbone(
        config, prompts=("", "", "a road", "fog", "a road"), device=CPU, dtype=torch.float32
    )
    gc.collect()
    assert calls == [3]
    assert encoders[0]() is None
    assert list(backbone.prompt_embeddings) == ["", "a road", "fog"]


def test_a_long_prompt_is_cut(built: Path) -> None:
    config = BackboneConfig(source=str(built / "sd-1"))
    long = "a road " * 100
    backbone = load_backbone(config, prompts=(long,), device=CPU, dtype=torch.float32)
    assert backbone.prompt_embeddings[long].shape == (77, 24)


def test_random_weights(built: Path, folder: Path) -> None:
    trained, drawn = load_source(built / "sd-2"), load_source(built / "sd-2", random_weights=True)
    assert all(
        torch.equal(x, y) for x, y in zip(trained.vae.parameters(), drawn.vae.parameters(), strict=True)
    )
    assert torch.equal(trained.prompt_embeddings[""], drawn.prompt_embeddings[""])
    assert not torch.equal(trained.unet.conv_in.weight, drawn.unet.conv_in.weight)
    (folder / UNET).unlink()
    torch.manual_seed(7)
    again = load_source(folder, random_weights=True)
    assert same_networks(again, drawn)
    config = BackboneConfig(source=str(folder), random_weights=True)
    other = load_backbone(config, prompts=("",), device=CPU, dtype=torch.float32, seed=1)
    assert not same_networks(other, drawn)


def test_loading_leaves_the_random_state_alone(built: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_source(built / "sd-1")
    load_source(built / "sd-1", random_weights=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_not_enough_memory_is_foreseen(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 100_000)
    with pytest.raises(BackboneError, match=r"not enough memory: its weights need .* GiB") as caught:
        load_source(built / "sd-1")
    assert caught.value.where == str(built / "sd-1")
    assert "embedded" in str(caught.value.hint)
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    load_source(built / "sd-1")


def test_host_memory_is_plausible() -> None:
    free = memory.host_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory(error: Exception) -> None:
    with pytest.raises(BackboneError, match="not enough memory to load it"), memory_errors("here"):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a bug of ours"), memory_errors("here"):
        raise RuntimeError("a bug of ours")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    yield
    for library, verbosity in zip(libraries, before, strict=True):
        library.set_verbosity(verbosity)


@pytest.mark.usefixtures("restored_logging")
def test_loading_is_quiet_and_restores_verbosity(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_info()
        library.enable_progress_bar()
    edit_json(folder / "unet" / "config.json", unheard_of=1)
    load_source(folder)
    assert capfd.readouterr() == ("", "")
    for library in (diffusers_logging, transformers_logging):
        assert library.get_verbosity() == library.INFO
        assert library.is_progress_bar_enabled()


def test_settings_of_the_shipped_layouts_are_those_of_stable_diffusion() -> None:
    shipped = Path(loading.__file__).parents[1] / "assets" / "configs"
    unet = {name: json.loads((shipped / name / "unet" / "config.json").read_text()) for name in LAYOUTS}
    assert (unet["sd-1"]["cross_attention_dim"], unet["sd-2"]["cross_attention_dim"]) == (768, 1024)
    assert all(settings["block_out_channels"] == [320, 640, 1280, 1280] for settings in unet.values())
