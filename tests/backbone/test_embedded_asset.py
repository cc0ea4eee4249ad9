"""The pipeline that ships: small, complete, loads as any other, and keeps a picture's detail and colour."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open

from diffcli.data.miniworld import APPEARANCES, render, render_random

ASSET = Path(__file__).parents[2] / "diffcli" / "assets" / "miniworld-sd"
UNSEEN = 3_000_000


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(ASSET / "vae").float().eval()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, image: np.ndarray) -> np.ndarray:
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    decoded = vae.decode(vae.encode(picture).latent_dist.mean).sample.clamp(-1, 1)
    return ((decoded[0].permute(1, 2, 0) + 1) * 127.5).numpy()


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(image - other).mean()))


def test_it_is_at_most_16_megabytes() -> None:
    assert sum(file.stat().st_size for file in ASSET.rglob("*") if file.is_file()) <= 16_000_000


def test_weights_are_float16() -> None:
    files = sorted(ASSET.rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        with safe_open(file, framework="pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_the_card_is_present_and_filled_in() -> None:
    card = (ASSET / "README.md").read_text()
    for section in ("## Data", "## Training", "## Autoencoder", "## Denoising", "## Samples"):
        assert section in card
    assert "image-level labels" in card
    assert all(f"| {domain} |" in card for domain in ("held-out", *APPEARANCES))
    assert "{" not in card
    assert (ASSET / "samples.png").stat().st_size > 10_000


def test_it_loads_as_a_pipeline_with_four_levels() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ASSET).to(dtype=torch.float32)
    assert pipeline.unet.config.up_block_types == ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
    assert pipeline.vae_scale_factor == 4
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.safety_checker is None
    tokens = pipeline.tokenizer(
        ["", "traffic light car"], padding="max_length", return_tensors="pt"
    ).input_ids
    text = pipeline.text_encoder(tokens)[0]
    with torch.no_grad():
        noise = pipeline.unet(torch.zeros(2, 4, 16, 32), 60, text).sample
    assert noise.shape == (2, 4, 16, 32)
    assert torch.isfinite(noise).all()


def test_every_word_of_a_caption_is_one_token() -> None:
    vocabulary = json.loads((ASSET / "tokenizer" / "vocab.json").read_text())
    for word in "road sidewalk building traffic light sign vegetation motorcycle dark snowy".split():
        assert f"{word}</w>" in vocabulary


def test_it_keeps_detail_and_colour_of_unseen_pictures(vae: AutoencoderKL) -> None:
    images = [render_random(UNSEEN, index)[0] for index in range(6)]
    outputs = [reconstruct(vae, image) for image in images]
    assert np.mean([psnr(*pair) for pair in zip(images, outputs, strict=True)]) > 27

    def chroma(pictures: list[np.ndarray]) -> np.ndarray:
        stack = np.stack(pictures).astype(np.float64)
        return (stack - stack.mean(axis=-1, keepdims=True)).ravel()

    original, kept = chroma(images), chroma(outputs)
    assert 0.85 < original @ kept / (original @ original) < 1.1, "colour is lost first"


@pytest.mark.parametrize("domain", APPEARANCES)
def test_it_keeps_the_pictures_of_every_domain(vae: AutoencoderKL, domain: str) -> None:
    image = render(UNSEEN, 0, domain)[0]
    assert psnr(image, reconstruct(vae, image)) > 23
