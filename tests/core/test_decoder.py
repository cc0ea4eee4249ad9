"""The trained part: sizes, gradients, and that weighted fusions pair layers and steps."""

import itertools
import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import DecoderConfig, ModelConfig
from diffcli.core.decoder import DAFormerHead, SegmentationDecoder, WeightedAggregation
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import join

Small = Callable[..., ModelConfig]
FUSIONS = ["direct", "vanilla", "mixing"]
SD21_WIDTHS = [[1280, 1280, 1280] * 2, [640, 640, 640] * 2, [320, 320, 320] * 2]
"""Channels of SD 2.1's decoder layers at strides 32, 16, 8: three resnets, three attentions."""


def parameters(module: torch.nn.Module) -> int:
    return sum(prod(p.shape) for p in module.parameters())


def paper_size(**settings: object) -> SegmentationDecoder:
    """The decoder on SD 2.1's nine saved steps, without memory for its weights."""
    with torch.device("meta"):
        return SegmentationDecoder(DecoderConfig(**settings), widths=SD21_WIDTHS, steps=9, classes=19)


def test_paper_size_is_the_published_one() -> None:
    decoder = paper_size()
    with_normalisation = [180_503_552, 45_163_008, 11_309_312]  # as published, strides 32, 16, 8
    unused = [2 * 9 * sum(widths) for widths in SD21_WIDTHS]  # weight and bias of an input norm never applied
    for stride, published, extra in zip(decoder.fusion.strides, with_normalisation, unused, strict=True):
        assert parameters(stride) == published - extra
    stride_64 = 91_960_832 - 2 * 34_560
    assert parameters(decoder.fusion) == 328_625_664 - stride_64
    assert parameters(decoder.pyramid) == 68_832_512
    assert parameters(decoder.head) == 4_433_171


def test_stride_64_is_not_built(small: Small, backbone: DiffusionBackbone) -> None:
    model = join(small(), backbone)
    assert len(model.decoder.fusion.strides) == 3
    assert model.extractor.stages == (1, 2, 3)


@pytest.mark.parametrize(
    ("fusion", "features"), [*itertools.product(FUSIONS, ["all", "resnet"]), ("direct", "latent")]
)
def test_shapes_and_gradients(
    small: Small, backbone: DiffusionBackbone, images: Tensor, fusion: str, features: str
) -> None:
    """Every fusion and feature kind gives stride-4 logits, and every parameter learns."""
    model = join(small(fusion=fusion, features=features, dropout=0.0), backbone)
    stacks = model.extractor.extract(images, noise=seeded_noise(0, ["a", "b"]))
    model.decoder.train()
    logits = model.decoder(stacks)
    assert logits.shape == (2, 5, 16, 16)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    without = [name for name, p in model.decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("fusion", FUSIONS)
def test_pyramid_widths_follow_the_fusion(small: Small, backbone: DiffusionBackbone, fusion: str) -> None:
    decoder = join(small(fusion=fusion), backbone).decoder
    assert decoder.fusion.out_channels == ([64, 48, 32] if fusion == "vanilla" else [64, 64, 64])


def test_initial_weights_follow_the_seed(small: Small, backbone: DiffusionBackbone) -> None:
    a, b, c = (join(small(), backbone, seed=seed).decoder.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["head.classifier.weight"], c["head.classifier.weight"])
    before = torch.random.get_rng_state()
    join(small(), backbone)
    assert torch.equal(before, torch.random.get_rng_state())


def test_initialisation(small: Small, backbone: DiffusionBackbone) -> None:
    decoder = join(small(), backbone).decoder
    assert float(decoder.head.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    weight = decoder.pyramid.up1.block.conv1.weight
    fan_out = weight.shape[0] * 9
    assert float(weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    biases = [p for name, p in decoder.named_parameters() if name.endswith(("conv1.bias", "deconv.bias"))]
    assert biases
    assert not any(b.any() for b in biases)


def test_dropout_acts_in_training_only() -> None:
    head = DAFormerHead((32, 64, 64, 64), channels=16, classes=5, dropout=0.5)
    pyramid = [torch.randn(2, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate((32, 64, 64, 64))]
    head.eval()
    assert torch.equal(head(pyramid), head(pyramid))
    head.train()
    assert not torch.equal(head(pyramid), head(pyramid))


# --- weighted fusions: weight number step * layers + j belongs to pair (step, j) ----------------------------------


def aggregation(
    kind: str, *, steps: int, widths: tuple[int, ...] = (4, 4, 4, 8, 8, 8)
) -> WeightedAggregation:
    """One stride of three layers, all with different transforms."""
    torch.manual_seed(0)
    out = 16 if kind == "mixing" else None
    module = WeightedAggregation(widths, layers=3, steps=steps, out_channels=out)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def stack(maps: dict[tuple[int, int, int], Tensor], *, steps: int, layers: int = 3) -> Tensor:
    """Maps by (kind, j, step) in the extractor's order: resnets j = 0.., then attentions, each all steps in order."""
    order = itertools.product((0, 1), range(layers), range(steps))
    return torch.cat([maps[key] for key in order], dim=1)


def random_maps(steps: int) -> dict[tuple[int, int, int], Tensor]:
    """Resnet maps of 4 and attention maps of 8 channels."""
    keys = itertools.product((0, 1), range(3), range(steps))
    return {(kind, j, step): torch.randn(1, 4 * (kind + 1), 3, 3) for kind, j, step in keys}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vanilla", "mixing"])
@pytest.mark.parametrize(("step", "j"), [(0, 0), (1, 2), (2, 1)])
def test_one_weight_alone_picks_its_pair(kind: str, step: int, j: int) -> None:
    """All weight on one pair gives the transform of that layer's resnet and attention map at that step."""
    module, maps = aggregation(kind, steps=3), random_maps(3)
    module.mixing_weights.fill_(-1e4)[step * 3 + j] = 0.0
    expected = module.transforms[j](torch.cat([maps[0, j, step], maps[1, j, step]], dim=1))
    torch.testing.assert_close(module(stack(maps, steps=3)), expected)


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(4)))
def test_steps_and_their_weights_move_together(order: list[int]) -> None:
    """Reordering saved steps, weights along with them, changes nothing; without them, it does."""
    for kind in ("vanilla", "mixing"):
        module, maps = aggregation(kind, steps=4), random_maps(4)
        before = module(stack(maps, steps=4))
        moved = stack({(k, j, i): maps[k, j, order[i]] for k, j, i in maps}, steps=4)
        unmatched = module(moved)
        module.mixing_weights.copy_(module.mixing_weights.reshape(4, 3)[order].flatten())
        torch.testing.assert_close(module(moved), before, rtol=1e-4, atol=1e-4)
        assert torch.allclose(unmatched, before, rtol=1e-3, atol=1e-3) == (order == [0, 1, 2, 3])


def test_weights_are_one_softmax_over_all_pairs() -> None:
    module = WeightedAggregation((4, 4, 4, 8, 8, 8), layers=3, steps=2, out_channels=None)
    assert module.mixing_weights.shape == (6,)
    assert module.mixing_weights.softmax(0).tolist() == pytest.approx([1 / 6] * 6)


def test_published_counts_are_the_kits(repository: Path) -> None:
    """The numbers above are those that came with the golden arrays."""
    path = repository.parent / "shared" / "parity" / "counts_and_tolerances.json"
    if not path.is_file():
        pytest.skip("the whole kit lies beside the repository, not in it")
    counts = json.loads(path.read_text())["parameter_counts_at_paper_size"]
    assert counts["aggregation_by_stride"] == [91_960_832, 180_503_552, 45_163_008, 11_309_312]
    assert (counts["finecoder"], counts["decode_head"]) == (68_832_512, 4_433_171)
