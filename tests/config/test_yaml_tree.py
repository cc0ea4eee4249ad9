"""YAML as plain values: 1.2 scalars, lines of keys, and text that was written to do harm."""

import os
import time
from pathlib import Path

import pytest

from diffcli.config.file import load_config, override
from diffcli.config.settings import RunConfig
from diffcli.config.yaml_tree import MAX_FILES, parse_value, read_tree
from diffcli.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def fault(file: Path, text: str) -> str:
    """What `load_config` says about a text; within seconds, on a busy machine too."""
    file.write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert time.monotonic() - start < 20
    assert len(str(caught.value)) < 5000
    return str(caught.value).replace(f"{file.parent}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-1_000", -1000),
        ("0o17", 15),
        ("0x1F", 31),
        ("6e-5", 6e-5),
        (".5", 0.5),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("<<", "<<"),
        ("!!str 5", "5"),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text, "here") == value
    assert type(parse_value(text, "here")) is type(value)


def test_the_first_of_several_merged_mappings_counts_most(file: Path) -> None:
    file.write_text("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\n")
    tree = read_tree(file)
    assert tree.values["c"] == {"x": 3, "y": 1, "z": 2}
    lines = {key: tree.places["c", key].rpartition(":")[2] for key in "xyz"}
    assert lines == {"x": "5", "y": "1", "z": "2"}


# ----------------------------------------------------------------------------------- written to do harm


def bomb(first: str, repeat: str) -> str:
    """Twelve lines, each ten aliases of the line before."""
    lines = [f"a0: &a0 {first}"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} " + repeat.replace("*", ", ".join([f"*a{i - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(("first", "repeat"), [("[x, x]", "[*]"), ("{k: 1}", "{<<: [*]}")])
def test_aliases_are_limited(file: Path, first: str, repeat: str) -> None:
    assert fault(file, bomb(first, repeat)).startswith("run.yaml: more than 100,000 values")


def test_aliases_of_an_override_are_limited() -> None:
    text = "{" + bomb("[x, x]", "[*]").replace("\n", ", ") + "}"
    with pytest.raises(ConfigError, match="more than 100,000 values") as caught:
        override(RunConfig(), [f"data.eval={text}"])
    assert len(str(caught.value)) < 300


def test_an_alias_may_still_repeat_a_domain(file: Path) -> None:
    file.write_text("data: {eval: [&a {domain: gta5, limit: 3}, *a]}")
    first, second = load_config(file).data.eval
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("value", ["{}", "1", "{a: {b: 1}}"])
def test_many_unknown_keys_are_counted(file: Path, value: str) -> None:
    lines = fault(file, "".join(f"k{i}: {value}\n" for i in range(10_000))).splitlines()
    assert lines[0] == "run.yaml: 10,000 settings do not fit"
    assert lines[1].startswith("  - run.yaml:1: there is no setting k0 ")
    assert lines[-1] == "  - and 9,990 more"
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: !foo {seed: 1}", "run.yaml:1: the tag !foo is not supported"),
        ("train: !!set {seed}", "run.yaml:1: the tag !!set is not supported"),
        ("name: !!binary aGk=", "run.yaml:1: the tag !!binary is not supported"),
        ("train: !!python/tuple [1]", "run.yaml:1: the tag !!python/tuple is not supported"),
        ("runtime: {compile: !!bool maybe}", "run.yaml: this is not valid YAML"),
        ("train: {seed: !!int x}", "run.yaml: this is not valid YAML"),
        ("!foo a: 1", "run.yaml:1: this is not valid YAML"),
        ("a: {<<: 3}", "run.yaml:1: << takes another mapping"),
        ("a: &a {<<: *a}", "run.yaml:1: an alias refers to the value that it is part of"),
        ("[" * 9000, "run.yaml: this is not valid YAML"),
        ("{a: " * 5_000, "run.yaml: this is not valid YAML"),
        ("train: {seed: " + "1" * 5_000 + "}", "run.yaml: this is not valid YAML"),
    ],
)
def test_tags_and_depth(file: Path, text: str, message: str) -> None:
    assert fault(file, text).startswith(message)


@pytest.mark.parametrize("raw", ["[" * 900, "!!bool maybe", "!!int x", "{a"])
def test_an_override_that_is_not_yaml(raw: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        override(RunConfig(), [f"name={raw}"])


def test_a_chain_of_files_is_limited(tmp_path: Path) -> None:
    for i in range(MAX_FILES + 1):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
    (tmp_path / f"{MAX_FILES + 1}.yaml").write_text("name: x\n")
    assert load_config(tmp_path / "2.yaml").name == "x"
    with pytest.raises(ConfigError, match="more than 20 files extend each other"):
        load_config(tmp_path / "0.yaml")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="too large"):
        load_config(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {learning_rate: .inf}", "train.learning_rate: input should be a finite number, not inf"),
        ("train: {clip_norm: .inf}", "train.clip_norm: input should be a finite number, not inf"),
        ("train: {iterations: .inf}", "train.iterations: input should be a finite number, not inf"),
        ("augmentation: {flip: .nan}", "augmentation.flip: input should be a finite number, not nan"),
        ("model: {inversion: {eta: .nan}}", "model.inversion.eta: input should be a finite number, not nan"),
        (
            "model: {inversion: {guidance_scale: -.inf}}",
            "model.inversion.guidance_scale: input should be a finite number, not -inf",
        ),
        ("eval: {scales: [1, .nan]}", "eval.scales.1: input should be a finite number, not nan"),
    ],
)
def test_infinity_and_nan_are_refused_where_they_are_written(file: Path, text: str, message: str) -> None:
    assert fault(file, text) == f"run.yaml:1: {message}"
