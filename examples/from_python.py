"""Train, score and use a model from Python: offline, in about a minute.

`python examples/from_python.py` runs all of it; editors and Jupyter run it cell by cell (`# %%`). It writes to
runs/from_python.
"""

# %% Settings: what a YAML file would hold. Everything that is left out has its default.
import numpy as np

import diffcli
from diffcli.data.miniworld import render

settings = {
    "name": "from_python",
    "model": {
        "backbone": {"source": "embedded"},
        "inversion": {"schedule": "clean"},
        "decoder": {"channels": [32, 64, 64, 64], "head_channels": 32},
    },
    "data": {
        "train": {"domain": "miniworld/clean", "count": 48},
        "eval": [{"domain": "miniworld/clean", "count": 4}, {"domain": "miniworld/night", "count": 4}],
    },
    "augmentation": {"crop": "96x96"},
    "train": {
        "iterations": 60,
        "learning_rate": 6e-3,
        "head_multiplier": 1,
        "warmup_iterations": 10,
        "loss": {"ipkl": False, "class_balance": 0.5},
        "rare_class_sampling": {"min_pixels": 200, "min_crop_pixels": 50},
    },
    "eval": {"size": "256x128"},
    "runtime": {"data_workers": 0},
}

# %% Train: `diff train` as a function. It returns the folder of the run.
run = diffcli.train(settings)
print(sorted(path.name for path in run.iterdir()))

# %% Score: `diff eval` as a function, here on a domain that training has not seen.
report = diffcli.evaluate(run, domains="miniworld/fog", limit=4)
for domain in report.domains:
    print(f"{domain.name}: mIoU {domain.mean_iou:.3f}, road {domain.per_class['road'].iou:.3f}")

# %% Use: load the run, and segment one image. A file's path, a PIL image or a tensor will do as well.
model = diffcli.load(run)
print(model)
street = render(0, 7, "night", size=(128, 256))[0]  # H,W,3 uint8
found = model(street)
print(found)

# %% The result: mask and confidence at the image's size, shares by class, and a picture.
print(found.mask.shape, found.confidence.mean(), found.shares)
found.overlay()  # shown by Jupyter

# %% Several images go through the network in batches; probabilities of every class on request.
streets = [render(0, i, "rain", size=(128, 256))[0] for i in range(4)]
results = model.segment(streets, batch=2, probabilities=True)
entropy = [float(-(r.probabilities * np.log(r.probabilities + 1e-9)).sum(axis=0).mean()) for r in results]
print("mean entropy:", np.round(entropy, 3))

# %% Files: what `diff predict --write` writes.
for result in results:
    files = result.save(run / "predictions", "mask,overlay,stats")
print(files)

# %% Mistakes are DiffErrors, which say what is wrong, where, and what to do.
try:
    diffcli.train({**settings, "train": {"iteration": 60}})
except diffcli.DiffError as error:
    print(error)
