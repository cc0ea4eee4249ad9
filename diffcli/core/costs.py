"""What the method costs, counted in U-Net evaluations of one image (method section 5); needs no network and no torch.

Where the conditional branch runs, the cost depends on how many prompted classes an image holds, so that it is a range
from none to all of them.
"""

from typing import NamedTuple

from diffcli.config.settings import EvalConfig, InversionConfig, RunConfig, TrainConfig
from diffcli.config.size import Size


class Cost(NamedTuple):
    """U-Net evaluations, at least and at most."""

    least: int
    most: int

    def times(self, count: int) -> "Cost":
        return Cost(self.least * count, self.most * count)

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.least + other.least, self.most + other.most)

    def __str__(self) -> str:
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"


def count_costs(config: RunConfig, *, images: int) -> dict[str, Cost]:
    """U-Net evaluations by what they are spent on; `images` are those of all domains to evaluate on."""
    train = config.train
    sample = training_cost(train, _inversion(config))
    training = sample.times(train.iterations * train.batch_size * train.gradient_accumulation)
    image = evaluation_cost(config.eval, _inversion(config))
    validation = image.times(images)
    return {
        "training_sample": sample,
        "training": training,
        "evaluated_image": image,
        "validation": validation,
        "total": training.plus(validation.times(validations(train))),
    }


def training_cost(train: TrainConfig, inversion: InversionConfig | None) -> Cost:
    """U-Net evaluations of one training sample: both branches with IPKL."""
    plain = _unconditional(inversion)
    return plain.plus(_conditional(inversion)) if train.loss.ipkl else plain


def evaluation_cost(settings: EvalConfig, inversion: InversionConfig | None) -> Cost:
    """U-Net evaluations of one image; a sliding window over images of unknown size counts one window."""
    plain, conditional = _unconditional(inversion), _conditional(inversion)
    cost = {"none": plain, "labels": conditional, "prediction": plain.plus(conditional)}[settings.reference]
    views = sum(_windows(settings, scale) for scale in settings.scales)
    return cost.times(views * (2 if settings.flip else 1))


def validations(train: TrainConfig) -> int:
    """How often all domains are evaluated: at every interval and at the end."""
    interval = train.validate_interval
    return 1 + ((train.iterations - 1) // interval if interval else 0)


def _windows(settings: EvalConfig, scale: float) -> int:
    if settings.mode == "whole" or settings.size is None:
        return 1
    size = Size(round(settings.size.width * scale), round(settings.size.height * scale))
    return _starts(size.width, settings.window.width, settings.stride.width) * _starts(
        size.height, settings.window.height, settings.stride.height
    )


def _starts(length: int, window: int, stride: int) -> int:
    """Windows along one side, the last one flush with the end."""
    return 1 if length <= window else 1 + -(-(length - window) // stride)


def _inversion(config: RunConfig) -> InversionConfig | None:
    """How the U-Net runs; None where only the VAE's latent is read."""
    return None if config.model.decoder.features == "latent" else config.model.inversion


def _unconditional(inversion: InversionConfig | None) -> Cost:
    count = inversion.evaluations(0) if inversion else 0
    return Cost(count, count)


def _conditional(inversion: InversionConfig | None) -> Cost:
    """From an image without any prompted class to one that holds them all."""
    if inversion is None:
        return Cost(0, 0)
    prompts = set(inversion.class_prompts.values()) - {inversion.prompt, inversion.negative_prompt}
    return Cost(inversion.evaluations(0), inversion.evaluations(len(prompts)))
