"""The measurements of `diff bench`.

On a CPU each one runs in a fresh process, so that the peak of memory belongs to it. On a GPU all run in this process:
the allocator's peak can be reset there, and the diffusion model of one precision is built once.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from diffcli.backbone.diffusion import DiffusionBackbone
from diffcli.backbone.loading import load_backbone, quiet
from diffcli.bench.baseline import Baseline
from diffcli.bench.random_backbone import Architecture, random_backbone
from diffcli.config.settings import DEFAULT_UNET_BATCH, ModelConfig, TrainConfig
from diffcli.core.ipkl import PairedDecoder, extract_pair, ipkl_loss
from diffcli.core.model import DTYPES, SegmentationModel, join
from diffcli.errors import DiffError
from diffcli.runtime.device import Precision
from diffcli.runtime.memory import is_out_of_memory, peak_memory, reset_peak
from diffcli.training.optimizer import BETAS, parameter_groups

Work = Literal["inference", "training"]
Code = Literal["baseline", "eager", "diffcli", "compiled"]


@dataclass(frozen=True)
class Case:
    """What one row of the table measures."""

    work: Work
    code: Code
    """baseline: the published amount of work; eager: diffcli without CUDA graphs; compiled: with runtime.compile."""
    schedule: str
    precision: Precision
    backbone_precision: Precision
    batch: int
    width: int
    height: int
    device: str
    repeats: int
    model: dict[str, Any]
    """A ModelConfig as plain values."""
    random_weights: Architecture | None = None
    """Architecture that replaces the model's backbone."""
    max_unet_batch: int = DEFAULT_UNET_BATCH
    """Most rows of one U-Net call."""


@dataclass(frozen=True)
class Measurement:
    """The results of one case; seconds of one batch, without the warm-up."""

    seconds: list[float]
    unet_evaluations: int
    flop: int
    """Floating-point operations of one batch as PyTorch counts them: convolutions, matrix products, attention."""
    matmul_flop_per_second: float
    """The rate of large matrix products in the same precision, measured in the same process."""
    peak_bytes: int
    """Peak of memory, weights included: of the process on a CPU, of allocated tensors on a GPU."""
    gpu_busy: float | None
    """Fraction of one batch's time in which the GPU worked; None on other devices."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range, as a fraction of the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    @property
    def flop_per_second(self) -> float:
        return self.flop / self.median

    @property
    def share_of_matmul(self) -> float:
        return self.flop_per_second / self.matmul_flop_per_second


def measure_all(cases: Sequence[Case]) -> Iterator[Measurement]:
    """Measure one after the other; all cases have the same device.

    Raises:
        DiffError: a case cannot be run there, for example because memory runs out.
    """
    on_gpu = bool(cases) and torch.device(cases[0].device).type == "cuda"
    for case, found in zip(cases, (in_this_process if on_gpu else in_fresh_processes)(cases), strict=True):
        if isinstance(found, str):
            raise DiffError(
                f"this measurement failed: {found}",
                where=f"{case.work}, {case.schedule}, {case.code}, {case.precision}, batch {case.batch}",
                hint="a smaller --size or --batch-sizes needs less memory",
            )
        yield found


def in_this_process(cases: Sequence[Case]) -> Iterator[Measurement | str]:
    """What was measured, or why it could not be; the backbone is built again only where the next case needs another."""
    backbone: DiffusionBackbone | None = None
    built: tuple[object, ...] = ()
    for case in cases:
        needed = (case.random_weights, case.backbone_precision, case.model["backbone"])
        if backbone is None or needed != built:
            backbone = None  # freed before the next one is built
            backbone, built = build_backbone(case), needed
        yield _answer(case, backbone)
        backbone.network.capture(None)
        torch.cuda.empty_cache()


def in_fresh_processes(cases: Sequence[Case]) -> Iterator[Measurement | str]:
    """What was measured, or why it could not be; the processes share what importing costs, and nothing else."""
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for case in cases:
            try:
                yield pool.submit(_answer, case).result()
            except BrokenProcessPool:
                yield "its process was ended, probably because memory ran out"


def _answer(case: Case, backbone: DiffusionBackbone | None = None) -> Measurement | str:
    """What was measured, or why it could not be: not every exception can be sent from one process to another."""
    try:
        return measure_here(case, backbone or build_backbone(case))
    except (DiffError, MemoryError, RuntimeError, ValueError) as error:
        return "not enough memory" if is_out_of_memory(error) else str(error).splitlines()[0]


def measure_here(case: Case, backbone: DiffusionBackbone) -> Measurement:
    """Measure in this process: count and warm up, then time."""
    device = torch.device(case.device)
    # the published code uses PyTorch's default layout
    layout = torch.contiguous_format if case.code == "baseline" else torch.channels_last
    for network in (backbone.unet, backbone.vae):
        network.to(memory_format=layout)
    backbone.network.reset()  # it holds weights in the previous layout
    model = join(
        ModelConfig.model_validate(case.model),
        backbone,
        precision=case.precision,
        max_unet_batch=case.max_unet_batch,
    )
    step = _inference(case, model) if case.work == "inference" else _training(case, model)
    step()  # computes what is computed once, for timesteps and prompts
    evaluations, flop = _count(step, backbone)
    # after the count, which needs single operations
    if case.code in ("diffcli", "compiled") and device.type == "cuda":
        model.capture()
    if case.code == "compiled":
        model.compile()
    for _ in range(2):  # a step is recorded at its second call
        step()
    matmul = matmul_speed(device, DTYPES[case.precision])
    reset_peak(device)
    seconds = []
    for _ in range(case.repeats):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    peak = peak_memory(device)
    return Measurement(seconds, evaluations, flop, matmul, peak, _gpu_busy(step, device, min(seconds)))


def build_backbone(case: Case) -> DiffusionBackbone:
    """The diffusion model that a case asks for."""
    config = ModelConfig.model_validate(case.model)
    inversion, device = config.inversion, torch.device(case.device)
    prompts = (inversion.prompt, inversion.negative_prompt, *inversion.class_prompts.values())
    dtype = DTYPES[case.backbone_precision]
    if case.random_weights is None:
        return load_backbone(config.backbone, prompts=prompts, device=device, dtype=dtype)
    with quiet():
        return random_backbone(case.random_weights, prompts=prompts, device=device, dtype=dtype)


def _gpu_busy(step: Callable[[], object], device: torch.device, seconds: float) -> float | None:
    """Fraction of `seconds`, one batch, in which kernels ran on the GPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize(device)
    worked = sum(event.self_device_time_total for event in profiled.key_averages())
    return float(worked) / 1e6 / seconds


def _images(case: Case, device: torch.device) -> tuple[Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(case.batch, 3, case.height, case.width, generator=generator) * 2 - 1
    return images.to(device), [f"image {i}" for i in range(case.batch)]


def _inference(case: Case, model: SegmentationModel) -> Callable[[], object]:
    images, names = _images(case, model.device)
    if case.code == "baseline":
        baseline = Baseline(model.config, extractor=model.extractor, decoder=model.decoder)
        return lambda: baseline.logits(images, identities=names)
    return lambda: model.logits(images, identities=names)


def _training(case: Case, model: SegmentationModel) -> Callable[[], object]:
    """A whole step on images that hold two prompted classes: both branches, gradients, clipping, AdamW."""
    images, names = _images(case, model.device)
    labels = _labels(case, model)
    train = TrainConfig()
    module = (
        Baseline(model.config, extractor=model.extractor, decoder=model.decoder)
        if case.code == "baseline"
        else PairedDecoder(model.decoder)
    )
    module.train()
    groups = parameter_groups(model.decoder, learning_rate=train.learning_rate, head_multiplier=1.0)
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=train.weight_decay)

    def step() -> None:
        if isinstance(module, Baseline):
            losses = module.training_losses(images, labels, identities=names, seed=0, loss=train.loss)
        else:
            pair = extract_pair(model.extractor, images, labels, identities=names, seed=0)
            with model.autocast():
                conditional, unconditional = module(pair.conditional, pair.unconditional)
            losses = ipkl_loss(unconditional, conditional, labels, train.loss)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), train.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _labels(case: Case, model: SegmentationModel) -> Tensor:
    """Vertical stripes of equal width: a class without a prompt, then up to two classes with one."""
    config = model.config
    prompted = sorted(config.inversion.class_prompts)[:2]
    plain = next(i for i in range(len(config.classes)) if i not in config.inversion.class_prompts)
    columns = torch.arange(case.width) * (len(prompted) + 1) // case.width
    labels = torch.tensor([plain, *prompted])[columns]
    return labels.expand(case.batch, case.height, case.width).contiguous().to(model.device)


def _count(step: Callable[[], object], backbone: DiffusionBackbone) -> tuple[int, int]:
    """U-Net evaluations and FLOPs of one batch; also the second step of the warm-up."""
    before = backbone.evaluations
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        step()
    return backbone.evaluations - before, int(counter.get_total_flops())


def _attention_flop(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_arguments: Any, **_options: Any
) -> int:
    """FLOPs of attention on a CPU, from the shapes; PyTorch itself counts attention on GPUs only."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten large square matrix products."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(11):  # the first one warms up
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
