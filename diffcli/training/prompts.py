"""Does the backbone react to the class prompts that IPKL tells it? Checked once, when a run starts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import seeded_noise
from diffcli.core.model import to_model_range
from diffcli.data.dataset import TrainingSample, TrainingSet
from diffcli.errors import DataError

LEAST_REACTION = 0.01
"""Share of the features that class prompts must change, or the conditional branch knows no more than the other."""
DRAWS = 32
"""Training samples to search for one that shows a prompted class."""


@torch.no_grad()
def prompt_reaction(
    extractor: DiffusionFeatureExtractor, images: Tensor, labels: Tensor, *, identity: str
) -> float:
    """How much class prompts change the features: |F(class prompts) - F(plain prompt in their place)| / |the latter|.

    Both with the same masks, groups and noise, so that the words alone differ (method section 1.3).

    Args:
        images: 1,3,H,W float32 in [-1,1].
        labels: 1,H,W train ids that hold a prompted class.
        identity: seeds the noise.
    """
    config = extractor.config
    silent = DiffusionFeatureExtractor(
        extractor.backbone,
        config.model_copy(update={"class_prompts": dict.fromkeys(config.class_prompts, config.prompt)}),
        kinds=extractor.kinds,
        stages=extractor.stages,
        max_unet_batch=extractor.max_unet_batch,
    )
    told, plain = (
        each.extract(images, noise=seeded_noise(config.seed, [identity]), references=list(labels))
        for each in (extractor, silent)
    )
    change = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(told, plain, strict=True))
    return float((change / sum(float(b.float().square().sum()) for b in plain)) ** 0.5)


def prompts_unheard(samples: TrainingSet, extractor: DiffusionFeatureExtractor) -> str | None:
    """A line for the user if class prompts change the features of a training sample by less than `LEAST_REACTION`.

    None where they change them more, and where no sample is found that shows a prompted class.
    """
    sample = _prompted_sample(samples, sorted(extractor.config.class_prompts))
    if sample is None:
        return None
    device = extractor.backbone.device
    reaction = prompt_reaction(
        extractor,
        to_model_range(torch.from_numpy(sample["image"])[None]).to(device),
        torch.from_numpy(sample["label"])[None].to(device),
        identity=sample["identity"],
    )
    if reaction >= LEAST_REACTION:
        return None
    return (
        f"the backbone does not react to these prompts: they change its features by {100 * reaction:.1f} %, which is "
        f"less than {100 * LEAST_REACTION:g} %; IPKL will cost time for nothing (train.loss.ipkl: false turns it off)"
    )


def _prompted_sample(samples: TrainingSet, prompted: Sequence[int]) -> TrainingSample | None:
    for draw in range(min(DRAWS, len(samples))):
        try:
            sample = samples[draw]
        except DataError:  # training reports it when it draws it
            continue
        if np.isin(sample["label"], prompted).any():
            return sample
    return None
