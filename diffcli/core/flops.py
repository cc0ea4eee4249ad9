"""Floating-point operations of the networks from their settings alone: an estimate for `diff check`, without PyTorch.

Every convolution and linear layer is a number of weights that is applied at a number of places, two operations each;
attention adds the products of queries, keys and values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffcli.config.settings import DirectFusion, ModelConfig, VanillaFusion
from diffcli.config.size import Size

TOKENS = 77
"""Of a prompt."""
STAGES = (1, 2, 3)
"""U-Net decoder blocks that are read (`diffcli.core.features.DECODED_STAGES`)."""


@dataclass(frozen=True)
class Layer:
    """A layer's weights, the places at which they are applied, and operations without weights (attention)."""

    weights: int
    places: int
    others: int = 0

    @property
    def flop(self) -> int:
        """Operations of one pass."""
        return 2 * self.weights * self.places + self.others


@dataclass(frozen=True)
class Networks:
    """What the three networks do for one image."""

    encoder: Sequence[Layer]
    """The VAE's encoder, once an image."""
    unet: Sequence[Layer]
    """One evaluation."""
    decoder: Sequence[Layer]
    """The trained half, once."""
    features: int
    """Numbers that the decoder takes."""


def networks(model: ModelConfig, *, unet: Mapping[str, Any], vae: Mapping[str, Any], size: Size) -> Networks:
    """The layers of all networks for images of `size`.

    Args:
        unet: settings of the U-Net, as its config.json has them.
        vae: those of the VAE.
    """
    stride = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = stride * 2 ** (len(unet["block_out_channels"]) - 1)
    height, width = (-(-side // multiple) * multiple for side in (size.height, size.width))
    grid = height // stride, width // stride
    widths = stage_widths(model, unet)
    steps = len(model.inversion.resolved_schedule().save_steps) if model.decoder.features != "latent" else 1
    levels = len(unet["block_out_channels"])
    places = [grid[0] * grid[1] // 4 ** (levels - 1 - stage) for stage in STAGES]
    return Networks(
        encoder=list(_encoder(vae, height * width)),
        unet=list(_unet(unet, grid[0] * grid[1])),
        decoder=list(_decoder(model, widths, steps, places)),
        features=steps * sum(sum(own) * n for own, n in zip(widths, places, strict=True)),
    )


def stage_widths(model: ModelConfig, unet: Mapping[str, Any]) -> list[list[int]]:
    """Channels of every layer that is read, by stage, coarsest first."""
    if model.decoder.features == "latent":
        return [[unet["in_channels"]]] * len(STAGES)
    layers, out = unet["layers_per_block"] + 1, [*reversed(unet["block_out_channels"])]
    kinds = 1 if model.decoder.features == "resnet" else 2
    return [[out[stage]] * layers * kinds for stage in STAGES]


def _conv(inputs: int, outputs: int, kernel: int, places: int) -> Layer:
    return Layer(inputs * outputs * kernel * kernel, places)


def _resnet(inputs: int, outputs: int, places: int) -> Iterator[Layer]:
    yield _conv(inputs, outputs, 3, places)
    yield _conv(outputs, outputs, 3, places)
    if inputs != outputs:
        yield _conv(inputs, outputs, 1, places)


def _transformer(width: int, text: int, places: int, *, blocks: int, only_cross: bool) -> Iterator[Layer]:
    """Projections in and out; in each block two attentions and a gated MLP of four times the width."""
    yield Layer(2 * width * width, places)
    for _ in range(blocks):
        for is_self in (not only_cross, False):
            keys, key_width = (places, width) if is_self else (TOKENS, text)
            yield Layer(2 * width * width, places)
            yield Layer(2 * key_width * width, keys, others=4 * places * keys * width)
        yield Layer(12 * width * width, places)


def _unet(unet: Mapping[str, Any], places: int) -> Iterator[Layer]:
    """Down, middle, up; places are those of the latent."""
    widths, depth, text = unet["block_out_channels"], unet["layers_per_block"], unet["cross_attention_dim"]
    levels = len(widths)

    def of_level(name: str, level: int) -> Any:
        value = unet.get(name, 1 if name == "transformer_layers_per_block" else False)
        return value[level] if isinstance(value, list | tuple) else value

    def attention(kinds: Sequence[str], block: int, level: int, n: int) -> Iterator[Layer]:
        if "CrossAttn" in kinds[block]:
            blocks = of_level("transformer_layers_per_block", level)
            only_cross = bool(of_level("only_cross_attention", level))
            yield from _transformer(widths[level], text, n, blocks=blocks, only_cross=only_cross)

    yield _conv(unet["in_channels"], widths[0], 3, places)
    skips, before = [widths[0]], widths[0]
    for level, width in enumerate(widths):
        n = places // 4**level
        for _ in range(depth):
            yield from _resnet(before, width, n)
            yield from attention(unet["down_block_types"], level, level, n)
            before = width
            skips.append(width)
        if level < levels - 1:
            yield _conv(width, width, 3, n // 4)
            skips.append(width)
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn"):
        n = places // 4 ** (levels - 1)
        yield from [*_resnet(before, before, n), *_resnet(before, before, n)]
        yield from _transformer(before, text, n, blocks=1, only_cross=False)
    for block, level in enumerate(reversed(range(levels))):
        n, width = places // 4**level, widths[level]
        for _ in range(depth + 1):
            yield from _resnet(before + skips.pop(), width, n)
            yield from attention(unet["up_block_types"], block, level, n)
            before = width
        if level:
            yield _conv(width, width, 3, 4 * n)
    yield _conv(before, unet["out_channels"], 3, places)


def _encoder(vae: Mapping[str, Any], places: int) -> Iterator[Layer]:
    """The VAE's half that is used; places are pixels."""
    widths = vae["block_out_channels"]
    yield _conv(vae["in_channels"], widths[0], 3, places)
    before = widths[0]
    for level, width in enumerate(widths):
        n = places // 4**level
        for _ in range(vae["layers_per_block"]):
            yield from _resnet(before, width, n)
            before = width
        if level < len(widths) - 1:
            yield _conv(width, width, 3, n // 4)
    n = places // 4 ** (len(widths) - 1)
    yield from [*_resnet(before, before, n), *_resnet(before, before, n)]
    if vae.get("mid_block_add_attention", True):
        yield Layer(4 * before * before, n, others=4 * n * n * before)
    yield _conv(before, 2 * vae["latent_channels"], 3, n)


def _decoder(
    model: ModelConfig, widths: Sequence[Sequence[int]], steps: int, places: Sequence[int]
) -> Iterator[Layer]:
    """Fusion, pyramid and head (method sections 1.5 and 1.6); places are those of the stages, coarsest first."""
    config = model.decoder
    finest, *others = config.channels
    outputs = list(reversed(others))
    for i, (own, n) in enumerate(zip(widths, places, strict=True)):
        pairs = len(own) // 2 if config.features == "all" else len(own)
        match config.fusion:
            case DirectFusion():
                yield from _bottleneck(steps * sum(own), outputs[i], n)
            case VanillaFusion():
                outputs[i] = sum(own) // pairs
            case _:
                for _ in range(pairs):
                    for layer in _bottleneck(sum(own) // pairs, outputs[i], n):
                        yield Layer(layer.weights, steps * n)
    for inputs, width, n in zip(outputs, [*outputs[1:], finest], places, strict=True):
        yield _conv(inputs, width, 4, n)  # transposed: applied at each input
        yield from (_conv(width, width, 3, 4 * n) for _ in range(2))
    head, last = config.head_channels, 4 * places[-1]
    for width, n in zip([*outputs, finest], [*places, last], strict=True):
        yield Layer(width * head, n)
    total = 4 * head
    yield Layer(4 * total * head + 3 * 9 * total, last)
    yield _conv(total, head, 3, last)
    yield _conv(head, len(model.classes), 1, last)


def _bottleneck(inputs: int, outputs: int, places: int) -> Iterator[Layer]:
    inner = outputs // 4
    yield _conv(inputs, inner, 1, places)
    yield _conv(inner, inner, 3, places)
    yield _conv(inner, outputs, 1, places)
    if inputs != outputs:
        yield _conv(inputs, outputs, 1, places)
