"""Programs are checked before PyTorch opens them: whatever could run code is refused, whichever way it comes in."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli.errors import CheckpointError
from diffcli.export.archives import check_program

Edit = Callable[[dict[str, bytes]], None]
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(self.conv(x), scale_factor=2).softmax(1)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "network.pt2"
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=8)}}
    exported = torch.export.export(Network().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=batch)
    exported.example_inputs = None
    torch.export.save(exported, path)
    return path


def edited(program: Path, target: Path, edit: Edit) -> Path:
    """The archive with other members, by their names without the folder."""
    with zipfile.ZipFile(program) as old:
        root = old.namelist()[0].partition("/")[0]
        members = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    edit(members)
    with zipfile.ZipFile(target, "w") as new:
        for name, content in members.items():
            new.writestr(f"{root}/{name}", content)
    return target


def nodes(graph: Any) -> Iterator[dict[str, Any]]:
    """Every object in a serialized program."""
    if isinstance(graph, dict):
        yield graph
    for value in graph.values() if isinstance(graph, dict) else graph if isinstance(graph, list) else ():
        yield from nodes(value)


def in_graph(key: str, value: object) -> Edit:
    """The first object of the graph that has this key, with another value."""

    def edit(members: dict[str, bytes]) -> None:
        graph = json.loads(members[GRAPH])
        next(node for node in nodes(graph) if key in node)[key] = value
        members[GRAPH] = json.dumps(graph).encode()

    return edit


def pickled(name: str) -> Edit:
    """A member that touches a file when it is unpickled."""

    def edit(members: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        torch.save(Touch(Path("ran")), buffer)
        members[name] = buffer.getvalue()

    return edit


def pickled_weight(members: dict[str, bytes]) -> None:
    config = json.loads(members[WEIGHTS])
    next(iter(config["config"].values()))["use_pickle"] = True
    members[WEIGHTS] = json.dumps(config).encode()


CRAFTED: dict[str, tuple[Edit, str]] = {
    "sample inputs": (pickled("data/sample_inputs/model.pt"), "code in data/sample_inputs/model.pt"),
    "state of an earlier format": (pickled("serialized_state_dict.pt"), "code in serialized_state_dict"),
    "library": (pickled("data/aotinductor/model/x.so"), "a member"),
    "object": (pickled("data/constants/custom_obj_0"), "a member"),
    "pickled weight": (pickled_weight, "a pickled object weight_0"),
    "operator": (in_graph("target", "torch.os.system"), "an operator torch.os.system"),
    "operator of files": (in_graph("target", "torch.ops.aten.from_file.default"), "an operator"),
    "operator of another library": (in_graph("target", "torch.ops.mine.run.default"), "an operator"),
    "expression": (in_graph("expr_str", "__import__('os').system('touch ran')"), "an expression"),
    "called expression": (in_graph("expr_str", "exec(chr(97))"), "an expression"),
    "endless expression": (in_graph("expr_str", "9**9**9"), "an expression"),
    "guard": (in_graph("guards_code", ["__import__('os').system('touch ran')"]), "a guard"),
    "attribute in a guard": (in_graph("guards_code", ["L['x'].__class__ == 1"]), "a guard"),
    "type": (
        in_graph("in_spec", '[1, {"type": "collections.defaultdict", "context": null, "children_spec": []}]'),
        "a type in in_spec",
    ),
    "enum": (
        in_graph("in_spec", '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": 1}]"}]'),
        "a type in in_spec",
    ),
    "note": (in_graph("metadata", {"source_fn_stack": "x"}), "a note source_fn_stack"),
    "object in the graph": (in_graph("custom_obj_values", {"x": 1}), "an object"),
}


def test_what_is_exported_is_opened(program: Path) -> None:
    check_program(program)
    module = torch.export.load(program).module()
    assert module(torch.zeros(3, 3, 8, 8)).shape == (3, 4, 16, 16)


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_programs_are_refused(program: Path, tmp_path: Path, case: str) -> None:
    edit, message = CRAFTED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        check_program(edited(program, tmp_path / "crafted.pt2", edit))
    assert "not opened" in str(caught.value)


def test_two_members_of_one_name(program: Path, tmp_path: Path) -> None:
    def twice(members: dict[str, bytes]) -> None:
        members[GRAPH.upper()] = b"{}"

    with pytest.raises(CheckpointError, match="two members of one name"):
        check_program(edited(program, tmp_path / "twice.pt2", twice))


def test_compressed_members(program: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(program) as old,
        zipfile.ZipFile(tmp_path / "x.pt2", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        check_program(tmp_path / "x.pt2")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_damaged_programs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        check_program(tmp_path / "x.pt2")
    with pytest.raises(CheckpointError, match="missing"):
        check_program(tmp_path / "none.pt2")
