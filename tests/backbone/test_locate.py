"""The resolver: it imports no torch, and says where everything comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffcli.backbone.locate import describe_source, find_on_disk
from diffcli.config.settings import BackboneConfig
from diffcli.errors import BackboneError


def test_the_resolver_imports_no_torch() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'huggingface_hub'}"
    code = f"import sys, diffcli.backbone.locate; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_things_are(built: Path) -> None:
    folder, file = built / "sd-1", built / "sd-1-file" / "model.safetensors"
    assert describe_source(BackboneConfig(source="embedded")) == "embedded"
    assert describe_source(BackboneConfig(source=str(folder))) == str(folder)
    assert describe_source(BackboneConfig(source=str(file))) == str(file)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    both = BackboneConfig(source=str(folder), vae=str(file), unet_weights=unet)
    assert describe_source(both) == f"{folder}, vae from {file}, the U-Net's weights from {unet}"
    assert find_on_disk(str(folder)) == folder
    assert find_on_disk("owner/name") is None


def test_what_loading_would_refuse_is_found_without_loading(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BackboneError, match="the weights are missing"):
        describe_source(BackboneConfig(source=str(folder)))
