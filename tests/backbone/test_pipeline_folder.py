"""Folders of components: every layout, and one clear error for everything that can be wrong with one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcli.backbone import loading, locate
from diffcli.backbone.loading import load_backbone
from diffcli.backbone.locate import describe_source
from diffcli.config.settings import BackboneConfig, InversionConfig
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.errors import BackboneError
from tests.fixtures.sd_layouts import (
    LAYOUTS,
    UNET,
    Original,
    cut_off,
    edit_json,
    load_source,
    same_networks,
    to_variant,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "prediction_type"), LAYOUTS.items())
def test_folder(built: Path, name: str, prediction_type: str) -> None:
    backbone = load_source(built / name)
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
    assert load_source("~/sd-1").prediction_type == "epsilon"


def test_folder_without_index_and_with_another_sampler(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    edit_json(
        folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True
    )
    assert load_source(folder).alphas_cumprod[0] == pytest.approx(1 - 0.00085)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(built: Path, dtype: torch.dtype) -> None:
    backbone = load_source(built / "sd-1", dtype=dtype)
    assert {p.dtype for p in (*backbone.unet.parameters(), *backbone.vae.parameters())} == {dtype}
    assert backbone.prompt_embeddings[""].dtype == dtype


def test_variants(folder: Path) -> None:
    plain = load_source(folder)
    to_variant(folder, "fp16", keep_plain=True)
    to_variant_only = load_source(folder, variant="fp16")
    assert same_networks(load_source(folder), plain)
    assert not same_networks(to_variant_only, plain)
    with pytest.raises(
        BackboneError, match=r"no weight variant 'bf16' here; there are: fp16, plain"
    ) as caught:
        load_source(folder, variant="bf16")
    assert "model.backbone.variant" in str(caught.value)
    for path in folder.rglob("*.safetensors"):
        if "fp16" not in path.name:
            path.unlink()
    assert same_networks(load_source(folder), to_variant_only)


def test_two_variants_without_plain_weights(folder: Path) -> None:
    to_variant(folder, "fp16", keep_plain=True)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".non_ema.safetensors"))
    with pytest.raises(BackboneError, match="no plain weights here; there are: fp16, non_ema"):
        load_source(folder)


def test_a_variant_that_only_the_unet_has(folder: Path) -> None:
    """As Stable Diffusion 1.5 has non_ema weights of its U-Net alone."""
    path = folder / UNET
    state = {name: x + 1 for name, x in load_file(path).items()}
    save_file(state, path.with_suffix(".non_ema.safetensors"), metadata={"format": "pt"})
    backbone, plain = load_source(folder, variant="non_ema"), load_source(folder)
    assert torch.equal(backbone.unet.conv_in.weight, state["conv_in.weight"])
    assert torch.equal(backbone.vae.encoder.conv_in.weight, plain.vae.encoder.conv_in.weight)


def test_a_unet_without_a_middle_block(folder: Path) -> None:
    """As BK-SDM-Small has none."""
    edit_json(folder / "unet" / "config.json", mid_block_type=None)
    path = folder / UNET
    state = {name: x for name, x in load_file(path).items() if not name.startswith("mid_block")}
    save_file(state, path, metadata={"format": "pt"})
    backbone = load_source(folder)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = backbone.prompt_embeddings["a road"][None]
    expected = backbone.unet(latents, 10, encoder_hidden_states=text).sample
    ours, _ = backbone.network(latents, 10, [("a road", text[0])])
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_schedule_that_asks_for_more_timesteps_than_there_are(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=100)
    config = BackboneConfig(source=str(folder))
    arguments = {"prompts": ("",), "device": torch.device("cpu"), "dtype": torch.float32}
    for ask in (
        lambda last: describe_source(config, last_timestep=last),
        lambda last: load_backbone(config, last_timestep=last, **arguments),
    ):
        with pytest.raises(BackboneError, match="has 100 timesteps, the inversion asks for timestep 100"):
            ask(100)
        ask(99)
    backbone = load_backbone(config, **arguments)
    with pytest.raises(BackboneError, match="asks for timestep 160"):
        DiffusionFeatureExtractor(backbone, InversionConfig(schedule="paper"))


def test_the_vae_of_another_folder(built: Path, original: Original, folder: Path, tmp_path: Path) -> None:
    """Of a whole model, or of the VAE by itself."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: x * 2 for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
    plain = original("sd-2")
    for vae in (folder, folder / "vae"):
        backbone = load_source(built / "sd-2", vae=str(vae))
        assert torch.equal(backbone.vae.encoder.conv_in.weight, 2 * plain.vae.encoder.conv_in.weight)
    with pytest.raises(BackboneError, match=r"model\.backbone\.vae"):
        load_source(folder / "vae")
    shutil.rmtree(folder / "vae")
    assert same_networks(load_source(folder, vae=str(built / "sd-2")), plain)


def test_the_text_encoder_of_another_folder(built: Path, original: Original, folder: Path) -> None:
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    plain, backbone = original("sd-2"), load_source(folder, text_encoder=str(built / "sd-2"))
    assert torch.equal(plain.prompt_embeddings["a road"], backbone.prompt_embeddings["a road"])
    with pytest.raises(BackboneError, match="attends to 32 text channels where the text encoder gives 24"):
        load_source(folder, text_encoder=str(built / "sd-1"))


def test_shards(folder: Path) -> None:
    whole = load_source(folder)
    with loading.quiet():
        whole.unet.save_pretrained(folder / "sharded", max_shard_size="300KB")
    shutil.rmtree(folder / "unet")
    (folder / "sharded").rename(folder / "unet")
    assert same_networks(load_source(folder), whole)
    min((folder / "unet").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(BackboneError, match=r"\d+ of \d+ weight files are there"):
        load_source(folder)


def test_old_names_of_the_vae_attention(folder: Path) -> None:
    whole = load_source(folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{before}")
        state[name] = tensor
    assert any("query" in name for name in state)
    save_file(state, path, metadata={"format": "pt"})
    assert same_networks(load_source(folder), whole)


def test_embedded(monkeypatch: pytest.MonkeyPatch, built: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "EMBEDDED_FOLDER", built / "sd-1")
    assert load_source("embedded").prediction_type == "epsilon"
    monkeypatch.setattr(locate, "EMBEDDED_FOLDER", tmp_path / "none")
    with pytest.raises(BackboneError, match="not part of this installation"):
        load_source("embedded")


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


def _dangling(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / UNET).symlink_to("/nowhere/blob")


def _folder_for_a_file(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / UNET).mkdir()


def _absurd_header(folder: Path) -> None:
    (folder / UNET).write_bytes((20_000_000).to_bytes(8, "little") + b"{")


def _absurd_shape(folder: Path) -> None:
    header = b'{"conv_in.weight":{"dtype":"F32","shape":[1000000000000,1000000],"data_offsets":[0,4]}}'
    (folder / UNET).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
THREE_LEVELS = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty": (_empty, "not a diffusion model", "sd2-community"),
    "no unet": (_remove("unet"), "the unet folder is missing", "download"),
    "no unet weights": (_remove(UNET), "the weights are missing", "download"),
    "no unet config": (_remove("unet/config.json"), "this file is missing", "download"),
    "no text encoder": (_remove("text_encoder"), "this file is missing", "download"),
    "no scheduler": (_remove("scheduler"), "this file is missing", "download"),
    "no tokenizer": (_remove("tokenizer"), "the tokenizer is missing", "download"),
    "cut off": (cut_off, "cut off", "download it again"),
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
    "transformer": (_transformer_pipeline, "this is Stable Diffusion 3", "sd2-community"),
    "SDXL": (_unet_config(addition_embed_type="text_time"), "this is Stable Diffusion XL", "sd2-community"),
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
    "LCM": (_unet_config(time_cond_proj_dim=256), "time_cond_proj_dim 256", "sd2-community"),
    "classes": (_unet_config(num_class_embeds=10), "num_class_embeds 10", "sd2-community"),
    "text projection": (_unet_config(encoder_hid_dim=64), "encoder_hid_dim 64", "sd2-community"),
    "learned variance": (_unet_config(out_channels=8), "out_channels 8", "sd2-community"),
    "another middle": (_unet_config(mid_block_type="UNetMidBlock2D"), "mid_block_type", "sd2-community"),
    "no norm": (_unet_config(norm_num_groups=None), "norm_num_groups null", "sd2-community"),
    "other VAE": (
        lambda folder: edit_json(folder / "vae" / "config.json", _class_name="AutoencoderTiny"),
        "VAE is of the kind AutoencoderTiny",
        "sd2-community",
    ),
    "shifted VAE": (
        lambda folder: edit_json(folder / "vae" / "config.json", shift_factor=0.1),
        "shift_factor",
        "sd2-community",
    ),
    "T5": (
        lambda folder: edit_json(folder / "text_encoder" / "config.json", model_type="t5"),
        "text encoder is of the kind t5",
        "sd2-community",
    ),
    "flow": (
        lambda folder: edit_json(
            folder / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"
        ),
        "flow or EDM model",
        "sd2-community",
    ),
    "dangling link": (_dangling, "a link to /nowhere/blob, which does not exist", "fetch the file again"),
    "folder for a file": (_folder_for_a_file, "not a regular file", "file itself"),
    "absurd header": (_absurd_header, "not a safetensors file", "download"),
    "absurd shape": (_absurd_shape, "not a safetensors file", "download"),
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
        load_source(folder)
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
        ("v1-5.ckpt", "no such file or folder"),
        ("", "not a diffusion model"),
    ],
)
def test_sources_that_are_nothing(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=message):
        load_source(source)
