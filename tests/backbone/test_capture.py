"""Recorded calls give what plain calls give: fresh inputs, outputs used in time, bounded memory.

On a CPU the recording calls the work again on the fixed buffers, and spoils what every other recording handed out, as
graphs in one pool of memory do.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffcli.backbone.capture import Captures, cuda_graphs
from diffcli.backbone.unet import FrozenUNet, feature_layers
from tests.fixtures.replays import Replays

TINY = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
PROMPTS = ("", "a street", "a wall")


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval().requires_grad_(False)


def texts(*prompts: str) -> list[tuple[str, Tensor]]:
    embeddings = {
        p: torch.randn(7, 24, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(PROMPTS)
    }
    return [(prompt, embeddings[prompt]) for prompt in prompts]


def test_a_key_is_recorded_at_its_second_call_and_replayed_from_then_on() -> None:
    record = Replays()
    captures = Captures(record)
    for step in range(4):
        (doubled,) = captures("key", lambda x: [2 * x[0]], [torch.full((3,), float(step))])
        assert doubled.tolist() == [2.0 * step] * 3
    assert (record.recorded, record.replayed) == (1, 3)


def test_an_input_that_was_written_over_is_copied_again() -> None:
    captures = Captures(Replays())
    x, constant = torch.zeros(2), torch.ones(2)
    for _ in range(3):
        x += 1
        (total,) = captures("key", lambda x: [x[0] + x[1]], [x, constant])
        assert torch.equal(total, x + constant)


def test_the_least_recently_used_recording_goes() -> None:
    record = Replays()
    captures = Captures(record, limit=2)
    for key in ("a", "a", "b", "b", "a", "c", "c", "a"):
        captures(key, lambda x: [x[0] + 1], [torch.zeros(1)])
        assert len(captures) <= 2
    assert record.recorded == 3  # a and c are kept, b went
    captures("b", lambda x: [x[0] + 1], [torch.zeros(1)])
    assert record.recorded == 3  # seen for the first time again


def test_a_hundred_sizes_keep_few_recordings() -> None:
    captures = Captures(Replays(), limit=4)
    for size in range(1, 101):
        for _ in range(3):
            (out,) = captures(size, lambda x: [x[0] + 1], [torch.zeros(size)])
            assert out.shape == (size,)
    assert len(captures) == 4


def test_without_memory_for_a_recording_the_call_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    record = Replays(room_for=1)
    captures = Captures(record)
    for key in ("a", "a", "b", "b", "b", "a"):
        (out,) = captures(key, lambda x: [x[0] + 1], [torch.zeros(1)])
        assert out.item() == 1
    assert len(captures) == 1
    assert capsys.readouterr().err.count("not enough GPU memory") == 1


def test_other_errors_of_a_recording_are_not_hidden() -> None:
    def record(work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")

    captures = Captures(record)
    captures("a", lambda x: x, [torch.zeros(1)])
    with pytest.raises(RuntimeError, match="not permitted"):
        captures("a", lambda x: x, [torch.zeros(1)])


def test_a_captured_unet_gives_the_same_numbers(unet: UNet2DConditionModel) -> None:
    """Timesteps, prompt groups, numbers of rows, sizes and wanted layers change from call to call."""
    plain, captured = FrozenUNet(unet), FrozenUNet(unet)
    record = Replays()
    captured.capture(record)
    layers = feature_layers(unet, stages=(0, 1), kinds="all")
    for turn in range(3):
        for size in ((8, 8), (8, 16)):
            for prompts in (("",), ("", "a street"), ("a street", "a wall"), ("", "")):
                latents = torch.randn(len(prompts), 4, *size)
                for wanted, output in ((layers, True), ((), True), (layers[:2], False)):
                    given = (latents, 100 + turn, texts(*prompts))
                    expected, expected_maps = plain(*given, layers=wanted, output=output)
                    found, maps = captured(*given, layers=wanted, output=output)
                    assert (found is None) == (expected is None)
                    if found is not None and expected is not None:
                        assert torch.equal(found, expected)
                    assert maps.keys() == expected_maps.keys()
                    assert all(torch.equal(maps[layer], expected_maps[layer]) for layer in maps)
    assert record.replayed > record.recorded > 10


def test_the_output_of_a_captured_call_outlives_the_next_one(unet: UNet2DConditionModel) -> None:
    network = FrozenUNet(unet)
    network.capture(Replays())
    given = [torch.randn(1, 4, 8, 8) for _ in range(4)]
    found = [network(latents, 10, texts(""))[0] for latents in given]
    plain = FrozenUNet(unet)
    for latents, output in zip(given, found, strict=True):
        expected, _ = plain(latents, 10, texts(""))
        assert output is not None
        assert expected is not None
        assert torch.equal(output, expected)


def test_new_weights_are_recorded_anew(unet: UNet2DConditionModel) -> None:
    network = FrozenUNet(unet)
    network.capture(Replays())
    latents = torch.randn(1, 4, 8, 8)
    for _ in range(3):
        network(latents, 10, texts(""))
    unet.conv_out.weight.mul_(2)
    network.reset()
    expected, _ = FrozenUNet(unet)(latents, 10, texts(""))
    for _ in range(3):
        found, _ = network(latents, 10, texts(""))
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_graphs_give_the_numbers_of_launched_kernels(
    unet: UNet2DConditionModel, dtype: torch.dtype
) -> None:
    unet.to("cuda", dtype)
    plain, captured = FrozenUNet(unet), FrozenUNet(unet)
    captured.capture(cuda_graphs())
    layers = feature_layers(unet, stages=(0, 1), kinds="all")
    for turn in range(4):
        for prompts in (("",), ("", "a street")):
            latents = torch.randn(len(prompts), 4, 16, 16, device="cuda", dtype=dtype)
            given = (latents, 10 + turn, [(p, e.to("cuda", dtype)) for p, e in texts(*prompts)])
            expected, expected_maps = plain(*given, layers=layers)
            found, maps = captured(*given, layers=layers)
            assert found is not None
            assert expected is not None
            assert torch.equal(found, expected)
            assert all(torch.equal(maps[layer], expected_maps[layer]) for layer in layers)
