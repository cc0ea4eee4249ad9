"""The exported folder: what `--run` and `diffcli.load` read anywhere offline, and what every export holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from diffcli import __version__
from diffcli.backbone import hub
from diffcli.backbone.loading import open_source, quiet, resolve_prediction_type
from diffcli.backbone.pipeline_folder import WEIGHT_STEMS, PipelineFolder
from diffcli.backbone.single_file import PREFIXES, SingleFile
from diffcli.backbone.unet_weights import check_unet_weights
from diffcli.backbone.weight_files import read_header
from diffcli.config.base import as_plain
from diffcli.config.settings import EMBEDDED, BackboneConfig
from diffcli.drawing.pictures import class_palette
from diffcli.errors import DiffError
from diffcli.export.programs import PARTS
from diffcli.export.runner import NOISE
from diffcli.files import replace_folder
from diffcli.runs.exported import EXPORT_BACKBONE, EXPORT_CONFIG, EXPORT_FACTS, EXPORT_WEIGHTS
from diffcli.runs.opening import OpenRun
from diffcli.runtime import console

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def write_folder(trained: OpenRun, output: Path, *, with_backbone: bool) -> dict[str, Any]:
    """Write the folder for `--run` and `diffcli.load`, whole or not at all; what is told of it. Raises: see `run`."""
    with replace_folder(output, is_ours=is_export_file) as folder:
        facts = _write_for_diffcli(trained, folder, with_backbone=with_backbone, name=output.resolve().name)
    backbone = trained.config.model.backbone
    local = [backbone.source] if Path(backbone.source).expanduser().exists() else []
    local += [str(backbone.unet_weights)] if backbone.unet_weights is not None else []
    if not facts["base_model"]["included"] and local:
        console.warn(
            f"the frozen model is at {' and '.join(local)} on this machine only; "
            "--with-backbone puts it into the folder"
        )
    return facts


def _write_for_diffcli(trained: OpenRun, folder: Path, *, with_backbone: bool, name: str) -> dict[str, Any]:
    """Weights and settings, for `--run` and `diffcli.load`; what is told of them."""
    shutil.copyfile(trained.weights, folder / EXPORT_WEIGHTS)
    included = with_backbone and _write_backbone(trained.config.model.backbone, folder / EXPORT_BACKBONE)
    facts = _facts(trained, included=included)
    write_json(folder / EXPORT_CONFIG, _settings(trained))
    write_json(folder / EXPORT_FACTS, facts)
    (folder / "README.md").write_text(_readme(trained, facts, name=name), encoding="utf-8")
    return facts


def refuse_foreign(output: Path) -> None:
    """Only an empty folder or an earlier export may be replaced."""
    if (
        not output.exists()
        or (output.is_dir() and not any(output.iterdir()))
        or (output / EXPORT_FACTS).is_file()
    ):
        return
    what = "this folder holds something that is no export" if output.is_dir() else "this is a file"
    raise DiffError(what, where=str(output), hint="choose a folder that does not exist yet")


def is_export_file(name: str) -> bool:
    """Whether an earlier export wrote the file of that name in its folder; all others stay when it is written again."""
    networks = (f"{part}.{ending}" for part in PARTS for ending in ("onnx", "onnx.data", "pt2"))
    ours = (EXPORT_WEIGHTS, EXPORT_CONFIG, EXPORT_FACTS, NOISE, "README.md", EXPORT_BACKBONE, *networks)
    return name.split("/")[0] in ours


# ------------------------------------------------------------------------------------------ the frozen model


def _write_backbone(config: BackboneConfig, folder: Path) -> bool:
    """Copy the frozen model as a folder of components, in the precision that it has; True.

    Raises:
        BackboneError: it is not there, or incomplete.
    """
    source = open_source(config)
    source.check(skip_unet_weights=not config.own_unet_weights)
    if isinstance(source, PipelineFolder):
        _copy_components(source, folder, unet_weights=config.own_unet_weights)
    else:
        _convert_file(source, config, folder)
    if config.unet_weights is not None:
        _replace_unet(config, folder)
    PipelineFolder(folder, config.variant).check(skip_unet_weights=config.random_weights)
    return True


def _replace_unet(config: BackboneConfig, folder: Path) -> None:
    """Put the file of `unet_weights` where the U-Net's own weights would lie, in its own precision."""
    assert config.unet_weights is not None
    unet = folder / "unet"
    check_unet_weights(config.unet_weights, PipelineFolder(folder).config("unet"))
    for path in unet.glob("*.safetensors*"):  # of a converted single file
        path.unlink()
    variant = f".{config.variant}" if config.variant else ""
    shutil.copyfile(config.unet_weights.expanduser(), unet / f"{WEIGHT_STEMS['unet']}{variant}.safetensors")


def _copy_components(source: PipelineFolder, folder: Path, *, unet_weights: bool) -> None:
    """Settings, tokenizer and the weights that are read; other variants and the safety checker stay behind."""
    files = [path for path in (source.folder / "model_index.json",) if path.is_file()]
    for component in ("tokenizer", "scheduler"):
        files += sorted(path for path in (source.folder / component).iterdir() if path.is_file())
    for component in ("unet", "vae", "text_encoder"):
        files += sorted((source.folder / component).glob("*.json"))
        if unet_weights or component != "unet":
            files += source.weights(component)[1]
    for path in files:
        target = folder / path.relative_to(source.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _convert_file(source: SingleFile, config: BackboneConfig, folder: Path) -> None:
    """A single file as a folder of components; what its U-Net predicts is written into the scheduler's settings."""
    scheduler: DDIMScheduler = source.load_scheduler()
    if config.prediction_type != "as_epsilon":
        scheduler.register_to_config(prediction_type=resolve_prediction_type(config, source))
    with quiet():
        source.load_unet(_dtype(source, "unet")).save_pretrained(folder / "unet")
        source.load_vae(_dtype(source, "vae")).save_pretrained(folder / "vae")
        source.load_text_encoder().to(_dtype(source, "text_encoder")).save_pretrained(folder / "text_encoder")
        source.load_tokenizer().save_pretrained(folder / "tokenizer")
        scheduler.save_pretrained(folder / "scheduler")


def _dtype(source: SingleFile, component: str) -> torch.dtype:
    """The precision of a component in a single file; float32 where it is none of the usual."""
    header = read_header(source.path)
    kinds = (str(tensor["dtype"]) for name, tensor in header.items() if name.startswith(PREFIXES[component]))
    return next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), torch.float32)


# ---------------------------------------------------------------------------------------------- the settings


def _settings(trained: OpenRun) -> dict[str, Any]:
    """What loading reads: model and eval, as in a YAML, and the seed that a random control is drawn from."""
    config = trained.config
    return {
        "model": as_plain(config.model),
        "eval": as_plain(config.eval),
        "train": {"seed": config.train.seed},
    }


def _facts(trained: OpenRun, *, included: bool) -> dict[str, Any]:
    """What people and other programs may want to know about the model."""
    model, info = trained.config.model, trained.checkpoint.info
    palette = class_palette(model)[: len(model.classes)].tolist()
    return {
        "format": 1,
        "diffcli": __version__,
        "trained_with": info.get("version"),
        "iteration": info.get("iteration"),
        "classes": [
            {"train_id": i, "name": name, "color": color}
            for i, (name, color) in enumerate(zip(model.classes, palette, strict=True))
        ],
        "ignore_id": 255,
        "base_model": base_model(trained, included=included),
    }


def base_model(trained: OpenRun, *, included: bool) -> dict[str, Any]:
    """Which diffusion model it stands on."""
    config = trained.config.model.backbone
    return {
        "source": config.source,
        "revision": config.revision,
        "commit": _commit(config),
        "variant": config.variant,
        "unet_weights": str(config.unet_weights) if config.unet_weights else None,
        "fingerprint": trained.checkpoint.info.get("fingerprint"),
        "included": included,
    }


def _commit(config: BackboneConfig) -> str | None:
    """The commit of a hub id, as far as the local cache knows it."""
    if config.source == EMBEDDED or Path(config.source).expanduser().exists():
        return None
    folder = hub.cached(config.source, revision=config.revision)
    return folder.name if folder is not None else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _readme(trained: OpenRun, facts: dict[str, Any], *, name: str) -> str:
    base, model = facts["base_model"], trained.config.model
    where = (
        "It lies in `backbone/`: nothing is downloaded."
        if base["included"]
        else "It ships with diffcli: nothing is downloaded."
        if base["source"] == EMBEDDED and not base["unet_weights"]
        else "It is not in this folder: diffcli takes it from the cache or downloads it when the model is loaded."
    )
    commit = f", commit `{base['commit']}`" if base["commit"] else ""
    unet = f", its U-Net with the weights of `{base['unet_weights']}`" if base["unet_weights"] else ""
    return f"""# {name}

A semantic segmentation model on the frozen features of a text-to-image diffusion model.
Written by diffcli {__version__}.

## Use it

```
diff predict images/ -o masks/ --run {name}
diff eval --domain all --run {name}
```

```python
import diffcli

model = diffcli.load("{name}")
logits = model.logits(images)  # B,3,H,W in [-1, 1] -> B,{len(model.classes)},H,W
```

## What is in it

- `{EXPORT_WEIGHTS}`: the trained weights, with the model's settings inside
- `{EXPORT_CONFIG}`: settings of the model and of its evaluation
- `{EXPORT_FACTS}`: {len(model.classes)} classes with train ids and colours, the base model, versions

Base model: `{base["source"]}` (revision `{base["revision"] or "default"}`{commit}){unet}. {where}
Its own licence applies to it.
"""
