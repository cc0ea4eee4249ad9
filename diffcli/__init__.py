"""diffcli: domain-generalised semantic segmentation on a frozen text-to-image diffusion model.

import diffcli
model = diffcli.load("runs/quickstart")  # a run, an exported folder, a checkpoint, or hub:owner/name
mask = model.predict("street.png")       # H,W train ids; a path, a PIL image, an array or a tensor
logits = model.logits(images)            # B,3,H,W in [-1,1] -> B,classes,H,W
maps = diffcli.DIFFBackbone.from_source("embedded")(images)  # four maps for another task, finest first
"""

TYPE_CHECKING = False  # as typing has it, whose import would be the slowest part of `import diffcli`
if TYPE_CHECKING:
    from diffcli.api.backbone import DIFFBackbone
    from diffcli.api.model import TrainedModel, load
    from diffcli.core.model import SegmentationModel

__version__ = "0.1.0"

__all__ = ["DIFFBackbone", "SegmentationModel", "TrainedModel", "__version__", "load"]

_HOMES = {
    "DIFFBackbone": "diffcli.api.backbone",
    "SegmentationModel": "diffcli.core.model",
    "TrainedModel": "diffcli.api.model",
    "load": "diffcli.api.model",
}
"""Names that need PyTorch are imported when they are first used: `import diffcli` stays instant."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
