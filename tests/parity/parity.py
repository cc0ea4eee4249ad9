"""Check diffcli against a kit of golden arrays: python tests/parity/parity.py DIR [--weights DIR].

DIR holds arrays that the published implementation computed, with their inputs and every random draw; pipeline,
weights, label map, text and schedules may lie in --weights instead. Prints one line an array (name, error, tolerance)
and what is not compared on purpose. Exits 1 when one fails, or when nothing could be compared.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout, installed or not

import numpy as np
import torch
from parity_kit import EXACT, FORWARD, RATE, Kit, Report, vector
from parity_network import check_aggregation, check_end_to_end, check_head, check_inversion, check_ipkl
from torch import Tensor

from diffcli.backbone.components import load_text_encoder, load_tokenizer
from diffcli.backbone.loading import encode_prompts, quiet
from diffcli.backbone.locate import find_sources
from diffcli.config.settings import BackboneConfig, InversionConfig, TrainConfig
from diffcli.core.inversion import InversionSchedule, step_coefficients
from diffcli.core.metrics import ConfusionMatrix
from diffcli.data.statistics import rare_class_probabilities
from diffcli.training.optimizer import learning_rate_factor


def check_schedule(kit: Kit, report: Report, name: str) -> None:
    """Timesteps, saved steps and the coefficients of every step; the noise levels."""
    arrays, alphas, config = kit.arrays(name), kit.backbone.alphas_cumprod, InversionConfig()
    for key in [
        key.removesuffix("_t") for key in arrays if key.endswith("_t") and not key.endswith("next_t")
    ]:
        if key.endswith("alpha"):
            continue
        schedule = InversionSchedule.from_config(kit.schedules[key])
        moves = list(zip(schedule.timesteps, schedule.next_timesteps, strict=True))
        window = {"eta": config.eta, "s_tmin": config.s_tmin, "s_tmax": config.s_tmax}
        steps = [step_coefficients(alphas, t, target, **window) for t, target in moves]
        ours = {
            "t": schedule.timesteps,
            "next_t": schedule.next_timesteps,
            "alpha_t": [step.alpha for step in steps],
            "alpha_next": [step.alpha_next for step in steps],
            "eta": [config.eta if config.s_tmin < t < config.s_tmax else 0.0 for t, _ in moves],
            "c1": [step.sigma for step in steps],
            "c2": [step.direction for step in steps],
            "saved": [index in schedule.save_steps for index in range(len(steps))],
            "save_order": schedule.save_steps,
        }
        for part, values in ours.items():
            if f"{key}_{part}" in arrays:
                exact = part in ("t", "next_t", "eta", "saved", "save_order")
                theirs = arrays[f"{key}_{part}"]
                report.compare(
                    f"schedule/{key}_{part}",
                    torch.tensor(values).double(),
                    theirs,
                    EXACT if exact else FORWARD,
                )
    if "alphas_cumprod" in arrays:
        report.compare("schedule/alphas_cumprod", alphas, arrays["alphas_cumprod"])
    if "betas" in arrays:
        previous = torch.cat([torch.ones(1), alphas[:-1]]).double()
        report.compare("schedule/betas", 1 - alphas.double() / previous, arrays["betas"])


def check_text(kit: Kit, report: Report, name: str) -> None:
    """Token ids as they reach the text encoder, and the states that the U-Net is given."""
    arrays = kit.arrays(name)
    prompts = ["" if i < 0 else kit.label_map[i] for i in arrays["class_ids"].tolist()]
    if "token_ids" in arrays:
        report.compare("text/token_ids", _tokens(kit, prompts), arrays["token_ids"], EXACT)
    if "embeds" in arrays:
        embeds = torch.stack([kit.backbone.prompt_embeddings[prompt] for prompt in prompts])
        report.compare("text/embeds", embeds, arrays["embeds"])


def _tokens(kit: Kit, prompts: Sequence[str]) -> Tensor:
    """The ids that our loader feeds to the text encoder, as they reach it."""
    sources, seen = find_sources(BackboneConfig(source=str(kit.pipeline))), []
    with quiet():
        encoder = load_text_encoder(sources.text_encoder)
        encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        encode_prompts(prompts, tokenizer=load_tokenizer(sources), text_encoder=encoder)
    distinct = list(dict.fromkeys(prompts))
    return seen[0][[distinct.index(prompt) for prompt in prompts]]


def check_optim(kit: Kit, report: Report, name: str) -> None:
    """Learning rates of the recipe."""
    facts, recipe = kit.json(name), TrainConfig()
    factors = [
        learning_rate_factor(
            iteration,
            iterations=recipe.iterations,
            warmup_iterations=recipe.warmup_iterations,
        )
        for iteration in facts["iters"]
    ]
    for key, rate in (("lr_base", 1.0), ("lr_head", recipe.head_multiplier)):
        ours = recipe.learning_rate * rate * vector(factors)
        report.compare(f"optim/{key}", ours, vector(facts[key]), RATE)


def check_rcs(kit: Kit, report: Report, name: str) -> None:
    """Rare class sampling: which classes, in which order, how often."""
    facts = kit.json(name)
    counts = [{int(k): v for k, v in file.items() if k != "file"} for file in facts["sample_class_stats"]]
    totals = np.zeros(1 + max(i for file in counts for i in file), dtype=np.int64)
    for file in counts:
        for train_id, pixels in file.items():
            totals[train_id] += pixels
    for key, theirs in facts.items():
        if key.startswith("T="):
            classes, chances = rare_class_probabilities(totals, temperature=float(key.removeprefix("T=")))
            expected = torch.tensor(theirs["classes"])
            report.compare(f"rcs/{key}/classes", torch.from_numpy(classes), expected, EXACT)
            report.compare(f"rcs/{key}/probs", torch.from_numpy(chances), vector(theirs["probs"]))


def check_metric(kit: Kit, report: Report, name: str) -> None:
    """Scores from one confusion matrix over all images."""
    arrays = kit.arrays(name)
    matrix = ConfusionMatrix(len(arrays["IoU"]))
    for prediction, labels in zip(arrays["pred"], arrays["gt"], strict=True):
        matrix.update(prediction, labels)
    scores = matrix.scores()
    ours = {
        "IoU": scores.iou,
        "Acc": scores.accuracy,
        "Recall": scores.accuracy,
        "Precision": scores.precision,
        "Dice": scores.dice,
        "Fscore": 2 * scores.precision * scores.accuracy / (scores.precision + scores.accuracy),
        "aAcc": torch.tensor(scores.pixel_accuracy),
        "mIoU": torch.tensor(scores.mean_iou),
        "mAcc": torch.tensor(scores.mean_accuracy),
    }
    for key, value in ours.items():
        if key in arrays:
            report.compare(f"metric/{key}", value, arrays[key], nan_allowed=True)


CHECKS: dict[str, Callable[[Kit, Report, str], None]] = {
    "schedule.npz": check_schedule,
    "text.npz": check_text,
    "inversion_*.npz": check_inversion,
    "aggregation.npz": check_aggregation,
    "head.npz": check_head,
    "end_to_end_eval.npz": check_end_to_end,
    "ipkl.npz": check_ipkl,
    "optim.json": check_optim,
    "rcs.json": check_rcs,
    "metric.npz": check_metric,
}
"""File -> its check, in the order of the method."""


def check_kit(folder: Path, weights: Path | None = None) -> Report:
    """Compare everything that `folder` holds; what a check cannot read or compute fails by name."""
    kit, report = Kit(folder, weights or folder), Report()
    for pattern, check in CHECKS.items():
        for name in [name for name in kit.files if fnmatch(name, pattern)]:
            try:
                check(kit, report, name)
            except Exception as error:  # a damaged file or a mismatch deep inside is a finding like any other
                report.error(name, float("inf"), EXACT, f"{type(error).__name__}: {error}")
            else:
                _report_unread(kit, report, name)
    for name in kit.files:
        if name.endswith(".npz") and not any(fnmatch(name, pattern) for pattern in CHECKS):
            report.skip(name, "no file of this format")
    return report


def _report_unread(kit: Kit, report: Report, name: str) -> None:
    """Arrays that no check asked for are named, so that none is passed over in silence."""
    if name.endswith(".npz"):
        arrays = kit.arrays(name)
        for key in sorted(set(arrays) - arrays.read):
            report.skip(f"{Path(name).stem}/{key}", "no array of this format")


def main(argv: Sequence[str] | None = None) -> int:
    """Check a kit, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kit", type=Path, help="folder of golden arrays")
    parser.add_argument(
        "--weights", type=Path, help="folder that holds pipeline, weights, label map and text"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    for folder in filter(None, (arguments.kit, arguments.weights)):
        if not folder.is_dir():
            print(f"FAIL, no such folder: {folder}")
            return 1
    report = check_kit(arguments.kit, arguments.weights)
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
