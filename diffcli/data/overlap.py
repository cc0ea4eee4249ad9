"""Files that a training set and an evaluation set have in common."""

import os
from collections.abc import Hashable

from diffcli.data.domain import Domain, Sample


def shared_samples(source: Domain, target: Domain) -> list[str]:
    """Ids of the samples of `target` that `source` holds too: one image file (by any path or link), or one scene."""
    seen = {_identity(sample) for sample in source.samples}
    return [sample.id for sample in target.samples if _identity(sample) in seen]


def _identity(sample: Sample) -> Hashable:
    if sample.image is None:
        return sample.scene
    try:
        state = os.stat(sample.image)
    except (OSError, ValueError):
        return os.path.abspath(sample.image)
    return state.st_dev, state.st_ino
