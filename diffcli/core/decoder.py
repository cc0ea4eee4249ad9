"""The trained part: fusion of the features, feature pyramid and DAFormer head (method sections 1.5 and 1.6).

Maps come coarsest first (strides 32, 16, 8 in Stable Diffusion); the pyramid's outputs go finest first (4, 8, 16, 32).
"""

from collections.abc import Sequence
from math import gcd
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.config import DecoderConfig, DirectFusion, MixingFusion, VanillaFusion


def _norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(groups, channels), channels, eps=1e-5)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with GroupNorm(16) and a projected shortcut: B,C,h,w -> B,P,h,w (method 1.5)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm1 = _norm(16, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2 = _norm(16, inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = _norm(16, out_channels)
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else self._projection(in_channels, out_channels)
        )

    @staticmethod
    def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), _norm(16, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class DirectAggregation(nn.Module):
    """ "direct" fusion of one stride: one bottleneck over all its channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.bottleneck = Bottleneck(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bottleneck(x)
        return out


class WeightedAggregation(nn.Module):
    """ "vanilla" and "mixing" fusion of one stride: every (kept step, layer j) pair has a learned weight.

    A pair is the resnet and attention map of one layer at one step, concatenated; it is instance-normalised
    (vanilla) or projected by its layer's bottleneck (mixing), and the pairs are summed with one softmax over
    all of them (method section 1.5). Weight number step * layers + j belongs to pair (step, j).

    Args:
        widths: channels of the layers in order of concatenation, e.g. [r0, r1, r2, a0, a1, a2].
        layers: number of layers j.
        steps: kept steps.
        out_channels: width after projection; None normalises only and keeps the pair's width.
    """

    def __init__(self, widths: Sequence[int], *, layers: int, steps: int, out_channels: int | None) -> None:
        super().__init__()
        self.widths, self.layers, self.steps = tuple(widths), layers, steps
        pairs = [sum(widths[j :: self.layers]) for j in range(self.layers)]
        if out_channels is None:
            assert len(set(pairs)) == 1, "layers of one stride have one width"
            self.transforms = nn.ModuleList(nn.InstanceNorm2d(width, affine=True) for width in pairs)
        else:
            self.transforms = nn.ModuleList(Bottleneck(width, out_channels) for width in pairs)
        self.out_channels = out_channels or pairs[0]
        self.mixing_weights = nn.Parameter(torch.ones(steps * self.layers))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, [width for width in self.widths for _ in range(self.steps)], dim=1)
        weights = self.mixing_weights.softmax(0)
        terms = []
        for step in range(self.steps):
            for j, transform in enumerate(self.transforms):
                pair = torch.cat(
                    [parts[k * self.steps + step] for k in range(j, len(self.widths), self.layers)], dim=1
                )
                terms.append(weights[step * self.layers + j] * transform(pair))
        return torch.stack(terms).sum(0)


class FeatureFusion(nn.Module):
    """The stack of every stride to one map a stride (method section 1.5)."""

    def __init__(self, config: DecoderConfig, *, widths: Sequence[Sequence[int]], steps: int) -> None:
        super().__init__()
        self.strides = nn.ModuleList(
            self._stride(config, own, steps, out)
            for own, out in zip(widths, reversed(config.channels[1:]), strict=True)
        )

    @staticmethod
    def _stride(config: DecoderConfig, widths: Sequence[int], steps: int, out_channels: int) -> nn.Module:
        layers = len(widths) // 2 if config.features == "all" else len(widths)
        match config.fusion:
            case DirectFusion():
                return DirectAggregation(steps * sum(widths), out_channels)
            case VanillaFusion():
                return WeightedAggregation(widths, layers=layers, steps=steps, out_channels=None)
            case MixingFusion():
                return WeightedAggregation(widths, layers=layers, steps=steps, out_channels=out_channels)
            case other:
                assert_never(other)

    @property
    def out_channels(self) -> list[int]:
        """Widths of the outputs, coarsest first."""
        return [int(stride.out_channels) for stride in self.strides]  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [stride(x) for stride, x in zip(self.strides, features, strict=True)]


class ResidualBlock(nn.Module):
    """conv3x3-GN32-ReLU-conv3x3-GN32, add, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = _norm(32, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = _norm(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + x)


class UpFusion(nn.Module):
    """Twice the size by a 4x4 stride-2 transposed convolution, plus a skip, then a residual block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.block = ResidualBlock(out_channels)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        y = self.deconv(x)
        out: Tensor = self.block(y if skip is None else y + skip)
        return out


class FeaturePyramid(nn.Module):
    """Three maps, coarsest first, to four, finest first: a new finest one and the normalised inputs (method 1.5)."""

    def __init__(self, in_channels: Sequence[int], finest_channels: int) -> None:
        super().__init__()
        coarse, middle, fine = in_channels
        self.norms = nn.ModuleList(_norm(32, channels) for channels in in_channels)
        self.up1 = UpFusion(coarse, middle)
        self.up2 = UpFusion(middle, fine)
        self.up3 = UpFusion(fine, finest_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        coarse, middle, fine = (norm(x) for norm, x in zip(self.norms, maps, strict=True))
        finest = self.up3(self.up2(self.up1(coarse, middle), fine), None)
        return [finest, fine, middle, coarse]


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class DAFormerHead(nn.Module):
    """Four maps, finest first, to logits at the finest one's size (method section 1.6; DAFormer, Hoyer et al. 2022)."""

    def __init__(self, in_channels: Sequence[int], *, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        total = channels * len(in_channels)
        self.embed = nn.ModuleList(nn.Linear(width, channels) for width in in_channels)
        self.aspp = nn.ModuleList(
            [
                _conv_bn_relu(total, channels, 1),
                *(
                    nn.Sequential(
                        _conv_bn_relu(total, total, 3, dilation=dilation, groups=total),
                        _conv_bn_relu(total, channels, 1),
                    )
                    for dilation in (6, 12, 18)
                ),
            ]
        )
        self.bottleneck = _conv_bn_relu(total, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        size = pyramid[0].shape[-2:]
        embedded = []
        for linear, x in zip(self.embed, pyramid, strict=True):
            y = linear(x.movedim(1, -1)).movedim(-1, 1)
            embedded.append(
                y if y.shape[-2:] == size else F.interpolate(y, size, mode="bilinear", align_corners=False)
            )
        x = torch.cat(embedded, dim=1)
        x = self.bottleneck(torch.cat([branch(x) for branch in self.aspp], dim=1))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class SegmentationDecoder(nn.Module):
    """Fusion, pyramid and head: the only trained module.

    Args:
        config: widths and kind of fusion.
        widths: channels of the extractor's layers per stride, coarsest first, in order of concatenation.
        steps: kept steps.
        classes: number of classes.
    """

    def __init__(
        self, config: DecoderConfig, *, widths: Sequence[Sequence[int]], steps: int, classes: int
    ) -> None:
        super().__init__()
        self.fusion = FeatureFusion(config, widths=widths, steps=steps)
        coarse_first = self.fusion.out_channels
        self.pyramid = FeaturePyramid(coarse_first, config.channels[0])
        self.head = DAFormerHead(
            (config.channels[0], *reversed(coarse_first)),
            channels=config.head_channels,
            classes=classes,
            dropout=config.dropout,
        )
        self.apply(_initialise)
        nn.init.normal_(self.head.classifier.weight, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """B,C,h,w stacks, coarsest first, to B,classes,H,W logits at twice the finest stack's size (stride 4)."""
        weight = self.head.classifier.weight
        if not torch.is_autocast_enabled(
            weight.device.type
        ):  # which takes half-precision features as they are
            features = [x.to(weight.dtype) for x in features]
        logits: Tensor = self.head(self.pyramid(self.fusion(features)))
        return logits.float()


def _initialise(module: nn.Module) -> None:
    """Kaiming normal, fan out, zero biases (method sections 1.5 and 1.6)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
