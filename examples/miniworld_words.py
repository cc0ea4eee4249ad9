"""Teach the small diffusion model to listen: the stage `words` of pretrain_miniworld.py.

The first rounds leave a text encoder that says almost the same for every prompt: its word embeddings have length 0.3
while each of its layers adds 8 to 17, mostly an average over all tokens. Here

1. text: a fresh text encoder starts from long, orthogonal word embeddings and learns in a minute to tell words apart;
   for the empty prompt it says what the old one said, so the U-Net loses nothing;
2. where: queries and keys of every attention to the text learn that points attend to words whose class is in the
   crop (`where_loss`);
3. what: values and outputs learn what a word then says. Small crops are seen twice with the same noise, with the empty
   prompt and with words. A true caption must help to denoise; a single word must change the prediction somewhere if
   its class is in the crop, and nowhere if not (`word_loss`).

Labels only ever say which classes are in a crop, never where. All other weights of the U-Net stay as they are, and what
it predicts for the empty prompt is held to what it predicted before.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from miniworld_model import CLASS_WORDS, MAX_TOKENS, STYLE_WORDS, build_scheduler
from miniworld_trainer import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

PHRASES = (*CLASS_WORDS, *STYLE_WORDS)
CLASSES = len(CLASS_WORDS)
PRESENT = 0.01
"""Share of a crop that a class fills at least to be called present; absent means no pixel at all."""

TYPICAL_LOSS = ((0, 0.75), (12, 0.5), (80, 0.23), (300, 0.073), (700, 0.018), (999, 0.01))
"""(timestep, denoising loss) of the model before this stage: what a loss is measured against."""


# --- text encoder ---------------------------------------------------------------------------------


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (B, MAX_TOKENS) of captions."""
    padded = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    ids: Tensor = padded.input_ids
    return ids


@torch.no_grad()
def separate_words(encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Give the vocabulary's words orthogonal embeddings as long as what the layers add, and positions a tenth of it."""
    names, embeddings = encoder.named_parameters(), {}
    for name, parameter in names:
        embeddings[name.rpartition("embeddings.")[2]] = parameter
    table, positions = embeddings["token_embedding.weight"], embeddings["position_embedding.weight"]
    width = table.shape[1]
    ids = sorted({i for phrase in PHRASES for i in tokenizer(phrase, add_special_tokens=False).input_ids})
    table.normal_(std=1.0)
    positions.normal_(std=0.1)
    orthogonal = torch.linalg.qr(torch.randn(width, width))[0] * width**0.5
    table[ids] = orthogonal[: len(ids)]


def train_text(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, empty: Tensor, steps: int, seed: int
) -> None:
    """Train the encoder alone: a word's own token tells by a linear map which word it is, the tokens after it which
    words the caption holds so far, but these stay near what they are for the empty prompt.

    So a word is something that single points of a picture can attend to, as little else changes. `empty`
    (MAX_TOKENS, width) is what the states for the empty prompt become.
    """
    separate_words(encoder, tokenizer)
    readout = nn.Linear(empty.shape[1], len(PHRASES))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *readout.parameters()], lr=2e-3, weight_decay=0.01)
    nothing, length = tokens_of(tokenizer, [""]), empty.norm(dim=-1)
    for step in tqdm(range(steps), desc="text", mininterval=10):
        rng = np.random.default_rng([seed, 7, step])
        chosen = [rng.permutation(len(PHRASES))[: rng.integers(1, 6)] for _ in range(32)]
        ids = tokens_of(tokenizer, [" ".join(PHRASES[i] for i in words) for words in chosen])
        bag = torch.zeros(len(chosen), len(PHRASES))
        own = torch.zeros(*ids.shape, len(PHRASES))
        for row, words in enumerate(chosen):
            bag[row, torch.from_numpy(words)] = 1
            spelled = [i for i in words for _ in tokenizer(PHRASES[i], add_special_tokens=False).input_ids]
            own[row, torch.arange(1, 1 + len(spelled)), torch.tensor(spelled)] = 1
        states = encoder(ids)[0]
        after, named = ids == tokenizer.eos_token_id, own.any(-1)
        told = F.binary_cross_entropy_with_logits(readout(states)[named], own[named])
        told_after = F.binary_cross_entropy_with_logits(
            readout(states)[after], bag[:, None].expand_as(own)[after]
        )
        moved = (states - empty).norm(dim=-1) / length
        near = (moved[after] - 0.25).square().mean() + (moved[named] - 1.8).square().mean()
        kept = (encoder(nothing)[0][0] - empty).square().sum() / empty.square().sum()
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimizer.zero_grad()
        (told + 0.2 * told_after + near + 5 * kept).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            tqdm.write(
                f"text step {step + 1}: own token {told.item():.4f}, moved {moved[named].mean().item():.2f}; "
                f"after {told_after.item():.4f}, moved {moved[after].mean().item():.2f}; "
                f"empty prompt {kept.item():.4f}"
            )


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """Latents (N, 4, h, w) of scenes, and what is known of each: labels only ever say which classes are in a crop."""

    latents: NDArray[np.float16]
    labels: NDArray[np.uint8]
    styles: list[list[str]]
    holding: list[NDArray[np.int64]] = field(init=False)
    """Of each class, the scenes that show it."""

    def __post_init__(self) -> None:
        shown = np.zeros((len(self.latents), CLASSES), dtype=bool)
        for index in range(len(self.latents)):
            present = np.unique(self.labels[index, ::2, ::2])
            shown[index, present[present < CLASSES]] = True
        object.__setattr__(self, "holding", [np.flatnonzero(shown[:, c]) for c in range(CLASSES)])

    def crop(
        self, rng: np.random.Generator, size: tuple[int, int], wanted: int | None
    ) -> tuple[NDArray[np.float16], NDArray[np.floating], int]:
        """A crop of `size` latent points, the share of each class in it, and its scene.

        Of a class that is `wanted`, if it is found in eight tries.
        """
        height, width = self.latents.shape[-2:]
        pool = np.arange(len(self.latents)) if wanted is None else self.holding[wanted]
        for _ in range(1 if wanted is None or not len(pool) else 8):
            index = int(rng.choice(pool)) if len(pool) else int(rng.integers(len(self.latents)))
            y, x = int(rng.integers(0, height - size[0] + 1)), int(rng.integers(0, width - size[1] + 1))
            label = self.labels[index, :, ::-1] if index % 2 else self.labels[index]
            label = label[4 * y : 4 * (y + size[0]) : 2, 4 * x : 4 * (x + size[1]) : 2]
            shares = np.bincount(label.ravel(), minlength=256)[:CLASSES] / label.size
            if wanted is None or shares[wanted] >= PRESENT:
                break
        return self.latents[index, :, y : y + size[0], x : x + size[1]], shares, index


@dataclass(frozen=True)
class Pairs:
    """Crops, each to be predicted twice with the same noise: with the empty prompt and with words."""

    latents: Tensor  # (B, 4, h, w)
    noise: Tensor  # (B, 4, h, w)
    timesteps: Tensor  # (B,)
    captions: list[str]
    single: Tensor  # (B,) bool: one word, to be judged by word_loss
    true: Tensor  # (B,) bool: what the words name is there


def draw_pairs(scenes: Scenes, *, count: int, crop: tuple[int, int], key: list[int]) -> Pairs:
    """Half of the pairs tell a true caption at noise where it can help, half one word, true or not, at little noise."""
    rng = np.random.default_rng(key)
    latents, captions, timesteps, true = [], [], [], []
    single = np.arange(count) % 2 == 1
    for one in single:
        wanted = int(rng.integers(CLASSES)) if rng.random() < 0.6 else None
        part, shares, index = scenes.crop(rng, crop, wanted)
        present = np.flatnonzero(shares >= PRESENT)
        if one and len(present):
            told = bool(rng.random() < 0.5)
            # a word that is missing here comes from another crop: so that no word is more often true than another
            while not told:
                other = np.flatnonzero(
                    scenes.crop(rng, crop, int(rng.integers(CLASSES)) if rng.random() < 0.6 else None)[1]
                    >= PRESENT
                )
                missing = other[shares[other] == 0]
                if len(missing):
                    break
                told = bool(rng.random() < 0.2)
            captions.append(CLASS_WORDS[int(rng.choice(present if told else missing))])
            true.append(told)
            timesteps.append(int(rng.integers(0, 161) if rng.random() < 0.7 else rng.integers(0, 600)))
        else:
            looks = [word for word in scenes.styles[index] if rng.random() < 0.7]
            words = [*(CLASS_WORDS[c] for c in rng.permutation(present)[:8]), *looks]
            captions.append(" ".join(rng.permutation(words)) if words else "")
            true.append(True)
            timesteps.append(int(rng.integers(350, 850) if rng.random() < 0.7 else rng.integers(0, 1000)))
        latents.append(part)
    return Pairs(
        torch.from_numpy(np.stack(latents)).float(),
        torch.from_numpy(rng.standard_normal((count, 4, *crop), dtype=np.float32)),
        torch.tensor(timesteps),
        captions,
        torch.from_numpy(single),
        torch.tensor(true),
    )


# --- where a word may act -------------------------------------------------------------------------


def attention_layers(unet: UNet2DConditionModel) -> list[tuple[nn.LayerNorm, Attention]]:
    """Each attention to the text with the normalisation before it; a block that attends to the text alone has two."""
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    pairs = [(block.norm1, block.attn1) for block in blocks if block.only_cross_attention]
    return pairs + [(block.norm2, block.attn2) for block in blocks]


CELL = 8
"""Side, in latent points, of the crops whose classes are known: 32 pixels, one point of the coarsest level."""


@dataclass(frozen=True)
class Glimpses:
    """Pictures as each attention to the text sees them with the empty prompt, cut to crops of CELL x CELL latents."""

    hidden: list[Tensor]  # a layer: (B, crops, points, width) float16, before normalisation
    present: Tensor  # (B, crops, CLASSES) bool
    absent: Tensor  # (B, crops, CLASSES) bool


@torch.no_grad()
def look(
    unet: UNet2DConditionModel, empty: Tensor, scenes: Scenes, *, count: int, key: list[int]
) -> Glimpses:
    """`count` whole pictures, at timesteps as the method visits them and some later ones."""
    rng, scheduler = np.random.default_rng(key), build_scheduler()
    height, width = scenes.latents.shape[-2:]
    seen: list[list[Tensor]] = [[] for _ in attention_layers(unet)]
    hooks = [
        norm.register_forward_pre_hook(
            lambda _, inputs, kept=kept: kept.append(cut(inputs[0], height, width).half())
        )
        for kept, (norm, _) in zip(seen, attention_layers(unet), strict=True)
    ]
    shares = []
    for _ in tqdm(range(count // 4), desc="look", mininterval=10):
        found = [scenes.crop(rng, (height, width), int(rng.integers(CLASSES))) for _ in range(4)]
        latents = torch.from_numpy(np.stack([part for part, _, _ in found])).float()
        for _, _, index in found:
            label = scenes.labels[index, :, ::-1] if index % 2 else scenes.labels[index]
            cells = label.reshape(height // CELL, 4 * CELL, width // CELL, 4 * CELL).swapaxes(1, 2)
            cells = cells.reshape(-1, (4 * CELL) ** 2)
            shares.append(
                np.stack([np.bincount(cell, minlength=256)[:CLASSES] / cell.size for cell in cells])
            )
        times = torch.from_numpy(
            np.where(rng.random(4) < 0.7, rng.integers(0, 161, 4), rng.integers(0, 800, 4))
        )
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        unet(scheduler.add_noise(latents, noise, times), times, empty.expand(4, -1, -1))
    for hook in hooks:
        hook.remove()
    share = torch.from_numpy(np.stack(shares))
    return Glimpses([torch.cat(kept) for kept in seen], share >= PRESENT, share == 0)


def cut(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) points of pictures of height x width latents, at any level, to (B, crops, points, C)."""
    scale = round((height * width / tokens.shape[1]) ** 0.5)
    rows, columns, side = height // CELL, width // CELL, CELL // scale
    cells = tokens.reshape(len(tokens), rows, side, columns, side, -1).transpose(2, 3)
    return cells.reshape(len(tokens), rows * columns, side * side, -1)


def where_loss(logits: Tensor, others: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """How badly `logits` (B, heads, points, CLASSES) of attention to class words agree with what is in a crop.

    Three terms, none of which is told where anything is. The attention p that a word gets beside `others` (B, heads,
    points), the logarithm of what all other tokens get, must be high somewhere if its class is in the crop, and low
    everywhere if not. And each point should prefer, of all class words, one whose class is in the crop.
    """
    chance = torch.sigmoid(logits - others[..., None]).mean(1)
    somewhere = (chance.pow(3).mean(1) + 1e-9).pow(1 / 3)
    yes = -(somewhere.log() * present).sum(0) / present.sum(0).clamp(min=1)
    no = -(torch.log1p(-chance.clamp(max=0.999)).mean(1) * absent).sum(0) / absent.sum(0).clamp(min=1)
    mean = logits.mean(1)
    allowed = mean.masked_fill(absent[:, None], -30.0)
    point = (mean.logsumexp(-1) - allowed.logsumexp(-1)).mean()
    sharp = mean.softmax(-1).pow(3).mean(1).add(1e-9).pow(1 / 3)
    occurs = -(sharp.log() * present).sum() / present.sum().clamp(min=1)
    return (yes + no).mean() + point + occurs


def train_where(
    unet: UNet2DConditionModel,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    glimpses: Glimpses,
    *,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Train queries and keys of every attention to the text, each alone, so that points attend to their class's word.

    What a layer gives for the empty prompt is held to what it gave before.
    """
    with torch.no_grad():
        states = encoder(tokens_of(tokenizer, ["", *CLASS_WORDS]))[0]
    empty = states[:1]
    spelled = [len(tokenizer(word, add_special_tokens=False).input_ids) for word in CLASS_WORDS]
    owned = [(c, 1 + n) for c, count in enumerate(spelled) for n in range(count)]
    words = torch.stack([states[1 + c, n] for c, n in owned])
    belongs = torch.tensor([c for c, _ in owned])
    layers = attention_layers(unet)
    before = [copy.deepcopy(attention).requires_grad_(False) for _, attention in layers]
    learned = [
        p for _, attention in layers for p in (*attention.to_q.parameters(), *attention.to_k.parameters())
    ]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.01)
    for step in tqdm(range(steps), desc="where", mininterval=10):
        rng = np.random.default_rng([seed, 10, step])
        chosen = torch.from_numpy(rng.permutation(len(glimpses.present))[:4])
        present, absent = glimpses.present[chosen].flatten(0, 1), glimpses.absent[chosen].flatten(0, 1)
        found, moved = [], []
        for (norm, attention), old, hidden in zip(layers, before, glimpses.hidden, strict=True):
            with torch.no_grad():
                points = norm(hidden[chosen].flatten(0, 1).float())
                sample = points[step % 4 :: 4]
                kept = old(sample, empty.expand(len(sample), -1, -1))
            query = split_heads(attention.to_q(points), attention.heads)
            key = split_heads(attention.to_k(torch.cat([empty[0], words])[None]), attention.heads)
            logits = query @ key.transpose(-1, -2) * attention.scale  # (B, heads, points, tokens)
            nothing, own = logits[..., :MAX_TOKENS], logits[..., MAX_TOKENS:]
            own = torch.stack([own[..., belongs == c].logsumexp(-1) for c in range(CLASSES)], dim=-1)
            others = torch.cat([nothing[..., :1], nothing[..., 2:]], dim=-1).logsumexp(-1)
            found.append(where_loss(own, others, present, absent))
            value = split_heads(attention.to_v(empty), attention.heads)
            weights = nothing[step % 4 :: 4].softmax(-1)
            output = attention.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
            moved.append((output - kept).square().mean() / kept.square().mean())
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 30) * (1 - 0.9 * step / steps)
        optimizer.zero_grad()
        (torch.stack(found).sum() + 3 * torch.stack(moved).sum()).backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            shown = " ".join(f"{float(value):.2f}" for value in found)
            tqdm.write(f"where step {step + 1}: {shown}, empty prompt {float(torch.stack(moved).mean()):.4f}")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


# --- losses ---------------------------------------------------------------------------------------

THRESHOLD = 0.01
"""Squared change of the noise prediction (whose power is 1) at which a word counts as heard."""


def word_loss(change: Tensor, true: Tensor) -> Tensor:
    """How wrong it is to act as `change` (B, 4, h, w) does for a word that is true of the crop or not, (B,).

    p = 1 - exp(-|change|^2 / THRESHOLD) is read as the chance that the word's class is at a point. A word that is not
    true costs -log(1 - p), averaged over the points; one that is true -log of p's power mean of eighth order, near
    the largest: it must act somewhere, however small its class is. Where is never told.
    """
    heard = change.square().mean(1) / THRESHOLD
    chance = -torch.expm1(-heard)
    somewhere = (chance.pow(8).mean((1, 2)) + 1e-12).pow(1 / 8)
    return torch.where(true, -somewhere.log(), heard.mean((1, 2)))


def typical_loss(timesteps: Tensor) -> Tensor:
    """The denoising loss that is usual at each timestep, interpolated on a logarithmic scale."""
    at, loss = np.array(TYPICAL_LOSS).T
    return torch.from_numpy(np.exp(np.interp(timesteps.numpy(), at, np.log(loss)))).float()


@dataclass(frozen=True)
class Predicted:
    """The predicted noise (B, 4, h, w) of some pairs."""

    told: Tensor
    """With the words."""
    plain: Tensor
    """With the empty prompt."""
    before: Tensor | None
    """With the empty prompt, by the model as it was before this stage."""


class Listener:
    """U-Net and text encoder while they learn to listen, and the model before, which the empty prompt is held to."""

    def __init__(self, model: nn.ModuleDict, before: nn.ModuleDict, tokenizer: CLIPTokenizer) -> None:
        self.model, self.tokenizer, self.scheduler = model, tokenizer, build_scheduler()
        self.before = before.requires_grad_(False)

    def predict(self, pairs: Pairs, *, hold: bool) -> Predicted:
        """With `hold` the empty prompt's prediction carries a gradient, and comes with that of the model before."""
        count = len(pairs.captions)
        states = self.model["text_encoder"](tokens_of(self.tokenizer, ["", *pairs.captions]))[0]
        noisy = self.scheduler.add_noise(pairs.latents, pairs.noise, pairs.timesteps)
        noisy = noisy.to(memory_format=torch.channels_last)
        told = self.model["unet"](noisy, pairs.timesteps, states[1:]).sample
        with torch.set_grad_enabled(hold and torch.is_grad_enabled()):
            empty = states[:1].expand(count, -1, -1)
            plain = self.model["unet"](noisy, pairs.timesteps, empty).sample
        if not hold:
            return Predicted(told, plain, None)
        with torch.no_grad():
            empty = self.before["text_encoder"](tokens_of(self.tokenizer, [""]))[0].expand(count, -1, -1)
            return Predicted(told, plain, self.before["unet"](noisy, pairs.timesteps, empty).sample)


WEIGHTS = {"told": 1.0, "word": 0.03, "moved": 20.0}


def losses(predicted: Predicted, pairs: Pairs) -> dict[str, Tensor]:
    """Parts of the loss, (B,) each; denoising losses count relative to what is usual at their timestep."""
    scale = 0.5 / typical_loss(pairs.timesteps)
    error = (predicted.told - pairs.noise).square().mean((1, 2, 3))
    error = error * torch.where(pairs.single, scale.sqrt(), scale)
    parts = {
        "told": torch.where(pairs.true, error, 0),
        "word": torch.where(
            pairs.single, word_loss(predicted.told - predicted.plain.detach(), pairs.true), 0
        ),
    }
    if predicted.before is not None:
        parts["moved"] = (predicted.plain - predicted.before).square().mean((1, 2, 3)) * scale.sqrt()
    return parts


def total_loss(parts: dict[str, Tensor]) -> Tensor:
    """The weighted sum of `losses`, averaged over the pairs."""
    return torch.stack([WEIGHTS[name] * part.mean() for name, part in parts.items()]).sum()


# --- training -------------------------------------------------------------------------------------


def speaking_parts(unet: UNet2DConditionModel) -> nn.ModuleDict:
    """What says something once a word is attended to: values and outputs of every attention to the text."""
    unet.requires_grad_(False)
    parts = nn.ModuleDict()
    for number, (_, attention) in enumerate(attention_layers(unet)):
        parts[f"value{number}"], parts[f"output{number}"] = attention.to_v, attention.to_out[0]
    return parts.requires_grad_(True)


def shape_of(step: int) -> tuple[int, tuple[int, int]]:
    """Pairs and crop (in latent points) of a step: 64x64 pixels, every fourth time whole pictures."""
    return (2, (32, 64)) if step % 4 == 3 else (8, (16, 16))


def train_words(
    work: Path,
    model: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    scenes: Scenes,
    held_out: Scenes,
    *,
    steps: int,
    text_steps: int,
    where_steps: int,
    rate: float,
    seed: int,
) -> None:
    """The three parts of this stage, from the weights in `model`; the best by held-out loss goes to words_best.pt."""
    before, unet = copy.deepcopy(model).eval(), model["unet"]
    if (work / "where.pt").exists():
        model.load_state_dict(torch.load(work / "where.pt", weights_only=True))
    else:
        torch.manual_seed(seed)
        model["text_encoder"] = CLIPTextModel(model["text_encoder"].config)
        with torch.no_grad():
            empty = before["text_encoder"](tokens_of(tokenizer, [""]))[0]
        train_text(model["text_encoder"], tokenizer, empty=empty[0], steps=text_steps, seed=seed)
        glimpses = look(unet, empty, scenes, count=200, key=[seed, 11])
        train_where(unet, tokenizer, model["text_encoder"], glimpses, steps=where_steps, rate=4e-3, seed=seed)
        torch.save(model.state_dict(), work / "where.pt")
    model["text_encoder"].requires_grad_(False)
    for each in (unet, before["unet"]):
        each.to(memory_format=torch.channels_last)
    trainer = Trainer(
        work / "words.pt",
        speaking_parts(unet),
        steps=steps,
        rate=rate,
        best=work / "words_best.pt",
        decay=0.99,
    )
    averaged = copy.deepcopy(model)
    listener, judged = (Listener(each, before, tokenizer) for each in (model, averaged))
    held = [draw_pairs(held_out, count=16, crop=(16, 16), key=[seed, 8, number]) for number in range(8)]
    for step in trainer.steps_left("words", steps):
        count, crop = shape_of(step)
        pairs = draw_pairs(scenes, count=count, crop=crop, key=[seed, 9, step])
        trainer.update(total_loss(losses(listener.predict(pairs, hold=step % 3 == 0), pairs)))
        if trainer.due(step, every=100):
            speaking_parts(averaged["unet"]).load_state_dict(trainer.average.state_dict())
            with torch.no_grad():
                parts = [losses(judged.predict(pairs, hold=True), pairs) for pairs in held]
            joined = {name: torch.cat([part[name] for part in parts]) for name in WEIGHTS}
            tqdm.write(", ".join(f"{name} {float(part.mean()):.4f}" for name, part in joined.items()))
            trainer.keep_if_best(float(total_loss(joined)), step, averaged.state_dict())
