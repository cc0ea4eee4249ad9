"""The parts of the small diffusion model that pretrain_miniworld.py trains: shapes, vocabulary, noise schedule."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CLASS_WORDS = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
STYLE_WORDS = (
    "dark",
    "bright",
    "warm",
    "cold",
    "grey",
    "vivid",
    "hazy",
    "wet",
    "snowy",
    "lamplit",
    "noisy",
    "blurred",
)
MAX_TOKENS = 32


def build_vae() -> AutoencoderKL:
    """Downsampling by 4 and not 8: at 128x256 a factor of 8 loses poles and signs.

    One normalisation group: with few channels a group, the normalisation divides out the level of a channel, and with
    it the colour.
    """
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 48), layers_per_block=1, latent_channels=4, norm_num_groups=1,
        mid_block_add_attention=False, sample_size=128,
    )  # fmt: skip
    start_from_pooling(vae)
    return vae


@torch.no_grad()
def start_from_pooling(vae: AutoencoderKL) -> None:
    """Initialise so that the latent is the picture averaged over 4x4 pixels, and decoding enlarges it again.

    From a random start the autoencoder learns brightness first and may never find colour. Channels 0..2 carry the
    picture and 3..5 its negative, since silu(x) - silu(-x) = x; residual branches start at zero.
    """
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
        elif name.endswith("conv_shortcut"):
            _carry(module, torch.eye(6))
        elif name.endswith("downsamplers.0.conv"):
            _carry(module, torch.eye(6), taps=slice(0, 2))
        elif name.endswith("upsamplers.0.conv"):
            _carry(module, torch.eye(6))
    split = torch.cat([torch.eye(3), -torch.eye(3)])
    for first, last in (
        (vae.encoder.conv_in, vae.encoder.conv_out),
        (vae.decoder.conv_in, vae.decoder.conv_out),
    ):
        _carry(first, split)
        _carry(last, split.T)
    nn.init.eye_(vae.quant_conv.weight[:, :, 0, 0])
    nn.init.eye_(vae.post_quant_conv.weight[:, :, 0, 0])
    vae.encoder.conv_out.bias[4:] = -6.0  # log variance of the posterior


def _carry(conv: nn.Conv2d, matrix: Tensor, taps: slice | None = None) -> None:
    """Let the first channels of a convolution apply `matrix` at its centre, or averaged over a square of `taps`."""
    rows, columns = matrix.shape
    centre = conv.kernel_size[0] // 2
    window = taps or slice(centre, centre + 1)
    nn.init.zeros_(conv.bias)
    conv.weight[:rows] = 0
    conv.weight[:, :columns] *= 0.1
    area = (window.stop - window.start) ** 2
    conv.weight[:rows, :columns, window, window] = matrix[:, :, None, None] / area


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level BPE vocabulary in which each of our words is one token and any other text is spelled in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    visible = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters = visible + [chr(256 + n) for n in range(256 - len(visible))]
    merges: list[tuple[str, str]] = []
    phrases = (*CLASS_WORDS, *STYLE_WORDS, "street a with photo of the")
    for word in sorted({word for phrase in phrases for word in phrase.split()}):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:  # as the tokenizer will: earlier merges come first
            pieces = _apply_merge(pieces, merge)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _apply_merge(pieces, merges[-1])
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    entries = list(dict.fromkeys([*entries, "<|startoftext|>", "<|endoftext|>"]))
    (folder / "vocab.json").write_text(
        json.dumps({entry: n for n, entry in enumerate(entries)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n"
    )
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def _apply_merge(pieces: list[str], merge: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == merge:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_generator(tokenizer: CLIPTokenizer, seed: int) -> nn.ModuleDict:
    """U-Net and text encoder; the top level attends to the text alone, as attention among
    its 2048 points costs most."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS, projection_dim=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 48, 96, 128),
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        attention_head_dim=(1, 2, 3, 4), only_cross_attention=(True, False, False, False),
        cross_attention_dim=64, norm_num_groups=4,
    )  # fmt: skip
    return nn.ModuleDict({"unet": unet, "text_encoder": CLIPTextModel(text)})


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; the network predicts the noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
