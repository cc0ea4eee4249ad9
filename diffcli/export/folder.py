"""The exported folder: what `--run` and `diffcli.load` read anywhere offline, and what every export holds."""

import json
import shutil
from pathlib import Path
from typing import Any

from diffcli import __version__
from diffcli.backbone.locate import cached_commit
from diffcli.backbone.saving import save_backbone
from diffcli.config.base import as_plain
from diffcli.config.settings import EMBEDDED
from diffcli.drawing.pictures import class_palette
from diffcli.errors import DiffError
from diffcli.export.facts import FolderFacts
from diffcli.export.programs import PARTS
from diffcli.export.runner import NOISE
from diffcli.files import replace_folder
from diffcli.runs.exported import EXPORT_BACKBONE, EXPORT_CONFIG, EXPORT_FACTS, EXPORT_WEIGHTS, file_checksums
from diffcli.runs.opening import OpenRun
from diffcli.runtime import console


def write_folder(trained: OpenRun, output: Path, *, with_backbone: bool) -> dict[str, Any]:
    """Write the folder for `--run` and `diffcli.load`, whole or not at all; and return its facts."""
    with replace_folder(output, is_ours=is_export_file) as folder:
        facts = _write_for_diffcli(trained, folder, with_backbone=with_backbone, name=output.resolve().name)
    backbone = trained.config.model.backbone
    named = (backbone.source, backbone.unet_weights, backbone.vae, backbone.text_encoder)
    local = [str(path) for path in named if path is not None and Path(path).expanduser().exists()]
    if not facts["base_model"]["included"] and local:
        console.warn(
            f"the frozen model is at {' and '.join(local)} on this machine only; "
            "--with-backbone puts it into the folder"
        )
    return facts


def _write_for_diffcli(trained: OpenRun, folder: Path, *, with_backbone: bool, name: str) -> dict[str, Any]:
    """Weights and settings, for `--run` and `diffcli.load`; returns what export.json holds."""
    shutil.copyfile(trained.weights, folder / EXPORT_WEIGHTS)
    if with_backbone:
        console.say("putting the diffusion model in; a full-size one takes minutes")
        save_backbone(trained.config.model.backbone, folder / EXPORT_BACKBONE)
    write_json(folder / EXPORT_CONFIG, _settings(trained))
    facts = {**_facts(trained, included=with_backbone), "checksums": file_checksums(folder)}
    write_json(folder / EXPORT_FACTS, FolderFacts.model_validate(facts).as_json())
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
    """Which diffusion model it was trained on."""
    config = trained.config.model.backbone
    return {
        "source": config.source,
        "revision": config.revision,
        "commit": cached_commit(config),
        "variant": config.variant,
        "unet_weights": str(config.unet_weights) if config.unet_weights else None,
        "vae": config.vae,
        "text_encoder": config.text_encoder,
        "fingerprint": trained.checkpoint.info.get("fingerprint"),
        "included": included,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _readme(trained: OpenRun, facts: dict[str, Any], *, name: str) -> str:
    base, model = facts["base_model"], trained.config.model
    where = (
        "It is in `backbone/`: nothing is downloaded."
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
