"""Two real processes over gloo, as a launcher starts them: the numbers of one, every file once, none left waiting."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from diffcli.commands import evaluate, train
from diffcli.config.file import dump_config
from diffcli.config.settings import RunConfig
from diffcli.core.model import build_model
from diffcli.errors import DataError
from diffcli.evaluation.domains import DomainChoice
from diffcli.runs.checkpoint import read_checkpoint
from diffcli.runs.folder import LAST, METRICS, RESUME
from diffcli.runtime import console
from diffcli.training.batchnorm import SynchronisedBatchNorm2d
from diffcli.training.samples import open_domains, training_set
from tests.fixtures import processes
from tests.fixtures.models import TINY_MODEL
from tests.fixtures.training import metrics

ROOT = Path(__file__).parents[2]

Launch = Callable[..., "subprocess.Popen[str]"]
Start = Callable[..., processes.Ranks]

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node=2", "-m", "--", "diffcli"),
)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Start `diff ...` under a launcher that is a program of its own."""

    def start(*arguments: object, launcher: Sequence[object], **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*map(str, launcher), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., processes.Ranks]:
    """Start `diff ...` as two forked ranks: what torchrun does, without the seconds that importing takes."""
    return partial(processes.two_ranks, cwd=tmp_path)


def end(process: "subprocess.Popen[str]", *, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a run that hangs fails the test."""
    try:
        out, words = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, out, words


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight labelled pictures; the later ones have ever fewer labelled pixels."""
    rng = np.random.default_rng(0)
    for i in range(8):
        image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        label = np.repeat(rng.integers(0, 4, (8, 8), dtype=np.uint8), 8, axis=0).repeat(8, axis=1)
        label[: 7 * i] = 255
        for folder, pixels in (("images", image), ("labels", label)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two machines; what stands in for SLURM's commands starts both on this one."""
    commands = {
        "scontrol": "echo localhost",
        "srun": 'while [[ $1 == --* ]]; do shift; done; "$@" & "$@"; code=$?; wait $! && exit $code',
    }
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = str(free.getsockname()[1])  # the script takes its port from the job's number
    return {"PATH": path, "SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}


def training(pictures: Path, **settings: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "model": {**TINY_MODEL, "decoder": {**TINY_MODEL["decoder"], "dropout": 0}},
            "data": {"train": {"domain": "folder", "root": str(pictures)}},
            "augmentation": {"crop": "64x64"},
            "train": {
                "iterations": 3,
                "batch_size": 1,
                "learning_rate": 3e-6,
                "head_multiplier": 1,
                "warmup_iterations": 0,
                "log_interval": 1,
                "rare_class_sampling": None,
                "loss": {"average": "labelled"},
                **settings,
            },
            "runtime": {"device": "cpu", "data_workers": 0},
        }
    )


def test_training_equals_one_process_with_the_doubled_batch(
    tmp_path: Path, pictures: Path, ranks: Start
) -> None:
    """Gradients, losses and BatchNorm over all images, also where one process has fewer labelled pixels."""
    (tmp_path / "tiny.yaml").write_text(dump_config(training(pictures)))
    running = ranks("train", "tiny.yaml")
    AcceleratorState._reset_state(reset_partial_state=True)
    alone = training(pictures, batch_size=2)
    with console.json_only():
        train.run(train.Request(config=alone, config_name="tiny", resume=False, runs=tmp_path / "alone"))
    code, _, words = running.communicate()
    assert code == 0, words[-3000:]
    assert words.count("train 3/3") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    both, one = metrics(tmp_path / "runs/tiny"), metrics(tmp_path / "alone/tiny")
    assert len(both) == len(one) == 3
    for ours, theirs in zip(both, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (read_checkpoint(tmp_path / name / "tiny" / LAST).state for name in ("runs", "alone"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    start = build_model(
        alone.model, seed=alone.train.seed
    ).decoder  # that little is nothing if they hardly moved
    expected = moved(theirs, start)
    assert (moved(ours, start) - expected).norm() < 0.15 * expected.norm()


@torch.no_grad()
def moved(state: dict[str, torch.Tensor], start: torch.nn.Module) -> torch.Tensor:
    """How training has moved all weights; AdamW takes whole steps even where a gradient is nothing but rounding."""
    return torch.cat([(state[name] - before).flatten() for name, before in start.named_parameters()])


def test_eval_gives_the_numbers_of_one_process(
    tmp_path: Path, tiny_run: Path, pictures: Path, ranks: Start
) -> None:
    """The same report but for the clock, the same picture; a damaged file is told once, by rank 0."""
    (pictures / "images/5.png").write_bytes(b"not a picture")
    shared = ["--run", tiny_run, "--domain", "folder", "--root", pictures, "--json"]
    running = ranks("eval", *shared, "-o", "both", "--set", "eval.batch_size=2")
    with pytest.raises(DataError, match="1 of 8 images left out of its scores") as error:
        evaluate.run(
            evaluate.Request(
                runs=[tiny_run],
                domains=DomainChoice(names="folder", root=pictures),
                output=tmp_path / "alone",
                overrides=["eval.batch_size=2"],
            )
        )
    code, out, words = running.communicate()
    assert code == 1
    assert words.count(error.value.message.splitlines()[-1]) == 1
    assert words.count("evaluate data 8/8") == 1
    told = json.loads((tmp_path / "both/report.json").read_text())
    assert json.loads(out) == told
    alone = json.loads((tmp_path / "alone/report.json").read_text())
    for report in (told, alone):
        del report["time"], report["domains"][0]["seconds_per_image"]
    assert told == alone
    for name in ("picture.png", "report.csv"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_predict_writes_every_file_once(
    tmp_path: Path, tiny_run: Path, pictures: Path, launch: Launch, slurm: dict[str, str]
) -> None:
    """On two machines of one process each, as the SLURM script starts them."""
    (pictures / "images/1.png").write_bytes(b"not a picture")
    command = ["predict", pictures / "images", "--run", tiny_run, "-o", "masks", "--json"]
    code, out, words = end(launch(*command, launcher=[ROOT / "examples/launch/slurm.sh"], **slurm))
    assert code == 1, words[-3000:]
    assert words.count("no mask for 1 of 8 images") == 1
    assert words.count("7 images with ") == 1
    written = [Path(entry["mask"]).name for entry in json.loads(out)["images"]]
    assert sorted([*written, "index.html", "predictions.jsonl"]) == sorted(
        path.name for path in (tmp_path / "masks").iterdir()
    )
    told = [json.loads(line) for line in (tmp_path / "masks/predictions.jsonl").read_text().splitlines()]
    assert sorted(Path(line["input"]).name for line in told) == [f"{i}.png" for i in range(8)]
    assert written == [f"{i}.png" for i in (0, 2, 3, 4, 5, 6, 7)]


def test_an_error_of_one_rank_ends_all_and_is_told_once(tmp_path: Path, pictures: Path, ranks: Start) -> None:
    """A damaged picture that rank 1 meets first: rank 0 saves what was reached, and both end."""
    config = training(pictures, iterations=20)
    config = config.model_copy(update={"data": config.data.model_copy(update={"on_error": "stop"})})
    source, _ = open_domains(config)
    samples = training_set(config, source, None)
    damaged = pictures / "images" / f"{samples[3]['id']}.png"
    damage_inside(damaged)
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    code, _, words = ranks("train", "tiny.yaml").communicate()
    assert code != 0
    assert words.count(f"error: {damaged}: the file is damaged") == 1
    assert words.count("\nerror: ") == 1  # libpng prints a line of its own
    assert words.count("iterations up to 1 are saved: --resume continues") == 1
    assert (tmp_path / "runs/tiny" / LAST).is_file()


def test_a_bad_sample_of_one_rank_is_told_once_and_counted(
    tmp_path: Path, pictures: Path, ranks: Start
) -> None:
    """A damaged picture that rank 1 alone meets: rank 0 says so, and the report counts it."""
    config = training(pictures)
    source, _ = open_domains(config)
    damage_inside(pictures / "images" / f"{training_set(config, source, None)[3]['id']}.png")
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    code, _, words = ranks("train", "tiny.yaml").communicate()
    assert code == 0, words[-3000:]
    assert words.count("other samples are drawn in its place") == 1
    assert words.count("1 sample of 8 could not be used; others were drawn in its place, 1 time") == 1
    report = json.loads((tmp_path / "runs/tiny/report.json").read_text())
    assert report["training"]["skipped_samples"] == 1


def damage_inside(picture: Path) -> None:
    """Header and end stay sound, so that the damage is met while training."""
    pixels = bytearray(picture.read_bytes())
    pixels[1000:2000] = bytes(1000)
    picture.write_bytes(pixels)


def test_a_rank_that_is_killed_ends_the_run(tmp_path: Path, pictures: Path, ranks: Start) -> None:
    """Rank 0 does not wait for one that is gone, and says so."""
    (tmp_path / "tiny.yaml").write_text(dump_config(training(pictures, iterations=100_000)))
    running = ranks("train", "tiny.yaml")
    wait_for(tmp_path / "runs/tiny" / METRICS, running)
    running.ranks[1].kill()
    code, _, words = running.communicate()
    assert code != 0
    assert words.count("error: another process of this run died without a message") == 1
    assert words.count("error: ") == 1


def test_ctrl_c_stops_all_and_saves(tmp_path: Path, pictures: Path, launch: Launch) -> None:
    """The launcher passes the signal on; the processes agree after which iteration they stop."""
    (tmp_path / "tiny.yaml").write_text(dump_config(training(pictures, iterations=100_000)))
    running = launch("train", "tiny.yaml", launcher=TORCHRUN)
    wait_for(tmp_path / "runs/tiny" / METRICS, running)
    running.send_signal(signal.SIGINT)
    code, _, words = end(running)
    assert code != 0
    assert words.count("SIGINT: finishing this iteration and saving") == 1
    assert words.count("stopped at iteration") == 1
    assert words.count("error: stopped") == 1
    assert (tmp_path / "runs/tiny" / RESUME).is_file()


def wait_for(file: Path, running: "subprocess.Popen[str] | processes.Ranks") -> None:
    while not file.is_file():
        assert running.poll() is None, running.communicate()[-1][-3000:]
        time.sleep(0.1)


def test_usage_is_told_once(ranks: Start) -> None:
    code, out, words = ranks("doctor").communicate()
    assert code != 0
    assert out == ""
    assert words.count("error: diff doctor is one process, not 2") == 1


def test_batchnorm_of_one_process_is_the_ordinary_one(tmp_path: Path) -> None:
    """The synchronised layer with nobody to synchronise with: outputs, gradients, running statistics, names."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        plain = torch.nn.BatchNorm2d(3)
        torch.nn.init.normal_(plain.weight)
        own = SynchronisedBatchNorm2d.of(torch.nn.BatchNorm2d(3))
        own.load_state_dict(plain.state_dict())
        x = torch.randn(2, 3, 5, 7) * 3 + 100
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for layer, one in zip((plain, own), inputs, strict=True):
            layer(one).pow(3).mean().backward()
        assert own.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own.weight.grad, plain.weight.grad)
        torch.testing.assert_close(own.running_var, plain.running_var)
        torch.testing.assert_close(own.eval()(x), plain.eval()(x))
        assert own(x.bfloat16()).dtype == torch.bfloat16
    finally:
        torch.distributed.destroy_process_group()
