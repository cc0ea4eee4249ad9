"""Work that is recorded once on fixed buffers and then replayed, as CUDA graphs do it.

A step of the U-Net is about a thousand kernels, and a fast GPU finishes them sooner than Python launches them. A CUDA
graph launches all of them at once, but always reads the same inputs and writes the same outputs. `Captures` keeps these
buffers: it copies what changed into them, replays, and hands the outputs out until the next replay.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcli.runtime import console
from diffcli.runtime.memory import is_out_of_memory

Record = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], None]]]
"""Work -> the tensors that it writes, and a call that does the work again into the same tensors."""

LIMIT = 24
"""Recordings kept at once. `paper` needs three for each size of latent and number of rows."""
WARM_UPS = 3
"""Calls before a recording: libraries choose their kernels and take their workspaces in the first ones."""


@dataclass
class _Recording:
    """One recorded call."""

    buffers: list[Tensor]
    given: list[tuple[Tensor, int]]
    """What was last copied into each buffer, and its version: a tensor that comes again unchanged is not copied."""
    outputs: list[Tensor]
    replay: Callable[[], None]


class Captures:
    """A function of tensors, recorded for each key at the key's second call and replayed from then on.

    The first call runs as it is: an image size that is seen once is not worth a recording. The least recently used
    recording goes when there are more than `limit`. Where memory does not suffice for a recording, that key runs
    as it is from then on.

    Args:
        record: what records, for example `cuda_graphs()`.
        limit: how many recordings are kept.
    """

    def __init__(self, record: Record, *, limit: int = LIMIT) -> None:
        self.record = record
        self.limit = limit
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()
        """Keys without a recording that were called before -> whether a recording may be tried."""

    def __len__(self) -> int:
        return len(self._recordings)

    def __call__(
        self, key: Hashable, function: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """function(inputs). Outputs are valid until the next call: recordings share their memory.

        Args:
            key: everything that the function depends on besides its inputs, and the inputs' shapes and dtypes.
        """
        recording = self._recordings.get(key)
        if recording is None:
            if not self._seen.get(key, False):
                self._remember(key, recordable=key not in self._seen)
                return function(list(inputs))
            recording = self._try_to_record(key, function, inputs)
            if recording is None:
                return function(list(inputs))
        self._recordings.move_to_end(key)
        changed = [
            i
            for i, (x, (last, version)) in enumerate(zip(inputs, recording.given, strict=True))
            if x is not last or x._version != version
        ]
        if changed:
            torch._foreach_copy_([recording.buffers[i] for i in changed], [inputs[i] for i in changed])
        recording.given = _versions(inputs)
        recording.replay()
        return recording.outputs

    def _remember(self, key: Hashable, *, recordable: bool) -> None:
        self._seen[key] = recordable
        while len(self._seen) > 8 * self.limit:
            self._seen.popitem(last=False)

    def _try_to_record(
        self, key: Hashable, function: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor]
    ) -> _Recording | None:
        """Record the key; None where memory does not suffice, which is reported once for each key."""
        del self._seen[key]
        while len(self._recordings) >= self.limit:
            self._recordings.popitem(last=False)
        try:
            buffers = [x.clone() for x in inputs]
            outputs, replay = self.record(lambda: function(buffers))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._remember(key, recordable=False)
            console.say("not enough GPU memory for a CUDA graph of this image size; it runs without one")
            return None
        recording = _Recording(buffers, _versions(inputs), outputs, replay)
        self._recordings[key] = recording
        return recording


def _versions(inputs: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    return [(x, x._version) for x in inputs]


def cuda_graphs() -> Record:
    """Record by CUDA graphs that share one pool of memory: replays run one after the other.

    Other threads may use CUDA meanwhile (the loader pins memory), which the capture mode "thread_local" allows.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay

    return record
