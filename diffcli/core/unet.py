"""The frozen U-Net as the method runs it: the library's modules, walked through here (method sections 1.1 and 1.4).

The same numbers as `UNet2DConditionModel.forward`, with less work around them. What depends on the timestep or the
prompt alone is computed once and kept; the tapped maps are returned, and nothing behind the last one is run where the
noise prediction is not wanted. Nothing is written onto the modules.

Shapes: R rows of one call, h,w the latent grid, C channels and H,W size of a block, N = H W.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor


class FeatureLayer(NamedTuple):
    """One tapped layer of the U-Net's decoder."""

    kind: Literal["resnet", "attention"]
    stage: int
    layer: int


Maps = dict[FeatureLayer, Tensor]
"""R,C,H,W of tapped layers."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a text in one attention layer, tokens,C each or R,tokens,C."""


class FrozenUNet:
    """A U-Net whose weights no longer change, with what it has computed of timesteps and prompts so far.

    Args:
        unet: of Stable Diffusion's kind, see `diffcli.core.loading.check_unet`.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        blocks: list[Any] = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        self._resnets: list[Any] = [resnet for block in blocks for resnet in block.resnets]
        transformers = [t for block in blocks for t in getattr(block, "attentions", [])]
        layers = [layer for transformer in transformers for layer in transformer.transformer_blocks]
        self._cross: list[Any] = [
            attention
            for layer in layers
            for attention in ((layer.attn1, layer.attn2) if layer.only_cross_attention else (layer.attn2,))
        ]
        self._biases: dict[int, list[Tensor]] = {}
        self._texts: dict[str, list[KeysValues]] = {}

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
        return self.forward(
            latents, self._biases[timestep], self._keys_values(texts), frozenset(layers), output
        )

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
        for block in unet.down_blocks:
            for j, resnet in enumerate(block.resnets):
                x, _ = _residual(resnet, x, next(bias))
                if hasattr(block, "attentions"):
                    x = _transformer(block.attentions[j], x, text)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        x, _ = _residual(unet.mid_block.resnets[0], x, next(bias))
        for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            x = _transformer(attention, x, text)
            x, _ = _residual(resnet, x, next(bias))
        for stage, block in enumerate(unet.up_blocks):
            for j, resnet in enumerate(block.resnets):
                x, tapped = _residual(resnet, torch.cat([x, skips.pop()], dim=1), next(bias))
                layer = FeatureLayer("resnet", stage, j)
                if layer in layers:
                    maps[layer] = tapped
                if not output and len(maps) == len(layers):
                    return None, maps
                if not hasattr(block, "attentions"):
                    continue
                tokens = _first_block(block.attentions[j], x, text)
                layer = FeatureLayer("attention", stage, j)
                if layer in layers:
                    maps[layer] = _map(tokens, *x.shape[-2:])
                if not output and len(maps) == len(layers):
                    return None, maps
                x = _remaining_blocks(block.attentions[j], x, tokens, text)
            for upsampler in block.upsamplers or ():
                x = upsampler(x)
        return unet.conv_out(F.silu(unet.conv_norm_out(x), inplace=True)), maps

    def forget(self) -> None:
        """Drop what was kept, as after a move to another device."""
        self._biases.clear()
        self._texts.clear()

    def _time_biases(self, timestep: int) -> list[Tensor]:
        """What the timestep adds behind every residual block's first convolution, joined with that one's bias: C."""
        unet: Any = self.unet
        weight = unet.conv_in.weight
        time = unet.time_proj(torch.tensor([timestep], device=weight.device)).to(weight.dtype)
        embedding = F.silu(unet.time_embedding(time))
        return [resnet.conv1.bias + resnet.time_emb_proj(embedding)[0] for resnet in self._resnets]

    def _keys_values(self, texts: Sequence[tuple[str, Tensor]]) -> list[KeysValues]:
        """Keys and values of each row's text in every cross-attention; without a batch where all rows share one."""
        for prompt, embedding in texts:
            if prompt not in self._texts:
                self._texts[prompt] = [(a.to_k(embedding), a.to_v(embedding)) for a in self._cross]
        own = [self._texts[prompt] for prompt, _ in texts]
        if all(one is own[0] for one in own):
            return own[0]
        return [
            (torch.stack([keys for keys, _ in layer]), torch.stack([values for _, values in layer]))
            for layer in zip(*own, strict=True)
        ]


def _residual(block: Any, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """ResnetBlock2D: its output, and its second convolution's, which is the tapped map."""
    h = F.silu(block.norm1(x), inplace=True)
    h = F.conv2d(h, block.conv1.weight, bias, padding=1)
    h = block.conv2(F.silu(block.norm2(h), inplace=True))
    if block.conv_shortcut is None:
        return x + h, h
    return block.conv_shortcut(x).add_(h), h


def _transformer(module: Any, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
    """Transformer2DModel."""
    return _remaining_blocks(module, x, _first_block(module, x, text), text)


def _first_block(module: Any, x: Tensor, text: Iterator[KeysValues]) -> Tensor:
    """Transformer2DModel up to behind its first block, whose output is the tapped map; R,N,C."""
    x = module.norm(x)
    tokens = module.proj_in(_tokens(x)) if module.use_linear_projection else _tokens(module.proj_in(x))
    return _block(module.transformer_blocks[0], tokens, text)


def _remaining_blocks(module: Any, x: Tensor, tokens: Tensor, text: Iterator[KeysValues]) -> Tensor:
    """What Transformer2DModel makes of its input and its first block's output."""
    size = x.shape[-2:]
    for block in module.transformer_blocks[1:]:
        tokens = _block(block, tokens, text)
    linear = module.use_linear_projection
    out = _map(module.proj_out(tokens), *size) if linear else module.proj_out(_map(tokens, *size))
    return out.add_(x)


def _block(block: Any, tokens: Tensor, text: Iterator[KeysValues]) -> Tensor:
    """BasicTransformerBlock: attention to itself (or to the text), to the text, feed-forward; R,N,C."""
    x = block.norm1(tokens)
    own = next(text) if block.only_cross_attention else (block.attn1.to_k(x), block.attn1.to_v(x))
    tokens = _attention(block.attn1, x, own).add_(tokens)
    tokens = _attention(block.attn2, block.norm2(tokens), next(text)).add_(tokens)
    gated, _, last = block.ff.net
    value, gate = gated.proj(block.norm3(tokens)).chunk(2, dim=-1)
    out: Tensor = last(F.gelu(gate).mul_(value))
    return out.add_(tokens)


def _attention(module: Any, x: Tensor, keys_values: KeysValues) -> Tensor:
    """Multi-head attention of R,N,C to keys and values, R,M,C or M,C."""
    rows = len(x)

    def heads(y: Tensor) -> Tensor:
        y = y.expand(rows, -1, -1) if y.ndim == 2 else y
        return y.reshape(*y.shape[:2], module.heads, -1).transpose(1, 2)

    keys, values = keys_values
    y = F.scaled_dot_product_attention(heads(module.to_q(x)), heads(keys), heads(values))
    out: Tensor = module.to_out[0](y.transpose(1, 2).flatten(2))
    return out


def _tokens(x: Tensor) -> Tensor:
    """R,C,H,W as R,N,C: no copy of a channels-last tensor."""
    return x.movedim(1, -1).flatten(1, 2)


def _map(tokens: Tensor, height: int, width: int) -> Tensor:
    """R,N,C as R,C,H,W in channels-last layout."""
    return tokens.reshape(len(tokens), height, width, -1).movedim(-1, 1)
