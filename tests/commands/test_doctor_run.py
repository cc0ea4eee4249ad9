"""`diff doctor --run`: what a run records of where its numbers come from, and what differs here."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from diffcli.backbone import locate
from diffcli.commands import doctor
from diffcli.config.file import dump_config
from diffcli.config.settings import BackboneConfig, RunConfig
from diffcli.errors import CheckpointError
from diffcli.runs import provenance
from diffcli.runs.folder import CONFIG, VERSIONS, versions
from diffcli.runs.provenance import PROVENANCE, write_provenance
from diffcli.runtime import console
from tests.fixtures.training import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as training begins it, here and now."""
    config = tiny_config()
    (tmp_path / CONFIG).write_text(dump_config(config))
    (tmp_path / VERSIONS).write_text(json.dumps(versions()))
    write_provenance(tmp_path, config, processes=1)
    return tmp_path


def differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[Any]]:
    """What differs -> in the run, here."""
    capsys.readouterr()
    with console.json_only():
        doctor.run(doctor.Request(folder))
    rows = json.loads(capsys.readouterr().out)["differs"]
    return {row["what"]: [row["run"], row["here"]] for row in rows}


def test_nothing_differs_where_it_was_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert differs(folder, capsys) == {}
    doctor.run(doctor.Request(folder))
    assert "nothing differs" in capsys.readouterr().err


def test_what_differs_is_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = json.loads((folder / PROVENANCE).read_text())
    name = next(iter(recorded["weights"]))
    right = recorded["weights"][name]
    recorded["weights"][name] = "0" * 64
    recorded["machine"]["threads"] = 99
    recorded["git"] = {"commit": "a" * 40, "changed": True}
    recorded["seeds"]["train.seed"] = 5
    (folder / PROVENANCE).write_text(json.dumps(recorded))
    (folder / VERSIONS).write_text(json.dumps({**versions(), "torch": "1.0"}))
    found = differs(folder, capsys)
    assert found["torch"] == ["1.0", versions()["torch"]]
    assert found["threads"][0] == "99"
    assert found["train.seed"] == ["5", "0"]
    assert found[name] == ["0" * 64, right]
    assert found["git"][0] == "aaaaaaaaaaaa with changes"
    assert len(found) == 5
    doctor.run(doctor.Request(folder))
    table = capsys.readouterr().out
    assert "000000000000" in table
    assert "0" * 13 not in table


def test_settings_that_are_no_longer_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / CONFIG).write_text((folder / CONFIG).read_text() + "\nretired_setting: 1\n")
    [(what, (_, here))] = differs(folder, capsys).items()
    assert what == "settings"
    assert "retired_setting" in here


def test_a_run_of_an_older_version(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / PROVENANCE).unlink()
    assert differs(folder, capsys) == {}
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="no run folder"):
        doctor.run(doctor.Request(folder))


def test_a_damaged_record_is_one_line(folder: Path) -> None:
    (folder / PROVENANCE).write_text('{"schema_version": 7}')
    with pytest.raises(CheckpointError, match="damaged, or of a newer version"):
        doctor.run(doctor.Request(folder))


def test_weights_that_are_gone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.model_validate({"model": {"backbone": {"source": "owner/name-of-nothing"}}})
    (folder / CONFIG).write_text(dump_config(config))
    _, here = differs(folder, capsys)["weights"]
    assert "owner/name-of-nothing" in here


def test_the_hash_is_that_of_the_file_and_is_kept_for_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = locate.weight_files(BackboneConfig(source="embedded"))
    assert {name.split("/")[0] for name in files} == {"unet", "vae", "text_encoder"}
    expected = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path))
    assert provenance.weight_hashes(BackboneConfig(source="embedded")) == expected
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(provenance, "_KEPT_FROM", 0)
    assert provenance.weight_hashes(BackboneConfig(source="embedded")) == expected
    kept = sorted((tmp_path / "hashes").iterdir())
    assert {path.read_text() for path in kept} == set(expected.values())
    kept[0].write_text("no hash")
    assert provenance.weight_hashes(BackboneConfig(source="embedded")) == expected


def test_the_state_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert provenance.git_state(tmp_path) is None
    git("init", "-q")
    assert provenance.git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "a").touch()
    git("add", "a")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "runs").touch()  # untracked: results are no change of the code
    assert provenance.git_state(tmp_path) == provenance.GitState(commit=commit, changed=False)
    hook = tmp_path / ".git" / "watcher"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook))
    (tmp_path / "a").write_text("changed")
    assert provenance.git_state(tmp_path) == provenance.GitState(commit=commit, changed=True)
    assert not (tmp_path / "was-run").exists(), "a checkout's configuration runs nothing"
    monkeypatch.setenv("PATH", os.devnull)
    assert provenance.git_state(tmp_path) is None
