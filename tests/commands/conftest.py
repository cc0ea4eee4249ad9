"""A tiny trained run, made once: real networks of a few thousand weights, on the pipeline of the parity kit."""

from pathlib import Path

import pytest
import torch

from diffcli.config import RunConfig
from diffcli.config_file import dump_config
from diffcli.core.checkpoint import save_checkpoint
from diffcli.core.model import build_model
from diffcli.runs import CONFIG, LAST, REPORT

TINY_SD = Path(__file__).parent.parent / "parity_data" / "tiny-sd"


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {
                "backbone": {"source": str(TINY_SD)},
                "inversion": {"schedule": "one"},
                "decoder": {"channels": [32, 64, 64, 64], "head_channels": 16},
            },
            "data": {"eval": [{"domain": "miniworld/night", "count": 2}], "workers": 0},
            "eval": {"size": "128x64"},
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder; nothing may write into it (eval takes -o)."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model = build_model(tiny_config.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)  # so that several classes are predicted
    save_checkpoint(folder / LAST, model, info={"iteration": 7})
    (folder / CONFIG).write_text(dump_config(tiny_config))
    (folder / REPORT).write_text("{}")
    return folder
