"""The frozen U-Net as the method runs it: the library's modules, walked through here (method sections 1.1 and 1.4).

The same numbers as `UNet2DConditionModel.forward`, with less work around them. What depends on the timestep or the
prompt alone is computed once and kept; the tapped maps are returned, and nothing behind the last one is run where the
noise prediction is not wanted. Nothing is written onto the modules.

Shapes: R rows of one call, h,w the latent grid, C channels and H,W size of a block, N = H W.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffcli.backbone.capture import Captures, Record
from diffcli.backbone.unet_parts import KeysValues, Stage, to_map
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
        unet: of Stable Diffusion's kind, see `diffcli.backbone.family.check_unet`.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self._every = feature_layers(unet, stages=range(len(unet.up_blocks)), kinds="all")
        self._compiled: Callable[..., tuple[Tensor, list[Tensor]]] | None = None
        self._backend: str | Callable[..., Any] = "inductor"
        self._sizes: set[torch.Size] = set()
        self._record: Record | None = None
        self.captures: Captures | None = None
        """Recorded calls; None where every call is launched by itself."""
        self.reset()

    def reset(self) -> None:
        """Read the network's weights again and drop what was computed of them, as after a move to another device."""
        unet: Any = self.unet
        self._down = [Stage.of(block) for block in unet.down_blocks]
        self._middle = [] if unet.mid_block is None else [Stage.of(unet.mid_block)]  # BK-SDM has none
        self._up = [Stage.of(block) for block in unet.up_blocks]
        stages = (*self._down, *self._middle, *self._up)
        self._residuals = [residual for stage in stages for residual in stage.residuals]
        blocks = [b for stage in stages for transformer in stage.transformers for b in transformer.blocks]
        self._cross_attentions = [attention for block in blocks for attention in block.cross_attentions]
        self.forget()
        if self._compiled is not None:
            self.compile(backend=self._backend)
        self.capture(self._record)

    def forget(self) -> None:
        """Drop what was computed of timesteps and prompts; it is computed again when it is asked for."""
        self._biases: dict[int, list[Tensor]] = {}
        self._texts: dict[str, list[KeysValues]] = {}
        self._last_texts: tuple[list[str], list[KeysValues]] = ([], [])

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

        Where calls are captured, the maps are valid until the next call.

        Args:
            texts: each row's prompt and its embedding, tokens,width; a prompt always comes with the same one.
            output: False leaves the output out, and everything behind the last of `layers`.
        """
        if timestep not in self._biases:
            self._biases[timestep] = self._time_biases(timestep)
        biases, keys_values = self._biases[timestep], self._keys_values(texts)
        if self.captures is None:
            return self._run(latents, biases, keys_values, frozenset(layers), output)
        wanted = [layer for layer in self._every if layer in layers]

        def function(inputs: list[Tensor]) -> list[Tensor]:
            fixed, rest = inputs[1 : 1 + len(biases)], iter(inputs[1 + len(biases) :])
            out, maps = self._run(
                inputs[0], fixed, list(zip(rest, rest, strict=True)), frozenset(layers), output
            )
            return [*([] if out is None else [out]), *(maps[layer] for layer in wanted)]

        key = (latents.shape, keys_values[0][0].shape, frozenset(layers), output)
        inputs = [latents, *biases, *(x for pair in keys_values for x in pair)]
        found = iter(self.captures(key, function, inputs))
        out = next(found).clone() if output else None
        return out, dict(zip(wanted, found, strict=True))

    def _run(
        self,
        latents: Tensor,
        biases: Sequence[Tensor],
        keys_values: Sequence[KeysValues],
        layers: Collection[FeatureLayer],
        output: bool,
    ) -> tuple[Tensor | None, Maps]:
        """The pass, compiled where this size is."""
        if self._compiled is None or not self._fits(latents):
            return self.forward(latents, biases, keys_values, layers, output)
        out, maps = self._run_compiled(latents, biases, keys_values)
        return out if output else None, {layer: maps[layer] for layer in layers}

    def capture(self, record: Record | None) -> None:
        """Record calls of one shape and replay them from now on, see `diffcli.backbone.capture`; None ends it."""
        self._record = record
        self.captures = None if record is None else Captures(record)

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
        ) -> tuple[Tensor, list[Tensor]]:
            output, maps = self.forward(latents, biases, keys_values, self._every, True)
            assert output is not None
            return output, [maps[layer] for layer in self._every]

        self._backend, self._sizes = backend, set()
        self._compiled = torch.compile(whole, fullgraph=True, dynamic=False, backend=backend)

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
        """The pass itself, see `__call__`: with biases of all residual blocks and texts of all cross-attentions."""
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
        for middle in self._middle:
            x, _ = middle.residuals[0](x, next(bias))
            for transformer, residual in zip(middle.transformers, middle.residuals[1:], strict=True):
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
                    maps[layer] = to_map(tokens, x)
                if not output and len(maps) == len(layers):
                    return None, maps
                x = stage.transformers[j].rest(x, tokens, text)
            if stage.resize is not None:
                x = stage.resize(x)
        return unet.conv_out(F.silu(unet.conv_norm_out(x), inplace=True)), maps

    def _run_compiled(
        self, latents: Tensor, biases: Sequence[Tensor], keys_values: Sequence[KeysValues]
    ) -> tuple[Tensor, Maps]:
        """The whole pass whatever is wanted, and all inputs of one form, so that one program serves every call."""
        import torch._dynamo as dynamo

        latents = latents.contiguous()
        if len(latents) > 1:
            for x in (latents, *(x for pair in keys_values for x in pair)):
                dynamo.mark_dynamic(x, 0)
        assert self._compiled is not None
        try:
            out, every = self._compiled(latents, biases, keys_values)
        except dynamo.exc.TorchDynamoException as error:
            why = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            raise BackboneError(
                f"the U-Net cannot be compiled here: {why}",
                where="runtime.compile",
                hint="torch.compile needs a C++ compiler (on a GPU also Triton); runtime.compile=false does without",
            ) from error
        return out, dict(zip(self._every, every, strict=True))

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
                self._texts[prompt] = [a.keys_values(embedding) for a in self._cross_attentions]
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
