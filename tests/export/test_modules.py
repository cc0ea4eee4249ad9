"""The three exportable parts and the runner's loop make the model's own logits, for every schedule and setting."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.config.settings import SCHEDULES, InversionConfig, ModelConfig
from diffcli.config.size import Size
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import SegmentationModel, join
from diffcli.export.facts import NetworkFacts
from diffcli.export.modules import exportable_parts
from diffcli.export.networks import network_facts
from diffcli.export.runner import ExportedNetwork

NAMES = ("a", "b")


def runner(model: SegmentationModel) -> ExportedNetwork:
    """The runner on the parts as they are, without tracing."""
    size = Size(64, 64)
    facts = NetworkFacts.model_validate(network_facts(model, kind="pt2", size=size))
    parts = exportable_parts(model)
    networks = {name: as_network(getattr(parts, name)) for name in facts.networks}
    return ExportedNetwork(facts, networks=networks, noise=draws(model, ["export"])[0])


def as_network(module: nn.Module) -> Callable[..., list[NDArray[np.float32]]]:
    @torch.no_grad()
    def call(*arrays: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        out = module(*(torch.from_numpy(array.copy()) for array in arrays))
        return [x.numpy() for x in (out if isinstance(out, tuple) else (out,))]

    return call


def draws(model: SegmentationModel, names: Sequence[str]) -> NDArray[np.float32]:
    """B,D,4,h,w: more than any schedule draws, in the order in which the model draws them."""
    side = 64 // model.extractor.backbone.downsample
    noise = seeded_noise(model.config.inversion.seed, names)
    each = [torch.cat([noise(i, (1, 4, side, side)) for _ in range(40)]) for i in range(len(names))]
    return torch.stack(each).numpy()


def assert_equal(model: SegmentationModel, images: Tensor) -> None:
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    exported = runner(model)
    wanted = model.logits(images, identities=NAMES).numpy()
    found = exported.logits(images.numpy(), draws(model, NAMES))
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())
    stored = model.logits(images, identities=["export"] * 2).numpy()
    np.testing.assert_allclose(exported.logits(images.numpy()), stored, atol=2e-4 * np.abs(stored).max())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(
    backbone: DiffusionBackbone, small: Callable[..., ModelConfig], images: Tensor, schedule: str
) -> None:
    config = small().model_copy(update={"inversion": InversionConfig(schedule=schedule)})  # type: ignore[arg-type]
    torch.manual_seed(0)
    assert_equal(join(config, backbone), images)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "a street", "guidance_scale": 3.0},
        {"latent": "mean"},
        {"eta": 0.0},
        {"prediction_type": "v_prediction"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_inversion(
    backbone: DiffusionBackbone,
    small: Callable[..., ModelConfig],
    images: Tensor,
    settings: dict[str, object],
) -> None:
    """A prompt beside the negative one is a second row with guidance; a latent's mean is no draw; v becomes noise."""
    backbone.prediction_type = str(settings.pop("prediction_type", "epsilon"))
    inversion = InversionConfig.model_validate({"schedule": "five", **settings})
    torch.manual_seed(0)
    assert_equal(join(small().model_copy(update={"inversion": inversion}), backbone), images)


@pytest.mark.parametrize("decoder", [{"features": "resnet"}, {"features": "latent"}, {"fusion": "mixing"}])
def test_settings_of_the_decoder(
    backbone: DiffusionBackbone, small: Callable[..., ModelConfig], images: Tensor, decoder: dict[str, str]
) -> None:
    torch.manual_seed(0)
    assert_equal(join(small(**decoder), backbone), images)


def test_any_size(backbone: DiffusionBackbone, small: Callable[..., ModelConfig]) -> None:
    """What the network's strides do not divide is padded, and the logits are cropped."""
    torch.manual_seed(0)
    model = join(small(), backbone)
    image = torch.rand(1, 3, 50, 61) * 2 - 1
    wanted = model.logits(image, identities=["export"]).numpy()
    found = runner(model).logits(image.numpy())
    assert found.shape == (1, 5, 50, 61)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
