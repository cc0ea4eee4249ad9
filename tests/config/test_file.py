"""Settings from YAML: every error names file, line and key, and what was probably meant."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli.config.domain import domain_config
from diffcli.config.file import commented_yaml, dump_config, load_config, override
from diffcli.config.settings import CustomSchedule, DataConfig, MixingFusion, RunConfig
from diffcli.config.size import Size
from diffcli.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def load(file: Path, text: str, *overrides: str) -> RunConfig:
    file.write_text(text)
    return load_config(file, overrides=overrides)


def fault(file: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{file.parent}/", "")


# ------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("text", ["", "# nothing but words\n", "---\n", "{}"])
def test_an_empty_file_means_the_defaults(file: Path, text: str) -> None:
    assert load(file, text) == RunConfig()


def test_numbers_words_and_short_forms(file: Path) -> None:
    config = load(
        file,
        """
        train: {learning_rate: 6e-5, iterations: 4e4, clip_norm: null}
        augmentation: {crop: 640x320}
        data: {train: gta5, eval: [acdc/night, {domain: folder, root: here}]}
        model:
          decoder: {fusion: mixing}
          inversion:
            schedule: {timesteps: [5, 1], save_steps: [0]}
            class_prompts: {1: no, 12: "on a bicycle"}
        """,
    )
    assert config.train.learning_rate == 6e-5
    assert config.train.iterations == 40_000
    assert config.train.clip_norm is None
    assert config.augmentation.crop == Size(640, 320)
    assert [entry.domain for entry in config.data.eval] == ["acdc/night", "folder"]
    assert config.data.eval[1].root == Path("here")  # relative to the working directory, not to the file
    assert config.model.decoder.fusion == MixingFusion()
    assert config.model.inversion.schedule == CustomSchedule(timesteps=(5, 1), save_steps=(0,))
    assert config.model.inversion.class_prompts == {1: "no", 12: "on a bicycle"}


def test_a_byte_order_mark_and_windows_lines_are_fine(file: Path) -> None:
    file.write_bytes("\ufefftrain:\r\n  iterations: 7\r\n".encode())
    assert load_config(file).train.iterations == 7


def test_anchors_and_merge_keys(file: Path) -> None:
    text = "data:\n  eval:\n    - &here {domain: folder, root: a, limit: 3}\n    - {<<: *here, root: b}\n"
    first, second = load(file, text).data.eval
    assert (first.limit, second.limit) == (3, 3)
    assert (str(first.root), str(second.root)) == ("a", "b")


def test_extends_merges_deeply(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("train: {iterations: 5, seed: 1}\ndata: {eval: [bdd100k]}\n")
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\ntrain: {seed: 2}\n")
    top = tmp_path / "sub" / "top.yaml"
    top.write_text(
        "extends: ../middle.yaml\ndata: {eval: [cityscapes]}\nmodel: {inversion: {class_prompts: {}}}\n"
    )
    config = load_config(top)
    assert (config.train.iterations, config.train.seed) == (5, 2)
    assert [entry.domain for entry in config.data.eval] == ["cityscapes"]
    assert config.model.inversion.class_prompts == {}


def test_an_error_in_an_extended_file_names_that_file(tmp_path: Path, file: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: x\ntrain:\n  iterations: -1\n")
    assert fault(file, "extends: base.yaml\ntrain: {seed: 3}\n").startswith("base.yaml:3: train.iterations")


def test_extending_in_a_circle_is_refused(tmp_path: Path, file: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: run.yaml\n")
    assert "circle" in fault(file, "extends: base.yaml\n")


def test_extending_nothing_is_refused(file: Path) -> None:
    assert fault(file, "name: x\nextends: nope.yaml\n").startswith(
        "run.yaml:2: extends nope.yaml, which does not"
    )
    assert "one YAML file" in fault(file, "extends: [a, b]\n")


# ----------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  iteration: 3\n",
            "run.yaml:2: there is no setting train.iteration\n  -> did you mean train.iterations?",
        ),
        ("eta: 0.5\n", "run.yaml:1: there is no setting eta\n  -> did you mean model.inversion.eta?"),
        (
            "train:\n  seed: 1\n  iterations: -3\n",
            "run.yaml:3: train.iterations: input should be greater than 0, not -3",
        ),
        (
            "model:\n  inversion:\n    schedule: papre\n",
            "run.yaml:3: model.inversion.schedule: must be paper or visit9 or five or one or clean or nested "
            "settings, not 'papre'\n  -> did you mean paper?",
        ),
        (
            "model: {inversion: {schedule: {timesteps: [1, 2], save_steps: [5]}}}",
            "run.yaml:1: model.inversion.schedule: save_steps must be distinct indexes below the 2 timesteps",
        ),
        (
            "model:\n  decoder:\n    fusion: mixin\n",
            "run.yaml:3: model.decoder.fusion: must be direct or vanilla or mixing, not 'mixin'\n"
            "  -> did you mean mixing?",
        ),
        (
            "data:\n  train: gta5\n  eval:\n    - {domain: cityscapes, seed: 3}\n",
            "run.yaml:4: data.eval.0.seed does not apply to cityscapes\n  -> it is a setting of domain: miniworld",
        ),
        (
            "data:\n  train:\n    domain: acdc/fog\n    label_ids: {0: 1}\n",
            "run.yaml:4: data.train.label_ids does not apply to acdc/fog\n  -> it is a setting of domain: folder",
        ),
        (
            "data:\n  train:\n    domain: miniworld/fog\n    root: here\n",
            "run.yaml:4: data.train.root does not apply to miniworld/fog\n"
            "  -> it is a setting of a known domain and domain: folder",
        ),
        (
            "data:\n  train:\n    domain: folder\n    counts: 3\n",
            "run.yaml:4: there is no setting data.train.counts\n  -> did you mean data.train.count?",
        ),
        (
            "data: {train: {domain: folder, label_ids: {70000: 1}}}\n",
            "run.yaml:1: data.train.label_ids.70000: input should be less than 65536",
        ),
        ("data: {train: {domain: 3}}\n", "run.yaml:1: data.train.domain: must be text, not 3"),
        ("data: {train: 3}\n", "run.yaml:1: data.train: takes nested settings, not 3"),
        ("data:\n  train:\n    limit: 3\n", "run.yaml:2: data.train.domain is missing"),
        (
            "runtime: {data_workers: many}",
            "run.yaml:1: runtime.data_workers: must be auto or a number, not 'many'",
        ),
        (
            "runtime: {cuda_graphs: many}",
            "run.yaml:1: runtime.cuda_graphs: must be auto or true or false, not 'many'",
        ),
        (
            "runtime: {data_workers: [1]}",
            "run.yaml:1: runtime.data_workers: must be auto or a number, not [1]",
        ),
        (
            "runtime: {data_workers: -1}",
            "run.yaml:1: runtime.data_workers: input should be greater than or equal to 0, not -1",
        ),
        ("name: 3\n", 'run.yaml:1: name: must be text, not 3\n  -> put it in quotes: "..."'),
        (
            "model: {decoder: {channels: [64]}}\n",
            "run.yaml:1: model.decoder.channels: needs more values than [64]",
        ),
        ("data:\n  eval:\n    - acdc\n    - {limit: 3}\n", "run.yaml:4: data.eval.1.domain is missing"),
        ("augmentation: 3\n", "run.yaml:1: augmentation: takes nested settings, not 3"),
        ("augmentation: {crop: 5x}\n", "run.yaml:1: augmentation.crop: a size is written WIDTHxHEIGHT"),
        (
            "model: {inversion: {class_prompts: {1: a, 99: b}}}\n",
            "run.yaml:1: model: inversion.class_prompts names",
        ),
        (
            "train:\n  seed: 1\nname: x\ntrain:\n  seed: 2\n",
            "run.yaml:4: train is set twice, first in line 1",
        ),
        ("name: x\ntrain:\n", "run.yaml:2: train is empty"),
        ("- 1\n", "run.yaml: this holds no settings"),
        ("just words\n", "run.yaml: this holds no settings"),
        ("train:\n\tseed: 1\n", "run.yaml:2: this is not valid YAML"),
        ("train: [1\n", "run.yaml:2: this is not valid YAML"),
        ("name: a\n---\nname: b\n", "run.yaml:2: this is not valid YAML"),
        (
            "train: !!python/object:os.system x\n",
            "run.yaml:1: the tag !!python/object:os.system is not supported\n  -> write the value without a tag",
        ),
        ("train: &x [*x]\n", "run.yaml:1: an alias refers to the value that it is part of"),
        ("{a: 1}: 2\n", "run.yaml:1: a key must be one word or number"),
        ("name: \x00\n", "run.yaml: this is not valid YAML"),
    ],
)
def test_a_fault_is_named_with_file_line_and_key(file: Path, text: str, message: str) -> None:
    assert fault(file, text).startswith(message)


def test_several_faults_are_listed_one_a_setting(file: Path) -> None:
    text = "train:\n  iterations: -3\n  devise: cpu\nmodel:\n  decoder: {fusion: mixin}\n"
    first, *bullets = fault(file, text).splitlines()
    assert first == "run.yaml: 3 settings do not fit"
    assert sorted(bullets) == [
        "  - run.yaml:2: train.iterations: input should be greater than 0, not -3",
        "  - run.yaml:3: there is no setting train.devise (did you mean runtime.device?)",
        "  - run.yaml:5: model.decoder.fusion: must be direct or vanilla or mixing, not 'mixin' (did you mean mixing?)",
    ]


def test_what_is_no_settings_file(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    (tmp_path / "weights.yaml").write_bytes(b"0" * 1_000_001)
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "config.yaml").touch()
    for name, words in {
        "picture.yaml": "not UTF-8",
        "weights.yaml": "too large",
        "a run": "config.yaml",
        "picturr.yaml": "did you mean",
        "nowhere/x.yaml": "does not exist either",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path / name)


# -------------------------------------------------------------------------------------------- overriding


def test_overrides_reach_any_key(file: Path) -> None:
    config = load(
        file,
        "data:\n  train: gta5\n  eval: [acdc/night, bdd100k]\n",
        "model.inversion.eta=0.5",
        "train.learning_rate=1e-3",
        "data.train.limit=3",
        "data.eval.1.limit=4",
        "data.eval.0=cityscapes",
        "model.inversion.class_prompts.1=a kerb",
        "train.rare_class_sampling.min_pixels=7",
        "model.decoder.channels=[64, 64, 128, 128]",
        "train.clip_norm=null",
        "name=a-b",
    )
    assert config.model.inversion.eta == 0.5
    assert config.train.learning_rate == 1e-3
    assert (config.data.train.domain, config.data.train.limit) == ("gta5", 3)
    assert [(e.domain, e.limit) for e in config.data.eval] == [("cityscapes", None), ("bdd100k", 4)]
    assert config.model.inversion.class_prompts[1] == "a kerb"
    assert len(config.model.inversion.class_prompts) == 5  # the other defaults stay
    assert config.train.rare_class_sampling is not None
    assert config.train.rare_class_sampling.min_pixels == 7
    assert config.train.clip_norm is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data: {train: {domain: miniworld, count: 1000001}}",
            "input should be less than or equal to 1000000",
        ),
        ("runtime: {data_workers: 300}", "input should be less than or equal to 256"),
        ("runtime: {max_unet_batch: 5000}", "input should be less than or equal to 4096"),
        ("train: {batch_size: 5000}", "input should be less than or equal to 4096"),
        ("train: {seed: 9223372036854775808}", "input should be less than"),
        ("eval: {scales: [0.01]}", "input should be greater than or equal to 0.1"),
        ("model: {decoder: {channels: [32, 64, 64, 64000]}}", "input should be less than or equal to 16384"),
        ("eval: {stride: 600x600}", "stride 600x600 is larger than window 512x512"),
        ("eval: {stride: 1x1}", "stride 1x1 is less than 1/16 of window 512x512"),
    ],
)
def test_numbers_are_limited(file: Path, text: str, message: str) -> None:
    assert message in fault(file, text)


@pytest.mark.parametrize("before", ["miniworld/fog", "folder", "cityscapes"])
@pytest.mark.parametrize("now", ["miniworld", "folder", "bdd100k"])
def test_a_written_file_takes_another_domain(file: Path, before: str, now: str) -> None:
    """A full file names every field, as null where it was not set: none of these is in the way."""
    file.write_text(dump_config(RunConfig(data=DataConfig(train=domain_config(before)))))
    assert load_config(file, overrides=[f"data.train={now}"]).data.train == domain_config(now)


def test_null_is_the_default_of_every_domain(file: Path) -> None:
    text = "data: {train: {domain: miniworld, root: null, label_ids: null, count: null}}"
    assert load(file, text).data.train == domain_config("miniworld")
    assert "there is no setting data.train.rot" in fault(file, "data: {train: {domain: gta5, rot: null}}")


def test_the_last_override_wins_and_none_turns_off(file: Path) -> None:
    config = load(file, "", "train.seed=1", "train.seed=2", "train.rare_class_sampling=null")
    assert config.train.seed == 2
    assert config.train.rare_class_sampling is None


def test_overriding_settings_that_were_read_before() -> None:
    config = RunConfig()
    assert override(config, ()) is config
    assert override(config, ["model.inversion.eta=0"]).model.inversion.eta == 0
    assert override(config, ["name=x"]).model == config.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eta=0.5", "did you mean model.inversion.eta?"),
        ("model.inversion.etaa=1", "did you mean model.inversion.eta?"),
        ("data.evals=[acdc]", "did you mean data.eval?"),
        ("train.iterations", "an override is written key=value"),
        ("=3", "an override is written key=value"),
        (
            "train.iterations=many",
            "--set train.iterations=many: train.iterations: input should be a valid integer",
        ),
        ("data.eval.3.limit=1", "data.eval has 0 items; item 3 does not exist"),
        ("name={a", "the value is not valid YAML"),
        ("..=1", "there is no setting"),
    ],
)
def test_a_wrong_override_is_explained(file: Path, text: str, message: str) -> None:
    assert message in fault(file, "data: {eval: []}\n", text)


# ------------------------------------------------------------------------------------------ what is written


def test_settings_survive_being_written(file: Path) -> None:
    config = load(
        file,
        "name: 'yes'\ndata: {train: {domain: folder, label_ids: {-1: 255, 7: 0}, resize: 64x32}, eval: [acdc]}\n"
        "model: {decoder: {fusion: vanilla}, inversion: {schedule: {timesteps: [1], save_steps: [0]}, prompt: 'no'}}\n",
    )
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert "6.0e-05" in file.read_text()


TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40)


@settings(max_examples=50, deadline=None)
@given(text=TEXT, number=st.floats(1e-12, 1e12))
def test_any_text_and_number_survives(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float
) -> None:
    config = RunConfig.model_validate(
        {"model": {"inversion": {"prompt": text}}, "train": {"learning_rate": number}}
    )
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def test_the_commented_file_holds_every_setting_and_loads_back_to_the_defaults(file: Path) -> None:
    text = commented_yaml()
    assert load(file, text) == RunConfig()
    assert max(map(len, text.splitlines())) <= 100
    assert _keys(yaml.safe_load(text)) >= _keys(RunConfig().model_dump(mode="json"))


def test_every_setting_says_what_it_means() -> None:
    lines = [line.strip() for line in commented_yaml().splitlines()]
    named = [
        (before, line)
        for before, line in zip(["#", *lines], lines, strict=False)
        if re.match(r"[a-z_]+:", line)
    ]
    assert [line for before, line in named if not before.startswith("#") and line != "kind: direct"] == []


def _keys(values: object, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return set()
    return {f"{prefix}{key}" for key in values} | {
        name for key, value in values.items() for name in _keys(value, f"{prefix}{key}.")
    }
