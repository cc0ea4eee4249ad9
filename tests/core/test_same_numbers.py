"""What makes the core fast changes no number: each shortcut against the plain path, in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import CustomSchedule, InversionConfig, ModelConfig
from diffcli.core.decoder import SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor, StepMaps
from diffcli.core.inversion import seeded_noise
from diffcli.core.ipkl import extract_pair
from diffcli.core.model import join

Small = Callable[..., ModelConfig]
CLASS_PROMPTS = {1: "a sidewalk", 3: "a wall"}
TWO_STEPS = CustomSchedule(timesteps=(20, 60), save_steps=(1, 0))


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@contextmanager
def calls(module: nn.Module) -> Iterator[list[int]]:
    """Batch sizes of the module's forward calls."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


def extractor(
    backbone: DiffusionBackbone, *, max_unet_batch: int = 8, **settings: object
) -> DiffusionFeatureExtractor:
    config = InversionConfig(**{"schedule": TWO_STEPS, "class_prompts": CLASS_PROMPTS, **settings})
    return DiffusionFeatureExtractor(backbone, config, max_unet_batch=max_unet_batch)


@pytest.fixture
def labels() -> Tensor:
    """The first image holds both prompted classes, the second one of them."""
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, :, 20:] = 1
    labels[:, 40:] = 3
    return labels


@pytest.mark.parametrize("schedule", ["one", TWO_STEPS])
def test_both_branches_in_one_call_are_the_branches_one_after_the_other(
    backbone: DiffusionBackbone, images: Tensor, labels: Tensor, schedule: object
) -> None:
    own = extractor(backbone, schedule=schedule)
    with calls(backbone.unet.conv_in) as together, calls(backbone.vae.encoder) as encoded:
        pair = extract_pair(own, images, labels, identities=["a", "b"], seed=3)
    spent, steps = backbone.evaluations, own.schedule.evaluated_steps
    assert encoded == [2]
    assert together == [3 + 2 + 1 + 1] * steps
    backbone.evaluations = 0
    for branch, features, references in (
        ("conditional", pair.conditional, list(labels)),
        ("unconditional", pair.unconditional, None),
    ):
        noise = seeded_noise(3, [f"{name}/{branch}" for name in "ab"])
        assert features is not None
        close(features, own.extract(images, noise=noise, references=references))
    assert spent == backbone.evaluations


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_split_rows_are_the_rows_of_one_call(
    backbone: DiffusionBackbone, images: Tensor, labels: Tensor, limit: int
) -> None:
    def run(limit: int) -> tuple[list[Tensor], list[int], int]:
        before = backbone.evaluations
        with calls(backbone.unet.conv_in) as seen:
            features = extractor(backbone, max_unet_batch=limit).extract(
                images, noise=seeded_noise(0, ["a", "b"]), references=list(labels)
            )
        return features, seen, backbone.evaluations - before

    whole, one_call, spent = run(100)
    split, several, also_spent = run(limit)
    close(split, whole)
    assert one_call == [5, 5]
    assert max(several) == limit
    assert sum(several) == sum(one_call) == spent == also_spent


def test_nothing_runs_behind_the_last_tapped_layer(
    backbone: DiffusionBackbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the noise prediction of the last step thrown away, its last layers need not run; features are the same."""
    own = extractor(backbone)
    with calls(backbone.unet.conv_norm_out) as behind, calls(backbone.unet.conv_in) as every:
        features = own.extract(images, noise=seeded_noise(0, ["a", "b"]))
    assert len(every) == own.schedule.evaluated_steps
    assert len(behind) == own.schedule.evaluated_steps - 1
    evaluate = backbone.evaluate
    monkeypatch.setattr(
        backbone, "evaluate", lambda *call, **options: evaluate(*call, **options | {"noise": True})
    )
    plain = own.extract(images, noise=seeded_noise(0, ["a", "b"]))
    assert all(map(torch.equal, features, plain))


@pytest.mark.parametrize(
    "decoder",
    [
        {},
        {"fusion": "vanilla"},
        {"fusion": "mixing"},
        {"features": "resnet"},
        {"features": "latent"},
        {"fusion": "mixing", "features": "resnet"},
    ],
)
def test_fusing_as_features_arrive_is_fusing_their_stack(
    backbone: DiffusionBackbone, images: Tensor, small: Small, decoder: dict[str, object]
) -> None:
    config = small(**decoder)
    config = config.model_copy(update={"inversion": InversionConfig(schedule=TWO_STEPS, class_prompts={})})
    model = join(config, backbone)
    stacks = model.extractor.extract(images, noise=seeded_noise(0, ["a", "b"]))
    with torch.no_grad():
        coarse = model.decoder(stacks)
    expected = F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)
    close([model.logits(images, identities=["a", "b"])], [expected])


def test_a_shortcut_without_projection_is_summed_too(small: Small) -> None:
    """Where a stack happens to be as wide as the output there is no shortcut convolution."""
    config = small().decoder
    decoder = SegmentationDecoder(config, widths=[[16, 16], [8, 24], [16, 16]], steps=2, classes=5).eval()
    assert isinstance(decoder.fusion.strides[0].bottleneck.shortcut, nn.Identity)
    stacks = [torch.randn(2, 64, 2 * 2**i, 3 * 2**i) for i in range(3)]
    totals: dict[int, Tensor] = {}
    with torch.no_grad():
        for step in (1, 0):
            for stride, (stack, widths) in enumerate(zip(stacks, ([16, 16], [8, 24], [16, 16]), strict=True)):
                parts = stack.split([width for width in widths for _ in range(2)], dim=1)
                decoder.add(totals, StepMaps(stride, step, list(parts[step::2])))
        close([decoder.decode(decoder.fusion.finish(totals))], [decoder(stacks)])
