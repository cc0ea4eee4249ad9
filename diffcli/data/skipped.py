"""Samples that a training run cannot use: each costs its draws, many of them stop the run."""

from collections.abc import Iterable

from diffcli.data.mapping import OutsideMapping, all_outside
from diffcli.errors import DataError, DiffError
from diffcli.runtime.words import counted

TOLERATED = 0.01
"""Share of the samples that may be bad; of a small set one sample may."""


class Skipped:
    """The bad samples of one training set, each once.

    Args:
        name: the training set, for messages.
        samples: how many it has.
    """

    def __init__(self, name: str, samples: int) -> None:
        self.name = name
        self.samples = samples
        self.faults: dict[str, DiffError] = {}
        """File -> why it cannot be used."""
        self.draws = 0
        """Draws that other samples took the place of."""

    def add(self, faults: Iterable[DiffError]) -> list[DiffError]:
        """Note bad samples, and return those that were not known.

        Raises:
            DataError: more samples are bad than are tolerated.
        """
        new = {str(fault.where): fault for fault in faults if str(fault.where) not in self.faults}
        self.faults |= new
        if new and len(self.faults) > tolerated(self.samples):
            raise self._too_many()
        return list(new.values())

    def summary(self) -> str:
        """What was skipped, in a line; empty where nothing was."""
        if not self.faults:
            return ""
        return (
            f"{counted(len(self.faults), 'sample')} of {self.samples} could not be used; others were drawn in "
            f"{'its' if len(self.faults) == 1 else 'their'} place, {counted(self.draws, 'time')}"
        )

    def _too_many(self) -> DiffError:
        outside = [fault for fault in self.faults.values() if isinstance(fault, OutsideMapping)]
        if 2 * len(outside) > len(self.faults):
            return all_outside(outside, total=sum(fault.total for fault in outside))
        first = list(self.faults.values())[:3]
        lines = "".join(f"\n     {fault.where}: {fault.message}" for fault in first)
        return DataError(
            f"{self.name}: {counted(len(self.faults), 'sample')} of {self.samples} cannot be used, more than 1 %; "
            f"the first:{lines}",
            hint="diff data inspect lists them all; fix or remove them",
        )


def tolerated(samples: int) -> int:
    """How many of a set's samples may be bad."""
    return max(1, int(samples * TOLERATED))
