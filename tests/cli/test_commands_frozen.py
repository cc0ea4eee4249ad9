"""Every command with its arguments and options, as people's scripts use them.

A renamed or removed one breaks those scripts: change the table on purpose, and say so in CHANGELOG.md. An option is
written as its names, its value (none for a flag), `...` where it may be repeated, and its default or "(required)".
"""

from typing import Any, get_args

import typer.main

from diffcli.cli.main import app

COMMANDS = {
    "train": [
        "CONFIG (required)",
        "--set KEY=VALUE...",
        "--resume",
        "--name STR",
        "--json",
    ],
    "eval": [
        "--run RUN...",
        "--domain NAME...",
        "--root PATH",
        "--config YAML",
        "--split STR",
        "--limit N",
        "--set KEY=VALUE...",
        "--output -o DIR",
        "--device STR",
        "--json",
        "--checkpoint last|best = last",
    ],
    "evaluate": [
        "--run RUN...",
        "--domain NAME...",
        "--root PATH",
        "--config YAML",
        "--split STR",
        "--limit N",
        "--set KEY=VALUE...",
        "--output -o DIR",
        "--device STR",
        "--json",
        "--checkpoint last|best = last",
    ],
    "compare": [
        "RUN... (required)",
        "--domain NAME...",
        "--root PATH",
        "--config YAML",
        "--index N",
        "--output -o FILE = compare.png",
        "--set KEY=VALUE...",
        "--device STR",
        "--json",
        "--checkpoint last|best = last",
    ],
    "predict": [
        "IMAGES... (required)",
        "--output -o DIR",
        "--run RUN",
        "--model DIR_OR_FILE",
        "--write KINDS",
        "--overlay",
        "--heatmap CLASS",
        "--json",
        "--reference DIR",
        "--refine N = 0",
        "--samples N = 1",
        "--tile WxH",
        "--batch N",
        "--skip-existing",
        "--device STR",
        "--set KEY=VALUE...",
        "--checkpoint last|best = last",
        "--legend",
    ],
    "submit": [
        "--domain STR (required)",
        "--output -o ZIP (required)",
        "--run RUN",
        "--root PATH",
        "--split STR = test",
        "--device STR",
        "--set KEY=VALUE...",
        "--json",
        "--checkpoint last|best = last",
    ],
    "export": [
        "RUN (required)",
        "--output -o DIR (required)",
        "--format folder|onnx|pt2 = folder",
        "--with-backbone",
        "--size WxH",
        "--json",
        "--checkpoint last|best = last",
    ],
    "push": [
        "RUN (required)",
        "REPO (required)",
        "--private",
        "--with-backbone",
        "--license ID",
        "--json",
    ],
    "import": [
        "CKPT (required)",
        "--output -o RUN (required)",
        "--config CONFIG",
    ],
    "init": [
        "FILE",
        "--folder DIR",
        "--output -o FILE",
        "--force",
    ],
    "check": [
        "CONFIG",
        "--config YAML",
        "--set KEY=VALUE...",
        "--json",
        "--measure",
    ],
    "bench": [
        "CONFIG",
        "--set KEY=VALUE...",
        "--work STR = both",
        "--schedules STR",
        "--precisions STR = auto",
        "--batch-sizes STR = 1",
        "--size WIDTHxHEIGHT",
        "--repeats INT = 3",
        "--random-weights NAME",
        "--device STR",
        "--json",
    ],
    "domains": [
        "--root PATH",
        "--json",
    ],
    "doctor": [
        "--run RUN",
        "--json",
    ],
    "data inspect": [
        "--domain NAME...",
        "--root PATH",
        "--split STR",
        "--config CONFIG",
        "--set KEY=VALUE...",
        "--output -o DIR = inspected",
        "--json",
    ],
    "data preview": [
        "CONFIG (required)",
        "--set KEY=VALUE...",
        "--draws N = 12",
        "--output -o FILE = preview.png",
        "--json",
    ],
}


def commands() -> dict[str, Any]:
    """Every command by the words that call it, from Typer's tree."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {word}": one for word, one in inner.items()} if inner else {name: command}
    return found


def described(parameter: Any) -> str:
    """An argument or option in one line."""
    annotation = parameter.type_descriptor.annotation
    choices = "|".join(map(str, get_args(annotation))) if parameter.metavar is None else ""
    value = parameter.metavar or choices or annotation.__name__.upper()
    if parameter.param_type_name == "option":
        value = " ".join(parameter.opts if parameter.is_flag else [*parameter.opts, value])
    if (parameter.multiple or parameter.nargs == -1) and not value.endswith("..."):
        value += "..."
    if parameter.required:
        return f"{value} (required)"
    return (
        value
        if getattr(parameter, "is_flag", False) or parameter.default is None
        else f"{value} = {parameter.default}"
    )


def test_commands_and_options_are_frozen() -> None:
    found = {name: sorted(map(described, command.params)) for name, command in commands().items()}
    assert found == {name: sorted(parameters) for name, parameters in COMMANDS.items()}


def test_every_option_is_explained() -> None:
    assert not [
        (name, one.name) for name, command in commands().items() for one in command.params if not one.help
    ]
