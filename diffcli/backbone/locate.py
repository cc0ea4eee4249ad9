"""Where the frozen model's weights lie on this disk: looked up by name alone, nothing is read or downloaded."""

import os
import re
from pathlib import Path

from diffcli.config.settings import EMBEDDED, BackboneConfig
from diffcli.errors import BackboneError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of weights that only unpickling would read, which runs whatever code is in them."""

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "miniworld-sd"


def describe_source(config: BackboneConfig) -> str:
    """Where the diffusion model of `config` would come from, in words.

    Raises:
        BackboneError: a file or folder that is not there, or one whose kind is not read.
    """
    source = _describe_model(config)
    if config.unet_weights is None:
        return source
    return f"{source}, the U-Net's weights from {check_unet_file(config.unet_weights).resolve()}"


def check_unet_file(path: Path) -> Path:
    """The file that `backbone.unet_weights` means, `~` expanded.

    Raises:
        BackboneError: there is no such file, or it is a pickle.
    """
    path = path.expanduser()
    if path.suffix in PICKLES:
        raise BackboneError(
            "a pickled state dict, which is not read",
            where=str(path),
            hint="use its .safetensors version, or convert it: safetensors.torch.save_file(state, FILE)",
        )
    if not path.is_file():
        raise BackboneError(
            "no such file" if not path.is_dir() else "this is a folder",
            where=str(path),
            hint="model.backbone.unet_weights is a .safetensors file with the U-Net's state dict",
        )
    return path


def _describe_model(config: BackboneConfig) -> str:
    """The source alone."""
    if config.source == EMBEDDED:
        if embedded_folder() is None:
            raise BackboneError(
                "the embedded model is not part of this installation",
                where=EMBEDDED,
                hint="install diffcli again",
            )
        return "embedded"
    path = Path(config.source).expanduser()
    if path.exists():
        return str(path.resolve())
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", config.source) or path.suffix in (".safetensors", ".ckpt"):
        raise BackboneError(
            "no such file or folder",
            where=config.source,
            hint="model.backbone.source is a hub id, a diffusers folder, a .safetensors file, or embedded",
        )
    cached = cached_snapshot(config.source)
    return f"{config.source} ({'in the cache' if cached else 'to be downloaded on first use'})"


def embedded_folder() -> Path | None:
    """The small model that ships, if it is complete."""
    return EMBEDDED_FOLDER if (EMBEDDED_FOLDER / "model_index.json").is_file() else None


def cached_snapshot(model: str) -> Path | None:
    """The newest snapshot of a hub model in the local cache that holds a U-Net's weights."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    weights = (hub / f"models--{model.replace('/', '--')}" / "snapshots").glob("*/unet/*.safetensors")
    return max(
        (path.parent.parent for path in weights), key=lambda folder: folder.stat().st_mtime, default=None
    )
