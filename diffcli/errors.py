"""What can go wrong at the boundary, said once: what was wrong, where, and what to do about it."""

from typing import Any


class DiffError(Exception):
    """A user's fault or a missing resource, to be printed without a traceback.

    Args:
        message: what was wrong, in one clause.
        where: file, line or key that it concerns.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        located = f"{self.where}: {self.message}" if self.where else self.message
        return f"{located}\n  -> {self.hint}" if self.hint else located

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its fields, whatever a kind's constructor takes: worker processes hand errors over whole."""
        return type(self).__new__, (type(self), self.message), self.__dict__


class ConfigError(DiffError):
    """A setting that does not exist, has the wrong type or contradicts another one."""

    exit_code = 2


class DataError(DiffError):
    """Images or labels that are missing, unreadable or hold values outside the mapping."""


class BackboneError(DiffError):
    """The diffusion model cannot be found, is incomplete or does not fit in memory."""


class CheckpointError(DiffError):
    """A run or checkpoint that is missing, damaged or made for another model."""


class TrainingError(DiffError):
    """Training had to stop, for example at a loss that is not finite."""
