"""Not enough memory, said before loading where it can be foreseen, and in plain words where it cannot."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from diffcli.errors import BackboneError

_HINT = (
    "close other programs, choose half precision (runtime.precision: bf16 or fp16), another runtime.device, "
    "or a smaller diffusion model (model.backbone.source: embedded)"
)


def check_memory(*, unet: int, vae: int, text_encoder: int, device: torch.device, dtype: torch.dtype) -> None:
    """The weights fit: first the text encoder alone, in float32, then U-Net and VAE together.

    Args:
        unet: numbers in the U-Net's weights; the same of `vae` and `text_encoder`.

    Raises:
        BackboneError: they do not.
    """
    text = text_encoder * torch.float32.itemsize
    together, largest = (unet + vae) * dtype.itemsize, max(unet, vae) * dtype.itemsize
    _require(max(text, largest if device.type == "cuda" else together), host_memory(), "memory")
    if device.type == "cuda" and torch.cuda.is_available():
        _require(max(text, together), torch.cuda.mem_get_info(device)[0], f"memory on {device}")


def _require(needed: int, free: int | None, what: str) -> None:
    if free is not None and needed > free:
        raise BackboneError(
            f"not enough {what}: its weights need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
            hint=_HINT,
        )


def host_memory() -> int | None:
    """Bytes that can still be had (swap included, within the container's limit); None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    if "MemAvailable" not in kibibytes:
        return None
    free = (kibibytes["MemAvailable"] + kibibytes.get("SwapFree", 0)) * 1024
    limit = _container_limit()
    return free if limit is None else min(free, limit)


def _container_limit() -> int | None:
    """The control group's limit, if there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is what PyTorch raises when a device's or the host's memory runs out."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


@contextmanager
def memory_errors(where: str) -> Iterator[None]:
    """Turn what is raised when memory runs out into a BackboneError; a BackboneError learns where it arose."""
    try:
        yield
    except BackboneError as error:
        error.where = error.where or where
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise BackboneError("not enough memory to load it", where=where, hint=_HINT) from error


def reset_peak(device: torch.device) -> None:
    """Forget the peak of loading; where the system cannot, the process's whole peak is reported."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Most bytes since `reset_peak`: of the process on a CPU, of allocated tensors on a GPU; weights included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
