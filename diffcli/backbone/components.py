"""The networks of a diffusion model, loaded from where `diffcli.backbone.locate` found them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffcli.backbone.family import SUITABLE
from diffcli.backbone.locate import Source, Sources
from diffcli.backbone.open_clip import convert_text_encoder
from diffcli.backbone.pickles import read_pickle, read_tensors
from diffcli.backbone.pipeline_folder import PipelineFolder
from diffcli.backbone.single_file import PREFIXES, SingleFile
from diffcli.backbone.weight_files import count_parameters
from diffcli.errors import BackboneError
from diffcli.runtime.memory import is_out_of_memory


def load_scheduler(source: Source) -> DDIMScheduler:
    """The noise schedule, whichever sampler the pipeline was saved with."""
    place = source.folder if isinstance(source, PipelineFolder) else source.path
    with misfits("the scheduler", where=str(place)):
        return DDIMScheduler.from_config(source.config("scheduler"))


def load_tokenizer(sources: Sources) -> CLIPTokenizer:
    """The text encoder's tokenizer; that of a single file is CLIP's vocabulary with the layout's padding token."""
    folder, extra = sources.tokenizer, {}
    if isinstance(sources.text_encoder, SingleFile):
        facts = sources.text_encoder.layout() / "tokenizer" / "tokenizer_config.json"
        extra = {"pad_token": json.loads(facts.read_text(encoding="utf-8"))["pad_token"]}
    with misfits("the tokenizer", where=str(folder)):
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **extra)


def load_text_encoder(source: Source) -> CLIPTextModel:
    """In the precision that it is stored in."""
    if isinstance(source, PipelineFolder):
        return _from_folder(CLIPTextModel, source, "text_encoder")
    config = CLIPTextConfig.from_pretrained(
        str(source.layout()), subfolder="text_encoder", local_files_only=True
    )
    with misfits("the text encoder in it", where=str(source.path)):
        state = convert_text_encoder(_tensors(source, "text_encoder"), layers=config.num_hidden_layers)
        model, info = CLIPTextModel.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True
        )
        _complete(source, info["missing_keys"])
    return model


def load_vae(source: Source, dtype: torch.dtype) -> AutoencoderKL:
    """On the CPU."""
    if isinstance(source, PipelineFolder):
        return _from_folder(AutoencoderKL, source, "vae", torch_dtype=dtype)
    return _from_file(AutoencoderKL, source, "vae", dtype)


def load_unet(source: Source, dtype: torch.dtype) -> UNet2DConditionModel:
    """On the CPU."""
    if isinstance(source, PipelineFolder):
        return _from_folder(UNet2DConditionModel, source, "unet", torch_dtype=dtype)
    return _from_file(UNet2DConditionModel, source, "unet", dtype)


def parameters(source: Source, component: str) -> int:
    """Numbers in a component's weights."""
    if isinstance(source, SingleFile):
        prefix = source.prefix(component)
        assert prefix is not None
        return sum(
            prod(tensor["shape"])
            for name, tensor in source.header.items()
            if name != "__metadata__" and name.startswith(prefix)
        )
    _, files = source.weights(component)
    pickled = [path for path in files if path.suffix == ".bin"]
    count = sum(x.numel() for path in pickled for x in read_tensors(path).values())
    return count + count_parameters(path for path in files if path not in pickled)


def _from_folder(cls: Any, source: PipelineFolder, component: str, **arguments: Any) -> Any:
    """Through the library's own loader, which knows the names that tensors had in its earlier versions."""
    folder = source.place(component)
    variant, files = source.weights(component)
    pickled = files[0].suffix == ".bin"
    if pickled:
        for path in files:
            read_pickle(path)  # refuses what the library's own reading would refuse less clearly
    with misfits(f"the {component}", where=str(folder)):
        model, info = cls.from_pretrained(
            str(folder),
            local_files_only=True,
            variant=variant,
            use_safetensors=not pickled,
            output_loading_info=True,
            **arguments,
        )
    if info["missing_keys"]:
        raise BackboneError(
            f"the weights lack {len(info['missing_keys'])} tensors, for example {min(info['missing_keys'])}",
            where=str(folder),
            hint="weights and config.json do not belong together: download the model again",
        )
    return model


def _from_file(cls: Any, source: SingleFile, component: str, dtype: torch.dtype) -> Any:
    """Through diffusers' own conversion, with the layout's settings, so that nothing is looked up on the hub."""
    with misfits(f"the {component} in it", where=str(source.path)):
        model = cls.from_single_file(
            _tensors(source, component),
            config=str(source.layout()),
            subfolder=component,
            torch_dtype=dtype,
            local_files_only=True,
        )
        _complete(source, [name for name, tensor in model.state_dict().items() if tensor.is_meta])
    return model


def _tensors(source: SingleFile, component: str) -> dict[str, Tensor]:
    """The component's tensors, with the prefix that they have in a whole model."""
    prefix = source.prefix(component)
    assert prefix is not None
    if source.pickled:
        found = {name: x for name, x in read_tensors(source.path).items() if name.startswith(prefix)}
    else:
        with safe_open(source.path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            found = {name: file.get_tensor(name) for name in names}
    if prefix or any(name.startswith("encoder.down_blocks.") for name in found):  # whole, or diffusers' names
        return found
    return {PREFIXES[component] + name: tensor for name, tensor in found.items()}


def _complete(source: SingleFile, missing: Any) -> None:
    if missing:
        message = f"it lacks {len(missing)} tensors, for example {min(missing)}"
        raise BackboneError(message, where=str(source.path), hint=SUITABLE)


@contextmanager
def misfits(what: str, *, where: str) -> Iterator[None]:
    """Turn what the libraries raise over contents that do not fit together into a BackboneError."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # each library has its own kinds
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(
            f"{what} is damaged or incomplete ({reason})",
            where=where,
            hint="download the model again, in one piece",
        ) from error
