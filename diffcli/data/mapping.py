"""Label values that no mapping knows, and the lines of YAML that would map them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli.classes import IGNORE_ID
from diffcli.errors import DataError, DiffError
from diffcli.runtime import words

Value = Any
"""A value (int) or a colour (red, green, blue) of a label file."""

_FEW, _MOST = 12, 40


class OutsideMapping(DataError):
    """A label file holds values or colours that its encoding does not know.

    Attributes:
        pixels: value or colour -> pixels of the file that have it.
        total: pixels of the file.
        setting: `LabelEncoding.setting`.
    """

    def __init__(self, pixels: Mapping[Value, int], *, total: int, path: Path, setting: str) -> None:
        super().__init__(f"label {_kind(pixels)} outside the mapping: {_list(list(pixels))}", where=str(path))
        self.pixels = dict(pixels)
        self.total = total
        self.setting = setting
        self.hint = mapping_hint(setting, self.pixels, total=total)


class ColoredLabel(OutsideMapping):
    """A label file holds colours, and none are known for it."""

    def __init__(self, pixels: Mapping[Value, int], *, total: int, path: Path, setting: str) -> None:
        super().__init__(pixels, total=total, path=path, setting=setting)
        self.message = f"the label is a colour image ({len(pixels)} colours), but no colours are known for it"


def all_outside(faults: Sequence[OutsideMapping], *, total: int) -> DataError:
    """Values outside the mapping of many files as one error, each with its share of all pixels.

    Args:
        faults: one for each file.
        total: pixels of all label files that were read.
    """
    pixels, files = counted(faults)
    first = faults[0]
    return DataError(
        f"{len(pixels)} label {_kind(pixels)} outside the mapping, in {words.counted(len(faults), 'file')}, the first: "
        f"{Path(str(first.where)).name}",
        where=str(Path(str(first.where)).parent),
        hint=mapping_hint(first.setting, pixels, total=total, files=files),
    )


def problem_lines(faults: Sequence[DiffError]) -> list[str]:
    """A line for each fault; values outside the mapping of several files come together, with the lines to add."""
    outside = [fault for fault in faults if isinstance(fault, OutsideMapping)]
    others = [str(fault).splitlines()[0] for fault in faults if not isinstance(fault, OutsideMapping)]
    if not outside:
        return others
    return [*others, *str(all_outside(outside, total=sum(fault.total for fault in outside))).splitlines()]


def counted(faults: Sequence[OutsideMapping]) -> tuple[Counter[Value], Counter[Value]]:
    """(pixels, files) of each value outside the mapping."""
    pixels: Counter[Value] = Counter()
    for fault in faults:
        pixels.update(fault.pixels)
    return pixels, Counter(value for fault in faults for value in fault.pixels)


def mapping_hint(
    setting: str, pixels: Mapping[Value, int], *, total: int, files: Mapping[Value, int] | None = None
) -> str:
    """What to write in YAML for values or colours outside the mapping: a line for each, with its share as a comment.

    Args:
        setting: what the user has set so far (`LabelEncoding.setting`).
        pixels: value or colour -> pixels that have it, of `total`.
        files: value or colour -> files that hold it.
    """
    lines = mapping_lines(dict.fromkeys(pixels, IGNORE_ID), pixels, total=total, files=files)
    if setting == "":
        return (
            "is this the right label folder? Labels of this domain have other values; any other encoding is read by "
            "domain: folder with label_ids or label_colors"
        )
    colors = _kind(pixels) == "colours"
    key, rest = ("label_colors", '["*", 255]') if colors else ("label_ids", '"*": 255')
    start = f"add to {key}" if setting == key else f"set {key}, with"
    return "\n".join(
        [
            f"{start} what they mean (255 is ignored; {rest} is every other one):",
            *(f"       {x}" for x in lines),
        ]
    )


def mapping_lines(
    train_ids: Mapping[Value, int],
    pixels: Mapping[Value, int],
    *,
    total: int,
    files: Mapping[Value, int] | None = None,
    most: int = _MOST,
) -> list[str]:
    """Lines of label_ids (11: 255  # 3.2 % of pixels in 133 files) or of label_colors, the largest share first."""
    lines = []
    for value in sorted(train_ids, key=lambda value: -pixels.get(value, 0))[:most]:
        entry = f"{value}: {train_ids[value]}"
        if isinstance(value, tuple):
            entry = f"- [[{', '.join(map(str, value))}], {train_ids[value]}]"
        count = f" in {words.counted(files[value], 'file')}" if files else ""
        lines.append(f"{entry}  # {percent(pixels.get(value, 0), total)} of pixels{count}")
    return [*lines, f"# and {len(train_ids) - most} more"] if len(train_ids) > most else lines


def likely_ids(values: Sequence[int], classes: int) -> dict[int, int] | None:
    """label_ids that the files' values suggest: each value a class, in their order; None where the counts differ.

    A value 255 beside as many others as there are classes is ignored.
    """
    named = sorted(values)
    if len(named) == classes + 1 and IGNORE_ID in named:
        named.remove(IGNORE_ID)
    if len(named) != classes or named == list(range(classes)):
        return None
    ignored = {IGNORE_ID: IGNORE_ID} if IGNORE_ID in values and IGNORE_ID not in named else {}
    return {**{value: train_id for train_id, value in enumerate(named)}, **ignored}


def percent(part: int, total: int) -> str:
    """A share in percent with two digits that count: 3.2 %, 0.014 %."""
    share = 100 * part / max(total, 1)
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def _kind(values: Mapping[Value, int]) -> str:
    return "colours" if isinstance(next(iter(values)), tuple) else "values"


def _list(values: Sequence[Value]) -> str:
    return ", ".join(str(value) for value in values[:_FEW]) + (", ..." if len(values) > _FEW else "")
