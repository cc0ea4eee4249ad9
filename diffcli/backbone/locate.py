"""The one resolver of `model.backbone`: where each part of the frozen model comes from, for every command.

Imports no torch, so that `diff check` answers at once: what is here is checked by settings and file headers alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcli.backbone import family, hub
from diffcli.backbone.family import SUITABLE
from diffcli.backbone.pipeline_folder import COMPONENTS, PipelineFolder, read_json
from diffcli.backbone.single_file import LAYOUTS, SingleFile
from diffcli.backbone.weight_files import PICKLES, DamagedFile, check_readable, read_header
from diffcli.config.settings import EMBEDDED, BackboneConfig
from diffcli.errors import BackboneError

EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "miniworld-sd"

Source = PipelineFolder | SingleFile


@dataclass(frozen=True)
class Request:
    """What one setting names, and which components are read of it."""

    setting: str
    source: str
    components: tuple[str, ...]
    revision: str | None = None


@dataclass(frozen=True)
class Sources:
    """Where each component of the diffusion model is read from."""

    unet: Source
    """Of the scheduler, too."""
    vae: Source
    text_encoder: Source

    def of(self, component: str) -> Source:
        """The source of unet, vae or text_encoder."""
        source: Source = getattr(self, component)
        return source

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer: the text encoder's, else that of the main source."""
        source = self.text_encoder
        if isinstance(source, PipelineFolder) and not source.has_tokenizer():
            source = self.unet
        return source.tokenizer()

    def check(self, *, where: str) -> None:
        """Parts of different sources fit together.

        Raises:
            BackboneError: the U-Net attends to another width than the text encoder gives.
        """
        family.check_unet(
            self.unet.config("unet"),
            text=self.text_encoder.config("text_encoder"),
            vae=self.vae.config("vae"),
            where=where,
        )


def find_sources(config: BackboneConfig, *, last_timestep: int = 0) -> Sources:
    """Every part on this disk; what the hub has to give is downloaded.

    A local source and a hub id that is whole in the cache are read without touching the network.

    Args:
        last_timestep: the largest one that the inversion asks for.

    Raises:
        BackboneError: no such folder or file, not usable, or the hub cannot give it.
    """
    found: dict[str, Source] = {}
    for request in _requests(config):
        source = find_local(request, config, last_timestep=last_timestep)
        if source is None:
            source = hub.fetch(
                request.source,
                revision=request.revision,
                variant=config.variant,
                allow_pickle=config.allow_pickle,
                components=request.components,
                unet_weights=config.needs_source_unet,
                setting=request.setting,
            )
            source.check(
                request.components, unet_weights=config.needs_source_unet, last_timestep=last_timestep
            )
        found |= dict.fromkeys(request.components, source)
    sources = Sources(**found)
    sources.check(where=config.source)
    return sources


def describe_source(config: BackboneConfig, *, last_timestep: int = 0) -> str:
    """Where the diffusion model would come from, in words; nothing is downloaded.

    Raises:
        BackboneError: what is here cannot be used, as `find_sources` would find it.
    """
    words: list[str] = []
    found: dict[str, Source | None] = {}
    for request in _requests(config):
        source = find_local(request, config, last_timestep=last_timestep)
        found |= dict.fromkeys(request.components, source)
        what = "" if request.setting == "model.backbone.source" else f"{request.components[0]} from "
        match source:
            case None:
                words.append(f"{what}{request.source} (to be downloaded on first use)")
            case PipelineFolder(folder) if request.source == EMBEDDED:
                words.append(f"{what}embedded")
            case PipelineFolder(folder) if not Path(request.source).expanduser().exists():
                words.append(f"{what}{request.source} (in the cache, commit {folder.name[:7]})")
            case PipelineFolder(path) | SingleFile(path):
                words.append(f"{what}{path.resolve()}")
    here = {component: source for component, source in found.items() if source is not None}
    if len(here) == len(found):
        Sources(**here).check(where=config.source)
    if config.unet_weights is not None:
        path = check_unet_file(config.unet_weights, allow_pickle=config.allow_pickle)
        words.append(f"the U-Net's weights from {path.resolve()}")
    return ", ".join(words)


def weight_files(config: BackboneConfig) -> dict[str, Path]:
    """Component and name -> path, of every weight file that is read; nothing is downloaded.

    Raises:
        BackboneError: what is here cannot be used, or something is not here.
    """
    files: dict[str, Path] = {}
    for request in _requests(config):
        source = find_local(request, config)
        if source is None:
            raise BackboneError(
                "not on this disk", where=request.source, hint="it is downloaded on first use"
            )
        for component in request.components:
            if component == "unet" and not config.needs_source_unet:
                continue
            paths = source.weights(component)[1] if isinstance(source, PipelineFolder) else [source.path]
            files |= {f"{component}/{path.name}": path for path in paths}
    if config.unet_weights is not None:
        path = check_unet_file(config.unet_weights, allow_pickle=config.allow_pickle)
        files[f"unet/{path.name}"] = path
    return files


def find_on_disk(source: str, *, revision: str | None = None) -> Path | None:
    """The folder or file of a source that is here whole, the hub's cache included; None where it is not."""
    config = BackboneConfig(source=source, revision=revision)
    try:
        (found,) = {find_local(request, config) for request in _requests(config)}
    except BackboneError:
        return None
    match found:
        case None:
            return None
        case PipelineFolder(path) | SingleFile(path):
            return path


def network_settings(config: BackboneConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of U-Net and VAE; of what is not on this disk, those of Stable Diffusion 2.

    Raises:
        BackboneError: what is here cannot be used.
    """

    def of(component: str) -> dict[str, Any]:
        [request] = (one for one in _requests(config) if component in one.components)
        source = find_local(request, config)
        return (
            read_json(LAYOUTS / "sd-2" / component / "config.json")
            if source is None
            else source.config(component)
        )

    return of("unet"), of("vae")


def cached_commit(config: BackboneConfig) -> str | None:
    """The commit of a hub id, as far as the local cache knows it."""
    if config.source == EMBEDDED or Path(config.source).expanduser().exists():
        return None
    folder = hub.cached_folder(config.source, revision=config.revision)
    return folder.name if folder is not None else None


def check_unet_file(path: Path, *, allow_pickle: bool = False) -> Path:
    """The file that `backbone.unet_weights` means, `~` expanded.

    Raises:
        BackboneError: there is no such file, it is a pickle and may not be read, or it is damaged.
    """
    path = path.expanduser()
    if not path.is_file():
        raise BackboneError(
            "no such file" if not path.is_dir() else "this is a folder",
            where=str(path),
            hint="model.backbone.unet_weights is a .safetensors file with the U-Net's state dict",
        )
    if path.suffix in PICKLES:
        _refuse_pickle(path, allow_pickle=allow_pickle)
    else:
        read_header(path)
    return path


def _requests(config: BackboneConfig) -> Sequence[Request]:
    """Which setting names the source of which components."""
    others = [
        Request(f"model.backbone.{component}", source, (component,))
        for component, source in (("vae", config.vae), ("text_encoder", config.text_encoder))
        if source is not None
    ]
    taken = {component for request in others for component in request.components}
    main = tuple(component for component in COMPONENTS if component not in taken)
    return [Request("model.backbone.source", config.source, main, config.revision), *others]


def find_local(request: Request, config: BackboneConfig, *, last_timestep: int = 0) -> Source | None:
    """What a setting names, checked, if it is on this disk; None for a hub id that has to be downloaded.

    Raises:
        BackboneError: no such folder or file, or not usable; or a hub id that cannot be downloaded.
    """
    source = _open(request, config)
    if source is None:
        return None
    try:
        source.check(request.components, unet_weights=config.needs_source_unet, last_timestep=last_timestep)
    except DamagedFile as error:
        here = request.source == EMBEDDED or Path(request.source).expanduser().exists()
        if here or hub.is_offline():
            raise
        if request.source in hub.MIRRORS:
            raise _withdrawn(request) from error
        return None
    return source


def _open(request: Request, config: BackboneConfig) -> Source | None:
    """The folder or file that is named, not yet checked; None for a hub id that is not in the cache."""
    if request.source == EMBEDDED:
        if not (EMBEDDED_FOLDER / "model_index.json").is_file():
            raise BackboneError(
                "the embedded model is not part of this installation",
                where=EMBEDDED,
                hint="install diffcli again",
            )
        return PipelineFolder(EMBEDDED_FOLDER)
    path = Path(request.source).expanduser()
    if path.is_dir():
        return PipelineFolder(path, config.variant, config.allow_pickle)
    if path.exists() or path.is_symlink():
        check_readable(path)
        if path.suffix in PICKLES:
            _refuse_pickle(path, allow_pickle=config.allow_pickle)
        return SingleFile(path)
    if path.suffix in (".safetensors", *PICKLES) or not is_hub_id(request.source):
        hint = (
            SUITABLE if "unet" in request.components else f"{request.setting} is a hub id, a folder or a file"
        )
        raise BackboneError("no such file or folder, and not a hub id", where=request.source, hint=hint)
    folder = hub.cached_folder(request.source, revision=request.revision)
    if folder is not None:
        return PipelineFolder(folder, config.variant, config.allow_pickle)
    if request.source in hub.MIRRORS:
        raise _withdrawn(request)
    if hub.is_offline():
        raise BackboneError(
            "neither a folder or file here nor in the cache"
            + (f" at revision {request.revision!r}" if request.revision else "")
            + ", and HF_HUB_OFFLINE is set",
            where=request.source,
            hint=f"unset it to download the model, or set {request.setting} to its folder or .safetensors file; "
            "model.backbone.source: embedded needs no download",
        )
    return None


def is_hub_id(text: str) -> bool:
    """Whether a source can be a hub id: owner/name, under the hub's rules for names."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text)) and not ("--" in text or ".." in text)


def _withdrawn(request: Request) -> BackboneError:
    mirror = hub.MIRRORS[request.source]
    return BackboneError(
        f"not complete in the cache, and it was withdrawn from the hub: use {mirror}",
        where=request.source,
        hint=f"{request.setting}: {mirror}",
    )


def _refuse_pickle(path: Path, *, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise BackboneError(
            "a pickled file, which may hold code as well as weights",
            where=str(path),
            hint="use its .safetensors version; or model.backbone.allow_pickle: true, which reads its tensors and "
            "runs none of that code",
        )
