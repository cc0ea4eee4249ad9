"""What every node of the settings is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of every node: unknown keys are errors, .inf and .nan too, and values never change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, le=4096)]
"""Images or rows that go through a network at once: more do not fit into any memory."""
Width = Annotated[int, Field(ge=1, le=16384)]
"""Channels of a layer: a wider one does not fit into any memory."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What PyTorch takes as a seed."""
Probability = Annotated[float, Field(ge=0, le=1)]
_Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[_Channel, _Channel, _Channel]
"""Red, green, blue."""


def as_plain(settings: Settings) -> dict[str, Any]:
    """The tree as plain JSON/YAML values."""
    return settings.model_dump(mode="json")
