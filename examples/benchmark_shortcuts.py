"""What each shortcut of the core brings on this machine: python examples/benchmark_shortcuts.py

Every line times the same numbers computed with one shortcut and without it (`diff bench` times all of them together,
against the published amount of work). Both sides take turns in one process, with the shipped diffusion model in
float32, for at least as many turns and as many seconds as asked for; the ratio is that of their medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.bench.plan import default_config
from diffcli.config.settings import InversionConfig, ModelConfig
from diffcli.config.size import parse_size
from diffcli.core.inversion import seeded_noise
from diffcli.core.ipkl import extract_pair
from diffcli.core.model import SegmentationModel, build_model

Work = Callable[[], object]
NAMES = ["image"]


def main() -> None:
    """Time all of them and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="256x128", help="of the image, WIDTHxHEIGHT")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each side, at least")
    parser.add_argument("--seconds", type=float, default=3.0, help="of turns, at least")
    parser.add_argument("--schedule", default="five", help="of the lines that need whole images")
    parser.add_argument(
        "--compile", action="store_true", help="runtime.compile too, which takes a minute more"
    )
    options = parser.parse_args()
    width, height = parse_size(options.size)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {width}x{height}\n", flush=True)
    print(f"{'shortcut':<58}{'without':>10}{'with':>10}{'ratio':>8}", flush=True)
    model = build_model(_config(options.schedule))
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, without, within in shortcuts(model, image, compiled=options.compile):
        slow, fast = alternating(without, within, repeats=options.repeats, seconds=options.seconds)
        print(f"{name:<58}{1000 * slow:>7.1f} ms{1000 * fast:>7.1f} ms{slow / fast:>8.2f}", flush=True)


def _config(schedule: str) -> ModelConfig:
    model = default_config(None).model
    settings = model.inversion.model_dump() | {"schedule": schedule}
    return model.model_copy(update={"inversion": InversionConfig.model_validate(settings)})


@torch.no_grad()
def shortcuts(model: SegmentationModel, image: Tensor, *, compiled: bool) -> Iterator[tuple[str, Work, Work]]:
    """(what, the plain way, the shortcut), the two equal in float32 to 1e-5."""
    extractor = model.extractor
    backbone, layers = extractor.backbone, extractor.layers
    prompt = model.config.inversion.prompt
    text = backbone.prompt_embeddings[prompt]
    latent = extractor.encode(image, noise=seeded_noise(0, NAMES))
    for rows in (1, 2):
        latents, texts = latent.expand(rows, -1, -1, -1).contiguous(), [(prompt, text)] * rows
        states = torch.stack([text] * rows)

        def library(latents: Tensor = latents, states: Tensor = states) -> object:
            return backbone.unet(latents, 20, encoder_hidden_states=states)

        def own(latents: Tensor = latents, texts: list[tuple[str, Tensor]] = texts) -> object:
            return backbone.network(latents, 20, texts)

        def forgetful(own: Work = own) -> object:
            backbone.network.forget()
            return own()

        yield f"U-Net call of {rows}: its own walk, not the library's", library, own
        yield f"U-Net call of {rows}: timestep and prompt kept", forgetful, own

    def evaluate(**options: bool) -> object:
        return backbone.evaluate(latent, 20, [prompt], layers=layers, **options)

    yield "last call: ends behind the last tapped layer", evaluate, lambda: evaluate(noise=False)
    half = latent.repeat(2, 1, 1, 1)
    yield (
        "two images: one call, not two",
        lambda: [backbone.predict_noise(x[None], 20, [prompt]) for x in half],
        lambda: backbone.predict_noise(half, 20, [prompt] * 2),
    )
    labels = _two_classes(model, image)

    def pair() -> object:
        return extract_pair(extractor, image, labels, identities=NAMES, seed=0)

    def one_by_one() -> object:
        conditional, unconditional = (
            seeded_noise(0, [f"{name}/{branch}" for name in NAMES])
            for branch in ("conditional", "unconditional")
        )
        return (
            extractor.extract(image, noise=conditional, references=[*labels]),
            extractor.extract(image, noise=unconditional),
        )

    yield "IPKL: both branches in the same calls", one_by_one, pair

    def stacked() -> object:
        with torch.no_grad():
            coarse = model.decoder(extractor.extract(image, noise=seeded_noise(0, NAMES)))
            return F.interpolate(coarse, image.shape[-2:], mode="bilinear", align_corners=False)

    yield "inference: fused as features arrive", stacked, lambda: model.logits(image, identities=NAMES)
    plain = build_model(model.config)
    for network in (plain.extractor.backbone.unet, plain.extractor.backbone.vae):
        network.to(memory_format=torch.contiguous_format)
    plain.extractor.backbone.network.reset()
    yield (
        "inference: channels-last weights",
        lambda: plain.logits(image, identities=NAMES),
        lambda: model.logits(image, identities=NAMES),
    )
    if compiled:
        other = build_model(model.config)
        other.compile()
        yield (
            "inference: runtime.compile",
            lambda: model.logits(image, identities=NAMES),
            lambda: other.logits(image, identities=NAMES),
        )


def _two_classes(model: SegmentationModel, image: Tensor) -> Tensor:
    """Labels of an image that shows two prompted classes."""
    first, second = sorted(model.config.inversion.class_prompts)[:2]
    labels = torch.full((1, *image.shape[-2:]), first)
    labels[..., image.shape[-1] // 2 :] = second
    return labels


def alternating(without: Work, within: Work, *, repeats: int, seconds: float) -> tuple[float, float]:
    """Median seconds of both, which take turns after a warm-up."""
    for work in (without, within):
        work()
    taken: tuple[list[float], list[float]] = ([], [])
    while len(taken[0]) < repeats or sum(map(sum, taken)) < seconds:
        for own, work in zip(taken, (without, within), strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return statistics.median(taken[0]), statistics.median(taken[1])


if __name__ == "__main__":
    main()
