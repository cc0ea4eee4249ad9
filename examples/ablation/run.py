"""The ablation: trains and evaluates rows x seeds x budgets, each in a process of its own; resumable at any moment.

    python examples/ablation/run.py                                   # every row, seeds 0 1 2, 120 and 360 iterations
    python examples/ablation/run.py --rows deciding --budgets 120
    python examples/ablation/run.py --rows full no_ipkl --seeds 0 --set runtime.device=cuda

A row is a YAML beside this file (`scratch_*` are in scratch.py). What is finished is skipped, what was interrupted goes
on; results.json, results.md and the plots are written anew after every cell and keep the rows of earlier calls. Every
score is that of the last checkpoint, so that the unseen domains select nothing. Rows that differ in their evaluation
only share one training.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from cells import DECIDING, FIVE, HERE, ROWS, SCHEDULES, SCRATCH, Cell, cell, finished, training_seconds
from results import write_results

from diffcli.config.file import dump_config
from diffcli.errors import ConfigError, DiffError
from diffcli.files import write_text
from diffcli.runs.folder import CONFIG, RESUME
from diffcli.runtime import console


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell that is not finished, then write and print the results."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that train
    wanted = {
        (row, budget, seed): cell(row, budget, seed, output=options.output, overrides=tuple(options.set))
        for seed in options.seeds
        for budget in options.budgets
        for row in _expanded(options.rows)
    }
    jobs = list(dict.fromkeys(job for one in wanted.values() for job in one.chain()))
    pending = [job for job in jobs if not finished(job)]
    failed: list[str] = []
    for number, job in enumerate(pending, start=1):
        console.say(f"[{number}/{len(pending)}] {job.row}, {job.budget} iterations, seed {job.seed}")
        if (job.after is None or finished(job.after)) and _in_own_process(job):
            write_results(options.output, wanted)
        else:
            failed.append(job.folder.name)
    write_results(options.output, wanted, show=True)
    if failed:
        raise DiffError(f"failed: {', '.join(failed)}", hint="see above; the same command tries them again")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["all"],
        help=f"all, deciding, schedules, five, or any of {', '.join(ROWS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", type=int, default=[120, 360], help="iterations")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every row")
    return parser


def _expanded(words: Sequence[str]) -> list[str]:
    """The rows that `all`, `deciding`, `schedules`, `five` and names mean, each once, in the order given."""
    groups = {"all": ROWS, "deciding": DECIDING, "schedules": SCHEDULES, "five": FIVE}
    rows = list(dict.fromkeys(row for word in words for row in groups.get(word, (word,))))
    for row in rows:
        if row not in SCRATCH and not (HERE / f"{row}.yaml").is_file():
            raise ConfigError(f"there is no row {row}", where=str(HERE), hint=f"rows: {', '.join(ROWS)}")
    return rows


# -------------------------------------------------------------------------------------------------- running


def _in_own_process(job: Cell) -> bool:
    """Run one cell; whether it went well. Ctrl-C reaches the child too, SIGTERM is passed on: it saves and ends."""
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(job,))
    process.start()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: process.terminate())
    try:
        process.join()
    except KeyboardInterrupt:
        process.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if process.exitcode in (130, -signal.SIGTERM):
        raise KeyboardInterrupt
    return process.exitcode == 0


def _child(job: Cell) -> None:
    try:
        run_cell(job)
    except KeyboardInterrupt:
        sys.exit(130)
    except DiffError as error:
        sys.exit(_told(error))


def run_cell(job: Cell) -> None:
    """Train or evaluate one cell, going on where an earlier attempt was interrupted; leaves its report."""
    resume = (job.folder / RESUME).is_file()
    if job.folder.is_dir() and not resume:
        shutil.rmtree(job.folder)  # stopped before its first checkpoint
    if job.row in SCRATCH:
        _train_scratch(job)
    elif job.trained != job.folder:
        _evaluate(job)
    else:
        from diffcli.commands import train

        with contextlib.redirect_stdout(StringIO()), console.json_only():
            train.run(
                train.Request(
                    config=job.config, config_name=job.folder.name, resume=resume, runs=job.folder.parent
                )
            )


def _evaluate(job: Cell) -> None:
    """The weights of another row's training under this row's evaluation."""
    from diffcli.commands import evaluate

    how, runtime = job.config.eval, job.config.runtime
    changes = [f"eval.{key}={json.dumps(value)}" for key, value in how.model_dump(mode="json").items()]
    changes += [f"runtime.device={runtime.device}", f"runtime.precision={runtime.precision}"]
    write_text(job.folder / CONFIG, dump_config(job.config))
    with contextlib.redirect_stdout(StringIO()), console.json_only():
        evaluate.run(evaluate.Request(runs=[job.trained], overrides=changes, output=job.folder))


def _train_scratch(job: Cell) -> None:
    import scratch

    from diffcli.core.model import build_model

    parameters = scratch.trained_parameters(build_model(job.config.model).decoder)
    seconds = None if job.after is None else training_seconds(job.after.folder)
    scratch.run(job.config, folder=job.folder, parameters=parameters, seconds=seconds)


def _told(error: DiffError) -> int:
    """Print a fault in a line or two; the exit code."""
    console.fail(f"{error.where}: {error.message}" if error.where else error.message, hint=error.hint)
    return error.exit_code


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.say("stopped; the same command goes on from here")
        sys.exit(130)
    except DiffError as error:
        sys.exit(_told(error))
