"""The device, precision and processes of one training run, as accelerate holds them."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator

from diffcli.config.settings import RunConfig
from diffcli.errors import ConfigError
from diffcli.runtime import distributed
from diffcli.runtime.device import resolve_device, resolve_precision


def build_accelerator(config: RunConfig, *, runs: Path) -> Accelerator:
    """Device, mixed precision and trackers as configured; processes as `accelerate launch` made them.

    Raises:
        ConfigError: the device is missing or shared by several processes, or a tracker's package is not installed.
    """
    for tracker in config.train.trackers:
        if find_spec(tracker) is None:
            raise ConfigError(
                f"train.trackers: {tracker} is not installed",
                hint=f"pip install 'diffcli[{tracker}]', or remove it from train.trackers",
            )
    device = resolve_device(config.runtime.device)
    precision = resolve_precision(config.runtime.precision, device)
    if device.type == "cuda":
        _require_one_gpu_each(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "float32" else precision,
        log_with=list(config.train.trackers) or None,
        project_dir=runs,
    )
    assert accelerator.num_processes == distributed.world_size(), (
        "distributed.init_process_group() comes before the command"
    )
    return accelerator


def _require_one_gpu_each(device: torch.device) -> None:
    """Refuse a GPU that several processes would share: NCCL cannot exchange gradients on one."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if distributed.world_size() > 1 else 1
    if local > 1 and (device.type != str(device) or local > torch.cuda.device_count()):
        raise ConfigError(
            f"runtime.device {device}: the {local} processes on this machine need a GPU each, it has "
            f"{torch.cuda.device_count()}",
            hint="runtime.device: auto, and as many processes as GPUs (--nproc-per-node, --num_processes)",
        )
