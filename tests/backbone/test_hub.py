"""Models of the hub, with the real client: the cache, what is downloaded, one clear error for whatever it meets."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from diffcli.backbone import hub
from diffcli.backbone.locate import describe_source
from diffcli.config.settings import BackboneConfig
from diffcli.errors import BackboneError
from tests.fixtures.hub_server import COMMIT, serve_hub
from tests.fixtures.sd_layouts import (
    UNET,
    Original,
    cut_off,
    edit_json,
    load_source,
    put_into_cache,
    same_networks,
    to_variant,
)

Serve = Callable[[Path], list[str]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """serve(folder): the folder is the hub's repository owner/name; returns the names of the files downloaded."""
    root = tmp_path / "hub"
    with serve_hub(root) as (endpoint, asked):
        monkeypatch.undo()  # the test's own server may be connected to
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

        def put(folder: Path) -> list[str]:
            shutil.copytree(folder, root / "owner" / "name")
            return asked

        yield put


def describe(source: str, **settings: object) -> str:
    return describe_source(BackboneConfig.model_validate({"source": source, **settings}))


# ------------------------------------------------------------------------------------------------- the cache


def test_a_cached_hub_id_asks_no_network(built: Path, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "cache", "owner/name", built / "sd-2")
    assert load_source("owner/name").prediction_type == "v_prediction"
    assert describe("owner/name") == "owner/name (in the cache, commit c0ffee)"


def test_a_revision_that_is_not_in_the_cache_is_not_called_cached(built: Path, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "cache", "owner/name", built / "sd-2")
    assert "to be downloaded" in describe("owner/name", revision="v9")
    assert "in the cache" in describe("owner/name", revision="main")


def test_a_damaged_cache_is_not_called_cached(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(folder)
    put_into_cache(tmp_path / "cache", "owner/name", folder)
    assert "to be downloaded" in describe("owner/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for ask in (describe, load_source):
        with pytest.raises(BackboneError, match="cut off"):
            ask("owner/name")


def test_offline_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for ask in (describe, load_source):
        with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set") as caught:
            ask("owner/name")
        assert "embedded" in str(caught.value.hint)


@pytest.mark.parametrize(("old", "mirror"), hub.MIRRORS.items())
def test_a_withdrawn_repository_has_a_mirror(old: str, mirror: str) -> None:
    for ask in (describe, load_source):
        with pytest.raises(BackboneError, match=f"withdrawn from the hub: use {mirror}"):
            ask(old)


# ----------------------------------------------------------------------------------------------- downloading


def test_what_is_read_is_downloaded_and_nothing_else(original: Original, folder: Path, serve: Serve) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    to_variant(folder, "fp16", keep_plain=True)
    for extra in ("v2-1_768-ema-pruned.ckpt", "safety_checker/model.safetensors", "sample.png"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"x")
    asked = serve(folder)
    assert same_networks(load_source("owner/name"), original("sd-2"))
    assert set(asked) == names
    load_source("owner/name")
    assert len(asked) == len(names)
    assert describe("owner/name") == f"owner/name (in the cache, commit {COMMIT[:7]})"


def test_a_variant_is_downloaded_where_it_exists(folder: Path, serve: Serve) -> None:
    unet = folder / UNET
    state = {name: x + 1 for name, x in load_file(unet).items()}
    save_file(state, unet.with_suffix(".non_ema.safetensors"), metadata={"format": "pt"})
    asked = serve(folder)
    backbone = load_source("owner/name", variant="non_ema")
    assert torch.equal(backbone.unet.conv_in.weight, state["conv_in.weight"])
    weights = {name for name in asked if name.endswith(".safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _break_link(path: Path) -> None:
    path.resolve().unlink()


@pytest.mark.parametrize("damage", [_damage, _break_link])
@pytest.mark.parametrize("name", [UNET, "vae/config.json"])
def test_a_damaged_file_of_the_cache_is_downloaded_again(
    original: Original, folder: Path, serve: Serve, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    asked = serve(folder)
    load_source("owner/name")
    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / COMMIT
    assert (snapshot / name).is_symlink()
    damage(snapshot / name)
    asked.clear()
    assert same_networks(load_source("owner/name"), original("sd-2"))
    assert asked == [name]


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("unet", {"in_channels": 9}, "inpainting"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow"),
    ],
)
def test_another_family_is_refused_before_its_weights_are_downloaded(
    folder: Path, serve: Serve, component: str, changes: dict[str, object], message: str
) -> None:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    edit_json(folder / component / name, **changes)
    asked = serve(folder)
    with pytest.raises(BackboneError, match=message):
        load_source("owner/name")
    assert not [name for name in asked if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": {"_class_name": "ControlNetModel"}}, "a ControlNet"),
        ({"model_index.json": {"_class_name": "StableDiffusionXLPipeline"}}, "Stable Diffusion XL"),
        ({"model_index.json": {"_class_name": "StableDiffusion3Pipeline"}}, "Stable Diffusion 3"),
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "Flux"),
        ({"adapter_config.json": {}}, "a LoRA"),
        ({"pytorch_lora_weights.safetensors": {}}, "a LoRA"),
        ({"config.json": {"_class_name": "AutoencoderKL"}}, "one network by itself"),
    ],
)
def test_repositories_of_another_kind(
    tmp_path: Path, serve: Serve, files: dict[str, object], message: str
) -> None:
    repository = tmp_path / "other"
    repository.mkdir()
    for name, content in files.items():
        (repository / name).write_text(json.dumps(content))
    (repository / "model.safetensors").write_bytes(b"x")
    asked = serve(repository)
    with pytest.raises(BackboneError, match=message):
        load_source("owner/name")
    assert "model.safetensors" not in asked


def test_the_vae_of_another_repository(
    built: Path, original: Original, folder: Path, serve: Serve, tmp_path: Path
) -> None:
    vae = tmp_path / "vae"
    shutil.copytree(folder / "vae", vae)
    path = vae / "diffusion_pytorch_model.safetensors"
    save_file({name: x * 2 for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
    asked = serve(vae)
    backbone = load_source(built / "sd-2", vae="owner/name")
    plain = original("sd-2")
    assert torch.equal(backbone.vae.encoder.conv_in.weight, 2 * plain.vae.encoder.conv_in.weight)
    assert torch.equal(backbone.unet.conv_in.weight, plain.unet.conv_in.weight)
    assert set(asked) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert describe(str(built / "sd-2"), vae="owner/name").endswith(
        f"vae from owner/name (in the cache, commit {COMMIT[:7]})"
    )


def test_only_one_variant_is_chosen() -> None:
    names = [
        f"{component}/{stem}{variant}"
        for component, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model"))
        for variant in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
    ]
    choose = hub.choose_files
    components = ("unet", "text_encoder")
    assert sorted(choose(names, variant="fp16", where="", components=components)) == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert choose(names, variant=None, where="", components=components[1:]) == [
        "text_encoder/model.safetensors"
    ]
    with pytest.raises(BackboneError, match="no weight variant 'bf16' here; there are: fp16, plain"):
        choose(names, variant="bf16", where="", components=components)


# ---------------------------------------------------------------------------------------------------- errors


def test_what_the_hub_does_not_have(folder: Path, serve: Serve) -> None:
    serve(folder)
    with pytest.raises(BackboneError, match="nor a model that the hub shows you"):
        load_source("owner/other")
    with pytest.raises(BackboneError, match="the hub has no revision 'v9'") as caught:
        load_source("owner/name", revision="v9")
    assert "revision of model.backbone.source" in str(caught.value.hint)


def _hub_error(kind: type[Exception]) -> Exception:
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (_hub_error(RepositoryNotFoundError), "nor a model that the hub shows you", "model.backbone.source"),
        (_hub_error(GatedRepoError), "asks for permission", "hf auth login"),
        (_hub_error(RevisionNotFoundError), "no revision 'v9'", "revision of model.backbone.source"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set", "embedded"),
        (ConnectionError("Name or service not known"), r"cannot be reached \(Name or service", "embedded"),
        (OSError(errno.ENOSPC, "No space left on device"), "no room on the disk", "HF_HOME"),
        (RuntimeError(), r"cannot be reached \(RuntimeError\)", "embedded"),
    ],
)
def test_what_the_client_raises(error: Exception, message: str, remedy: str) -> None:
    context = hub.hub_errors("owner/name", revision="v9", setting="model.backbone.source")
    with pytest.raises(BackboneError, match=message) as caught, context:
        raise error
    assert remedy in str(caught.value.hint)
    assert caught.value.where == "owner/name"
