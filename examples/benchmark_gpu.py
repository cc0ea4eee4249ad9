"""SD 2.1 on one GPU against the targets that diffcli sets itself: python examples/benchmark_gpu.py

Runs the measurements of `diff bench` with a full-size U-Net of random weights (nothing is downloaded). Each row shows
the time, the ratio to the published amount of work in the same process, the share of the card's matrix speed, and the
share of the time in which the GPU worked. Below the rows, each target stands beside what was measured. Exit code 0 when
every target is met, 1 when one is missed, 2 without CUDA.

`--compile` adds rows with the U-Net compiled (runtime.compile), which takes minutes more. `--try` takes the same steps
at toy size on any machine: it shows that the script works and says nothing about speed.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

GIB = 2**30
Row = dict[str, Any]


class Target(NamedTuple):
    """One goal: `value` of the best of our rows is to be at least (or at most) `limit`."""

    what: str
    value: str
    limit: float
    unit: str
    at_most: bool = False


class Part(NamedTuple):
    """One work at one size, and its targets."""

    work: str
    size: str
    batch: int
    targets: tuple[Target, ...]


PARTS = (
    Part("inference", "512x512", 1, (Target("times the published work", "speedup", 5, "x"),)),
    Part("inference", "512x512", 4, (Target("of the matrix speed", "share_of_matmul", 0.40, ""),)),
    Part(
        "inference",
        "1024x512",
        1,
        (
            Target("times the published work", "speedup", 3, "x"),
            Target("memory in GiB", "peak_gib", 10, "", at_most=True),
        ),
    ),
    Part(
        "training",
        "512x512",
        1,
        (
            Target("times the published work", "speedup", 2.5, "x"),
            Target("memory in GiB", "peak_gib", 16, "", at_most=True),
        ),
    ),
)
TOY_SIZES = {"512x512": "128x128", "1024x512": "256x128"}


def main() -> int:
    """Measure, print rows and targets, and say whether all targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="toy", action="store_true", help="toy size, any machine")
    parser.add_argument("--compile", action="store_true", help="also with the U-Net compiled")
    parser.add_argument("--repeats", type=int, default=3, help="timed batches for each row")
    arguments = parser.parse_args()
    if not arguments.toy and not torch.cuda.is_available():
        print("no CUDA device: the targets are for an H100 (--try runs toy sizes)", file=sys.stderr)
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU at toy size, which measures nothing"
    print(f"{name}, torch {torch.__version__}\n")
    print(
        f"{'work':<10} {'size':<9} {'batch':>5} {'code':<9} {'ms':>8} {'times':>6} {'matmul':>7} {'busy':>5} {'GiB':>6}"
    )
    missed = []
    for part in PARTS:
        ours = []
        for row in records(part, device, arguments.repeats, toy=arguments.toy, compiled=arguments.compile):
            print_row(row)
            ours += [row] if row["code"] in ("diffcli", "compiled") else []
        missed += [target for target in part.targets if not print_target(target, ours)]
    return 1 if missed and not arguments.toy else 0


def records(part: Part, device: str, repeats: int, *, toy: bool, compiled: bool) -> Iterator[Row]:
    """The rows of one part as `diff bench --json` gives them, each as soon as it is measured."""
    from diffcli.bench.cases import measure_all
    from diffcli.bench.plan import default_config, list_cases, record
    from diffcli.commands.bench import Request, parse_plan
    from diffcli.config.file import override

    request = Request(
        work=part.work,
        schedules="one" if toy else "paper",
        batch_sizes=str(part.batch),
        size=TOY_SIZES[part.size] if toy else part.size,
        repeats=repeats,
    )
    architecture = "tiny" if toy else "sd21"
    settings = override(default_config(architecture), [f"runtime.compile={str(compiled).lower()}"])
    plan = parse_plan(request)
    cases = list_cases(settings, plan, random_weights=architecture, place=torch.device(device))
    rows = []
    for case, found in zip(cases, measure_all(cases), strict=True):
        rows.append((case, found))
        row = record(rows[-1], rows)
        yield {**row, "peak_gib": row["peak_bytes"] / GIB}


def print_row(row: Row) -> None:
    """One line of the table."""
    busy = "-" if row["gpu_busy"] is None else f"{100 * row['gpu_busy']:.0f}%"
    print(
        f"{row['work']:<10} {row['width']}x{row['height']:<{8 - len(str(row['width']))}} {row['batch']:>5} "
        f"{row['code']:<9} {1000 * row['median_seconds']:>8.1f} {row['speedup']:>5.2f}x "
        f"{100 * row['share_of_matmul']:>6.1f}% {busy:>5} {row['peak_gib']:>6.2f}",
        flush=True,
    )


def print_target(target: Target, rows: list[Row]) -> bool:
    """The target beside the best of our rows; whether it is met."""
    values = [float(row[target.value]) for row in rows]
    best = min(values) if target.at_most else max(values)
    met = best <= target.limit if target.at_most else best >= target.limit
    sign = "<=" if target.at_most else ">="
    print(
        f"  target: {target.what} {sign} {target.limit:g}{target.unit}, measured {best:.2f}{target.unit}"
        f"{'' if met else ', MISSED'}",
        flush=True,
    )
    return met


if __name__ == "__main__":
    sys.exit(main())
