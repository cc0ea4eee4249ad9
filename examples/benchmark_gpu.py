"""SD 2.1 on one GPU against the targets that diffcli sets itself: python examples/benchmark_gpu.py

Makes the measurements of `diff bench` with a full-size U-Net of random weights (nothing is downloaded) and prints each
beside its target; under ten minutes on an H100. Exit code 0 when every target is met, 1 when one is missed, 2 without
CUDA. `--compile` measures all of it with the U-Net compiled (runtime.compile), which takes minutes more. `--try` runs
the same steps at toy size on any machine: it shows that the script works and says nothing about speed.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch

GIB = 2**30


def main() -> int:
    """Measure, print the table, and say whether all targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="toy", action="store_true", help="toy size, any machine")
    parser.add_argument("--compile", action="store_true", help="with the U-Net compiled")
    parser.add_argument("--repeats", type=int, default=3, help="timed batches a row")
    arguments = parser.parse_args()
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
    for what, target, measured, reached in results(
        device, arguments.repeats, toy=arguments.toy, compiled=arguments.compile
    ):
        met &= reached
        print(f"{what:<52}{target:>10}{measured:>12}{'' if reached else '  missed'}", flush=True)
    return 0 if met or arguments.toy else 1


def results(device: str, repeats: int, *, toy: bool, compiled: bool) -> Iterator[tuple[str, str, str, bool]]:
    """(what, target, measured, reached) of every target."""
    square, wide = ("128x128", "256x128") if toy else ("512x512", "1024x512")

    def measured(work: str, size: str, batch_sizes: str = "1") -> list[dict[str, Any]]:
        return records(device, repeats, work, size, batch_sizes=batch_sizes, toy=toy, compiled=compiled)

    inference = measured("inference", square, "1,4")
    yield at_least(f"inference {square}, batch 1, throughput", inference[0]["speedup"], 4.0)
    share = 100 * inference[1]["share_of_matmul"]
    yield at_least(f"inference {square}, batch 4, of matmul speed", share, 50.0, unit="%")
    (large,) = measured("inference", wide)
    yield at_least(f"inference {wide}, batch 1, throughput", large["speedup"], 4.0)
    yield at_most(f"inference {wide}, memory", large["peak_bytes"] / GIB, 10.0)
    (training,) = measured("training", square)
    yield at_least(f"training step {square}, two prompted classes", training["speedup"], 3.0)
    yield at_most(f"training {square}, memory", training["peak_bytes"] / GIB, 16.0)


def records(
    device: str, repeats: int, work: str, size: str, *, batch_sizes: str, toy: bool, compiled: bool
) -> list[dict[str, Any]]:
    """What `diff bench --json` says of diffcli's own rows; those of the baseline are measured beside them."""
    from diffcli.bench.cases import measure_all
    from diffcli.bench.plan import default_config, list_cases, record
    from diffcli.commands import bench
    from diffcli.config.file import override

    architecture = "tiny" if toy else "sd21"
    request = bench.Request(
        work=work,
        schedules="one" if toy else "paper",
        batch_sizes=batch_sizes,
        size=size,
        repeats=repeats,
    )
    plan = bench.parse_plan(request)
    settings = override(default_config(architecture), [f"runtime.compile={str(compiled).lower()}"])
    wanted = "compiled" if compiled else "diffcli"
    cases = list_cases(settings, plan, random_weights=architecture, place=torch.device(device))
    cases = [case for case in cases if case.code in ("baseline", wanted)]
    rows = list(zip(cases, measure_all(cases), strict=True))
    return [record(row, rows) for row in rows if row[0].code == wanted]


def at_least(what: str, value: float, target: float, *, unit: str = "x") -> tuple[str, str, str, bool]:
    """A result that must not be smaller."""
    return what, f">= {target:g}{unit}", f"{value:.2f}{unit}", value >= target


def at_most(what: str, value: float, target: float) -> tuple[str, str, str, bool]:
    """A result that must not be larger."""
    return what, f"<= {target:g} GiB", f"{value:.2f} GiB", value <= target


if __name__ == "__main__":
    sys.exit(main())
