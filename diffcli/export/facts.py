"""export.json: what an exported folder is, as pydantic models. Read by the runner, by other programs and by people."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffcli.config.size import Size
from diffcli.drawing.pictures import Pixels

SCHEMA_VERSION = 1
"""Of export.json; a change that breaks its readers counts it up."""
Kind = Literal["onnx", "pt2"]


class Facts(BaseModel):
    """A part of the file. Fields that are not known here are left alone: they may be additions of a later release."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ClassFacts(Facts):
    train_id: int
    name: str
    color: tuple[int, int, int]


class BaseModelFacts(Facts):
    """The diffusion model that the run was trained on."""

    source: str
    revision: str | None
    commit: str | None
    variant: str | None
    unet_weights: str | None
    vae: str | None = None
    text_encoder: str | None = None
    fingerprint: list[float] | None
    """Weights of its first layers, by which another model is recognised."""
    included: bool
    """Whether it is in the folder."""


class FolderFacts(Facts):
    """A folder for diffcli itself: weights and settings."""

    schema_version: int = SCHEMA_VERSION
    diffcli: str | None = None
    """Version that wrote it."""
    trained_with: str | None = None
    iteration: int | None = None
    classes: tuple[ClassFacts, ...]
    ignore_id: int
    base_model: BaseModelFacts | None = None
    checksums: dict[str, str] = {}
    """File -> SHA-256."""

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        return self.model_dump(mode="json")


class InputFacts(Facts):
    """What goes into the encoder."""

    width: int
    height: int
    size: str
    multiple: int
    batch: str
    largest_batch: int
    layout: str
    range: tuple[float, float]
    mean: float
    scale: float
    """(pixel - mean) / scale is what the networks see."""


class NoiseFacts(Facts):
    """The stored draws of noise."""

    file: str
    encoder_draws: int
    draws: int
    order: tuple[str, ...]
    layout: str
    use: str
    drawn: str


class ScheduleFacts(Facts):
    """How the loop over the steps goes."""

    evaluated_steps: int
    save_steps: tuple[int, ...]
    timesteps: tuple[int, ...]
    next_timesteps: tuple[int, ...]
    one_step: bool
    eta: float
    s_tmin: float
    s_tmax: float
    guidance_scale: float
    prompt: str
    negative_prompt: str


class CheckFacts(Facts):
    """How the networks compared with the model when they were written."""

    images: int
    max_logit_difference: float
    logit_range: tuple[float, float]
    label_agreement: float


class NetworkFacts(FolderFacts):
    """A folder of networks for other runtimes."""

    kind: Kind
    networks: dict[str, Annotated[str, Field(pattern=r"^\w[\w.-]*$")]]
    """encoder, step, decoder -> file in the folder; without step where the features are the VAE latent alone."""
    precision: str
    branch: str
    input: InputFacts
    output: str
    noise: NoiseFacts
    schedule: ScheduleFacts
    versions: dict[str, str]
    check: CheckFacts | None = None

    @property
    def size(self) -> Size:
        """What images are resized to."""
        return Size(self.input.width, self.input.height)

    @property
    def palette(self) -> Pixels:
        """Colours (256, 3) by train id; what is no class is black."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        for entry in self.classes:
            palette[entry.train_id] = entry.color
        return palette
