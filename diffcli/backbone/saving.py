"""The frozen model copied into a folder of components, in the precision that it has."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffcli.backbone import components
from diffcli.backbone.loading import quiet, resolve_prediction_type
from diffcli.backbone.locate import Source, Sources, check_unet_file, find_sources
from diffcli.backbone.pickles import read_tensors
from diffcli.backbone.pipeline_folder import PipelineFolder
from diffcli.backbone.single_file import SingleFile
from diffcli.backbone.unet_weights import check_unet_weights
from diffcli.backbone.weight_files import PICKLES, STEMS
from diffcli.config.settings import BackboneConfig

_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    **{str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32)},
}


def save_backbone(config: BackboneConfig, folder: Path) -> None:
    """Write unet, vae, text_encoder, tokenizer and scheduler into `folder`, all as .safetensors files.

    Other variants and the safety checker are left out, and so are the U-Net's weights where `config` does not use them.

    Raises:
        BackboneError: the model is not there, or incomplete.
    """
    sources = find_sources(config)
    with quiet():
        for component in ("unet", "vae", "text_encoder"):
            _save_component(
                sources.of(component),
                component,
                folder / component,
                weights=config.needs_source_unet or component != "unet",
            )
        _save_tokenizer(sources, folder / "tokenizer")
    scheduler = sources.unet.config("scheduler")
    if isinstance(sources.unet, SingleFile) and config.prediction_type != "as_epsilon":
        scheduler["prediction_type"] = resolve_prediction_type(config, sources.unet)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(
        folder / "model_index.json",
        {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
    )
    if config.unet_weights is not None:
        _save_unet_file(config, folder / "unet")
    PipelineFolder(folder, config.variant).check(unet_weights=not config.random_weights)


def _save_component(source: Source, component: str, target: Path, *, weights: bool) -> None:
    """Copied file by file, or converted where it is in a single file or pickled."""
    if isinstance(source, PipelineFolder):
        files = source.weights(component)[1] if weights else []
        if all(path.suffix == ".safetensors" for path in files):
            target.mkdir(parents=True)
            for path in [*source.place(component).glob("*.json"), *files]:
                shutil.copyfile(path, target / path.name)
            return
    if not weights:
        _write_json(target / "config.json", source.config(component))
    elif component == "text_encoder":
        text_encoder = components.load_text_encoder(source)
        text_encoder.to(_dtype(source, component)).save_pretrained(target)
    else:
        load = components.load_unet if component == "unet" else components.load_vae
        load(source, _dtype(source, component)).save_pretrained(target)


def _save_tokenizer(sources: Sources, target: Path) -> None:
    if isinstance(sources.text_encoder, SingleFile):  # the layout's padding token is to be kept
        components.load_tokenizer(sources).save_pretrained(target)
        return
    target.mkdir(parents=True)
    for path in sources.tokenizer.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt"):
            shutil.copyfile(path, target / path.name)


def _save_unet_file(config: BackboneConfig, unet: Path) -> None:
    """The file of `unet_weights` where the U-Net's weights belong, in its own precision."""
    assert config.unet_weights is not None
    settings = json.loads((unet / "config.json").read_text(encoding="utf-8"))
    check_unet_weights(config.unet_weights, settings, allow_pickle=config.allow_pickle)
    path = check_unet_file(config.unet_weights, allow_pickle=config.allow_pickle)
    target = unet / f"{STEMS['unet'][0]}.safetensors"
    if path.suffix in PICKLES:
        save_file({name: x.contiguous() for name, x in read_tensors(path).items()}, target)
    else:
        shutil.copyfile(path, target)


def _dtype(source: Source, component: str) -> torch.dtype:
    """The precision of a component; float32 where it is none of the usual ones."""
    if isinstance(source, PipelineFolder):
        tensors = read_tensors(source.weights(component)[1][0]).values()
        return next((x.dtype for x in tensors if x.dtype in _DTYPES.values()), torch.float32)
    prefix = source.prefix(component) or ""
    kinds = (x["dtype"] for name, x in source.header.items() if "dtype" in x and name.startswith(prefix))
    return next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), torch.float32)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
