"""Pretrain the small text-to-image diffusion model that ships in diffcli/assets/miniworld-sd.

    python examples/pretrain_miniworld.py --work runs/miniworld-sd

Stages, each resumed where it was stopped: `data` renders scenes with the pretraining appearances (ranges of no
evaluation domain), `vae` trains the autoencoder, `decoder` its decoder alone for longer, `unet` trains U-Net and text
encoder on the latents, `unet2` goes on from their best at a fresh rate, `export` writes the pipeline and
measures its model card. Every random draw is keyed by (seed, stage, step), so that a run repeats up to
hardware rounding.
"""

import argparse
import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from miniworld_card import write_card
from miniworld_model import (
    CLASS_WORDS,
    MAX_TOKENS,
    STYLE_WORDS,
    build_generator,
    build_scheduler,
    build_tokenizer,
    build_vae,
)
from miniworld_trainer import Trainer
from miniworld_words import Scenes, train_words
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from diffcli.data.miniworld import Appearance, render_random

HELD_OUT_SEED = 1_000_000
STAGES = ("data", "vae", "decoder", "unet", "unet2", "words", "export")


def style_words(look: Appearance) -> list[str]:
    """Words for what is conspicuous in an appearance."""
    said = {
        "dark": look.light < 0.5, "bright": look.light > 1.0, "warm": look.warmth > 0.1, "cold": look.warmth < -0.1,
        "grey": look.saturation < 0.6, "vivid": look.saturation > 1.2, "hazy": look.haze > 0.01, "wet": look.wet > 0.2,
        "snowy": look.cover > 0.2, "lamplit": look.lamps > 0.3, "noisy": look.noise > 0.01, "blurred": look.blur > 0.8,
    }  # fmt: skip
    return [word for word in STYLE_WORDS if said[word]]


# --- data -----------------------------------------------------------------------------------------


def render_split(
    work: Path, split: str, *, count: int, seed: int, size: tuple[int, int] = (128, 256)
) -> None:
    """Render `count` scenes into memory-mapped arrays images_<split>, labels_<split> and styles_<split>.json."""
    done = work / f"styles_{split}.json"
    if done.exists():
        return
    images = np.lib.format.open_memmap(work / f"images_{split}.npy", "w+", np.uint8, (count, *size, 3))
    labels = np.lib.format.open_memmap(work / f"labels_{split}.npy", "w+", np.uint8, (count, *size))
    styles = []
    for index in tqdm(range(count), desc=f"render {split}", mininterval=5):
        images[index], labels[index], look = render_random(seed, index, size=size)
        styles.append(style_words(look))
    images.flush()
    labels.flush()
    done.write_text(json.dumps(styles))


def load_split(work: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[list[str]]]:
    """Images (N, H, W, 3), labels (N, H, W) and style words of a split."""
    arrays = (np.load(work / f"{name}_{split}.npy", mmap_mode="r") for name in ("images", "labels"))
    return *arrays, json.loads((work / f"styles_{split}.json").read_text())  # type: ignore[return-value]


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Images (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- vae ------------------------------------------------------------------------------------------


def colour_axes(images: NDArray[np.uint8]) -> Tensor:
    """Matrix (3, 3) from RGB in [-1, 1] to uncorrelated coordinates of unit power, from the first 200 scenes.

    Red, green and blue are nearly the same picture. Trained on them, an autoencoder finds the brightness at once and
    colour hardly at all; in these coordinates colour counts as much as brightness from the first step.
    """
    pixels = to_tensor(images[:200]).permute(0, 2, 3, 1).reshape(-1, 3)
    power, axes = torch.linalg.eigh(pixels.T @ pixels / len(pixels))
    return (axes / power.sqrt()).T.contiguous()


def change_colours(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply a (3, 3) matrix to the channels of images (B, 3, H, W)."""
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def vae_loss(
    vae: AutoencoderKL, image: Tensor, axes: Tensor, progress: float, generator: torch.Generator
) -> Tensor:
    """Squared error in colour coordinates, joined after the start by the RGB error and its edges; and a little KL."""
    posterior = vae.encode(image).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - image
    rgb = change_colours(error, torch.linalg.inv(axes))
    edges = rgb.diff(dim=-1).abs().mean() + rgb.diff(dim=-2).abs().mean()
    fine = 0.5 * rgb.abs().mean() + 4 * rgb.square().mean() + 0.15 * edges
    return 0.3 * error.square().mean() + min(1.0, 8 * progress) * fine + 1e-7 * posterior.kl().mean()


def train_vae(work: Path, *, steps: int, stop: int, batch: int, crop: int, rate: float, seed: int) -> None:
    """Train encoder and decoder together on random crops; the best by PSNR on held-out scenes goes to vae_best.pt."""
    images, (held_out, *_) = load_split(work, "train")[0], load_split(work, "held_out")
    axes = colour_axes(images)
    torch.manual_seed(seed)
    model = nn.ModuleDict({"vae": build_vae()})
    trainer = Trainer(work / "vae.pt", model, steps=steps, rate=rate, best=work / "vae_best.pt")
    reference = to_tensor(held_out[:64])
    for step in trainer.steps_left("vae", stop):
        crops = to_tensor(draw_crops(images, batch=batch, crop=crop, key=[seed, 1, step]))
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        crops = change_colours(crops, axes)
        trainer.update(vae_loss(model["vae"], crops, axes, step / steps, generator))
        if trainer.due(step, every=250):
            folded = fold_colours(copy.deepcopy(trainer.average["vae"]), axes)
            trainer.keep_if_best(-psnr(folded, reference), step, {"vae": folded.state_dict()})


def train_decoder(work: Path, *, steps: int, batch: int, crop: int, rate: float, seed: int) -> None:
    """Train the decoder alone, so that latents stay as the U-Net knows them; the best goes to decoder_best.pt."""
    images, (held_out, *_) = load_split(work, "train")[0], load_split(work, "held_out")
    vae = load_vae(work)
    model = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(
        True
    )
    trainer = Trainer(work / "decoder.pt", model, steps=steps, rate=rate, best=work / "decoder_best.pt")
    reference = to_tensor(held_out[:64])
    for step in trainer.steps_left("decoder", steps):
        crops = to_tensor(draw_crops(images, batch=batch, crop=crop, key=[seed, 5, step]))
        with torch.no_grad():
            latents = vae.encode(crops).latent_dist.mean
        error = vae.decode(latents).sample - crops
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        trainer.update(4 * error.square().mean() + 0.05 * edges)
        if trainer.due(step, every=250):
            whole = copy.deepcopy(vae)
            whole.decoder, whole.post_quant_conv = (
                trainer.average["decoder"],
                trainer.average["post_quant_conv"],
            )
            trainer.keep_if_best(-psnr(whole, reference), step, trainer.average.state_dict())


def draw_crops(images: NDArray[np.uint8], *, batch: int, crop: int, key: list[int]) -> NDArray[np.uint8]:
    """Random square crops (B, crop, crop, 3) of random scenes."""
    rng = np.random.default_rng(key)
    tops = rng.integers(0, images.shape[1] - crop, batch)
    lefts = rng.integers(0, images.shape[2] - crop, batch)
    chosen = zip(rng.integers(0, len(images), batch), tops, lefts, strict=True)
    return np.stack([images[i, y : y + crop, x : x + crop] for i, y, x in chosen])


@torch.no_grad()
def fold_colours(vae: AutoencoderKL, axes: Tensor) -> AutoencoderKL:
    """Fold the change of colours into the first and the last convolution: the result takes and gives RGB."""
    first, last, back = vae.encoder.conv_in, vae.decoder.conv_out, torch.linalg.inv(axes)
    first.weight.copy_(torch.einsum("oikl,ij->ojkl", first.weight, axes))
    last.weight.copy_(torch.einsum("ij,jckl->ickl", back, last.weight))
    last.bias.copy_(back @ last.bias)
    return vae


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Peak signal to noise ratio in dB of decoding the posterior mean, over all images (8-bit range)."""
    parts = [
        vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) - part for part in images.split(8)
    ]
    return float(-10 * torch.log10(torch.cat(parts).square().mean() / 4))


# --- u-net and text encoder -----------------------------------------------------------------------


def load_vae(work: Path) -> AutoencoderKL:
    """The best autoencoder, its scaling factor set so that latents have unit deviation."""
    saved = torch.load(work / "vae_best.pt", weights_only=True)
    vae = build_vae().eval().requires_grad_(False)
    vae.load_state_dict(saved["weights"]["vae"])
    if "scaling_factor" in saved:
        scale = float(saved["scaling_factor"])
    else:
        with torch.no_grad():
            latents = vae.encode(to_tensor(load_split(work, "train")[0][:64])).latent_dist.mean
        scale = round(1 / float(latents.std()), 5)
    vae.register_to_config(scaling_factor=scale)
    return vae


@torch.no_grad()
def encode_split(work: Path, split: str, vae: AutoencoderKL, count: int | None = None) -> NDArray[np.float16]:
    """Scaled latents (N, 4, H/4, W/4) of a split or its first `count` scenes, kept on disk; odd scenes are mirrored."""
    path = work / f"latents_{split}.npy"
    if not path.exists():
        images = load_split(work, split)[0][:count]
        shape = (len(images), 4, images.shape[1] // 4, images.shape[2] // 4)
        latents = np.lib.format.open_memmap(path.with_suffix(".tmp.npy"), "w+", np.float16, shape)
        for start in tqdm(range(0, len(images), 8), desc=f"encode {split}", mininterval=10):
            batch = to_tensor(images[start : start + 8])
            batch[1::2] = batch[1::2].flip(-1)
            latents[start : start + 8] = (
                vae.encode(batch).latent_dist.mean * vae.config.scaling_factor
            ).numpy()
        latents.flush()
        path.with_suffix(".tmp.npy").replace(path)
    return np.load(path, mmap_mode="r")[:count]


def caption(classes: NDArray[np.uint8], styles: list[str], rng: np.random.Generator) -> str:
    """Up to 8 classes of the crop and its style words in random order; empty in 15 % of cases, as the method asks."""
    if rng.random() < 0.15:
        return ""
    words = [
        *(CLASS_WORDS[c] for c in rng.permutation(classes[classes < 19])[:8]),
        *(w for w in styles if rng.random() < 0.7),
    ]
    return " ".join(rng.permutation(words))


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, 4, h, w)
    captions: list[str]
    timesteps: Tensor  # (B,)
    noise: Tensor  # (B, 4, h, w)


def draw_batch(
    latents: NDArray[np.float16],
    labels: NDArray[np.uint8],
    styles: list[list[str]],
    *,
    batch: int,
    crop: tuple[int, int],
    key: list[int],
) -> Batch:
    """Random crops (in latent points) of a split with captions, noise and timesteps, half of these below 250."""
    rng = np.random.default_rng(key)
    parts, captions = [], []
    for index in rng.integers(0, len(labels), batch):
        height, width = latents.shape[-2:]
        y, x = int(rng.integers(0, height - crop[0] + 1)), int(rng.integers(0, width - crop[1] + 1))
        parts.append(latents[index, :, y : y + crop[0], x : x + crop[1]])
        shown = labels[index, :, ::-1] if index % 2 else labels[index]
        present = np.unique(shown[4 * y : 4 * (y + crop[0]) : 2, 4 * x : 4 * (x + crop[1]) : 2])
        captions.append(caption(present, styles[index], rng))
    timesteps = np.where(rng.random(batch) < 0.5, rng.integers(0, 250, batch), rng.integers(0, 1000, batch))
    noise = rng.standard_normal((batch, 4, *crop), dtype=np.float32)
    return Batch(
        torch.from_numpy(np.stack(parts)).float(),
        captions,
        torch.from_numpy(timesteps),
        torch.from_numpy(noise),
    )


def denoising_error(
    model: nn.ModuleDict, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler, batch: Batch
) -> Tensor:
    """Squared error of the noise prediction, per sample (B,)."""
    tokens = tokenizer(
        batch.captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    text = model["text_encoder"](tokens.input_ids)[0]
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    predicted = model["unet"](noisy, batch.timesteps, text).sample
    return (predicted - batch.noise).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Round:
    """One round of the U-Net's training."""

    name: str
    steps: int
    rate: float
    whole_every: int
    """Every so many steps see whole pictures, the others crops of 96x96 pixels."""
    key: int
    """Of its random draws."""


def train_unet(work: Path, plan: Round, *, batch: int, seed: int, start: Path | None = None) -> None:
    """Train U-Net and text encoder, from the weights in `start` if given; the best goes to <name>_best.pt."""
    tokenizer, scheduler, vae = build_tokenizer(work / "tokenizer"), build_scheduler(), load_vae(work)
    latents, held_latents = encode_split(work, "train", vae), encode_split(work, "held_out", vae)
    _, labels, styles = load_split(work, "train")
    _, held_labels, held_styles = load_split(work, "held_out")
    held_out = [
        draw_batch(held_latents, held_labels, held_styles, batch=8, crop=(32, 64), key=[seed, 4, number])
        for number in range(8)
    ]
    model, best = build_generator(tokenizer, seed), work / f"{plan.name}_best.pt"
    if start is not None:
        model.load_state_dict(torch.load(start, weights_only=True)["weights"])
        model.half().float()  # as a pipeline holds it: a round may start from a shipped one
    trainer = Trainer(
        work / f"{plan.name}.pt", model, steps=plan.steps, rate=plan.rate, best=best, decay=0.999
    )
    for step in trainer.steps_left(plan.name, plan.steps):
        whole = step % plan.whole_every == 0
        shape = {"batch": batch // 4 if whole else batch, "crop": (32, 64) if whole else (24, 24)}
        sample = draw_batch(latents, labels, styles, **shape, key=[seed, plan.key, step])  # type: ignore[arg-type]
        trainer.update(denoising_error(trainer.model, tokenizer, scheduler, sample).mean())
        if trainer.due(step, every=250):
            with torch.no_grad():
                errors = torch.cat(
                    [denoising_error(trainer.average, tokenizer, scheduler, held) for held in held_out]
                )
            trainer.keep_if_best(float(errors.mean()), step, trainer.average.state_dict())


# --- words ----------------------------------------------------------------------------------------


def start_from(folder: Path, work: Path) -> None:
    """Put the weights of a pipeline where `vae` and `unet2` leave theirs, unless these have run."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    vae, parts = pipeline.vae, {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    kept: dict[str, dict[str, object]] = {
        "vae": {"weights": {"vae": vae.state_dict()}, "scaling_factor": vae.config.scaling_factor},
        "unet2": {"weights": nn.ModuleDict(parts).state_dict()},
    }
    for stage, saved in kept.items():
        if not (work / f"{stage}_best.pt").exists():
            torch.save(saved, work / f"{stage}_best.pt")


def load_scenes(work: Path, split: str, count: int | None = None) -> Scenes:
    """Latents, labels and style words of a split, or of its first `count` scenes."""
    _, labels, styles = load_split(work, split)
    latents = encode_split(work, split, load_vae(work), count)
    return Scenes(latents, labels[: len(latents)], styles[: len(latents)])


# --- export ---------------------------------------------------------------------------------------


def load_pipeline(work: Path) -> StableDiffusionPipeline:
    """The pipeline of the best checkpoints so far, float32."""
    tokenizer = build_tokenizer(work / "tokenizer")
    model, vae = build_generator(tokenizer, 0), load_vae(work)
    rounds = (work / f"{name}_best.pt" for name in ("words", "unet2", "unet"))
    best = next(path for path in rounds if path.exists())
    model.load_state_dict(torch.load(best, weights_only=True)["weights"])
    if (work / "decoder_best.pt").exists():
        decoder = torch.load(work / "decoder_best.pt", weights_only=True)["weights"]
        vae.load_state_dict({**vae.state_dict(), **decoder})
    return StableDiffusionPipeline(
        vae=vae, text_encoder=model["text_encoder"].eval(), tokenizer=tokenizer, unet=model["unet"].eval(),
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def export(work: Path, out: Path, *, seed: int) -> None:
    """Write the pipeline in float16 and the model card that measures what was written."""
    pipeline = load_pipeline(work).to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    shutil.copytree(
        work / "tokenizer", out / "tokenizer", dirs_exist_ok=True
    )  # also for readers of vocab.json
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
    random = build_generator(pipeline.tokenizer, seed)["unet"].eval()
    write_card(work, out, seed=seed, random=random, scenes=len(load_split(work, "train")[0]))


def main() -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/miniworld-sd"), help="folder for data and checkpoints"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("diffcli/assets/miniworld-sd"), help="folder of the pipeline"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=8000, help="scenes to train on")
    parser.add_argument("--vae-steps", type=int, default=1500, help="length of the learning rate's decay")
    parser.add_argument(
        "--vae-stop", type=int, default=750, help="step to stop at: the shipped one had no more time"
    )
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--unet-steps", type=int, default=4500)
    parser.add_argument("--unet2-steps", type=int, default=5000)
    parser.add_argument("--words-steps", type=int, default=600)
    parser.add_argument("--words-scenes", type=int, default=3200, help="scenes that `words` trains on")
    parser.add_argument("--start", type=Path, help="folder of a pipeline whose weights `words` starts from")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; more than free cores slows everything"
    )
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    if "data" in options.stages:
        render_split(options.work, "held_out", count=128, seed=HELD_OUT_SEED + options.seed)
        render_split(options.work, "train", count=options.scenes, seed=options.seed + 1)
    if "vae" in options.stages:
        train_vae(
            options.work,
            steps=options.vae_steps,
            stop=options.vae_stop,
            batch=12,
            crop=64,
            rate=1e-3,
            seed=options.seed,
        )
    if "decoder" in options.stages:
        train_decoder(
            options.work, steps=options.decoder_steps, batch=12, crop=64, rate=1e-3, seed=options.seed
        )
    if "unet" in options.stages:
        first = Round("unet", options.unet_steps, rate=6e-4, whole_every=8, key=3)
        train_unet(options.work, first, batch=8, seed=options.seed)
    if "unet2" in options.stages:
        second = Round("unet2", options.unet2_steps, rate=4e-4, whole_every=3, key=6)
        train_unet(options.work, second, batch=8, seed=options.seed, start=options.work / "unet_best.pt")
    if "words" in options.stages:
        if options.start:
            start_from(options.start, options.work)
        tokenizer = build_tokenizer(options.work / "tokenizer")
        model = build_generator(tokenizer, options.seed)
        model.load_state_dict(torch.load(options.work / "unet2_best.pt", weights_only=True)["weights"])
        train_words(
            options.work,
            model.half().float(),
            tokenizer,
            load_scenes(options.work, "train", options.words_scenes),
            load_scenes(options.work, "held_out"),
            steps=options.words_steps,
            text_steps=500,
            where_steps=300,
            rate=2e-3,
            seed=options.seed,
        )
    if "export" in options.stages:
        export(options.work, options.out, seed=options.seed)


if __name__ == "__main__":
    main()
