"""SD 2.1 on one GPU against the targets that diffcli sets itself: python examples/benchmark_gpu.py

Runs `diff bench` with a full-size U-Net of random weights (nothing is downloaded) and prints what was measured beside
its target; under ten minutes on an H100. Exit code 0 when every target is met, 1 when one is missed, 2 without CUDA.
`--try` runs the same steps at toy size on any machine: it shows that the script works and nothing about speed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

GIB = 2**30
Rows = list[dict[str, Any]]


def main() -> int:
    """Measure, print the table, and say whether all targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="toy", action="store_true", help="toy size, any machine")
    parser.add_argument("--repeats", type=int, default=3, help="timed batches a row")
    arguments = parser.parse_args()
    import torch

    if not arguments.toy and not torch.cuda.is_available():
        print(
            "no CUDA device: these targets are for an H100 or alike (--try runs toy sizes)", file=sys.stderr
        )
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy size: no measure of anything"
    print(f"{name}, torch {torch.__version__}\n", flush=True)
    print(f"{'what':<52}{'target':>10}{'measured':>12}", flush=True)
    met = True
    for what, target, measured, reached in results(device, arguments.repeats, toy=arguments.toy):
        met &= reached
        print(f"{what:<52}{target:>10}{measured:>12}{'' if reached else '  missed'}", flush=True)
    return 0 if met or arguments.toy else 1


def results(device: str, repeats: int, *, toy: bool) -> Iterator[tuple[str, str, str, bool]]:
    """(what, target, measured, reached) of every target."""
    square, wide = ("128x128", "256x128") if toy else ("512x512", "1024x512")
    inference: dict[str, Rows] = {}
    for size in (square, wide):
        inference[size] = bench(device, repeats, "inference", size, batch=1, toy=toy)
        yield at_least(f"inference {size}, batch 1, throughput", ours(inference[size])["speedup"], 4.0)
    four = ours(bench(device, repeats, "inference", square, batch=4, toy=toy))
    share = 100 * four["share_of_matmul"]
    yield at_least(f"inference {square}, batch 4, % of matmul speed", share, 50.0, unit="%")
    training = ours(bench(device, repeats, "training", square, batch=1, toy=toy))
    yield at_least(f"training step {square}, two prompted classes", training["speedup"], 3.0)
    yield at_most(f"training {square}, memory", training["peak_bytes"] / GIB, 16.0)
    yield at_most(f"inference {wide}, memory", ours(inference[wide])["peak_bytes"] / GIB, 10.0)


def bench(device: str, repeats: int, work: str, size: str, *, batch: int, toy: bool) -> Rows:
    """Rows of one call of `diff bench`."""
    command = [sys.executable, "-m", "diffcli", "bench", "--json", "--device", device, "--work", work]
    command += ["--random-weights", "tiny" if toy else "sd21", "--schedules", "one" if toy else "paper"]
    command += ["--size", size, "--batch-sizes", str(batch), "--repeats", str(repeats)]
    rows: Rows = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["rows"]
    return rows


def ours(rows: Rows) -> dict[str, Any]:
    """The row of diffcli; the other one is the baseline."""
    return next(row for row in rows if row["code"] == "diffcli")


def at_least(what: str, value: float, target: float, *, unit: str = "x") -> tuple[str, str, str, bool]:
    """A result that must not be smaller."""
    return what, f">= {target:g}{unit}", f"{value:.2f}{unit}", value >= target


def at_most(what: str, value: float, target: float) -> tuple[str, str, str, bool]:
    """A result that must not be larger."""
    return what, f"<= {target:g} GiB", f"{value:.2f} GiB", value <= target


if __name__ == "__main__":
    sys.exit(main())
