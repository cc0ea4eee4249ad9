"""Features through recorded steps are those of plain calls: batches, remainders, prompt groups, split rows, sizes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import CustomSchedule, InversionConfig, ModelConfig
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import SegmentationModel, build_model
from tests.fixtures.models import CLASS_PROMPTS, TINY_MODEL
from tests.fixtures.replays import Replays


@pytest.fixture
def captured(backbone: DiffusionBackbone) -> Iterator[Replays]:
    """The shared backbone, recorded from now on; plain again afterwards."""
    replays = Replays()
    backbone.network.capture(replays)
    yield replays
    backbone.network.capture(None)


def random_images(count: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.mark.parametrize("max_unet_batch", [1, 3, 64])
def test_captured_features_are_the_same(
    backbone: DiffusionBackbone, captured: Replays, two_steps: CustomSchedule, max_unet_batch: int
) -> None:
    config = InversionConfig(schedule=two_steps, class_prompts=CLASS_PROMPTS)
    extractor = DiffusionFeatureExtractor(backbone, config, max_unet_batch=max_unet_batch)
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:32] = 1
    walls = torch.full((64, 64), 3, dtype=torch.uint8)
    batches: list[tuple[Tensor, list[Tensor | None] | None]] = [
        (random_images(2), None),
        (random_images(2), [labels, None]),
        (random_images(1), None),  # the remainder of a set
        (random_images(2), [walls, labels]),
        (random_images(1, 64, 128), None),
    ]
    for turn in range(3):
        for images, references in batches:
            names = [f"{turn}/{i}" for i in range(len(images))]

            def features(
                images: Tensor = images,
                references: list[Tensor | None] | None = references,
                names: list[str] = names,
            ) -> list[Tensor]:
                return extractor.extract(images, noise=seeded_noise(0, names), references=references)

            found = features()
            network = backbone.network
            recorded, network.captures = network.captures, None
            expected = features()
            network.captures = recorded
            assert all(torch.equal(ours, plain) for ours, plain in zip(found, expected, strict=True))
    assert captured.replayed > captured.recorded > 0


def test_steps_that_are_alike_share_a_recording(
    backbone: DiffusionBackbone, captured: Replays, extract: Callable[..., list[Tensor]]
) -> None:
    """Five steps save maps; the last of them needs no noise prediction: two recordings, whatever the images."""
    for turn in range(4):
        extract(random_images(2), identities=[f"{turn}a", f"{turn}b"])
    assert captured.recorded == 2
    assert backbone.network.captures is not None
    assert len(backbone.network.captures) == 2


# --- on a GPU ---------------------------------------------------------------------------------------------------

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def on_gpu() -> SegmentationModel:
    """The tiny network on a GPU, in float32."""
    return build_model(
        ModelConfig.model_validate(TINY_MODEL | {"inversion": {"schedule": "five"}}), device="cuda"
    )


def features_of(model: SegmentationModel, images: Tensor, turn: int) -> list[Tensor]:
    labels = torch.zeros(images.shape[-2:], dtype=torch.uint8, device="cuda")
    labels[: len(labels) // 2] = 1
    references = [labels if i % 2 else None for i in range(len(images))]
    noise = seeded_noise(0, [f"{turn}/{i}" for i in range(len(images))])
    return model.extractor.extract(images.cuda(), noise=noise, references=references)


@pytest.mark.cuda
@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graphs_give_the_bits_of_launched_kernels(on_gpu: SegmentationModel, dtype: torch.dtype) -> None:
    on_gpu.extractor.backbone.cast(dtype)
    plain = [features_of(on_gpu, random_images(count), turn) for turn in range(3) for count in (2, 1)]
    on_gpu.capture()
    captured = [features_of(on_gpu, random_images(count), turn) for turn in range(3) for count in (2, 1)]
    for ours, expected in zip(captured, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.cuda
@gpu
@pytest.mark.slow
def test_compiled_and_captured_features_are_close(on_gpu: SegmentationModel) -> None:
    expected = features_of(on_gpu, random_images(2), 0)
    on_gpu.capture()
    on_gpu.compile()
    for _ in range(3):
        found = features_of(on_gpu, random_images(2), 0)
        for ours, plain in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.cuda
@gpu
def test_gradients_through_captured_features_are_the_same(on_gpu: SegmentationModel) -> None:
    """Two micro-batches accumulate: the features of the first outlive the second's replays."""

    def gradients() -> list[Tensor]:
        on_gpu.decoder.zero_grad()
        maps = [features_of(on_gpu, random_images(2), turn) for turn in range(2)]
        for one in maps:
            on_gpu.decoder(one).square().mean().backward()
        return [p.grad.clone() for p in on_gpu.decoder.parameters() if p.grad is not None]

    expected = gradients()
    on_gpu.capture()
    for _ in range(3):
        for ours, plain in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max() + 1e-12))


@pytest.mark.cuda
@gpu
def test_a_hundred_image_sizes_take_bounded_memory(on_gpu: SegmentationModel) -> None:
    on_gpu.capture()
    peaks = []
    for turn in range(100):
        for _ in range(3):
            features_of(on_gpu, random_images(1, 64 * (1 + turn % 10), 64 * (1 + turn // 10)), turn)
        peaks.append(torch.cuda.memory_reserved())
    captures = on_gpu.extractor.backbone.network.captures
    assert captures is not None
    assert len(captures) <= captures.limit
    assert peaks[-1] < 4 * 2**30
