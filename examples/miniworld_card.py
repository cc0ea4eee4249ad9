"""Measures the pipeline that pretrain_miniworld.py wrote, and writes its model card README.md and samples.png."""

import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from prompt_effect import Effect, measure, open_pictures
from torch import Tensor
from torch.nn import functional

from diffcli.backbone.loading import load_backbone
from diffcli.classes import CITYSCAPES_CLASSES
from diffcli.config.domain import domain_config
from diffcli.config.settings import BackboneConfig
from diffcli.data.miniworld import (
    APPEARANCES,
    DOMAIN_RANGES,
    PARAMETERS,
    PRETRAINING_RANGES,
    render,
    render_random,
)

SAMPLE_CAPTIONS = (
    "road building sky car", "vegetation road sky car terrain", "bus road building", "train road building sky",
    "truck road building dark", "road building car dark lamplit", "road vegetation car snowy bright",
    "road building hazy grey", "person sidewalk building pole warm", "",
)  # fmt: skip
BANDS = ((1, 24), (24, 161), (161, 500), (500, 1000))
EARLIER_ROUNDS = {
    "vae": "750 steps (stopped; the learning rate was planned for 1500) in 11 min on a busy machine; step 750 ships",
    "decoder": "1500 steps in 20 min on a busy machine; step 1500 ships",
    "unet": "4500 steps in 44 min on a busy machine; step 4500 ships",
    "unet2": "5000 steps in 37 min on a busy machine; step 5000 ships",
}
"""Of the shipped weights, where a work folder started from them (`--start`) did not run these stages itself."""
CARD_SEED = 2_000_000
"""Scenes of this seed are neither trained on nor used to choose a checkpoint."""
WORD_PICTURES, WORD_CROPS = 20, 64


def pictures(domain: str, count: int) -> Tensor:
    """Scenes (count, 3, 128, 256) in [-1, 1] of a domain, or of the pretraining appearances for `held-out`."""
    images = [
        render_random(CARD_SEED, index)[0] if domain == "held-out" else render(CARD_SEED, index, domain)[0]
        for index in range(count)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def reconstruction_row(vae: AutoencoderKL, domain: str, count: int = 48) -> str:
    """PSNR in dB, error of 16x16 averages (0..255) and kept share of colourfulness, as a table row."""
    images = pictures(domain, count)
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in images.split(8)]
    output = torch.cat(parts)
    psnr = -10 * torch.log10((output - images).square().mean() / 4)
    colour = functional.avg_pool2d(output - images, 16).abs().mean() * 127.5
    chroma = [(picture - picture.mean(dim=1, keepdim=True)).abs().mean() for picture in (output, images)]
    return f"| {domain} | {psnr:.1f} | {colour:.1f} | {chroma[0] / chroma[1]:.2f} |"


@torch.no_grad()
def denoising_rows(
    pipeline: StableDiffusionPipeline, random: UNet2DConditionModel, count: int = 64
) -> list[str]:
    """Squared error of the noise prediction per band of timesteps, of these and of random weights, empty prompt."""
    rng = np.random.default_rng(CARD_SEED)
    images = pictures("held-out", count)
    latents = torch.cat([pipeline.vae.encode(part).latent_dist.mean for part in images.split(8)])
    latents = latents * pipeline.vae.config.scaling_factor
    text = pipeline.encode_prompt("", "cpu", 1, False)[0].expand(8, -1, -1)
    rows = []
    for low, high in BANDS:
        errors: list[list[float]] = [[], []]
        for part in latents.split(8):
            timesteps = torch.from_numpy(rng.integers(low, high, len(part)))
            noise = torch.from_numpy(rng.standard_normal(part.shape, dtype=np.float32))
            noisy = pipeline.scheduler.add_noise(part, noise, timesteps)
            for unet, found in zip((pipeline.unet, random), errors, strict=True):
                found.append(
                    float((unet(noisy, timesteps, text[: len(part)]).sample - noise).square().mean())
                )
        rows.append(f"| {low}..{high - 1} | {np.mean(errors[0]):.3f} | {np.mean(errors[1]):.3f} |")
    return rows


@torch.no_grad()
def evaluation_time(unet: UNet2DConditionModel, repeats: int = 20) -> float:
    """Milliseconds of one U-Net evaluation of a 128x256 picture, the fastest of `repeats`."""
    latent, text = torch.zeros(1, 4, 32, 64), torch.zeros(1, 32, unet.config.cross_attention_dim)
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        unet(latent, 50, text)
        times.append(time.perf_counter() - started)
    return min(times[2:]) * 1000


def effect_of_words(folder: Path, *, count: int, crop: int | None) -> Effect:
    """What prompt_effect.py measures on the source domain, of whole pictures or of one square of each."""
    pictures = open_pictures(domain_config("miniworld/clean", count=count), crop=crop, seed=0)
    captions = {caption for picture in pictures for caption in picture.captions.values()}
    backbone = load_backbone(
        BackboneConfig(source=str(folder)),
        prompts=["", *CITYSCAPES_CLASSES, *sorted(captions)],
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return measure(backbone, pictures, timesteps=(), seed=0)


def loss_cells(row: dict[str, float]) -> str:
    """The loss with the empty prompt, and what a true and a wrong caption change, as cells of a table."""
    changes = [f"{100 * (row[kind] / row['empty'] - 1):+.1f} %" for kind in ("true", "wrong")]
    return " | ".join([f"{row['empty']:.4f}", *changes])


def words_text(folder: Path) -> str:
    """The section on words: two tables, and what their columns are."""
    whole = effect_of_words(folder, count=WORD_PICTURES, crop=None)
    crops = effect_of_words(folder, count=WORD_CROPS, crop=64)
    low, high = whole.visited[0], whole.visited[-1]
    losses = [f"| {t} | {loss_cells(whole.loss[t])} | {loss_cells(crops.loss[t])} |" for t in whole.loss]
    words = [
        f"| {word} | {100 * whole.states[word]['empty']:.0f} % | {100 * whole.noise[word][low]:.1f} % "
        f"| {100 * whole.noise[word][high]:.1f} % | {whole.area[word][low]:.2f} | {whole.area[word][high]:.2f} |"
        for word in whole.frequent
    ]
    return WORDS.format(
        count=WORD_PICTURES, crops=WORD_CROPS, low=low, high=high, area=whole.mean_area,
        area_crops=crops.mean_area, visited=len(whole.visited), words="\n".join(words), losses="\n".join(losses),
    )  # fmt: skip


def sample_sheet(pipeline: StableDiffusionPipeline, seed: int) -> NDArray[np.uint8]:
    """Samples for the ten captions, two in a row, each with its caption below."""
    pipeline.set_progress_bar_config(disable=True)
    tiles = []
    for number, words in enumerate(SAMPLE_CAPTIONS):
        generator = torch.Generator().manual_seed(seed + number)
        image = pipeline(
            words, height=128, width=256, num_inference_steps=25, guidance_scale=3.0,
            generator=generator, output_type="np",
        ).images[0]  # fmt: skip
        strip = np.full((16, 256, 3), 255, dtype=np.uint8)
        cv2.putText(
            strip, words or "(empty)", (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA
        )
        tiles.append(np.concatenate([np.round(image * 255).astype(np.uint8), strip]))
    return np.concatenate([np.concatenate(tiles[row : row + 2], axis=1) for row in range(0, len(tiles), 2)])


def range_rows() -> list[str]:
    """Pretraining and evaluation ranges of every appearance parameter, as table rows."""
    rows = []
    for name in PARAMETERS:
        trained = ", ".join(f"{low:g}..{high:g}" for low, high in PRETRAINING_RANGES[name])
        held = sorted({DOMAIN_RANGES[domain][name] for domain in APPEARANCES})
        rows.append(f"| {name} | {trained} | {', '.join(f'{low:g}..{high:g}' for low, high in held)} |")
    return rows


def stage_facts(work: Path, stage: str) -> str:
    """Steps done and planned, minutes spent and the step of the best checkpoint of a training stage, in words."""
    if not (work / f"{stage}.pt").exists():
        return EARLIER_ROUNDS[stage]
    saved = torch.load(work / f"{stage}.pt", weights_only=True)
    best = torch.load(work / f"{stage}_best.pt", weights_only=True)["step"]
    done, planned, minutes = saved["step"], saved["steps"], saved["seconds"] / 60
    stopped = "" if done == planned else f" (stopped; the learning rate was planned for {planned})"
    return f"{done} steps{stopped} in {minutes:.0f} min on a busy machine; step {best} ships"


def write_card(work: Path, out: Path, *, seed: int, random: UNet2DConditionModel, scenes: int) -> None:
    """Measure the pipeline in `out` and write README.md and samples.png beside it."""
    pipeline = StableDiffusionPipeline.from_pretrained(out).to(dtype=torch.float32)
    cv2.imwrite(str(out / "samples.png"), sample_sheet(pipeline, seed)[..., ::-1])
    rows = [reconstruction_row(pipeline.vae, domain) for domain in ("held-out", *APPEARANCES)]
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters()) / 1e6
    megabytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    text = CARD.format(
        scenes=scenes, seed=seed, megabytes=megabytes,
        **{stage: stage_facts(work, stage) for stage in ("vae", "decoder", "unet", "unet2")},
        parameters=parameters, milliseconds=evaluation_time(pipeline.unet), scale=pipeline.vae.config.scaling_factor,
        reconstruction="\n".join(rows), denoising="\n".join(denoising_rows(pipeline, random)),
        ranges="\n".join(range_rows()), words=words_text(out), listening=stage_facts(work, "words"),
    )  # fmt: skip
    (out / "README.md").write_text(text)


WORDS = """Measured by `examples/prompt_effect.py` on {count} whole pictures of the source domain, a look that was
never trained on. State: difference of the word's text states from those of the empty prompt. Noise: how much the word
changes the noise prediction of pictures that show its class. Where: area under the ROC curve of that change against
the class; 0.5 is chance. The mean of "where" over these ten most frequent classes and all {visited} timesteps whose
features schedule `paper` keeps is {area:.2f}; on {crops} crops of 64x64 pixels it is {area_crops:.2f}.

| word | state | noise, t = {low} | noise, t = {high} | where, t = {low} | where, t = {high} |
|---|---|---|---|---|---|
{words}

Denoising loss with the empty prompt, and its change with a true caption (up to eight classes that are there) and with
a wrong one (as many that are not), first of the whole pictures, which nearly all show the same classes, then of the
crops:

| timestep | empty | true | wrong | crops: empty | true | wrong |
|---|---|---|---|---|---|---|
{losses}"""

CARD = """# miniworld-sd: a text-to-image diffusion model of miniature streets

A Stable-Diffusion-shaped latent diffusion model, small enough to ship, for trying diffcli without a download or a
GPU. It draws nothing but procedural street scenes and is of no use for pictures of the real world.

- Layout: AutoencoderKL (factor 4, 4 latent channels, scaling factor {scale}), U-Net with four levels of widths 32,
  48, 96, 128 ({parameters:.1f} M parameters; the top level attends to the text but not to itself, for speed), a
  two-layer CLIP text encoder with its own small vocabulary, epsilon prediction, 1000 steps, scaled-linear
  0.00085..0.012.
- Size: {megabytes:.1f} MB, float16 weights. One U-Net evaluation of a 128x256 picture: {milliseconds:.0f} ms on one CPU
  core, the fastest of 20; more where other processes share the core.
- Loads with `StableDiffusionPipeline.from_pretrained(folder)`.

## Data
{scenes} scenes of `diffcli.data.miniworld` at 128x256, every second one mirrored for the U-Net, each rendered once with
a random *pretraining appearance*. Evaluation scenes come from other seeds.

**Captions are image-level labels.** A caption is a list of up to eight of the classes that are visible in the crop and
of words for its appearance ("dark", "hazy", ...), in random order; 15 % are empty, because the method reads features
with the empty prompt. The last stage also uses which classes are in crops of 32x32 pixels, on a
fixed grid of 4 by 8 crops in 200 pictures. Such labels are finer than those of whole pictures, though nothing says
where in a crop a class is. No pixel label is used, but whoever compares with a backbone that saw no labels should know.

For every appearance parameter the pretraining ranges are apart from those of all six domains (the source domain too);
`tests/data/test_miniworld.py` checks it. Geometry, and the colours of things before `hue` and `saturation` act, come
from the same generator in pretraining and evaluation, and each weather effect occurs in pretraining, weaker than in
its domain.

| parameter | pretraining | the six domains |
|---|---|---|
{ranges}

## Training
Seed {seed}, one CPU thread, float32, no GPU. No evaluation domain took part in any choice.

- Autoencoder, on batches of 12 crops of 64x64, the best by PSNR on held-out pretraining appearances:
  {vae}.
  It starts as 4x4 averaging in uncorrelated colour coordinates, without which it learns grey pictures.
- Its decoder alone, on such crops, for squared error and edges; the encoder, and so the latents, stayed:
  {decoder}.
- U-Net and text encoder, on batches of 8 crops of 96x96, every eighth step 2 whole pictures, half of the timesteps
  below 250; averaged weights, the best by denoising loss on held-out pretraining appearances:
  {unet}.
- A second round from there with a fresh learning rate, every third step 2 whole pictures:
  {unet2}.
- Words (`examples/miniworld_words.py`), from there. The rounds before left text states that hardly differed: word
  embeddings of length 0.3 drowned in layers that add 8 to 17. A fresh text encoder with long, orthogonal word
  embeddings learnt to tell words apart, saying for the empty prompt what the old one said (500 steps). Queries and keys
  of every attention to the text then learnt, on the hidden maps of 200 scenes, that points attend to words whose class
  is in their crop of 32x32 pixels (300 steps); values and outputs at last, on crops of 64x64 and whole pictures of 3200
  scenes, that a true caption helps to denoise and that a word changes the prediction somewhere if its class is in the
  crop and nowhere if not. All other weights of the U-Net stayed, and the empty prompt's prediction was held to what it
  was. The last part took {listening}. (The first 300 of the
  shipped weights' steps took a power mean of third order in `word_loss`.)
- Reproduce up to hardware rounding: `python examples/pretrain_miniworld.py`.

## Autoencoder
48 pictures each, scenes that training never saw. Colour error: mean absolute error of 16x16 averages, in 8-bit levels.
Colourfulness: deviation from grey, relative to the original.

| pictures | PSNR dB | colour error | colourfulness |
|---|---|---|---|
{reconstruction}

## Denoising
Mean squared error of the predicted noise on held-out pictures, empty prompt; predicting nothing gives 1.

| timesteps | this model | random weights |
|---|---|---|
{denoising}

## Words
{words}

## Samples
25 DDIM steps, guidance 3, caption below each.

![Samples for ten captions](samples.png)

## Limits
- Words change the prediction, and more where their class is than elsewhere, but what they say is of little use yet: a
  true caption lowers the denoising loss of crops by 2 % at best, and raises that of whole pictures a little. The last
  part was stopped early, at a loss that was still falling.
- Samples show the layout of a street and the mood of the caption, hardly an object. The method reads features at little
  noise, not samples.
- Fine edges and falling snow are softened; low frequencies are kept.
- Dark pictures lose some colour.
"""
