"""A diffusion model as a folder of components in diffusers' layout, checked before anything is loaded.

Imports no torch: `diffcli.backbone.components` loads what is described here.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcli.backbone import family
from diffcli.backbone.family import SUITABLE
from diffcli.backbone.weight_files import (
    AGAIN,
    STEMS,
    DamagedFile,
    check_pickle,
    check_readable,
    check_variant,
    choose_weights,
    read_header,
)
from diffcli.errors import BackboneError

COMPONENTS = ("unet", "vae", "text_encoder")
"""The networks; a scheduler belongs to the U-Net, a tokenizer to the text encoder."""

_ALONE = {"vae": "model.backbone.vae", "text_encoder": "model.backbone.text_encoder"}
"""Networks that a folder may hold by themselves -> the setting that takes such a folder."""


@dataclass(frozen=True)
class PipelineFolder:
    """Components in sub-folders: unet, vae, text_encoder, tokenizer, scheduler; or one network by itself."""

    folder: Path
    variant: str | None = None
    """Weight variant to prefer; None prefers the plain files."""
    allow_pickle: bool = False
    """Read .bin files where there are no others."""

    def check(
        self, components: Collection[str] = COMPONENTS, *, unet_weights: bool = True, last_timestep: int = 0
    ) -> None:
        """Everything that is needed of these components is there, whole, and of the right kind.

        Args:
            unet_weights: whether the U-Net's weights are needed; its settings always are.
            last_timestep: the largest one that the inversion asks for.

        Raises:
            BackboneError: no pipeline, another kind of pipeline, or an incomplete one (DamagedFile).
        """
        self.check_family(components, last_timestep=last_timestep)
        if "unet" in components:
            names = {name: self._names(name) for name in components if self.place(name).is_dir()}
            check_variant(names, variant=self.variant, where=str(self.folder))
        for component in components:
            if unet_weights or component != "unet":
                for path in self.weights(component)[1]:
                    check_pickle(path) if path.suffix == ".bin" else read_header(path)
        if "text_encoder" in components and not self.has_tokenizer() and "unet" in components:
            raise DamagedFile("the tokenizer is missing", where=str(self.folder / "tokenizer"), hint=AGAIN)

    def check_family(self, components: Collection[str] = COMPONENTS, *, last_timestep: int = 0) -> None:
        """The settings are those of a model that the method reads; no weights need to be there yet.

        Raises:
            BackboneError: another kind; names it.
        """
        where = str(self.folder)
        family.refuse_files([path.name for path in self.folder.iterdir()], where=where)
        alone = self._alone()
        if alone is not None:
            family.refuse_class(alone, where=where)
        if "unet" in components:
            self._check_has_unet(alone)
        settings = {component: self.config(component) for component in components}
        for component, values in settings.items():
            place = str(self.place(component))
            if component == "unet":
                family.check_unet(
                    values, text=settings.get("text_encoder"), vae=settings.get("vae"), where=place
                )
                family.check_scheduler(self.config("scheduler"), where=where, last_timestep=last_timestep)
            else:
                check = family.check_vae if component == "vae" else family.check_text_encoder
                check(values, where=place)

    def place(self, component: str) -> Path:
        """The folder of a component: a sub-folder, or this folder where it holds that network by itself."""
        folder = self.folder / component
        if component in _ALONE and not folder.exists() and (self.folder / "config.json").is_file():
            return self.folder
        return folder

    def config(self, component: str) -> dict[str, Any]:
        """A component's settings."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.place(component) / name)

    def weights(self, component: str) -> tuple[str | None, list[Path]]:
        """The variant that is read of a component, and its files."""
        folder = self.place(component)
        variant, files = choose_weights(
            self._names(component),
            stems=STEMS[component],
            variant=self.variant,
            where=str(folder),
            allow_pickle=self.allow_pickle,
        )
        return variant, [folder / name for name in files]

    def prediction_type(self) -> str | None:
        """What the U-Net predicts; epsilon where the scheduler's settings are silent, as in diffusers."""
        stated: str | None = self.config("scheduler").get("prediction_type", "epsilon")
        return stated

    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() or not self._holds_vocabulary(self.folder) else self.folder

    def has_tokenizer(self) -> bool:
        return self._holds_vocabulary(self.tokenizer())

    def _holds_vocabulary(self, folder: Path) -> bool:
        return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()

    def _names(self, component: str) -> list[str]:
        """Names of the files in a component's folder."""
        return [path.name for path in self.place(component).iterdir()]

    def _alone(self) -> str | None:
        """The class of the one model that this folder holds by itself, if it does."""
        for name in ("model_index.json", "config.json"):
            if (self.folder / name).is_file():
                stated = read_json(self.folder / name)
                return str(stated.get("_class_name") or (stated.get("architectures") or ["this model"])[0])
        return None

    def _check_has_unet(self, name: str | None) -> None:
        """A folder with a U-Net in it; otherwise say what it is, as far as its settings tell."""
        if (self.folder / "unet").is_dir():
            return
        where = str(self.folder)
        if name is None:
            message = "not a diffusion model: neither a unet folder nor a model_index.json in it"
            raise BackboneError(message, where=where, hint=SUITABLE)
        if (self.folder / "model_index.json").is_file():
            if "unet" in read_json(self.folder / "model_index.json"):
                raise DamagedFile("the unet folder is missing", where=where, hint=AGAIN)
            raise BackboneError(f"{name} has no U-Net", where=where, hint=SUITABLE)
        settings = {
            "AutoencoderKL": "model.backbone.vae",
            "CLIPTextModel": "model.backbone.text_encoder",
            "UNet2DConditionModel": "model.backbone.unet_weights (its .safetensors file)",
        }
        setting = settings.get(name)
        hint = f"{setting} takes it; {SUITABLE}" if setting else SUITABLE
        raise BackboneError(f"one network by itself ({name}), not a diffusion model", where=where, hint=hint)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedFile: missing, or not readable as one.
    """
    check_readable(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"not readable as JSON ({error})", where=str(path), hint=AGAIN) from error
    if not isinstance(value, dict):
        raise DamagedFile("not a JSON object", where=str(path), hint=AGAIN)
    return value
