"""The parts of a U-Net as functions of tensors: at small sizes the overhead of calling modules matters.

Each part is built from the module of diffusers that its docstring names, and computes the same. In-place operations
never touch a tensor that others may hold: inputs and the maps that the method taps.

Shapes: R rows of one call, C channels, H,W size of a map, N = H W tokens, M tokens of a prompt.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a prompt in one attention layer, each M,C or R,M,C."""
Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Residual:
    """ResnetBlock2D."""

    norm1: Layer
    conv1: Callable[..., Tensor]
    """Without its bias."""
    bias1: Tensor
    time: Layer
    norm2: Layer
    conv2: Layer
    shortcut: Layer | None
    """It takes tokens, R,N,C."""

    @classmethod
    def of(cls, m: Any) -> "Residual":
        return cls(
            norm1=_group_norm(m.norm1),
            conv1=partial(F.conv2d, weight=m.conv1.weight, padding=m.conv1.padding),
            bias1=m.conv1.bias,
            time=_linear(m.time_emb_proj),
            norm2=_group_norm(m.norm2),
            conv2=partial(F.conv2d, weight=m.conv2.weight, bias=m.conv2.bias, padding=m.conv2.padding),
            shortcut=None if m.conv_shortcut is None else _linear(m.conv_shortcut),
        )

    def time_bias(self, embedding: Tensor) -> Tensor:
        """What is added after the first convolution, C: its bias, and the projection of a timestep's embedding."""
        return self.bias1 + self.time(embedding)[0]

    def __call__(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """From R,C,H,W and the C' of `time_bias` to two maps R,C',H,W: the output, and the second convolution's output,
        which the method taps.
        """
        y = F.silu(self.norm1(x), inplace=True)
        y = self.conv1(y, bias=bias)
        y = self.conv2(F.silu(self.norm2(y), inplace=True))
        if self.shortcut is None:
            return x + y, y
        return to_map(self.shortcut(to_tokens(x)), x).add_(y), y


@dataclass(frozen=True, slots=True)
class Attention:
    """Multi-head attention."""

    query: Layer
    key: Layer
    value: Layer
    out: Layer
    heads: int

    @classmethod
    def of(cls, m: Any) -> "Attention":
        return cls(_linear(m.to_q), _linear(m.to_k), _linear(m.to_v), _linear(m.to_out[0]), m.heads)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of R,M,width, or of one prompt, M,width."""
        return self.key(x), self.value(x)

    def __call__(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        """R,N,C attending to keys and values, R,M,C or M,C."""
        rows = len(x)

        def split(y: Tensor) -> Tensor:
            y = y.expand(rows, -1, -1) if y.ndim == 2 else y
            return y.view(rows, y.shape[1], self.heads, -1).transpose(1, 2)

        keys, values = keys_values
        y = F.scaled_dot_product_attention(split(self.query(x)), split(keys), split(values))
        return self.out(y.transpose(1, 2).flatten(2))


@dataclass(frozen=True, slots=True)
class TransformerBlock:
    """BasicTransformerBlock: self-attention (or cross-attention), cross-attention, feed-forward."""

    norm1: Layer
    attention1: Attention
    norm2: Layer
    attention2: Attention
    norm3: Layer
    gated: Layer
    last: Layer
    only_cross: bool
    """The first attention is to the prompt too."""

    @classmethod
    def of(cls, m: Any) -> "TransformerBlock":
        gated, _, last = m.ff.net
        return cls(
            norm1=_layer_norm(m.norm1),
            attention1=Attention.of(m.attn1),
            norm2=_layer_norm(m.norm2),
            attention2=Attention.of(m.attn2),
            norm3=_layer_norm(m.norm3),
            gated=_linear(gated.proj),
            last=_linear(last),
            only_cross=m.only_cross_attention,
        )

    @property
    def cross_attentions(self) -> tuple[Attention, ...]:
        """The attentions to the prompt, in the order in which they run."""
        return (self.attention1, self.attention2) if self.only_cross else (self.attention2,)

    def __call__(self, tokens: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """From R,N,C to R,N,C; `text` gives keys and values for each cross-attention in turn."""
        x = self.norm1(tokens)
        keys_values = next(text) if self.only_cross else self.attention1.keys_values(x)
        tokens = self.attention1(x, keys_values).add_(tokens)
        tokens = self.attention2(self.norm2(tokens), next(text)).add_(tokens)
        value, gate = self.gated(self.norm3(tokens)).chunk(2, dim=-1)
        return self.last(F.gelu(gate).mul_(value)).add_(tokens)


@dataclass(frozen=True, slots=True)
class Transformer:
    """Transformer2DModel in two parts: the method taps the map between them."""

    norm: Layer
    proj_in: Layer
    blocks: tuple[TransformerBlock, ...]
    proj_out: Layer

    @classmethod
    def of(cls, m: Any) -> "Transformer":
        blocks = tuple(map(TransformerBlock.of, m.transformer_blocks))
        return cls(_group_norm(m.norm), _linear(m.proj_in), blocks, _linear(m.proj_out))

    def __call__(self, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """From R,C,H,W to R,C,H,W."""
        return self.rest(x, self.first(x, text), text)

    def first(self, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """The first block's output, R,N,C."""
        return self.blocks[0](self.proj_in(to_tokens(self.norm(x))), text)

    def rest(self, x: Tensor, tokens: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """The output, from the input and the output of `first`."""
        for block in self.blocks[1:]:
            tokens = block(tokens, text)
        return to_map(self.proj_out(tokens), x).add_(x)


@dataclass(frozen=True, slots=True)
class Stage:
    """A block of the down, middle or up part; the middle block has one transformer fewer than residual blocks."""

    residuals: tuple[Residual, ...]
    transformers: tuple[Transformer, ...]
    """Empty in blocks without attention."""
    resize: nn.Module | None
    """Halves or doubles the size; None keeps it."""

    @classmethod
    def of(cls, m: Any) -> "Stage":
        resize = getattr(m, "downsamplers", None) or getattr(m, "upsamplers", None) or (None,)
        return cls(
            tuple(map(Residual.of, m.resnets)),
            tuple(map(Transformer.of, getattr(m, "attentions", ()))),
            resize[0],
        )


def _linear(m: Any) -> Layer:
    """A linear layer of R,N,C; a 1x1 convolution is one too."""
    return partial(F.linear, weight=m.weight.flatten(1), bias=m.bias)


def _group_norm(m: Any) -> Layer:
    return partial(torch.group_norm, num_groups=m.num_groups, weight=m.weight, bias=m.bias, eps=m.eps)


def _layer_norm(m: Any) -> Layer:
    return partial(
        torch.layer_norm, normalized_shape=m.normalized_shape, weight=m.weight, bias=m.bias, eps=m.eps
    )


def to_tokens(x: Tensor) -> Tensor:
    """R,C,H,W as R,N,C; a channels-last tensor is not copied."""
    return x.movedim(1, -1).flatten(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """R,N,C as R,C,H,W of the size of another map, in channels-last layout."""
    height, width = like.shape[-2:]
    return tokens.view(len(tokens), height, width, -1).movedim(-1, 1)
