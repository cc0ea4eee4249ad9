"""Exportable parts as files: torch.export programs (.pt2) or ONNX graphs (.onnx), one a part.

The batch is dynamic, the image's size is fixed.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from diffcli.errors import CheckpointError
from diffcli.export.archives import check_program
from diffcli.export.modules import ExportableParts
from diffcli.runtime.device import resolve_device

LARGEST_BATCH = 31
"""Images a call. From 64 rows on the U-Net's up-sampling takes another path, and an image may need two rows."""

RunPart = Callable[..., list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Part:
    """One network, the names of its inputs with values to trace it with, and the names of its outputs."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


PARTS = ("encoder", "step", "decoder")
"""Names of the parts, and of their files."""


def named_parts(parts: ExportableParts, *, size: tuple[int, int]) -> list[Part]:
    """The parts that there are, with inputs of two images of `size` (H,W), which the network's strides divide."""
    encoder, step, decoder = parts
    height, width = (side // decoder.downsample for side in size)
    images = {"image": torch.zeros(2, 3, *size)}
    noise = {"noise": torch.zeros(2, encoder.draws, encoder.channels, height, width)} if encoder.draws else {}
    first = Part("encoder", encoder, {**images, **noise}, ("latent",))
    latent = torch.zeros(2, encoder.channels, height, width)
    if step is None:
        return [first, Part("decoder", decoder, {"latent": latent}, ("logits",))]
    inputs = {"latent": latent, "noise": latent.clone(), "index": torch.tensor(0)}
    stacks = {
        f"stride{decoder.downsample * factor}": torch.zeros(
            2, decoder.steps * sum(widths), height // factor, width // factor
        )
        for widths, factor in zip(decoder.widths, decoder.factors, strict=True)
    }
    return [
        first,
        Part("step", step, inputs, ("next_latent", *stacks)),
        Part("decoder", decoder, stacks, ("logits",)),
    ]


def trace(part: Part) -> ExportedProgram:
    """The part as a torch.export program, of any batch up to LARGEST_BATCH."""
    batch = Dim("batch", min=1, max=LARGEST_BATCH)
    values = tuple(part.inputs.values())
    shapes: tuple[object, ...] = tuple({0: batch} if value.ndim else {} for value in values)
    if part.name == "decoder":  # which takes its inputs as *stacks
        shapes = (shapes,)
    with _exporters_quiet(), torch.no_grad():
        program = torch.export.export(part.module, values, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the files of this machine
    return program


def write_program(part: Part, file: Path) -> None:
    """Trace a part and write it for `torch.export.load`."""
    program = trace(part)
    program.example_inputs = None  # or they would be stored, too
    with _exporters_quiet():
        torch.export.save(program, file)


def write_onnx(part: Part, file: Path) -> None:
    """Trace a part and write it as ONNX; weights of more than about 1.5 GB are in `<file>.data` beside it."""
    program = trace(part)
    with _exporters_quiet():
        graph = torch.onnx.export(
            program,
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamo=True,
            optimize=False,  # runtimes do that when they load; here it would more than double the time
            verbose=False,
        )
        assert graph is not None
        _tidy(graph.model.graph)
        graph.save(file)


def _tidy(graph: Any) -> None:
    """Drop what an ONNX graph says of how it was traced, a quarter of its size, and name its one free dimension."""
    for node in graph:
        for owner in (node, *node.outputs):
            owner.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = type(value.shape)(["batch", *value.shape[1:]])


@contextmanager
def _exporters_quiet() -> Iterator[None]:
    """What the exporters say of themselves (deprecations inside, packages that they do not need) is kept back."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnx\w*|copyreg)(\..*)?")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def load_programs(folder: Path, files: Mapping[str, str], *, device: str | None) -> dict[str, RunPart]:
    """Programs that `write_program` wrote, part -> a function from arrays to arrays.

    Raises:
        CheckpointError: one is missing or damaged, or holds what could run code.
        ConfigError: the device is not there.
    """
    place = resolve_device(device or "auto")

    def load(file: Path) -> RunPart:
        check_program(file)
        try:
            with _exporters_quiet():
                module = torch.export.load(str(file)).module()
        except Exception as error:  # zip, JSON and pickle errors alike
            raise CheckpointError("cannot be loaded", where=str(file), hint="export the run again") from error
        module.to(place)

        @torch.no_grad()
        def call(*arrays: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            tensors = [torch.from_numpy(array.copy()).to(place) for array in arrays]
            found = module(*tensors)
            return [x.cpu().numpy() for x in (found if isinstance(found, tuple) else (found,))]

        return call

    return {part: load(folder / name) for part, name in files.items()}
