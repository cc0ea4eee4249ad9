"""The U-Net's own walk gives what the library's forward gives, and computes once what does not change."""

import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.unet import FrozenUNet, feature_layers
from diffcli.core.features import FeatureTaps
from diffcli.errors import BackboneError

TINY: dict[str, Any] = {
    "block_out_channels": (16, 32, 32, 48),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
KINDS: dict[str, dict[str, Any]] = {
    "like 1.5": {},
    "like 2.1": {"use_linear_projection": True, "attention_head_dim": (2, 4, 4, 6), "upcast_attention": True},
    "like the shipped one": {"only_cross_attention": (True, False, False, False), "norm_num_groups": 4},
    "two transformer blocks": {"transformer_layers_per_block": 2},
    "one layer a block": {"layers_per_block": 1},
    "no middle block": {"mid_block_type": None},
    "another embedding of time": {"flip_sin_to_cos": False, "freq_shift": 1},
}
PROMPTS = ["", "a street", ""]


@pytest.fixture(params=KINDS)
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY | KINDS[request.param]).eval().requires_grad_(False)


@pytest.fixture
def usual() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval().requires_grad_(False)


def texts(prompts: list[str]) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    embeddings = {prompt: torch.randn(7, 24, generator=generator) for prompt in sorted(set(PROMPTS))}
    return [(prompt, embeddings[prompt]) for prompt in prompts]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def library(
    unet: UNet2DConditionModel, latents: Tensor, timestep: int, prompts: list[str]
) -> tuple[Tensor, Any]:
    """Output and maps of every layer by the library's own forward and hooks."""
    layers = feature_layers(unet, stages=range(len(unet.up_blocks)), kinds="all")
    given = torch.stack([text for _, text in texts(prompts)])
    with FeatureTaps(unet, layers) as taps:
        output = unet(latents, timestep, encoder_hidden_states=given).sample
    return output, taps.maps


@pytest.mark.parametrize("prompts", [PROMPTS, ["a street"] * 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_maps_are_the_librarys(
    unet: UNet2DConditionModel, prompts: list[str], layout: torch.memory_format
) -> None:
    unet.to(memory_format=layout)
    network = FrozenUNet(unet)
    layers = feature_layers(unet, stages=(0, 1, 2, 3), kinds="all")
    latents = torch.randn(3, 4, 16, 8)
    for timestep in (0, 500, 0):  # the third call finds everything kept
        expected, taps = library(unet, latents, timestep, prompts)
        output, maps = network(latents, timestep, texts(prompts), layers=layers)
        assert output is not None
        close(output, expected)
        assert set(maps) == set(taps) == set(layers)
        for layer in layers:
            close(maps[layer], taps[layer])


def test_the_layout_of_weights_changes_nothing(usual: UNet2DConditionModel) -> None:
    layers = feature_layers(usual, stages=(1, 2, 3), kinds="all")
    latents = torch.randn(2, 4, 16, 8)
    expected, plain = FrozenUNet(usual)(latents, 20, texts(["", "a street"]), layers=layers)
    usual.to(memory_format=torch.channels_last)
    output, maps = FrozenUNet(usual)(latents, 20, texts(["", "a street"]), layers=layers)
    assert output is not None
    assert expected is not None
    close(output, expected)
    for layer in layers:
        close(maps[layer], plain[layer])


@pytest.mark.parametrize("count", range(1, 12))
def test_without_output_it_ends_behind_the_last_layer(usual: UNet2DConditionModel, count: int) -> None:
    layers = feature_layers(usual, stages=(1, 2), kinds="all")[:count]
    network, latents = FrozenUNet(usual), torch.randn(1, 4, 8, 8)
    _, taps = library(usual, latents, 20, [""])
    calls = count_calls(usual.conv_norm_out, usual.up_blocks[2].upsamplers[0])
    output, maps = network(latents, 20, texts([""]), layers=layers, output=False)
    assert output is None
    assert calls() == [0, 0]
    assert set(maps) == set(layers)
    for layer in layers:
        close(maps[layer], taps[layer])


def test_timesteps_and_prompts_are_computed_once(usual: UNet2DConditionModel) -> None:
    network, latents = FrozenUNet(usual), torch.randn(2, 4, 8, 8)
    calls = count_calls(usual.time_embedding)

    def flop(timestep: int, prompts: list[str]) -> int:
        with FlopCounterMode(display=False) as counter:
            network(latents, timestep, texts(prompts))
        return int(counter.get_total_flops())

    everything = flop(10, ["", ""])
    nothing_new = flop(10, ["", ""])
    new_timestep, new_prompt = flop(20, ["", ""]), flop(20, ["", "a street"])
    assert everything - nothing_new == (new_timestep - nothing_new) + (new_prompt - nothing_new) > 0
    assert flop(10, ["a street", ""]) == flop(20, ["a street", "a street"]) == nothing_new > 0
    assert calls() == [2]
    network.forget()
    assert flop(10, ["", ""]) == everything


def test_a_backbone_that_moves_takes_its_network_along(backbone: DiffusionBackbone) -> None:
    own = DiffusionBackbone(
        vae=deepcopy(backbone.vae),
        unet=deepcopy(backbone.unet),
        alphas_cumprod=backbone.alphas_cumprod,
        prediction_type="epsilon",
        prompt_embeddings=backbone.prompt_embeddings,
    )
    latents = torch.randn(1, 4, 8, 8)
    layers = feature_layers(own.unet, stages=(1,), kinds="all")
    own.evaluate(latents, 10, [""], layers=layers)
    own.to(torch.device("meta"))
    eps, maps = own.evaluate(latents.to("meta"), 10, [""], layers=layers)
    assert eps is not None
    assert {x.device.type for x in (eps, *maps.values())} == {"meta"}


def test_half_precision_is_kept(usual: UNet2DConditionModel) -> None:
    network = FrozenUNet(usual.to(torch.bfloat16))
    layers = feature_layers(usual, stages=(3,), kinds="all")
    given = [(prompt, text.bfloat16()) for prompt, text in texts([""])]
    output, maps = network(torch.randn(1, 4, 8, 8).bfloat16(), 10, given, layers=layers)
    assert output is not None
    assert {x.dtype for x in (output, *maps.values())} == {torch.bfloat16}


def count_calls(*modules: nn.Module) -> Callable[[], list[int]]:
    """How often each module has run since."""
    counts = [0] * len(modules)

    def count(index: int) -> None:
        counts[index] += 1

    for index, module in enumerate(modules):
        module.register_forward_hook(lambda *_given, index=index: count(index))
    return lambda: counts


# --- compiled ------------------------------------------------------------------------------------------------------

SMALL = {
    **TINY,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""Two levels, for compilers take their time."""


@pytest.fixture
def small() -> Iterator[UNet2DConditionModel]:
    torch.manual_seed(0)
    yield UNet2DConditionModel(**SMALL).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    torch.compiler.reset()


def assert_compiled_is_the_library(
    network: FrozenUNet, rows: int, timestep: int, prompts: list[str], *, size: tuple[int, int] = (8, 8)
) -> None:
    layers = feature_layers(network.unet, stages=(0, 1), kinds="all")
    latents = torch.randn(rows, 4, *size)
    expected, taps = library(network.unet, latents, timestep, prompts)
    output, maps = network(latents, timestep, texts(prompts), layers=layers)
    assert output is not None
    close(output, expected)
    assert set(maps) == set(layers)
    for layer in layers:
        close(maps[layer], taps[layer])
    output, maps = network(latents, timestep, texts(prompts), layers=layers[:1], output=False)
    assert output is None
    assert list(maps) == layers[:1]


@pytest.mark.slow
@torch.no_grad()
def test_two_programs_a_size_serve_every_call_and_some_sizes_are_compiled(
    small: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of one row and one of several, for all steps and prompts; which compiler is behind them does not matter."""
    monkeypatch.setattr("diffcli.backbone.unet.COMPILED_SIZES", 2)  # a compilation takes seconds
    network = FrozenUNet(small)
    network.compile(backend="eager")
    sizes = [(8, 8 + 4 * i) for i in range(4)]
    for size in sizes[:2]:
        for rows in (1, 2):
            assert_compiled_is_the_library(network, rows, 10, [""] * rows, size=size)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_compiled_is_the_library(network, 1, 500, ["a street"])
        assert_compiled_is_the_library(network, 3, 10, PROMPTS)
        assert_compiled_is_the_library(network, 5, 20, ["a street"] * 5)
        assert_compiled_is_the_library(network, 2, 30, ["", "a street"])
        for size in sizes:  # those that are not compiled run all the same
            for rows in (1, 3):
                assert_compiled_is_the_library(network, rows, 10, ["a street"] * rows, size=size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@torch.no_grad()
def test_what_the_compiler_makes_is_the_network(small: UNet2DConditionModel) -> None:
    network = FrozenUNet(small)
    network.compile()
    assert_compiled_is_the_library(network, 1, 10, [""])


@torch.no_grad()
def test_where_nothing_can_be_compiled_it_is_said_what_to_do(small: UNet2DConditionModel) -> None:
    def broken(*_given: object) -> Any:
        raise RuntimeError("No working C++ compiler found\nand more lines")

    network = FrozenUNet(small)
    network.compile(backend=broken)
    with pytest.raises(BackboneError, match="No working") as caught:
        network(torch.randn(1, 4, 8, 8), 10, texts([""]))
    assert caught.value.where == "runtime.compile"
