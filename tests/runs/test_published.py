"""Checkpoints of the published code: its names, what is dropped, what is refused, and that numbers come out equal."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from diffcli.config.settings import DecoderConfig
from diffcli.core.decoder import SegmentationDecoder
from diffcli.errors import CheckpointError
from diffcli.runs.published import check_inputs, convert_state, infer_decoder, read_published

SHARED = Path(__file__).parents[2].parent / "shared" / "parity"
WIDTHS = [[32] * 6, [24] * 6, [16] * 6]
"""Channels of the tiny network's layers at strides 32, 16, 8: three resnets, three attentions."""


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Direct fusion, pyramid and head under the published names, for the tiny network and the short schedule."""
    path = Path(__file__).parents[1] / "parity" / "data" / "weights_model.safetensors.xz"
    return load(lzma.decompress(path.read_bytes()))


def weighted(kind: str, *, steps: int = 2, width: int = 64) -> dict[str, Tensor]:
    """A vanilla or mixing fusion under the published names; 8, 16, 24, 32 channels a pair at strides 64, 32, 16, 8."""
    state: dict[str, Tensor] = {}
    for stride in range(4):
        pair = 8 * (stride + 1)
        state[f"mixing_weights_stride.{stride}"] = torch.full((3 * steps,), float(stride))
        for number in (3 * stride, 3 * stride + 1, 3 * stride + 2):
            if kind == "vanilla":
                state |= {
                    f"in_stride.{number}.{leaf}": torch.full((pair,), float(number))
                    for leaf in ("weight", "bias")
                }
                continue
            shapes = {
                "conv1": (width // 4, pair),
                "conv2": (width // 4, width // 4),
                "conv3": (width, width // 4),
            }
            for part, shape in {**shapes, "shortcut": (width, pair)}.items():
                side = 3 if part == "conv2" else 1
                name = f"bottleneck_layers.{number}.0.{part}"
                state[f"{name}.weight"] = torch.full((*shape, side, side), float(number))
                state |= {f"{name}.norm.{leaf}": torch.zeros(shape[0]) for leaf in ("weight", "bias")}
            state[f"bottleneck_layers.{number}.0.in_gn.weight"] = torch.zeros(1, pair, 1, 1)
    return state


def test_direct_weights_fill_our_decoder(published: dict[str, Tensor]) -> None:
    state = convert_state(published)
    found = infer_decoder(state)
    assert (found.fusion, found.channels, found.head_channels, found.classes) == (
        "direct",
        (64, 64, 64, 128),
        32,
        19,
    )
    assert found.inputs == (960, 720, 480)
    decoder = SegmentationDecoder(
        found.config(DecoderConfig()),
        widths=WIDTHS,
        steps=5,
        classes=found.classes,
    )
    own = decoder.state_dict()
    assert own.keys() == state.keys()
    assert all(own[name].shape == tensor.shape for name, tensor in state.items())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the whole set of golden arrays is not beside the repository")
def test_fusion_pyramid_and_head_equal_the_golden_arrays(published: dict[str, Tensor]) -> None:
    state = convert_state(published)
    found = infer_decoder(state)
    decoder = SegmentationDecoder(
        found.config(DecoderConfig(dropout=0)), widths=WIDTHS, steps=5, classes=19
    ).eval()
    decoder.load_state_dict(state)
    golden = {name: torch.from_numpy(x) for name, x in np.load(SHARED / "aggregation.npz").items()}
    logits = torch.from_numpy(np.load(SHARED / "head.npz")["eval_logits"])
    with torch.no_grad():
        maps = decoder.pyramid([golden[f"direct_s{stride}"] for stride in (32, 16, 8)])
        for stride, x in zip((4, 8, 16, 32), maps, strict=True):
            assert relative_error(x, golden[f"finecoder_x{stride}"]) < 5e-5
        pyramid = [golden[f"finecoder_x{stride}"] for stride in (4, 8, 16, 32)]
        assert relative_error(decoder.head(pyramid), logits) < 5e-5


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("prefix", ["", "module.", "bare"])
def test_prefixes_and_wrappers_are_recognised(published: dict[str, Tensor], prefix: str) -> None:
    expected = convert_state(published)
    if prefix == "bare":
        wrapped = {name.removeprefix("backbone.diff_model."): x for name, x in published.items()}
        wrapped = {name.removeprefix("aggregation_network."): x for name, x in wrapped.items()}
    else:
        wrapped = {prefix + name: x for name, x in published.items()}
    state = convert_state({"state_dict": wrapped, "meta": {"iter": 40_000}, "optimizer": {"state": {}}})
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_frozen_networks_are_dropped(published: dict[str, Tensor]) -> None:
    frozen = (
        "backbone.diff_model.diffusion_extractor.unet.conv_in.weight",
        "backbone.diff_model.unet.up_blocks.1.resnets.0.conv2.weight",
        "module.backbone.diff_model.vae.decoder.conv_out.bias",
        "vae.quant_conv.weight",
        "backbone.extractor.clip.text_model.encoder.layers.0.mlp.fc1.bias",
        "backbone.diff_model.text_encoder.final_layer_norm.weight",
        "anything.down_blocks.0.resnets.0.norm1.weight",
    )
    state = convert_state({**published, **{name: torch.zeros(1) for name in frozen}})
    assert state.keys() == convert_state(published).keys()


def test_stride_64_and_unapplied_norms_are_dropped(published: dict[str, Tensor]) -> None:
    state = convert_state(published)
    assert len({name.split(".")[2] for name in state if name.startswith("fusion.")}) == 3
    assert not any("in_gn" in name for name in state)
    first = published["backbone.diff_model.aggregation_network.bottleneck_layers.1.0.conv1.weight"]
    assert torch.equal(state["fusion.strides.0.bottleneck.conv1.weight"], first.float())


@pytest.mark.parametrize("kind", ["vanilla", "mixing"])
def test_weighted_fusions_fill_ours(kind: str, published: dict[str, Tensor]) -> None:
    state = convert_state(weighted(kind))
    pairs = [16, 24, 32]
    config = DecoderConfig(fusion=kind, channels=(32, 64, 64, 64), head_channels=16)  # type: ignore[arg-type]
    decoder = SegmentationDecoder(config, widths=[[p // 2] * 6 for p in pairs], steps=2, classes=3)
    fusion = {f"fusion.{name}": x for name, x in decoder.fusion.state_dict().items()}
    assert fusion.keys() == state.keys()
    assert all(fusion[name].shape == x.shape for name, x in state.items())
    leaf = "weight" if kind == "vanilla" else "conv1.weight"
    numbers = [
        [float(state[f"fusion.strides.{s}.transforms.{j}.{leaf}"].max()) for j in range(3)] for s in range(3)
    ]
    assert numbers == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [float(state[f"fusion.strides.{s}.mixing_weights"][0]) for s in range(3)] == [1, 2, 3]
    rest = {name: x for name, x in convert_state(published).items() if not name.startswith("fusion.")}
    found = infer_decoder({**state, **rest})
    assert (found.fusion, found.inputs) == (kind, (2 * 3 * 16, 2 * 3 * 24, 2 * 3 * 32))
    assert found.config(DecoderConfig()).fusion.kind == kind


@pytest.mark.skipif(not SHARED.is_dir(), reason="the whole set of golden arrays is not beside the repository")
@pytest.mark.parametrize("name", ["mixed", "vanilla"])
def test_golden_weighted_fusions_convert(name: str) -> None:
    state = convert_state(load_file(SHARED / f"weights_{name}.safetensors"))
    assert [len(state[f"fusion.strides.{i}.mixing_weights"]) for i in range(3)] == [15, 15, 15]
    assert all(key.startswith("fusion.strides.") for key in state)


def test_unknown_parameters_are_named(published: dict[str, Tensor]) -> None:
    extra = {f"decode_head.transformer.layers.{i}.weight": torch.zeros(1) for i in range(5)}
    with pytest.raises(CheckpointError, match=r"decode_head\.transformer\.layers\.0\.weight.* and 2 more"):
        convert_state({**published, **extra})


@pytest.mark.parametrize(
    "name", ["bottleneck_layers.4.0.conv1.weight", "bottleneck_layers.1.0.conv4.bias", "in_stride.5.x"]
)
def test_near_misses_are_unknown(published: dict[str, Tensor], name: str) -> None:
    with pytest.raises(CheckpointError, match="not parameters of the published code"):
        convert_state({**published, name: torch.zeros(1)})


def test_a_file_of_frozen_networks_alone_is_refused() -> None:
    with pytest.raises(CheckpointError, match="nothing that the published code trains"):
        convert_state({"unet.conv_in.weight": torch.zeros(1)})


def test_a_checkpoint_without_head_is_refused(published: dict[str, Tensor]) -> None:
    fusion = {name: x for name, x in convert_state(published).items() if not name.startswith("head.")}
    with pytest.raises(CheckpointError, match=r"lacks the parameter head\.classifier\.weight"):
        infer_decoder(fusion)


def test_another_schedule_and_another_network_are_told_apart(published: dict[str, Tensor]) -> None:
    found = infer_decoder(convert_state(published))
    check_inputs(found, channels=(960, 720, 480), steps=5)
    with pytest.raises(CheckpointError, match="keeps 5 steps, the configured schedule 9"):
        check_inputs(found, channels=(1728, 1296, 864), steps=9)
    with pytest.raises(CheckpointError, match="another diffusion model"):
        check_inputs(found, channels=(38400, 19200, 9600), steps=5)


class Unpicklable:
    """Stands for an object of the training framework."""


def test_reading_files(tmp_path: Path, published: dict[str, Tensor]) -> None:
    torch.save({"state_dict": published, "meta": {"iter": 1}}, tmp_path / "a.pth")
    save_file(published, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert convert_state(read_published(tmp_path / name)).keys() == convert_state(published).keys()
    torch.save({"state_dict": {}, "meta": Unpicklable()}, tmp_path / "b.pth")
    assert read_published(tmp_path / "b.pth") == {}
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="no named tensors"):
        read_published(tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        read_published(tmp_path / "d.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        convert_state(read_published(tmp_path / name))


def test_our_decoder_has_the_published_size() -> None:
    """Parameters for SD 2.1 and nine kept steps, without the stride-64 fusion and the norms that nothing uses."""
    with torch.device("meta"):
        decoder = SegmentationDecoder(
            DecoderConfig(), widths=[[1280] * 6, [640] * 6, [320] * 6], steps=9, classes=19
        )
    sizes = [
        sum(p.numel() for p in part.parameters()) for part in (decoder.fusion, decoder.pyramid, decoder.head)
    ]
    unused = 2 * (69120 + 34560 + 17280)
    assert sizes == [180_503_552 + 45_163_008 + 11_309_312 - unused, 68_832_512, 4_433_171]


def test_a_file_that_is_no_checkpoint_is_reported_in_our_words(tmp_path: Path) -> None:
    """Not in torch's, which advise to load it unsafely."""
    path = tmp_path / "notes.pth"
    path.write_text("x\n")
    with pytest.raises(CheckpointError, match="no readable weights") as error:
        read_published(path)
    assert "weights_only" not in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_odd_files_end_with_one_error(tmp_path: Path, published: dict[str, Tensor]) -> None:
    cyclic: dict[str, object] = {}
    cyclic["state_dict"] = {"state_dict": cyclic}
    name = next(name for name in published if name.endswith("conv_seg.weight"))
    odd: dict[str, object] = {
        "holds itself": cyclic,
        "no named tensors": {"state_dict": {1: torch.zeros(1)}},
        "not parameters of the published code": {**published, name: "a word"},
        "not a dense tensor": {**published, name: published[name].to_sparse()},
        "more than is stored of it": {**published, name: torch.zeros(1).expand(2**40)},
        "another number of dimensions": {**published, name: torch.zeros(())},
    }
    for message, content in odd.items():
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=message) as error:
            infer_decoder(convert_state(read_published(tmp_path / "x.pth")))
        assert len(str(error.value).splitlines()) <= 2
