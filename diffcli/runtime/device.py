"""Which device to run on, and in which precision: what `auto` means, said once."""

import os
from typing import Literal

import torch

from diffcli.errors import ConfigError
from diffcli.runtime.words import counted

Precision = Literal["float32", "bf16", "fp16"]


def resolve_device(name: str) -> torch.device:
    """The device that `name` means: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps.

    Raises:
        ConfigError: no such device, or none on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _absent(name, "is no device that PyTorch knows") from error
    match device.type:
        case "cpu":
            return device
        case "mps" if torch.backends.mps.is_available():
            return device
        case "cuda" if 0 <= (device.index or 0) < torch.cuda.device_count():
            return device
        case "cuda" if torch.cuda.is_available():
            raise _absent(
                name,
                f"is not there: PyTorch sees {counted(torch.cuda.device_count(), 'GPU')}, from cuda:0 on",
            )
        case "cuda" | "mps":
            raise _absent(name, "is not there: PyTorch sees none (see `diff doctor`)")
        case _:
            raise _absent(name, "is not supported")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The precision that `name` means on `device`; auto: bf16 on a GPU that has it, else fp16, float32 on a CPU.

    Raises:
        ConfigError: no such precision, or the device lacks it.
    """
    match name:
        case "auto":
            if device.type == "cpu":
                return "float32"
            return "bf16" if _has_bf16(device) else "fp16"
        case "bf16" if not _has_bf16(device):
            raise ConfigError(f"precision bf16: {device} lacks it", hint="choose auto, fp16 or float32")
        case "float32" | "bf16" | "fp16":
            return name
        case _:
            raise ConfigError(f"precision {name!r} is not known", hint="choose auto, float32, bf16 or fp16")


def resolve_backbone_precision(name: str, *, precision: Precision, device: torch.device) -> Precision:
    """The precision of the frozen half, where the trained half runs in `precision`.

    auto: the same, but fp16 instead of bf16 on a GPU; its mantissa is three bits longer. The caller checks that nothing
    overflows in it (`DiffusionFeatureExtractor.is_finite`).

    Raises:
        ConfigError: no such precision, or the device lacks it.
    """
    if name == "auto":
        return "fp16" if precision == "bf16" and device.type == "cuda" else precision
    return resolve_precision(name, device)


def resolve_data_workers(count: int | Literal["auto"]) -> int:
    """Processes that load images; auto: one for each CPU core that this process may use, at most 4."""
    if count != "auto":
        return count
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def _has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; emulation does not count."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    return device.type == "cpu"


def _absent(name: str, why: str) -> ConfigError:
    return ConfigError(f"device {name!r} {why}", hint="choose auto, cpu, cuda, cuda:1 or mps")
