"""A trained run as networks for another runtime (ONNX, torch.export), compared with the model before they are kept."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch

from diffcli import __version__
from diffcli.config.settings import EvalConfig
from diffcli.config.size import Size
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import SegmentationModel
from diffcli.data.images import PIXEL_MEAN, PIXEL_SCALE
from diffcli.data.miniworld import render
from diffcli.data.transforms import resize_image
from diffcli.drawing.pictures import class_palette
from diffcli.errors import ConfigError, DiffError
from diffcli.export.facts import BaseModelFacts, CheckFacts, Kind, NetworkFacts
from diffcli.export.folder import base_model, is_export_file, write_json
from diffcli.export.modules import encoder_draws, exportable_parts, step_count
from diffcli.export.programs import LARGEST_BATCH, Part, named_parts, write_onnx, write_program
from diffcli.export.runner import (
    DECODER,
    ENCODER,
    NOISE,
    STEP,
    ExportedNetwork,
    Floats,
    need,
    open_exported,
    to_model_range,
)
from diffcli.files import replace_folder
from diffcli.runs.exported import EXPORT_FACTS, file_checksums
from diffcli.runs.folder import versions
from diffcli.runs.opening import OpenRun
from diffcli.runtime import console

AGREEMENT = 0.999
"""Least share of pixels whose label is the model's own."""
CHECKED = (("clean", 0), ("night", 1))
"""Miniature-world scenes that both see: (domain, index)."""
STORED_NOISE = "export"
"""Identity that the stored noise is drawn for."""


@dataclass(frozen=True)
class Check:
    """How an export compares with the model it was made of, under the same noise."""

    images: int
    max_logit_difference: float
    logit_range: tuple[float, float]
    label_agreement: float

    def __str__(self) -> str:
        return (
            f"labels agree on {100 * self.label_agreement:.3f} % of the pixels of {self.images} images; "
            f"logits differ by {self.max_logit_difference:.1e} at most"
        )


def export_networks(
    trained: OpenRun, output: Path, *, kind: Kind, size: Size | None, agreement: float = AGREEMENT
) -> dict[str, Any]:
    """Write the networks for `--model` and other programs, whole or not at all; what export.json holds.

    They are loaded again and compared with the model.

    Args:
        size: what images are resized to; None takes eval.size.
        agreement: the least share of pixels whose label equals the model's.

    Raises:
        ConfigError: there is no size.
        DiffError: the folder cannot be written; the networks do not agree with the model.
    """
    with replace_folder(output, is_ours=is_export_file) as folder:
        chosen = export_size(trained, size)
        if dropped := left_out(trained.config.eval):
            console.warn(f"one plain pass over the whole image is exported, without {', '.join(dropped)}")
        model = write_networks(trained, folder, kind=kind, size=chosen)
        info = trained.checkpoint.info
        facts = NetworkFacts(
            diffcli=__version__,
            trained_with=info.get("version"),
            iteration=info.get("iteration"),
            base_model=BaseModelFacts.model_validate(base_model(trained, included=True)),
            checksums=file_checksums(folder),
            **network_facts(model, kind=kind, size=chosen),
        )
        write_json(folder / EXPORT_FACTS, facts.as_json())  # the check below opens the folder
        check = check_networks(model, folder, size=chosen, agreement=agreement)
        console.say(str(check))
        facts = facts.model_copy(update={"check": CheckFacts(**asdict(check))})
        write_json(folder / EXPORT_FACTS, facts.as_json())
        readme = networks_readme(facts.as_json(), name=output.resolve().name)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return facts.as_json()


def export_size(trained: OpenRun, size: Size | None) -> Size:
    """The networks' input size: `size`, else eval.size.

    Raises:
        ConfigError: there is neither.
    """
    chosen = size or trained.config.eval.size
    if chosen is None:
        raise ConfigError(
            "eval.size is null, but exported networks see images of one size",
            where=str(trained.path),
            hint="--size 1024x512 says which",
        )
    return chosen


def left_out(settings: EvalConfig) -> list[str]:
    """Settings of the run's evaluation that are no part of a network: it is one plain pass over the whole image."""
    plain = EvalConfig()
    names = ("mode", "flip", "scales", "reference")
    return [f"eval.{name}" for name in names if getattr(settings, name) != getattr(plain, name)]


def write_networks(trained: OpenRun, folder: Path, *, kind: Kind, size: Size) -> SegmentationModel:
    """Write networks, stored noise and facts into `folder`; the model they were made of, in float32 on the CPU.

    Raises:
        DiffError: a package is missing; see `OpenRun.load_model`.
    """
    if kind == "onnx":
        need("onnx", "onnxscript", "onnxruntime")
    console.say(f"loading {trained.description}")
    model = trained.load_model(device="cpu", precision="float32")
    multiple = model.extractor.backbone.multiple
    padded = (size.height + -size.height % multiple, size.width + -size.width % multiple)
    parts = named_parts(exportable_parts(model), size=padded)
    with console.progress("export", len(parts), unit="networks") as bar:
        for part in parts:
            bar.describe(f"export {part.name}")
            _write(part, folder, kind)
            bar.update()
    np.save(folder / NOISE, _stored_noise(model, padded))
    return model


def _write(part: Part, folder: Path, kind: Kind) -> None:
    file = folder / f"{part.name}.{kind}"
    match kind:
        case "onnx":
            write_onnx(part, file)
        case "pt2":
            write_program(part, file)
        case other:
            assert_never(other)


def _stored_noise(model: SegmentationModel, padded: tuple[int, int]) -> Floats:
    """D,4,h,w: the draws of one image in the order in which the model takes them (method section 1.1)."""
    backbone, extractor = model.extractor.backbone, model.extractor
    shape = (1, backbone.latent_channels, *(side // backbone.downsample for side in padded))
    noise = seeded_noise(model.config.inversion.seed, [STORED_NOISE])
    draws = [noise(0, shape) for _ in range(encoder_draws(extractor) + step_count(extractor))]
    return torch.cat(draws).numpy() if draws else np.zeros((0, *shape[1:]), dtype=np.float32)


def compare(model: SegmentationModel, exported: ExportedNetwork, *, size: Size) -> Check:
    """Run both on rendered scenes, in one batch, under the stored noise."""
    scenes = [resize_image(render(0, index, domain)[0], size) for domain, index in CHECKED]
    images = to_model_range(scenes)
    names = [STORED_NOISE] * len(scenes)
    with console.progress("check", 2, unit="passes") as bar:
        found = exported.logits(images)
        bar.update()
        wanted = model.logits(torch.from_numpy(images), identities=names).numpy()
        bar.update()
    agree = np.isfinite(found).all(axis=1) & (found.argmax(axis=1) == wanted.argmax(axis=1))
    return Check(
        images=len(scenes),
        max_logit_difference=float(np.abs(found - wanted).max()),
        logit_range=(float(wanted.min()), float(wanted.max())),
        label_agreement=float(agree.mean()),
    )


def check_networks(
    model: SegmentationModel, folder: Path, *, size: Size, agreement: float = AGREEMENT
) -> Check:
    """Load the networks in `folder` in their runtime and compare them with the model.

    Raises:
        DiffError: fewer labels agree than `agreement`; or it cannot be loaded at all.
    """
    check = compare(model, open_exported(folder, device="cpu"), size=size)
    if not check.label_agreement >= agreement:
        raise DiffError(
            f"the export does not agree with the model, so it is not kept: {check}",
            hint=f"at least {100 * agreement:.1f} % of the labels must agree; another version of the runtime may help",
        )
    return check


def network_facts(model: SegmentationModel, *, kind: Kind, size: Size) -> dict[str, Any]:
    """Fields of `NetworkFacts` that say what goes in, what comes out, and how the loop goes."""
    extractor, config = model.extractor, model.config.inversion
    schedule, backbone = extractor.schedule, extractor.backbone
    first, steps = encoder_draws(extractor), step_count(extractor)
    names = [ENCODER, *([STEP] if steps else []), DECODER]
    palette = class_palette(model.config)
    draws = ["the VAE posterior's"] if config.latent == "sample" else []
    draws += ["the noising draw of one-step mode"] if first > len(draws) else []
    return {
        "kind": kind,
        "networks": {name: f"{name}.{kind}" for name in names},
        "precision": "float32",
        "branch": "unconditional: the prompt and the negative prompt, no class prompts",
        "classes": [
            {"train_id": i, "name": name, "color": palette[i].tolist()}
            for i, name in enumerate(model.config.classes)
        ],
        "ignore_id": 255,
        "input": {
            "width": size.width,
            "height": size.height,
            "size": "fixed: resize images bilinearly to it, pad right and bottom with 0 to the multiple, "
            "crop the logits",
            "multiple": backbone.multiple,
            "batch": "dynamic",
            "largest_batch": LARGEST_BATCH,
            "layout": "B,3,H,W float32, RGB",
            "range": [-1, 1],
            "mean": PIXEL_MEAN,
            "scale": PIXEL_SCALE,
        },
        "output": "B,classes,H,W float32 logits of the padded input's size",
        "noise": {
            "file": NOISE,
            "encoder_draws": first,
            "draws": first + steps,
            "order": [*draws, *(f"step {index}" for index in range(steps))],
            "layout": "draws,channels,h,w float32, standard normal",
            "use": "every image takes these draws unless the caller gives its own",
            "drawn": f"by PyTorch from (inversion.seed {config.seed}, {STORED_NOISE!r}); diff predict --run seeds by "
            "the image's name instead, so masks there differ a little",
        },
        "schedule": {
            "evaluated_steps": steps,
            "save_steps": list(schedule.save_steps) if steps else [],
            "timesteps": list(schedule.timesteps[:steps]),
            "next_timesteps": list(schedule.next_timesteps[:steps]),
            "one_step": schedule.one_step,
            **config.model_dump(
                include={"eta", "s_tmin", "s_tmax", "guidance_scale", "prompt", "negative_prompt"}
            ),
        },
        "versions": versions(),
    }


def networks_readme(facts: dict[str, Any], *, name: str) -> str:
    """README.md of the folder: how to run it, with diffcli and without."""
    kind, size = facts["kind"], f"{facts['input']['width']}x{facts['input']['height']}"
    runtime = (
        "onnxruntime alone: PyTorch is not needed" if kind == "onnx" else "PyTorch alone (torch.export.load)"
    )
    noise, networks = facts["noise"], facts["networks"]
    given = f"image, noise[:, :{noise['encoder_draws']}]" if noise["encoder_draws"] else "image"
    loop = f"""latent = encoder({given})
for i in range({facts["schedule"]["evaluated_steps"]}):
    latent, *maps[i] = step(latent, noise[:, {noise["encoder_draws"]} + i], i)
logits = decoder(for each stride: maps[i] for i in {facts["schedule"]["save_steps"]}, joined on channels)"""
    if STEP not in networks:
        loop = f"logits = decoder({ENCODER}({given}))"
    return f"""# {name}

A semantic segmentation model of {len(facts["classes"])} classes as networks for {runtime}. Written by diffcli.

```
diff predict images/ -o masks/ --model {name}
```

Elsewhere: an RGB image, resized to {size}, as (pixel - {PIXEL_MEAN}) / {PIXEL_SCALE}, B,3,H,W float32,
padded right and bottom with 0 to multiples of {facts["input"]["multiple"]}. `noise` is `{NOISE}` (for every image
of the batch), or a standard normal draw of that shape. Then

```
{loop}
```

and the logits are cropped to {size} and resized to the image. `export.json` says the rest: classes and colours,
schedule, versions, and how the networks compared with the model when they were written.
"""
