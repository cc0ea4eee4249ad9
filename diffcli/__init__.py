"""diffcli: domain-generalised semantic segmentation on a frozen text-to-image diffusion model.

import diffcli
run = diffcli.train("examples/quickstart.yaml")   # the run's folder; `diff train` as a function
report = diffcli.evaluate(run)                    # its scores; `diff eval` as a function
model = diffcli.load(run)                         # a run, an exported folder, a checkpoint, or hub:owner/name
found = model("street.png")                       # mask, confidence, overlay; also an image, an array or a tensor
results = model.segment(["a.png", "b.png"])       # the same of several images, in batches
mask = model.predict("street.png")                # H,W train ids alone
logits = model.logits(images)                     # B,3,H,W in [-1,1] -> B,classes,H,W
maps = diffcli.DIFFBackbone.from_source("embedded")(images)  # four maps for another task, finest first
"""

TYPE_CHECKING = False  # as typing has it, whose import would be the slowest part of `import diffcli`
if TYPE_CHECKING:
    from diffcli.api.backbone import DIFFBackbone
    from diffcli.api.model import ExportedModel, TrainedModel, load
    from diffcli.api.segmentation import Segmentation
    from diffcli.commands.functions import evaluate, train
    from diffcli.core.model import SegmentationModel
    from diffcli.errors import DiffError

__version__ = "0.1.0"

__all__ = [
    "DIFFBackbone",
    "DiffError",
    "ExportedModel",
    "Segmentation",
    "SegmentationModel",
    "TrainedModel",
    "__version__",
    "evaluate",
    "load",
    "train",
]

_HOMES = {
    "DIFFBackbone": "diffcli.api.backbone",
    "DiffError": "diffcli.errors",
    "ExportedModel": "diffcli.api.model",
    "Segmentation": "diffcli.api.segmentation",
    "SegmentationModel": "diffcli.core.model",
    "TrainedModel": "diffcli.api.model",
    "evaluate": "diffcli.commands.functions",
    "load": "diffcli.api.model",
    "train": "diffcli.commands.functions",
}
"""Names that need PyTorch are imported when they are first used: `import diffcli` stays instant."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
