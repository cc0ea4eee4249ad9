"""The trained part: fusion of the features, feature pyramid and DAFormer head (method sections 1.5 and 1.6).

Maps come coarsest first (strides 32, 16, 8 in Stable Diffusion); the pyramid's outputs go finest first (4, 8, 16, 32).
"""

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, assert_never, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.config.settings import DecoderConfig, DirectFusion, MixingFusion, VanillaFusion

if TYPE_CHECKING:  # the decoder needs no diffusion model
    from diffcli.core.features import StepMaps


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
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(projection, _norm(16, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self._after_conv1(self.conv1(x), self.shortcut(x))

    def partial(self, x: Tensor, channels: Sequence[slice]) -> Tensor:
        """What some of the input channels add to the first convolution and to the projection, B,P/4 + P,h,w.

        Both are linear: the partial results of all channels sum to what `finish` takes.
        """
        weights = [
            torch.cat([w[:, part] for part in channels], dim=1)
            for w in (self.conv1.weight, self._shortcut_weight())
        ]
        return F.conv2d(x, torch.cat(weights))

    def finish(self, projected: Tensor) -> Tensor:
        """The output, from the sum of all partial results."""
        y, shortcut = torch.split(projected, [self.conv1.out_channels, self.conv3.out_channels], dim=1)
        if isinstance(self.shortcut, nn.Sequential):
            shortcut = self.shortcut[1](shortcut)
        return self._after_conv1(y, shortcut)

    def _shortcut_weight(self) -> Tensor:
        if isinstance(self.shortcut, nn.Sequential):
            return cast(nn.Conv2d, self.shortcut[0]).weight
        weight = self.conv1.weight
        return torch.eye(self.conv3.out_channels, device=weight.device, dtype=weight.dtype)[..., None, None]

    def _after_conv1(self, y: Tensor, shortcut: Tensor) -> Tensor:
        y = F.relu(self.norm1(y))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + shortcut)


class DirectAggregation(nn.Module):
    """ "direct" fusion of one stride: one bottleneck over all its channels.

    `partial` and `finish` give the same map as `forward` without holding the stack of all steps.
    """

    def __init__(self, widths: Sequence[int], *, steps: int, out_channels: int) -> None:
        super().__init__()
        self.widths, self.steps = tuple(widths), steps
        self.out_channels = out_channels
        self.bottleneck = Bottleneck(steps * sum(widths), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bottleneck(x)
        return out

    def partial(self, step: int, maps: Sequence[Tensor]) -> Tensor:
        """What the maps of one step, B,C,h,w for each layer, add to the sum over steps that `finish` takes."""
        starts = [self.steps * sum(self.widths[:layer]) for layer in range(len(self.widths))]
        channels = [
            slice(start + step * width, start + (step + 1) * width)
            for start, width in zip(starts, self.widths, strict=True)
        ]
        return self.bottleneck.partial(_concatenate(maps), channels)

    def finish(self, total: Tensor) -> Tensor:
        return self.bottleneck.finish(total)


class WeightedAggregation(nn.Module):
    """ "vanilla" and "mixing" fusion of one stride: every pair (saved step, layer j) has a learned weight.

    A pair is the resnet and attention map of one layer at one step, concatenated; it is instance-normalised
    (vanilla) or projected by its layer's bottleneck (mixing), and the pairs are summed with one softmax over
    all of them (method section 1.5). Weight number step * layers + j belongs to pair (step, j).

    Args:
        widths: channels of the layers in order of concatenation, e.g. [r0, r1, r2, a0, a1, a2].
        layers: number of layers j.
        steps: number of saved steps.
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
        return torch.stack([self.partial(step, parts[step :: self.steps]) for step in range(self.steps)]).sum(
            0
        )

    def partial(self, step: int, maps: Sequence[Tensor]) -> Tensor:
        """What the maps of one step, B,C,h,w for each layer, add to the sum over steps, which is the output."""
        weights = self.mixing_weights.softmax(0)[step * self.layers :]
        terms = [
            weights[j] * transform(_concatenate(maps[j :: self.layers]))
            for j, transform in enumerate(self.transforms)
        ]
        return torch.stack(terms).sum(0)

    def finish(self, total: Tensor) -> Tensor:
        return total


class FeatureFusion(nn.Module):
    """From the stack of each stride to one map for each stride (method section 1.5)."""

    def __init__(self, config: DecoderConfig, *, widths: Sequence[Sequence[int]], steps: int) -> None:
        super().__init__()
        self.strides = nn.ModuleList(
            self._aggregate(config, layers, steps, out)
            for layers, out in zip(widths, reversed(config.channels[1:]), strict=True)
        )

    @staticmethod
    def _aggregate(config: DecoderConfig, widths: Sequence[int], steps: int, out_channels: int) -> nn.Module:
        layers = len(widths) // 2 if config.features == "all" else len(widths)
        match config.fusion:
            case DirectFusion():
                return DirectAggregation(widths, steps=steps, out_channels=out_channels)
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

    def add(self, totals: dict[int, Tensor], piece: "StepMaps") -> None:
        """Add one piece of the stacks to `totals`, stride -> float32 sum over steps; empty before the first piece."""
        part = self._aggregation(piece.stride).partial(piece.step, piece.maps).float()
        totals[piece.stride] = totals[piece.stride].add_(part) if piece.stride in totals else part

    def finish(self, totals: dict[int, Tensor]) -> list[Tensor]:
        """The output of `forward`, from the sums over all pieces of the stacks."""
        return [self._aggregation(stride).finish(totals[stride]) for stride in range(len(self.strides))]

    def _aggregation(self, stride: int) -> DirectAggregation | WeightedAggregation:
        return cast(DirectAggregation | WeightedAggregation, self.strides[stride])


def _concatenate(maps: Sequence[Tensor]) -> Tensor:
    """Maps concatenated along channels. Autocast refuses to concatenate a half precision other than its own."""
    with torch.autocast(maps[0].device.type, enabled=False):
        return torch.cat(list(maps), dim=1)


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
        widths: channels of the extractor's layers for each stride, coarsest first, in order of concatenation.
        steps: number of saved steps.
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
        return self.decode(self.fusion(self._cast(features)))

    def add(self, totals: dict[int, Tensor], piece: "StepMaps") -> None:
        """Fuse one piece of the stacks as it arrives (see `FeatureFusion.add`); then `decode(fusion.finish(totals))`.

        The same logits as `forward` without the stacks, which are by far the largest tensors. For inference alone:
        a gradient would need the stacks.
        """
        self.fusion.add(totals, piece._replace(maps=self._cast(piece.maps)))

    def decode(self, fused: Sequence[Tensor]) -> Tensor:
        """Fused maps, coarsest first, to logits."""
        logits: Tensor = self.head(self.pyramid(fused))
        return logits.float()

    def _cast(self, features: Sequence[Tensor]) -> list[Tensor]:
        """To the dtype of the weights; autocast takes half-precision features as they are."""
        weight = self.head.classifier.weight
        if torch.is_autocast_enabled(weight.device.type):
            return list(features)
        return [x.to(weight.dtype) for x in features]


def _initialise(module: nn.Module) -> None:
    """Kaiming normal, fan out, zero biases (method sections 1.5 and 1.6)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
