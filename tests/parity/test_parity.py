"""Equality with the published implementation's arrays, and that the check itself notices a difference."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "parity"


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    """tests/parity/parity.py, in process."""
    sys.path.insert(0, str(HERE))
    return importlib.import_module("parity")


@pytest.fixture
def kit(tmp_path: Path, parity_data: Path) -> Path:
    """A copy of the compact kit's arrays; pipeline and weights stay where they are."""
    for path in parity_data.iterdir():
        if path.suffix in (".npz", ".json"):
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def change(path: Path, name: str, change: object) -> None:
    """Rewrite one array of an npz file."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name] = change(arrays[name])  # type: ignore[operator]
    np.savez(path, **arrays)


def only(kit: Path, *names: str) -> None:
    for path in kit.iterdir():
        if path.name not in names:
            path.unlink()


def test_the_repository_proves_itself(
    parity: ModuleType, parity_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity.main([str(parity_data)]) == 0
    out = capsys.readouterr().out
    assert "ipkl/grad_norms" in out
    assert "end_to_end/pred" in out
    assert "all within tolerance" in out.splitlines()[-1]


def test_the_compact_kit_is_compact(parity_data: Path) -> None:
    assert sum(path.stat().st_size for path in parity_data.rglob("*") if path.is_file()) <= 5_000_000


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the whole kit lies beside the repository, not in it")
def test_the_whole_kit(parity: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(SHARED)]) == 0
    out = capsys.readouterr().out
    for array in (
        "inversion_uncond_default/feats_s8",
        "inversion_cond_short_batch2/x_steps",
        "aggregation/direct_s8",
    ):
        assert array in out


@pytest.mark.parametrize(
    ("file", "array", "edit"),
    [
        ("metric.npz", "IoU", lambda x: x + 1e-4),
        ("metric.npz", "mIoU", lambda x: x * np.nan),
        ("metric.npz", "Acc", lambda x: x[:-1]),
        ("schedule.npz", "default_c1", lambda x: x * 1.001),
        ("schedule.npz", "short_save_order", lambda x: x[::-1]),
    ],
)
def test_a_changed_array_fails(
    parity: ModuleType,
    kit: Path,
    parity_data: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    array: str,
    edit: object,
) -> None:
    only(kit, file)
    change(kit / file, array, edit)
    assert parity.main([str(kit), "--weights", str(parity_data)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if " FAIL " in f"{line} "]
    assert any(line.startswith(f"{Path(file).stem}/{array} ") for line in failed)


def test_changed_noise_fails_everything_after_it(
    parity: ModuleType, kit: Path, parity_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(kit, "ipkl.npz", "ipkl.json")
    change(kit / "ipkl.npz", "w_step_noise", lambda x: x[..., ::-1])
    assert parity.main([str(kit), "--weights", str(parity_data)]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in next(line for line in out.splitlines() if line.startswith("ipkl/losses/loss "))


def test_a_changed_number_fails(
    parity: ModuleType, kit: Path, parity_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(kit, "optim.json")
    facts = json.loads((kit / "optim.json").read_text())
    facts["lr_head"][3] *= 1 + 1e-6
    (kit / "optim.json").write_text(json.dumps(facts))
    assert parity.main([str(kit), "--weights", str(parity_data)]) == 1
    assert "optim/lr_head" in capsys.readouterr().out.splitlines()[-1]


def test_an_unknown_array_is_named(
    parity: ModuleType, kit: Path, parity_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(kit, "metric.npz")
    change(kit / "metric.npz", "IoU", lambda x: x)
    with np.load(kit / "metric.npz") as file:
        np.savez(kit / "metric.npz", **file, Surprise=np.zeros(3))
    assert parity.main([str(kit), "--weights", str(parity_data)]) == 0
    assert "metric/Surprise" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["empty", "absent"])
def test_nothing_to_compare_fails(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    folder = tmp_path / missing
    if missing == "empty":
        folder.mkdir()
    assert parity.main([str(folder)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_a_damaged_file_fails_by_name(
    parity: ModuleType, kit: Path, parity_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(kit, "metric.npz", "optim.json")
    (kit / "metric.npz").write_bytes(b"no archive")
    assert parity.main([str(kit), "--weights", str(parity_data)]) == 1
    assert "1 FAIL: metric.npz" in capsys.readouterr().out
