"""Load full-size pipelines with random weights through the loader: python tests/full_size.py FOLDER [LAYOUT ...]

Not collected by pytest: it writes about 11 GB into FOLDER (and removes them), and takes minutes. For every layout
(1.5, 2.1-base, 2.1) it saves a plain folder, an fp16 variant and a single file, loads each in a process of its own and
reads one-step features of a 512x512 image. One JSON line a case; exit code 1 when something does not fit.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

LAYOUTS = {"1.5": ("sd-1", "epsilon"), "2.1-base": ("sd-2", "epsilon"), "2.1": ("sd-2", "v_prediction")}
FILE_NAMES = {"1.5": "v1-5-pruned", "2.1-base": "v2-1_512-ema-pruned", "2.1": "v2-1_768-ema-pruned"}
CHANNELS = {"paper": [69120, 34560, 17280], "one": [7680, 3840, 1920]}


def main(work: Path, layouts: list[str]) -> int:
    """Build, measure and remove one layout after the other."""
    failures = 0
    for name in layouts:
        folder = work / name
        try:
            cases = build(folder, name)
            found = {case: measure(source, dtype) for case, (source, dtype) in cases.items()}
            for case, facts in found.items():
                faults = check(name, case, facts, found)
                failures += len(faults)
                shown = {key: value for key, value in facts.items() if key != "sample"}
                print(json.dumps({"layout": name, "case": case, **shown, "faults": faults}), flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failures else 0


def build(folder: Path, name: str) -> dict[str, tuple[Path, str]]:
    """Plain folder, fp16 variant beside it in another folder, single file: case -> (source, precision)."""
    from safetensors.torch import load_file, save_file

    from tests.fixtures.sd_layouts import SHIPPED, write_pipeline, write_single_file

    layout, prediction_type = LAYOUTS[name]
    plain = write_pipeline(folder / "plain", layout=SHIPPED / layout, prediction_type=prediction_type)
    half = folder / "half"
    shutil.copytree(plain, half, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in plain.rglob("*.safetensors"):
        variant = half / path.relative_to(plain).with_suffix(".fp16.safetensors")
        save_file(
            {key: tensor.half() for key, tensor in load_file(path).items()},
            variant,
            metadata={"format": "pt"},
        )
    single = write_single_file(half, folder / "single" / f"{FILE_NAMES[name]}.safetensors", variant="fp16")
    return {
        "folder, float32": (plain, "float32"),
        "fp16 variant, float32": (half, "float32"),
        "single fp16 file, float32": (single, "float32"),
        "single fp16 file, bf16": (single, "bf16"),
    }


def measure(source: Path, precision: str) -> dict[str, Any]:
    """Load and run in a fresh process, so that the peak is this case's own."""
    command = [sys.executable, __file__, "--measure", str(source), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr[-2000:]}
    return {**json.loads(done.stdout), "stderr": done.stderr}


def check(name: str, case: str, facts: dict[str, Any], others: dict[str, dict[str, Any]]) -> list[str]:
    """What is not as it should be."""
    if "error" in facts:
        return ["failed"]
    faults = [
        f"{schedule}: {facts[schedule]}" for schedule, want in CHANNELS.items() if facts[schedule] != want
    ]
    if facts["prediction_type"] != LAYOUTS[name][1]:
        faults.append(f"reads the output as {facts['prediction_type']}")
    if facts["stderr"]:
        faults.append("not quiet")
    reference = others["fp16 variant, float32"]
    scale = max(abs(x) for x in reference.get("sample", [1.0]))
    error = (
        max(abs(a - b) for a, b in zip(facts["sample"], reference.get("sample", []), strict=False)) / scale
    )
    facts["difference_from_fp16_variant"] = error
    limit = {"folder, float32": 2e-2, "single fp16 file, bf16": 2e-1}.get(case, 0.0)
    return [*faults, f"features differ by {error:.2g}"] if error > limit else faults


def measure_here(source: str, precision: str) -> dict[str, Any]:
    """Seconds, peak memory and features of one source."""
    import torch

    from diffcli.backbone.loading import load_backbone
    from diffcli.config.settings import BackboneConfig, InversionConfig
    from diffcli.core.features import DiffusionFeatureExtractor
    from diffcli.core.inversion import seeded_noise
    from diffcli.core.model import DTYPES

    torch.set_num_threads(1)
    start, private = time.perf_counter(), _Peak()
    config = InversionConfig(schedule="one")
    prompts = (config.prompt, *config.class_prompts.values())
    backbone = load_backbone(
        BackboneConfig(source=source), prompts=prompts, device=torch.device("cpu"), dtype=DTYPES[precision]
    )
    loaded = time.perf_counter()
    extractor = DiffusionFeatureExtractor(backbone, config, kinds="all")
    images = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = extractor.extract(images, noise=seeded_noise(0, ["image"]))
    done = time.perf_counter()
    default = DiffusionFeatureExtractor(backbone, InversionConfig(), kinds="all")
    return {
        "load_s": round(loaded - start, 1),
        "features_s": round(done - loaded, 1),
        "peak_gib": round(_status("VmHWM") / 2**20, 2),
        "peak_private_gib": round(private.stop() / 2**20, 2),
        "shapes": [list(x.shape) for x in maps],
        "one": list(extractor.channels),
        "paper": list(default.channels),
        "prediction_type": backbone.prediction_type,
        "sample": [float(v) for x in maps for v in x.float().flatten()[:: x.numel() // 50]],
    }


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


class _Peak:
    """Largest private memory seen (KiB): mapped weight files, which the system may drop, are not in it."""

    def __init__(self) -> None:
        self.value, self.running = 0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while self.running:
            self.value = max(self.value, _status("RssAnon"))
            time.sleep(0.05)

    def stop(self) -> int:
        self.running = False
        self.thread.join()
        return self.value


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure_here(*sys.argv[2:])))
    elif len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or list(LAYOUTS)))
    else:
        sys.exit(__doc__)
