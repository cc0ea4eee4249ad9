"""A new run that starts from the trained half of another one, whose classes may be others."""

from pathlib import Path

from diffcli.core.model import SegmentationModel
from diffcli.errors import CheckpointError
from diffcli.runs.checkpoint import check_fingerprint, load_state
from diffcli.runs.folder import find_run
from diffcli.runs.opening import open_run
from diffcli.runtime import console

CLASS_ROWS = ("head.classifier.weight", "head.classifier.bias")
"""Tensors of the decoder that have one row for each class; all others do not depend on the classes."""


def initialise(model: SegmentationModel, run: str, *, runs: Path) -> None:
    """Load the decoder of another run; classes are matched by name, and new ones keep their random weights.

    Args:
        run: a run folder, a name under `runs`, an exported folder, a checkpoint file or hub:OWNER/NAME.

    Raises:
        CheckpointError: there is no such run, or its decoder has another shape.
    """
    trained = open_run(find_run(run, runs=runs))
    state, fresh = dict(trained.checkpoint.state), model.decoder.state_dict()
    before, now = trained.config.model.classes, model.config.classes
    for name in CLASS_ROWS:
        rows = fresh[name].clone()
        if rows.shape[1:] == state[name].shape[1:]:  # else `load_state` explains the difference
            for index, train_class in enumerate(now):
                if train_class in before:
                    rows[index] = state[name][before.index(train_class)]
            state[name] = rows
    load_state(model, state, where=str(trained.weights))
    console.say(
        f"starting from {trained.weights} (iteration {trained.checkpoint.info.get('iteration', 'unknown')})"
    )
    if new := [name for name in now if name not in before]:
        console.say(f"classes that it does not know start from scratch: {', '.join(new)}")
    if gone := [name for name in before if name not in now]:
        console.say(f"its classes that are not used here: {', '.join(gone)}")
    try:
        check_fingerprint(model, trained.checkpoint, where=str(trained.weights))
    except CheckpointError:
        console.warn(
            "it was trained on another diffusion model, whose features differ: expect to train for longer"
        )
