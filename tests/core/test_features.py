"""What is read from the network: the right maps, in the right order, summed as they should be."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.unet import FeatureLayer, FrozenUNet, feature_layers
from diffcli.config.settings import CustomSchedule, InversionConfig
from diffcli.core.features import DiffusionFeatureExtractor, FeatureTaps
from diffcli.core.inversion import seeded_noise

Extract = Callable[..., list[Tensor]]
NAMES = ["a", "b"]


def extractor(backbone: DiffusionBackbone, **changes: object) -> DiffusionFeatureExtractor:
    """An extractor on the short schedule; `changes` are its keyword arguments."""
    return DiffusionFeatureExtractor(backbone, InversionConfig(schedule="five"), **changes)


def test_layers_are_read_off_the_network(backbone: DiffusionBackbone) -> None:
    layers = feature_layers(backbone.unet, stages=(0, 1, 2, 3), kinds="all")
    assert [layer.stage for layer in layers] == [0] * 3 + [1] * 6 + [2] * 6 + [3] * 6
    assert [layer.kind for layer in layers if layer.stage == 1] == ["resnet"] * 3 + ["attention"] * 3
    assert {layer.kind for layer in layers if layer.stage == 0} == {"resnet"}


def test_announced_channels_are_those_returned(backbone: DiffusionBackbone, images: Tensor) -> None:
    own = extractor(backbone, stages=(0, 1, 2, 3))
    features = own.extract(images, noise=seeded_noise(0, NAMES))
    assert tuple(x.shape[1] for x in features) == own.channels
    assert [tuple(x.shape[-2:]) for x in features] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert own.stage_widths[3] == [16] * 6


def test_taps_see_the_map_before_the_skip_and_leave_no_hook(backbone: DiffusionBackbone) -> None:
    layers = feature_layers(backbone.unet, stages=(3,), kinds="all")
    latents = torch.randn(1, 4, 8, 8)
    resnet, seen = backbone.unet.up_blocks[3].resnets[0], []
    handle = resnet.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    text = backbone.prompt_embeddings[""][None]
    with FeatureTaps(backbone.unet, layers) as taps:
        backbone.unet(latents, 20, encoder_hidden_states=text)
    handle.remove()
    entering, leaving = seen[0]
    tapped = taps.maps[FeatureLayer("resnet", 3, 0)]
    torch.testing.assert_close(resnet.conv_shortcut(entering) + tapped, leaving)
    taps.maps.clear()
    backbone.unet(latents, 20, encoder_hidden_states=text)
    assert not taps.maps
    assert not resnet.conv2._forward_hooks


def test_saved_steps_are_concatenated_in_saved_order(backbone: DiffusionBackbone, images: Tensor) -> None:
    """Channels of a stack: per layer in order, all saved steps in saved order."""

    def run(*save_steps: int) -> tuple[Tensor, list[int]]:
        schedule = CustomSchedule(timesteps=(20, 60, 80), save_steps=save_steps)
        own = DiffusionFeatureExtractor(backbone, InversionConfig(schedule=schedule), stages=(2,))
        return own.extract(images[:1], noise=seeded_noise(0, NAMES))[0], own.widths(2)

    both, widths = run(2, 0)
    late, early = run(2)[0], run(0)[0]
    expected = []
    for a, b in zip(late.split(widths, 1), early.split(widths, 1), strict=True):
        expected += [a, b]
    assert torch.equal(both, torch.cat(expected, 1))


def test_attention_is_summed_over_prompts_and_resnets_are_not(extract: Extract, images: Tensor) -> None:
    """Plain attention maps are twice the single branch's; a third, equal branch that acts nowhere adds one more."""
    empty = torch.zeros(64, 64, dtype=torch.int64)
    empty[9, 9] = 1  # one pixel off the grid: an empty mask
    prompts = {1: ""}
    plain = extract(images[:1], class_prompts=prompts, eta=0.0)
    with_empty = extract(images[:1], class_prompts=prompts, eta=0.0, references=[empty])
    for a, b in zip(plain, with_empty, strict=True):
        half = a.shape[1] // 2
        torch.testing.assert_close(b[:, :half], a[:, :half], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(b[:, half:], 1.5 * a[:, half:], rtol=1e-4, atol=1e-5)


def test_a_class_with_an_empty_mask_is_evaluated_and_summed(extract: Extract, images: Tensor) -> None:
    empty = torch.zeros(64, 64, dtype=torch.int64)
    empty[9, 9] = 1
    plain, counted = extract(images[:1], eta=0.0), extract(images[:1], eta=0.0, references=[empty])
    for a, b in zip(plain, counted, strict=True):
        half = a.shape[1] // 2
        torch.testing.assert_close(b[:, :half], a[:, :half], rtol=1e-4, atol=1e-5)  # the latent never felt it
        assert not torch.allclose(b[:, half:], a[:, half:], rtol=1e-2)


def test_resnet_maps_come_from_the_negative_prompt(extract: Extract, images: Tensor) -> None:
    """At guidance 0 every step follows the negative prompt, so that another prompt only enters attention sums."""
    plain = extract(images[:1], guidance_scale=0.0)
    prompted = extract(images[:1], guidance_scale=0.0, prompt="a street")
    for a, b in zip(plain, prompted, strict=True):
        half = a.shape[1] // 2
        torch.testing.assert_close(b[:, :half], a[:, :half], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(b[:, half:], a[:, half:], rtol=1e-2)


def test_the_smaller_feature_kinds(backbone: DiffusionBackbone, images: Tensor) -> None:
    full = extractor(backbone).extract(images, noise=seeded_noise(0, NAMES))
    resnet = extractor(backbone, kinds="resnet").extract(images, noise=seeded_noise(0, NAMES))
    for a, b in zip(full, resnet, strict=True):
        assert torch.equal(a[:, : b.shape[1]], b)
        assert 2 * b.shape[1] == a.shape[1]
    backbone.evaluations = 0
    own = extractor(backbone, kinds="latent")
    latent = own.extract(images, noise=seeded_noise(0, NAMES))
    assert backbone.evaluations == 0
    assert own.channels == (4, 4, 4)
    torch.testing.assert_close(latent[1], F.avg_pool2d(latent[2], 2))


def test_features_need_no_gradient(extract: Extract, images: Tensor) -> None:
    assert not any(x.requires_grad for x in extract(images[:1].requires_grad_()))


@pytest.mark.parametrize("size", [(64, 128), (128, 64)])
def test_images_need_not_be_square(extract: Extract, size: tuple[int, int]) -> None:
    features = extract(torch.rand(1, 3, *size), schedule="one")
    assert [tuple(x.shape[-2:]) for x in features] == [(size[0] // s, size[1] // s) for s in (32, 16, 8)]


def test_half_precision_stays_near(
    extract: Extract, backbone: DiffusionBackbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks in bfloat16, schedule arithmetic and latents in float32."""
    full = extract(images[:1])
    for part in ("unet", "vae"):
        monkeypatch.setattr(backbone, part, deepcopy(getattr(backbone, part)).to(torch.bfloat16))
    monkeypatch.setattr(backbone, "network", FrozenUNet(backbone.unet))
    rounded = {prompt: x.to(torch.bfloat16) for prompt, x in backbone.prompt_embeddings.items()}
    monkeypatch.setattr(backbone, "prompt_embeddings", rounded)
    half = extract(images[:1])
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.bfloat16
        assert F.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.98
