"""The inversion's arithmetic, its cost, and what an image's result depends on."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.backbone.unet import FrozenUNet, Maps
from diffcli.config.settings import SCHEDULES, BackboneConfig, CustomSchedule, InversionConfig
from diffcli.core.inversion import (
    InversionSchedule,
    PromptGroups,
    StepCoefficients,
    ddim_inversion_step,
    draw_ahead,
    guide,
    noise_seed,
    plan_batch,
    plan_rows,
    prompt_groups,
    resize_nearest,
    seeded_noise,
    step_coefficients,
)

Extract = Callable[..., list[Tensor]]
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0)
TIMES = st.tuples(st.integers(0, 998), st.integers(1, 999)).filter(lambda pair: pair[0] < pair[1])


def reference(*train_ids: int, size: int = 64) -> Tensor:
    """Labels with 16 columns of each class from the left, 0 elsewhere."""
    labels = torch.zeros(size, size, dtype=torch.int64)
    for i, train_id in enumerate(train_ids):
        labels[:, 16 * i : 16 * (i + 1)] = train_id
    return labels


# --- schedule and coefficients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "evaluations"), [("paper", 34), ("visit9", 9), ("five", 5), ("one", 1), ("clean", 1)]
)
def test_nothing_after_the_last_saved_step_is_evaluated(name: str, evaluations: int) -> None:
    schedule = InversionSchedule.from_config(SCHEDULES[name])
    assert schedule.evaluated_steps == evaluations
    assert InversionConfig(schedule=name).evaluations(0) == evaluations


def test_steps_follow_each_other_from_the_clean_latent() -> None:
    schedule = InversionSchedule.from_config(CustomSchedule(timesteps=(60, 1, 20), save_steps=(0,)))
    assert schedule.timesteps == (0, 1, 20)
    assert schedule.next_timesteps == (1, 20, 60)


def test_visit9_reads_the_same_timesteps_as_the_published_schedule_in_the_same_order() -> None:
    paper, visit9 = (InversionSchedule.from_config(SCHEDULES[name]) for name in ("paper", "visit9"))
    read = [[schedule.timesteps[i] for i in schedule.save_steps] for schedule in (paper, visit9)]
    assert read[0] == read[1] == [91, 52, 30, 22, 18, 14, 11, 7, 3]


@given(times=TIMES, eta=st.floats(0, 1))
def test_coefficients_keep_the_noise_level(times: tuple[int, int], eta: float) -> None:
    """sigma² + direction² = 1 - a' wherever the floor is not reached, so that a Gaussian latent keeps its variance."""
    step = step_coefficients(ALPHAS, *times, eta=eta, s_tmin=-1, s_tmax=1000)
    assert step.alpha_next < step.alpha
    assert step.sigma >= 0
    assert step.direction > 0
    if step.direction > 1e-5:
        assert step.sigma**2 + step.direction**2 == pytest.approx(1 - step.alpha_next, rel=1e-9)


@given(times=TIMES)
def test_noise_only_inside_the_window(times: tuple[int, int]) -> None:
    step = step_coefficients(ALPHAS, *times, eta=1.0, s_tmin=10, s_tmax=250)
    assert (step.sigma > 0) == (10 < times[0] < 250)


def test_the_floor_of_the_direction_is_reached() -> None:
    step = step_coefficients(ALPHAS, 20, 40, eta=1.0, s_tmin=10, s_tmax=250)
    assert step.sigma**2 > 1 - step.alpha_next
    assert step.direction == pytest.approx(1e-5)


@given(times=TIMES, seed=st.integers(0, 2**16))
def test_a_noiseless_step_is_undone_by_the_step_back(times: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latent, eps = torch.randn(2, 1, 4, 3, 3, generator=generator, dtype=torch.float64)
    there = step_coefficients(ALPHAS, *times, eta=0.0, s_tmin=10, s_tmax=250)
    back = StepCoefficients(alpha=there.alpha_next, alpha_next=there.alpha, sigma=0.0)
    moved = ddim_inversion_step(latent, eps, torch.zeros_like(eps), there)
    returned = ddim_inversion_step(moved, eps, torch.zeros_like(eps), back)
    torch.testing.assert_close(returned, latent, rtol=1e-6, atol=1e-6)


@given(times=TIMES, seed=st.integers(0, 2**16))
def test_true_noise_leads_to_the_true_latent(times: tuple[int, int], seed: int) -> None:
    """With eps the very noise in z_t, z_t' is the same image under the same noise at t'."""
    generator = torch.Generator().manual_seed(seed)
    clean, eps = torch.randn(2, 1, 4, 3, 3, generator=generator, dtype=torch.float64)
    step = step_coefficients(ALPHAS, *times, eta=0.0, s_tmin=10, s_tmax=250)
    noisy = math.sqrt(step.alpha) * clean + math.sqrt(1 - step.alpha) * eps
    expected = math.sqrt(step.alpha_next) * clean + math.sqrt(1 - step.alpha_next) * eps
    torch.testing.assert_close(ddim_inversion_step(noisy, eps, eps, step), expected, rtol=1e-6, atol=1e-6)


def test_all_noise_is_drawn_in_the_order_of_the_steps() -> None:
    """Drawn ahead of the loop, an image still gets the numbers that it would get step by step."""
    masks = torch.ones(3, 2, 2)
    groups = [PromptGroups(("", "a", "b"), masks), PromptGroups(("",), masks[:1])]
    full = plan_batch(groups, "", device=torch.device("cpu"))
    plain = plan_batch(
        [PromptGroups(g.prompts[:1], g.masks[:1]) for g in groups], "", device=torch.device("cpu")
    )
    latent = torch.zeros(2, 4, 2, 2)
    found = draw_ahead(seeded_noise(0, ["x", "y"]), [full, plain, full], latent)
    expected = seeded_noise(0, ["x", "y"])
    for step, sizes in zip(found, ((3, 1), (1, 1), (3, 1)), strict=True):
        for image, size in enumerate(sizes):
            assert torch.equal(step[image], expected(image, (size, 4, 2, 2)))


# --- guidance and prompt groups ------------------------------------------------------------------------------------


@given(scale=st.floats(-20, 20), seed=st.integers(0, 2**16))
def test_guidance_towards_the_negative_prompt_is_nothing(scale: float, seed: int) -> None:
    eps = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(guide(eps, torch.tensor([0]), guidance_scale=scale), eps)


def test_guidance_of_scale_one_is_the_prompt() -> None:
    eps = torch.randn(2, 4, 2, 2)
    torch.testing.assert_close(guide(eps, torch.tensor([1]), guidance_scale=1.0), eps[1:])


def test_groups_are_the_prompted_classes_that_are_there() -> None:
    groups = prompt_groups(
        reference(7, 3, 1), prompt="", class_prompts={1: "a", 3: "b", 5: "c"}, latent_size=(8, 8)
    )
    assert groups.prompts == ("", "a", "b")
    assert groups.masks.sum((-2, -1)).tolist() == [64, 16, 16]


def test_a_mask_takes_the_top_left_pixel_of_each_cell() -> None:
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[8, 16] = 1  # on the grid
    labels[9, 33] = 3  # beside it
    groups = prompt_groups(labels, prompt="", class_prompts={1: "a", 3: "b"}, latent_size=(8, 8))
    assert groups.masks[1].nonzero().tolist() == [[1, 2]]
    assert groups.prompts == ("", "a", "b")
    assert not groups.masks[2].any()


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_nearest_resizing_stays_inside_and_keeps_its_own_size(height: int, width: int) -> None:
    labels = torch.arange(height * width).reshape(height, width)
    assert torch.equal(resize_nearest(labels, (height, width)), labels)
    small = resize_nearest(labels, (8, 5))
    assert small.shape == (8, 5)
    assert small[0, 0] == 0


def test_equal_prompts_share_a_row_and_are_counted() -> None:
    masks = torch.ones(4, 1, 1)
    rows = plan_rows([PromptGroups(("", "a", "b", "a"), masks), PromptGroups(("",), masks[:1])], "")
    assert rows.images == (0, 0, 0, 1)
    assert rows.prompts == ("", "a", "b", "")
    assert rows.counts == (2, 2, 1, 2)


# --- cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "labels", "evaluations"),
    [
        ({"schedule": "paper"}, None, 34),
        ({"schedule": "paper"}, (1, 3), 3 * 34),
        ({"schedule": "five"}, (1, 3, 4), 3 * 5),  # 1 and 4 have one prompt
        ({"schedule": "five"}, (0, 2), 5),
        ({"schedule": "one"}, None, 1),
        ({"schedule": "one"}, (1, 3), 3),
        ({"schedule": "paper", "prompt": "a street"}, None, 68),
        ({"schedule": "paper", "prompt": "a street"}, (1, 3), 4 * 34),
        ({"schedule": "five", "prompt": "a street", "negative_prompt": "a street"}, (1,), 2 * 5),
        ({"schedule": "five", "prompt": "a sidewalk"}, (1,), 2 * 5),
        ({"schedule": "five", "mask_min": 20}, (1,), 5 + 3),  # evaluated at 0 1 20 40 60
        ({"schedule": "five", "mask_max": 20}, (1,), 5 + 3),
    ],
)
def test_cost(
    extract: Extract,
    backbone: DiffusionBackbone,
    images: Tensor,
    settings: dict[str, object],
    labels: tuple[int, ...] | None,
    evaluations: int,
) -> None:
    references = None if labels is None else [reference(*labels)]
    extract(images[:1], references=references, **settings)
    assert backbone.evaluations == evaluations


def test_a_batch_costs_the_sum_over_its_images(
    extract: Extract, backbone: DiffusionBackbone, images: Tensor
) -> None:
    batch = torch.cat([images, images[:1]])
    extract(batch, references=[reference(1, 3), None, reference(3)], schedule="five")
    assert backbone.evaluations == 5 * (3 + 1 + 2)


# --- what a result depends on --------------------------------------------------------------------------------------


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_an_image_does_not_depend_on_its_batch(extract: Extract, images: Tensor) -> None:
    references = [reference(1), reference(3, 4)]
    together = extract(images, identities=["a", "b"], references=references)
    swapped = extract(images.flip(0), identities=["b", "a"], references=references[::-1])
    for i, name in enumerate("ab"):
        alone = extract(images[i : i + 1], identities=[name], references=[references[i]])
        close([x[i : i + 1] for x in together], alone)
        close([x[1 - i : 2 - i] for x in swapped], alone)


def test_noise_follows_seed_and_identity(extract: Extract, images: Tensor) -> None:
    first = extract(images[:1], identities=["a"])
    assert all(map(torch.equal, first, extract(images[:1], identities=["a"])))
    assert not torch.equal(first[0], extract(images[:1], identities=["b"])[0])
    assert len({noise_seed(seed, name) for seed in (0, 1) for name in ("a", "b", "1:a")}) == 6
    assert noise_seed(0, "a") == noise_seed(0, "a") < 2**63


def test_images_draw_from_sequences_of_their_own() -> None:
    noise, other = seeded_noise(0, ["a", "b"]), seeded_noise(0, ["b"])
    noise(0, (3,))
    noise(0, (5,))
    assert torch.equal(noise(1, (4,)), other(0, (4,)))


def test_without_eta_and_with_the_mean_nothing_is_random(extract: Extract, images: Tensor) -> None:
    fixed = {"eta": 0.0, "latent": "mean"}
    a, b = (extract(images[:1], identities=[name], **fixed) for name in "ab")
    assert all(map(torch.equal, a, b))
    c = extract(images[:1], identities=["a"], latent="mean")
    assert not torch.equal(a[0], c[0])


def test_no_prompted_class_is_no_reference(extract: Extract, images: Tensor) -> None:
    plain = extract(images[:1])
    assert all(map(torch.equal, plain, extract(images[:1], references=[reference(0, 2)])))
    assert all(map(torch.equal, plain, extract(images[:1], references=[torch.full((64, 64), 255)])))


def test_outside_the_window_the_class_prompts_rest(extract: Extract, images: Tensor) -> None:
    plain = extract(images[:1])
    outside = extract(images[:1], references=[reference(1, 3)], mask_min=500)
    assert all(map(torch.equal, plain, outside))
    inside = extract(images[:1], references=[reference(1, 3)])
    assert not torch.equal(plain[0], inside[0])


# --- prediction types ----------------------------------------------------------------------------------------------


class VNetwork(FrozenUNet):
    """The same network saying v where it said eps: v = (eps - sqrt(1 - a) z) / sqrt(a)."""

    def __init__(self, unet: UNet2DConditionModel, alphas: Tensor) -> None:
        super().__init__(unet)
        self.alphas = alphas

    def __call__(
        self, latents: Tensor, timestep: int, *given: Any, **options: Any
    ) -> tuple[Tensor | None, Maps]:
        eps, maps = super().__call__(latents, timestep, *given, **options)
        alpha = float(self.alphas[timestep])
        return None if eps is None else (eps - math.sqrt(1 - alpha) * latents) / math.sqrt(alpha), maps


def test_v_prediction_is_converted(
    extract: Extract, backbone: DiffusionBackbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extract(images[:1])
    monkeypatch.setattr(backbone, "network", VNetwork(backbone.unet, backbone.alphas_cumprod))
    as_epsilon = extract(images[:1])
    assert not torch.allclose(as_epsilon[0], expected[0], rtol=1e-2)
    backbone.prediction_type = "v_prediction"
    close(extract(images[:1]), expected)


@pytest.mark.parametrize(("setting", "taken_for"), [("auto", "v_prediction"), ("as_epsilon", "epsilon")])
def test_the_scheduler_says_what_the_network_predicts(
    parity_data: Path, tmp_path: Path, setting: Literal["auto", "as_epsilon"], taken_for: str
) -> None:
    shutil.copytree(parity_data / "tiny-sd", tmp_path / "sd")
    settings = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"prediction_type": "v_prediction"}))
    config = BackboneConfig(source=str(tmp_path / "sd"), prediction_type=setting)
    loaded = load_backbone(config, prompts=[""], device=torch.device("cpu"), dtype=torch.float32)
    assert loaded.prediction_type == taken_for
