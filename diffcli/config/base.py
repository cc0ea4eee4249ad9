"""What every node of the settings is made of."""

from collections.abc import Mapping
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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain settings as dotted key -> value; lists and empty mappings stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found
