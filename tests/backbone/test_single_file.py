"""Single files under the original names: what they hold, and what they say of themselves."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcli.backbone import single_file
from diffcli.errors import BackboneError
from tests.fixtures.sd_layouts import (
    LAYOUTS,
    Original,
    load_source,
    put_into_cache,
    same_networks,
    write_single_file,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", LAYOUTS)
def test_single_file_equals_the_folder(built: Path, name: str) -> None:
    whole = load_source(built / name)
    single = load_source(built / f"{name}-file" / "model.safetensors", prediction_type=LAYOUTS[name])
    assert same_networks(whole, single)
    assert torch.equal(whole.alphas_cumprod, single.alphas_cumprod)
    for prompt, embedding in whole.prompt_embeddings.items():
        assert torch.equal(embedding, single.prompt_embeddings[prompt])


def test_single_file_in_half_precision(built: Path) -> None:
    backbone = load_source(built / "sd-1-file" / "model.safetensors", dtype=torch.bfloat16)
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
        (
            "mine",
            {"modelspec.prediction_type": "epsilon", "modelspec.architecture": "sd-v2-768-v"},
            "epsilon",
        ),
        ("2.1_768", {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("database-v2", None, None),
        ("my1768model", None, None),
        ("sd21-vpred", None, "v_prediction"),
        ("sd21_v_prediction_base", None, "v_prediction"),
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
    with pytest.raises(BackboneError, match=r"have equal tensors|both noise and v") as caught:
        source.prediction_type()
    assert "v_prediction (2.1) or epsilon (2.1-base)" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("epsilon", "epsilon"), ("as_epsilon", "epsilon"), ("v_prediction", "v_prediction")],
)
def test_the_prediction_type_can_be_set(built: Path, setting: str, expected: str) -> None:
    for source in (built / "sd-2", built / "sd-2-file" / "model.safetensors"):
        assert load_source(source, prediction_type=setting).prediction_type == expected


def _save(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_files_that_hold_something_else(tmp_path: Path, built: Path) -> None:
    path = _save(tmp_path / "lora.safetensors", {"lora_unet_down.weight": (4, 4)})
    with pytest.raises(BackboneError, match="this is a LoRA"):
        load_source(path)
    unet = "model.diffusion_model.input_blocks"
    shapes = {
        f"{unet}.0.0.weight": (32, 9, 3, 3),
        f"{unet}.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 32),
        "first_stage_model.x": (1,),
        "cond_stage_model.x": (1,),
    }
    with pytest.raises(BackboneError, match="this is an inpainting model: its U-Net takes 9 channels"):
        load_source(_save(tmp_path / "inpainting.safetensors", shapes))
    (tmp_path / "text.safetensors").write_text("not found")
    with pytest.raises(BackboneError, match="not a safetensors file"):
        load_source(tmp_path / "text.safetensors")
    whole = (built / "sd-1-file" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackboneError, match="cut off"):
        load_source(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "part", ["model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"]
)
def test_a_single_file_that_lacks_a_tensor(built: Path, tmp_path: Path, part: str) -> None:
    path = Path(shutil.copytree(built / "sd-1-file", tmp_path / "file")) / "model.safetensors"
    state = load_file(path)
    del state[part]
    save_file(state, path)
    with pytest.raises(BackboneError, match="in it is damaged or incomplete"):
        load_source(path)


def test_the_tokenizer_of_a_single_file(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(built / "sd-1-file" / "model.safetensors", path)
    with pytest.raises(BackboneError, match="holds no tokenizer") as caught:
        load_source(path)
    assert str(tmp_path / "tokenizer") in str(caught.value.hint)
    put_into_cache(tmp_path / "cache", "openai/clip-vit-large-patch14", built / "sd-2" / "tokenizer")
    expected = load_source(built / "sd-1-file" / "model.safetensors").prompt_embeddings["a road"]
    assert torch.equal(load_source(path).prompt_embeddings["a road"], expected)


@pytest.mark.parametrize(
    ("file_name", "metadata", "expected"),
    [
        ("mine", None, "epsilon"),
        ("dreamy_768_base", None, "epsilon"),
        ("mine-vpred", None, "v_prediction"),
        ("mine", {"modelspec.prediction_type": "v"}, "v_prediction"),
    ],
)
def test_what_a_first_generation_file_predicts(
    built: Path, tmp_path: Path, file_name: str, metadata: dict[str, str] | None, expected: str
) -> None:
    path = write_single_file(built / "sd-1", tmp_path / f"{file_name}.safetensors", metadata=metadata)
    assert single_file.SingleFile(path).prediction_type() == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conditioner.embedders.0.x", "this is Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x", "this is Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "this is Flux"),
        ("control_model.input_blocks.0.0.weight", "this is a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "this is a ControlNet"),
        ("lora_te_text_model_encoder_layers_0.lora_up.weight", "this is a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "this is a LoRA"),
        ("emb_params", "this is a textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "model.backbone.unet_weights takes it"),
        ("x", "no unet in it under the original names"),
    ],
)
def test_files_of_other_families(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_source(_save(tmp_path / "model.safetensors", {name: (4, 4)}))


def _without(built: Path, folder: Path, *, keep: str) -> Path:
    """The single file with the tensors of one component alone."""
    path = Path(shutil.copytree(built / "sd-1-file", folder)) / "model.safetensors"
    save_file({name: x for name, x in load_file(path).items() if name.startswith(keep)}, path)
    return path


@pytest.mark.parametrize("bare", [False, True])
def test_a_file_with_the_unet_alone(built: Path, original: Original, tmp_path: Path, bare: bool) -> None:
    path = _without(built, tmp_path / "unet", keep="model.diffusion_model.")
    if bare:
        save_file({k.removeprefix("model.diffusion_model."): x for k, x in load_file(path).items()}, path)
    with pytest.raises(BackboneError, match="no vae in it") as caught:
        load_source(path)
    assert "model.backbone.vae takes it from another model" in str(caught.value.hint)
    with pytest.raises(BackboneError, match="no text_encoder in it"):
        load_source(path, vae=str(built / "sd-1"))
    whole = original("sd-1")
    parts = load_source(path, vae=str(built / "sd-1"), text_encoder=str(built / "sd-1"))
    assert same_networks(parts, whole)
    assert torch.equal(parts.prompt_embeddings["a road"], whole.prompt_embeddings["a road"])


def test_a_file_with_the_vae_alone(built: Path, original: Original, tmp_path: Path) -> None:
    path = _without(built, tmp_path / "vae", keep="first_stage_model.")
    bare = tmp_path / "bare.safetensors"
    save_file({name.removeprefix("first_stage_model."): x for name, x in load_file(path).items()}, bare)
    theirs = built / "sd-1" / "vae" / "diffusion_pytorch_model.safetensors"
    whole = original("sd-1")
    for vae in (path, bare, theirs):
        assert same_networks(load_source(built / "sd-1", vae=str(vae)), whole)


def test_the_text_encoder_of_another_file(built: Path, original: Original, tmp_path: Path) -> None:
    path = _without(built, tmp_path / "unet", keep="model.diffusion_model.")
    file = str(built / "sd-1-file" / "model.safetensors")
    backbone = load_source(path, vae=file, text_encoder=file)
    expected = original("sd-1").prompt_embeddings["a road"]
    assert torch.equal(backbone.prompt_embeddings["a road"], expected)
