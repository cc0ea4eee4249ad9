"""The text encoder of a single file under the names of the transformers library."""

import re

from torch import Tensor

_OPEN_CLIP_NAMES = (
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("token_embedding.", "embeddings.token_embedding."),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def convert_text_encoder(state: dict[str, Tensor], *, layers: int) -> dict[str, Tensor]:
    """The text encoder's tensors under transformers' names: CLIP's as they are, OpenCLIP's renamed and split.

    SD 2.x uses the states before OpenCLIP's last layer, which is dropped by keeping `layers` of them.
    """
    clip, open_clip = "cond_stage_model.transformer.", "cond_stage_model.model."
    if any(name.startswith(clip) for name in state):
        return {name.removeprefix(clip): x for name, x in state.items() if name.startswith(clip)}
    converted = {}
    for name, tensor in state.items():
        name = name.removeprefix(open_clip)
        for old, new in _OPEN_CLIP_NAMES:
            name = name.replace(old, new)
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if not name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) or (
            layer and int(layer[1]) >= layers
        ):
            continue
        if ".attn.in_proj_" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed = name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")
                converted[f"text_model.{renamed}"] = piece.clone()
        else:
            converted[f"text_model.{name}"] = tensor
    return converted
