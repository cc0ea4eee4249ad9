"""The frozen U-Net as the method runs it: the library's modules, walked through here (method sections 1.1 and 1.4).

The same numbers as `UNet2DConditionModel.forward`, with less work around them. What depends on the timestep or the
prompt alone is computed once and kept; the tapped maps are returned, and nothing behind the last one is run where the
noise prediction is not wanted. Nothing is written onto the modules.

Shapes: R rows of one call, h,w the latent grid, C channels and H,W size of a block, N = H W.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffcli.errors import BackboneError

COMPILED_SIZES = 4
"""Sizes of latent that are compiled: twice as many programs are as many as torch.compile keeps of one function."""


class FeatureLayer(NamedTuple):
    """One tapped layer of the U-Net's decoder."""

    kind: Literal["resnet", "attention"]
    stage: int
    layer: int


FeatureKinds = Literal["all", "resnet", "latent"]
Maps = dict[FeatureLayer, Tensor]
"""R,C,H,W of tapped layers."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a text in one attention layer, tokens,C each or R,tokens,C."""


def feature_layers(
    unet: UNet2DConditionModel, *, stages: Sequence[int], kinds: FeatureKinds
) -> list[FeatureLayer]:
    """The layers that exist in this network, per stage the resnets first (the order of concatenation)."""
    layers = []
    for stage in stages:
        block = unet.up_blocks[stage]
        layers += [FeatureLayer("resnet", stage, j) for j in range(len(block.resnets))]
        if kinds == "all":
            layers += [
                FeatureLayer("attention", stage, j) for j in range(len(getattr(block, "attentions", [])))
            ]
    return layers


class FrozenUNet:
    """A U-Net whose weights no longer change, with what it has computed of timesteps and prompts so far.

    Args:
        unet: of Stable Diffusion's kind, see `diffcli.core.loading.check_unet`.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self._every = feature_layers(unet, stages=range(len(unet.up_blocks)), kinds="all")
        self._compiled: Callable[..., tuple[Tensor | None, list[Tensor]]] | None = None
        self.reset()

    def reset(self) -> None:
        """Read the network's weights again and drop what was computed of them, as after a move to another device."""
        unet: Any = self.unet
        self._down = [_Stage.of(block) for block in unet.down_blocks]
        self._middle = _Stage.of(unet.mid_block)
        self._up = [_Stage.of(block) for block in unet.up_blocks]
        stages = (*self._down, self._middle, *self._up)
        self._residuals = [residual for stage in stages for residual in stage.residuals]
        blocks = [b for stage in stages for transformer in stage.transformers for b in transformer.blocks]
        self._to_text = [attention for block in blocks for attention in block.to_text]
        self._biases: dict[int, list[Tensor]] = {}
        self._texts: dict[str, list[KeysValues]] = {}
        self._last_texts: tuple[list[str], list[KeysValues]] = ([], [])
        if self._compiled is not None:
            self.compile(backend=self._backend)

    def __call__(
        self,
        latents: Tensor,
        timestep: int,
        texts: Sequence[tuple[str, Tensor]],
        *,
        layers: Collection[FeatureLayer] = (),
        output: bool = True,
    ) -> tuple[Tensor | None, Maps]:
        """The network's output for R,4,h,w latents in its dtype, and the maps of `layers`.

        Args:
            texts: each row's prompt and its embedding, tokens,width; a prompt always comes with the same one.
            output: False leaves the output out, and everything behind the last of `layers`.
        """
        if timestep not in self._biases:
            self._biases[timestep] = self._time_biases(timestep)
        biases, keys_values = self._biases[timestep], self._keys_values(texts)
        if self._compiled is not None and self._fits(latents):
            return self._run_compiled(latents, biases, keys_values, layers, output)
        return self.forward(latents, biases, keys_values, frozenset(layers), output)

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compiled is not None

    def compile(self, *, backend: str | Callable[..., Any] = "inductor") -> None:
        """Run through torch.compile from now on.

        Each of the first COMPILED_SIZES sizes of latent is compiled twice, at its first call of one row and at its
        first of several; neither another timestep, nor other prompts, nor another number of rows compiles again. What
        comes in further sizes runs as it does without.

        Args:
            backend: what compiles.
        """

        def whole(
            latents: Tensor, biases: Sequence[Tensor], keys_values: Sequence[KeysValues]
        ) -> tuple[Tensor | None, list[Tensor]]:
            output, maps = self.forward(latents, biases, keys_values, self._every, True)
            return output, [maps[layer] for layer in self._every]

        # weights are constants: on a CPU the compiler may bring them into the layout that its kernels want
        frozen = backend == "inductor" and self.unet.device.type == "cpu"
        options: dict[str, Any] | None = {"freezing": True} if frozen else None
        self._backend = backend
        self._sizes: set[torch.Size] = set()
        self._compiled = torch.compile(whole, fullgraph=True, dynamic=False, backend=backend, options=options)

    def _fits(self, latents: Tensor) -> bool:
        """Whether latents of this size are compiled, or still may be."""
        if len(self._sizes) < COMPILED_SIZES:
            self._sizes.add(latents.shape[-2:])
        return latents.shape[-2:] in self._sizes

    def forward(
        self,
        latents: Tensor,
        biases: Sequence[Tensor],
        keys_values: Sequence[KeysValues],
        layers: Collection[FeatureLayer],
        output: bool,
    ) -> tuple[Tensor | None, Maps]:
        """The pass itself: a bias for every residual block, keys and values for every cross-attention."""
        unet: Any = self.unet
        bias, text = iter(biases), iter(keys_values)
        maps: Maps = {}
        x = unet.conv_in(latents)
        skips = [x]
        for stage in self._down:
            for j, residual in enumerate(stage.residuals):
                x, _ = residual(x, next(bias))
                if stage.transformers:
                    x = stage.transformers[j](x, text)
                skips.append(x)
            if stage.resize is not None:
                x = stage.resize(x)
                skips.append(x)
        x, _ = self._middle.residuals[0](x, next(bias))
        for transformer, residual in zip(self._middle.transformers, self._middle.residuals[1:], strict=True):
            x, _ = residual(transformer(x, text), next(bias))
        for i, stage in enumerate(self._up):
            for j, residual in enumerate(stage.residuals):
                x, tapped = residual(torch.cat([x, skips.pop()], dim=1), next(bias))
                layer = FeatureLayer("resnet", i, j)
                if layer in layers:
                    maps[layer] = tapped
                if not output and len(maps) == len(layers):
                    return None, maps
                if not stage.transformers:
                    continue
                tokens = stage.transformers[j].first(x, text)
                layer = FeatureLayer("attention", i, j)
                if layer in layers:
                    maps[layer] = _map(tokens, x)
                if not output and len(maps) == len(layers):
                    return None, maps
                x = stage.transformers[j].rest(x, tokens, text)
            if stage.resize is not None:
                x = stage.resize(x)
        return unet.conv_out(F.silu(unet.conv_norm_out(x), inplace=True)), maps

    def _run_compiled(
        self,
        latents: Tensor,
        biases: Sequence[Tensor],
        keys_values: Sequence[KeysValues],
        layers: Collection[FeatureLayer],
        output: bool,
    ) -> tuple[Tensor | None, Maps]:
        """The whole pass whatever is wanted, and all inputs of one form, so that one program serves every call."""
        import torch._dynamo as dynamo

        latents = latents.contiguous()
        if len(latents) > 1:
            for x in (latents, *(x for pair in keys_values for x in pair)):
                dynamo.mark_dynamic(x, 0)
        assert self._compiled is not None
        try:
            out, every = self._compiled(latents, biases, keys_values)
        except dynamo.exc.BackendCompilerFailed as error:
            why = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            raise BackboneError(
                f"the U-Net cannot be compiled here: {why}",
                where="train.compile",
                hint="torch.compile needs a C++ compiler (on a GPU also Triton); train.compile=false does without",
            ) from error
        maps = {layer: x for layer, x in zip(self._every, every, strict=True) if layer in layers}
        return out if output else None, maps

    def _time_biases(self, timestep: int) -> list[Tensor]:
        """What the timestep adds behind every residual block's first convolution, joined with that one's bias: C."""
        unet: Any = self.unet
        weight = unet.conv_in.weight
        time = unet.time_proj(torch.tensor([timestep], device=weight.device)).to(weight.dtype)
        embedding = F.silu(unet.time_embedding(time))
        return [residual.time_bias(embedding) for residual in self._residuals]

    def _keys_values(self, texts: Sequence[tuple[str, Tensor]]) -> list[KeysValues]:
        """Keys and values of each row's text in every cross-attention; without a batch where all rows share one.

        Those of the last call are kept too: a batch asks for the same ones at every step.
        """
        for prompt, embedding in texts:
            if prompt not in self._texts:
                self._texts[prompt] = [a.keys_values(embedding) for a in self._to_text]
        prompts = [prompt for prompt, _ in texts]
        if len(set(prompts)) == 1 and self._compiled is None:
            return self._texts[prompts[0]]
        if self._last_texts[0] != prompts:
            own = [self._texts[prompt] for prompt in prompts]
            stacks = [
                (torch.stack([keys for keys, _ in layer]), torch.stack([values for _, values in layer]))
                for layer in zip(*own, strict=True)
            ]
            self._last_texts = (prompts, stacks)
        return self._last_texts[1]


# The parts of the network as functions of tensors: at a small size, what a module's call costs counts.

_Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Residual:
    """ResnetBlock2D."""

    norm1: _Layer
    conv1: Callable[..., Tensor]
    """Without its bias."""
    bias1: Tensor
    time: _Layer
    norm2: _Layer
    conv2: _Layer
    shortcut: _Layer | None
    """Of tokens."""

    @classmethod
    def of(cls, m: Any) -> "_Residual":
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
        """What a timestep adds behind the first convolution, with that one's bias, C, from its activated embedding."""
        return self.bias1 + self.time(embedding)[0]

    def __call__(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the second convolution's, which is the tapped map."""
        y = F.silu(self.norm1(x), inplace=True)
        y = self.conv1(y, bias=bias)
        y = self.conv2(F.silu(self.norm2(y), inplace=True))
        if self.shortcut is None:
            return x + y, y
        return _map(self.shortcut(_tokens(x)), x).add_(y), y


@dataclass(frozen=True, slots=True)
class _Attention:
    """Attention of several heads."""

    query: _Layer
    key: _Layer
    value: _Layer
    out: _Layer
    heads: int

    @classmethod
    def of(cls, m: Any) -> "_Attention":
        return cls(_linear(m.to_q), _linear(m.to_k), _linear(m.to_v), _linear(m.to_out[0]), m.heads)

    def keys_values(self, x: Tensor) -> KeysValues:
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
class _Block:
    """BasicTransformerBlock: attention to itself (or to the text), to the text, feed-forward."""

    norm1: _Layer
    attention1: _Attention
    norm2: _Layer
    attention2: _Attention
    norm3: _Layer
    gated: _Layer
    last: _Layer
    only_text: bool

    @classmethod
    def of(cls, m: Any) -> "_Block":
        gated, _, last = m.ff.net
        return cls(
            norm1=_layer_norm(m.norm1),
            attention1=_Attention.of(m.attn1),
            norm2=_layer_norm(m.norm2),
            attention2=_Attention.of(m.attn2),
            norm3=_layer_norm(m.norm3),
            gated=_linear(gated.proj),
            last=_linear(last),
            only_text=m.only_cross_attention,
        )

    @property
    def to_text(self) -> tuple[_Attention, ...]:
        """The attentions that look at the text, in their order."""
        return (self.attention1, self.attention2) if self.only_text else (self.attention2,)

    def __call__(self, tokens: Tensor, text: Iterator[KeysValues]) -> Tensor:
        x = self.norm1(tokens)
        own = next(text) if self.only_text else self.attention1.keys_values(x)
        tokens = self.attention1(x, own).add_(tokens)
        tokens = self.attention2(self.norm2(tokens), next(text)).add_(tokens)
        value, gate = self.gated(self.norm3(tokens)).chunk(2, dim=-1)
        return self.last(F.gelu(gate).mul_(value)).add_(tokens)


@dataclass(frozen=True, slots=True)
class _Transformer:
    """Transformer2DModel, in two parts: what the method taps lies between."""

    norm: _Layer
    proj_in: _Layer
    blocks: tuple[_Block, ...]
    proj_out: _Layer

    @classmethod
    def of(cls, m: Any) -> "_Transformer":
        blocks = tuple(map(_Block.of, m.transformer_blocks))
        return cls(_group_norm(m.norm), _linear(m.proj_in), blocks, _linear(m.proj_out))

    def __call__(self, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
        return self.rest(x, self.first(x, text), text)

    def first(self, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """The first block's output, R,N,C."""
        return self.blocks[0](self.proj_in(_tokens(self.norm(x))), text)

    def rest(self, x: Tensor, tokens: Tensor, text: Iterator[KeysValues]) -> Tensor:
        """The output, from the input and what `first` made of it."""
        for block in self.blocks[1:]:
            tokens = block(tokens, text)
        return _map(self.proj_out(tokens), x).add_(x)


@dataclass(frozen=True, slots=True)
class _Stage:
    """A block of the down, middle or up part; in the middle one there is a transformer less than residual blocks."""

    residuals: tuple[_Residual, ...]
    transformers: tuple[_Transformer, ...]
    """None at all in blocks without attention."""
    resize: nn.Module | None
    """To half or twice the size."""

    @classmethod
    def of(cls, m: Any) -> "_Stage":
        resize = getattr(m, "downsamplers", None) or getattr(m, "upsamplers", None) or (None,)
        return cls(
            tuple(map(_Residual.of, m.resnets)),
            tuple(map(_Transformer.of, getattr(m, "attentions", ()))),
            resize[0],
        )


def _linear(m: Any) -> _Layer:
    """A linear layer of R,N,C, or what is the same one, a 1x1 convolution."""
    return partial(F.linear, weight=m.weight.flatten(1), bias=m.bias)


def _group_norm(m: Any) -> _Layer:
    return partial(torch.group_norm, num_groups=m.num_groups, weight=m.weight, bias=m.bias, eps=m.eps)


def _layer_norm(m: Any) -> _Layer:
    return partial(
        torch.layer_norm, normalized_shape=m.normalized_shape, weight=m.weight, bias=m.bias, eps=m.eps
    )


def _tokens(x: Tensor) -> Tensor:
    """R,C,H,W as R,N,C: no copy of a channels-last tensor."""
    return x.movedim(1, -1).flatten(1, 2)


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    """R,N,C as R,C,H,W, of another map's size, in channels-last layout."""
    height, width = like.shape[-2:]
    return tokens.view(len(tokens), height, width, -1).movedim(-1, 1)
