"""Operations and weights counted from settings, beside what PyTorch counts when the networks run."""

import json
from copy import deepcopy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffcli.bench.cases import _attention_flop
from diffcli.config.settings import ModelConfig
from diffcli.config.size import Size
from diffcli.core.flops import networks, stage_widths
from diffcli.core.model import build_model
from tests.fixtures.models import TINY_MODEL, TINY_SD


@pytest.mark.parametrize(
    ("fusion", "features"),
    [("direct", "all"), ("vanilla", "all"), ("mixing", "resnet"), ("direct", "latent")],
)
def test_operations_and_weights_are_those_of_the_networks(fusion: str, features: str) -> None:
    settings = deepcopy(TINY_MODEL)
    settings["decoder"] |= {"fusion": fusion, "features": features}
    config = ModelConfig.model_validate(settings)
    model = build_model(config)
    unet, vae = (json.loads((TINY_SD / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert stage_widths(config, unet) == model.extractor.stage_widths
    found = networks(config, unet=unet, vae=vae, size=Size(128, 64))
    weights = sum(one.numel() for one in model.decoder.parameters() if one.ndim > 1)
    assert sum(layer.weights for layer in found.decoder) == weights
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        model.logits(torch.rand(1, 3, 64, 128), identities=["a"])
    evaluations = 0 if features == "latent" else 1
    parts = (*found.encoder, *found.unet * evaluations, *found.decoder)
    assert sum(layer.flop for layer in parts) == pytest.approx(counter.get_total_flops(), rel=0.1)
