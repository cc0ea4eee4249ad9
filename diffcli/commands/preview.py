"""`diff data preview`: the samples that a training would draw first, drawn. Loads no network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffcli.backbone.locate import network_settings
from diffcli.config.settings import RunConfig
from diffcli.core.inversion import prompt_groups
from diffcli.data.dataset import open_domain
from diffcli.drawing.fed import Fed, Prompted, fed_picture
from diffcli.errors import BackboneError
from diffcli.files import check_output, write_atomically
from diffcli.runtime import console
from diffcli.runtime.words import counted
from diffcli.training.samples import check_samples, drawn, training_set

SD_STRIDE = 8
"""Pixels of a latent cell of Stable Diffusion."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff data preview` is asked for."""

    config: RunConfig
    count: int = 12
    """Draws to show, from the first one on."""
    output: Path = Path("preview.png")


def run(request: Request) -> None:
    """Draw the first samples of a training: the same files, crops, colours and masks, by the same seed.

    Raises:
        DiffError: the data is missing or wrong, or the picture cannot be written.
    """
    check_output(request.output, suffixes=(".png",))
    config = request.config
    shown = list(first_draws(config, count=request.count))
    picture = fed_picture(shown, model=config.model, branches=config.train.loss.ipkl)
    with write_atomically(request.output) as temporary:
        picture.save(temporary)
    console.print_record(
        {"picture": request.output, "draws": [_record(one, config.model.classes) for one in shown]}
    )
    rare = sum(one.rare_class is not None for one in shown)
    told = sum(bool(one.prompted) for one in shown)
    console.say(
        f"{counted(len(shown), 'draw')}: {rare} for a rare class, {told} with prompts of the conditional branch"
    )
    console.say(f"drew {request.output}")


def first_draws(config: RunConfig, *, count: int) -> Iterator[Fed]:
    """The first samples that one process of a training of these settings is fed, in order."""
    source = open_domain(config.data.train, purpose="train", classes=config.model.classes)
    samples = training_set(config, source, check_samples(config, source, ()).statistics)
    stride = _stride(config)
    done = 0
    for batch in drawn(config, samples, draws=range(count)):
        for fault in batch.faults:
            console.warn(f"{fault.where}: {fault.message}; another sample is drawn in its place")
        for image, label, file, rare_class in zip(
            batch.images.numpy(), batch.labels.numpy(), batch.files, batch.rare_classes, strict=True
        ):
            prompted = list(_prompted(config, label, stride)) if config.train.loss.ipkl else []
            yield Fed(done, file, image, label, rare_class, prompted)
            done += 1


def _stride(config: RunConfig) -> int:
    """Pixels of a latent cell."""
    try:
        _, vae = network_settings(config.model.backbone)
        return int(2 ** (len(vae["block_out_channels"]) - 1))
    except BackboneError as error:  # the data can be looked at before the model is there
        console.warn(f"{error.message}; masks are drawn in cells of {SD_STRIDE} pixels")
        return SD_STRIDE


def _prompted(config: RunConfig, label: np.ndarray[Any, Any], stride: int) -> Iterator[Prompted]:
    """Where the prompt of each class in a label acts, as the conditional branch has it (method section 1.3)."""
    inversion = config.model.inversion
    groups = prompt_groups(
        torch.from_numpy(label),
        prompt=inversion.prompt,
        class_prompts=inversion.class_prompts,
        latent_size=(-(-label.shape[0] // stride), -(-label.shape[1] // stride)),
    )
    present = sorted(set(np.unique(label).tolist()) & inversion.class_prompts.keys())
    for train_id, prompt, mask in zip(present, groups.prompts[1:], groups.masks[1:], strict=True):
        yield Prompted(train_id, prompt, mask.numpy().astype(np.uint8))


def _record(one: Fed, classes: tuple[str, ...]) -> dict[str, Any]:
    ids, pixels = np.unique(one.label, return_counts=True)
    return {
        "draw": one.draw,
        "file": one.file,
        "rare_class": None if one.rare_class is None else classes[one.rare_class],
        "shares": {
            classes[i]: n / one.label.size
            for i, n in zip(ids.tolist(), pixels.tolist(), strict=True)
            if i < len(classes)
        },
        "prompts": {classes[told.train_id]: told.prompt for told in one.prompted},
    }
