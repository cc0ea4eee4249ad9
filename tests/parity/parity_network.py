"""The network's part of `parity.py`: inversion, fusion, head, the whole, and one training step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parity_kit import (
    EXACT,
    FORWARD,
    GRADIENT,
    RATE,
    STRIDES,
    UPDATE,
    Arrays,
    Inputs,
    Kit,
    Report,
    read_inputs,
    scalar_error,
    vector,
)
from torch import Tensor

from diffcli.config.settings import LossConfig, TrainConfig
from diffcli.core.decoder import SegmentationDecoder
from diffcli.core.features import DiffusionFeatureExtractor
from diffcli.core.inversion import InversionStep, invert, prompt_groups
from diffcli.core.ipkl import (
    PairedDecoder,
    ce_consistency,
    dice_consistency,
    ipkl_loss,
    kl_consistency,
    mse_consistency,
)
from diffcli.core.metrics import ConfusionMatrix
from diffcli.training.optimizer import BETAS, parameter_groups


def check_inversion(kit: Kit, report: Report, name: str) -> None:
    """Latents, noise predictions and features of one inversion."""
    arrays, case = kit.arrays(name), Path(name).stem
    inputs = read_inputs(kit, arrays, labelled="gt" in arrays)
    schedule = kit.schedule_of(arrays)
    extractor = kit.extractor(schedule, stages=(0, 1, 2, 3))
    noise = inputs.noise()
    posterior = kit.backbone.encode(inputs.images)
    scale = float(kit.backbone.vae.config["scaling_factor"])
    latent = extractor.encode(inputs.images, noise=noise)
    ours = {"vae_mean": posterior.mean / scale, "vae_std": posterior.std / scale, "latent": latent}

    references = inputs.labels or [None] * len(inputs.images)
    size = (latent.shape[-2], latent.shape[-1])
    groups = [prompt_groups(x, prompt="", class_prompts=kit.label_map, latent_size=size) for x in references]
    run = invert(
        latent,
        backbone=kit.backbone,
        schedule=extractor.schedule,
        groups=groups,
        config=extractor.config,
        noise=noise,
        layers=extractor.layers,
        max_unet_batch=2,
        steps=len(schedule.timesteps),
    )
    steps = list(run)
    ours["t"] = torch.tensor(extractor.schedule.timesteps[: len(steps)])
    ours["x_steps"] = torch.stack([steps[0].latent, *(step.next_latent for step in steps)])
    for key, value in ours.items():
        if key in arrays:
            report.compare(f"{case}/{key}", value, arrays[key])
    for key, step in (("eps_first", steps[0]), ("eps_last", steps[-1])):
        if key in arrays:
            _compare_branches(kit, report, f"{case}/{key}", arrays[key], step, inputs)
    if "text_embeds" in arrays:
        prompts = [prompt for prompt in _branches(kit, inputs) for _ in inputs.images]
        embeds = torch.stack([kit.backbone.prompt_embeddings[prompt] for prompt in prompts])
        report.compare(f"{case}/text_embeds", embeds, arrays["text_embeds"])
    features = extractor.extract(inputs.images, noise=inputs.noise(), references=inputs.labels)
    _compare_features(report, case, arrays, features, extractor, inputs)


def _branches(kit: Kit, inputs: Inputs) -> list[str]:
    """Prompts of the kit's branches: negative, plain, then one a class of the batch."""
    return ["", "", *(kit.label_map[train_id] for train_id in inputs.union)]


def _compare_branches(
    kit: Kit, report: Report, name: str, theirs: Tensor, step: InversionStep, inputs: Inputs
) -> None:
    """Network outputs, branch-major in the kit, where an image also has rows for classes that only others hold."""
    prompts, batch = _branches(kit, inputs), len(inputs.images)
    if len(theirs) != len(prompts) * batch:
        report.error(name, float("inf"), FORWARD, f"{len(theirs)} rows, expected {len(prompts) * batch}")
        return
    ours, rows = [], []
    for branch, prompt in enumerate(prompts):
        for image in range(batch):
            if branch < 2 or inputs.union[branch - 2] in inputs.own[image]:
                own = step.rows.of(image)
                ours.append(step.eps[own][step.rows.prompts[own].index(prompt)])
                rows.append(branch * batch + image)
    report.compare(name, torch.stack(ours), theirs[rows])
    if len(rows) < len(theirs):
        left = len(theirs) - len(rows)
        report.skip(
            name,
            f"{left} of {len(theirs)} rows, an image's evaluations for classes that only another one holds",
        )


def _compare_features(
    report: Report,
    case: str,
    arrays: Arrays,
    features: Sequence[Tensor],
    extractor: DiffusionFeatureExtractor,
    inputs: Inputs,
) -> None:
    """Stacks of the four strides, subsampled as the kit's are; of images that share a batch, their own part."""
    shared = [image for image in range(len(inputs.images)) if image not in inputs.alone]
    subsampling = arrays["feats_sub"].tolist() if "feats_sub" in arrays else [1] * len(features)
    for stage, (stack, stride, sub) in enumerate(zip(features, STRIDES, subsampling, strict=True)):
        key = f"feats_s{stride}"
        if key not in arrays:
            continue
        ours, theirs = stack[:, ::sub], arrays[key]
        kept = torch.ones(ours.shape[:2], dtype=torch.bool)
        kept[shared] = torch.arange(0, stack.shape[1], sub) < _resnet_channels(extractor, stage)
        if kept.all() or ours.shape != theirs.shape:
            report.compare(f"{case}/{key}", ours, theirs)
        else:
            report.compare(f"{case}/{key}", ours[kept], theirs[kept])
            report.skip(
                f"{case}/{key}", f"attention channels of {len(shared)} images: they sum other images' classes"
            )
    if "feats_channels" in arrays:
        channels = torch.tensor([stack.shape[1] for stack in features])
        report.compare(f"{case}/feats_channels", channels, arrays["feats_channels"], EXACT)
    if "feats_abs_mean" in arrays and shared:
        arrays.read.add("feats_abs_mean")
        report.skip(f"{case}/feats_abs_mean", "includes attention channels that sum other images' classes")
    elif "feats_abs_mean" in arrays:
        means = torch.stack([stack.double().abs().mean() for stack in features])
        report.compare(f"{case}/feats_abs_mean", means, arrays["feats_abs_mean"])


def _resnet_channels(extractor: DiffusionFeatureExtractor, stage: int) -> int:
    """Channels of a stage's stack that come from resnets; they come first."""
    layers = [layer for layer in extractor.layers if layer.stage == stage]
    widths = zip(layers, extractor.widths(stage), strict=True)
    return extractor.steps * sum(width for layer, width in widths if layer.kind == "resnet")


def _fused(kit: Kit) -> tuple[SegmentationDecoder, list[Tensor]]:
    """The kit's decoder, and the unlabelled short inversion's maps after fusion (coarsest first)."""
    arrays = kit.arrays("inversion_uncond_short.npz")
    schedule = kit.schedule_of(arrays)
    inputs = read_inputs(kit, arrays, labelled=False)
    decoder = kit.decoder(schedule)
    return decoder, decoder.fusion(kit.extractor(schedule).extract(inputs.images, noise=inputs.noise()))


@torch.no_grad()
def check_aggregation(kit: Kit, report: Report, name: str) -> None:
    """Direct fusion, the pyramid, and the channels per layer and stride."""
    arrays = kit.arrays(name)
    decoder, fused = _fused(kit)
    ours = {f"direct_s{stride}": x for stride, x in zip(STRIDES[1:], fused, strict=True)}
    pyramid = decoder.pyramid(fused)
    ours |= {f"finecoder_x{stride}": x for stride, x in zip((4, 8, 16, 32), pyramid, strict=True)}
    for key, value in ours.items():
        if key in arrays:
            report.compare(f"aggregation/{key}", value, arrays[key])
    _compare_widths(kit, report, arrays)
    on_purpose = {
        "direct_s64": "nothing uses the stride-64 fusion, so it is not built",
        "mixed_": "the published variant slices the channels wrongly; ours gives each pair its own weight",
        "vanilla_": "the published variant slices the channels wrongly; ours gives each pair its own weight",
    }
    for key in arrays:
        for prefix, reason in on_purpose.items():
            if key.startswith(prefix):
                arrays.read.add(key)
                report.skip(f"aggregation/{key}", reason)


def _compare_widths(kit: Kit, report: Report, arrays: Arrays) -> None:
    """Channels of one saved step, per layer (resnet and attention) and per stride."""
    extractor = kit.extractor(kit.schedules["short"], stages=(0, 1, 2, 3))
    by_layer: dict[tuple[int, int], int] = {}
    for stage in extractor.stages:
        layers = [layer for layer in extractor.layers if layer.stage == stage]
        for layer, width in zip(layers, extractor.widths(stage), strict=True):
            by_layer[stage, layer.layer] = by_layer.get((stage, layer.layer), 0) + width
    ours = {
        "dims_by_idx": [by_layer[key] for key in sorted(by_layer)],
        "dims_by_stride": [sum(extractor.widths(stage)) for stage in extractor.stages],
    }
    for key, value in ours.items():
        if key in arrays:
            report.compare(f"aggregation/{key}", torch.tensor(value), arrays[key], EXACT)


def _pyramid(kit: Kit) -> list[Tensor]:
    """The head's input: the kit's where it is given, else ours."""
    keys = [f"finecoder_x{stride}" for stride in (4, 8, 16, 32)]
    given = kit.arrays("aggregation.npz") if "aggregation.npz" in kit.files else {}
    if all(key in given for key in keys):
        return [given[key] for key in keys]
    decoder, fused = _fused(kit)
    return decoder.pyramid(fused)


@torch.no_grad()
def check_head(kit: Kit, report: Report, name: str) -> None:
    """The head in both modes, and its buffers after the training one."""
    arrays = kit.arrays(name)
    decoder, pyramid = kit.decoder(kit.schedules["short"]), _pyramid(kit)
    if "eval_logits" in arrays:
        report.compare("head/eval_logits", decoder.head(pyramid), arrays["eval_logits"])
    logits = decoder.head.train()(pyramid)
    if "train_logits" in arrays:
        report.compare("head/train_logits", logits, arrays["train_logits"])
    after = {f"decode_head.{key}": value for key, value in arrays.under("train_after/").items()}
    _compare_buffers(kit, report, "head/train_after", decoder, after)


def _compare_buffers(
    kit: Kit, report: Report, prefix: str, decoder: SegmentationDecoder, after: Mapping[str, Tensor]
) -> None:
    """BatchNorm's running statistics under their published names."""
    state = decoder.state_dict()
    for key, theirs in after.items():
        tolerance = FORWARD if theirs.is_floating_point() else EXACT
        report.compare(f"{prefix}/{key}", state[kit.our_names[key]], theirs, tolerance)


@torch.no_grad()
def check_end_to_end(kit: Kit, report: Report, name: str) -> None:
    """Image to prediction: logits to the image's size, then to the original one."""
    arrays = kit.arrays(name)
    schedule = kit.schedule_of(arrays)
    inputs = read_inputs(kit, arrays, labelled=False)
    logits = kit.decoder(schedule)(kit.extractor(schedule).extract(inputs.images, noise=inputs.noise()))
    if "logits" in arrays:
        report.compare("end_to_end/logits", logits, arrays["logits"])
    full = F.interpolate(logits, inputs.images.shape[-2:], mode="bilinear", align_corners=False)
    size = arrays["pred"].shape[-2:]
    probabilities = F.interpolate(full, size, mode="bilinear", align_corners=False).softmax(1)
    if "prob_sub" in arrays:
        report.compare("end_to_end/prob_sub", probabilities[..., ::8, ::8], arrays["prob_sub"])
    best, second = probabilities.topk(2, dim=1).values.unbind(1)
    theirs = arrays["pred"].reshape(best.shape)
    wrong = (probabilities.argmax(1) != theirs) & (best - second > FORWARD)
    report.error(
        "end_to_end/pred", float(wrong.double().mean()), EXACT, f"share of {wrong.numel()} pixels, ties apart"
    )
    arrays.read.add("margin_min")


def check_ipkl(kit: Kit, report: Report, name: str) -> None:
    """One training step: logits, losses, gradients, running statistics, and AdamW's update."""
    arrays, facts = kit.arrays(name), kit.json(str(Path(name).with_suffix(".json")))
    schedule = kit.schedule_of(arrays, prefix="w_")
    extractor, decoder = kit.extractor(schedule), kit.decoder(schedule).train()
    features = []
    for prefix, labelled in (("w_", True), ("wo_", False)):
        inputs = read_inputs(kit, arrays, prefix=prefix, labelled=labelled)
        features.append(extractor.extract(inputs.images, noise=inputs.noise(), references=inputs.labels))
    conditional, unconditional = PairedDecoder(decoder)(*features)
    labels = arrays["gt"][:, 0].long()
    losses = ipkl_loss(unconditional, conditional, labels, LossConfig())
    losses.total.backward()

    for key, logits in (("logits_w_seg", conditional), ("logits_wo_seg", unconditional)):
        if key in arrays:
            report.compare(f"ipkl/{key}", logits, arrays[key])
    ours = {
        "loss": losses.total,
        "consistency_loss": losses.consistency,
        "decode_w_seg.loss_seg": losses.conditional,
        "decode_wo_seg.loss_seg": losses.unconditional,
        "decode_w_seg.logits": conditional.mean(),
        "decode_wo_seg.logits": unconditional.mean(),
    }
    accuracies = {
        "decode_w_seg.acc_seg": _accuracy(conditional, labels),
        "decode_wo_seg.acc_seg": _accuracy(unconditional, labels),
    }
    for key, theirs in facts["losses"].items():
        if key in accuracies:
            one_pixel = 101 / labels.numel()
            error, note = abs(accuracies[key] - theirs), "absolute, in percent; a tie may flip one pixel"
            report.error(f"ipkl/losses/{key}", error, max(2e-3, one_pixel), note)
        else:
            # a mean of logits may lie near zero: what matters is its error beside their size
            floor = float(conditional.detach().abs().mean()) if key.endswith(".logits") else 0.0
            error = scalar_error(ours[key].item(), theirs, floor=floor)
            report.error(f"ipkl/losses/{key}", error, FORWARD)
    _compare_gradients(kit, report, decoder, arrays, facts)
    _compare_buffers(kit, report, "ipkl/after", decoder, arrays.under("after/"))
    _compare_update(kit, report, decoder, facts)
    student = arrays.get("logits_wo_seg", unconditional.detach())
    teacher = arrays.get("logits_w_seg", conditional.detach())
    _compare_consistency(report, student, teacher, facts["alternative_consistency"])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    """Correct pixels in percent of all pixels, ignored ones included."""
    resized = F.interpolate(logits.detach(), labels.shape[-2:], mode="bilinear", align_corners=False)
    matrix = ConfusionMatrix(logits.shape[1])
    matrix.update(resized.argmax(1), labels)
    return 100 * float(matrix.counts.trace()) / labels.numel()


def _published(kit: Kit, values: Mapping[str, float]) -> dict[str, float]:
    """Our parameter names back to the published ones."""
    return {name: values[ours] for name, ours in kit.our_names.items() if ours in values}


def _compare_gradients(
    kit: Kit, report: Report, decoder: SegmentationDecoder, arrays: Arrays, facts: dict[str, Any]
) -> None:
    """Stored gradients, every gradient's norm, and which parameters get none."""
    gradients = {name: p.grad for name, p in decoder.named_parameters()}
    for key, theirs in arrays.under("grad/").items():
        report.compare(f"ipkl/grad/{key}", gradients[kit.our_names[key]], theirs, GRADIENT)
    norms = _published(kit, {name: float(g.double().norm()) for name, g in gradients.items()})
    report.compare_each("ipkl/grad_norms", norms, facts["grad_norms"], GRADIENT)
    idle = set(facts["trainable_without_grad"])
    report.error("ipkl/trainable_without_grad", float(len(idle & norms.keys())), EXACT, "of them built here")


def _compare_update(kit: Kit, report: Report, decoder: SegmentationDecoder, facts: dict[str, Any]) -> None:
    """AdamW's parameter groups, and how far one step of it moves every parameter."""
    recipe = TrainConfig()
    groups = parameter_groups(
        decoder, learning_rate=recipe.learning_rate, head_multiplier=recipe.head_multiplier
    )
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=recipe.weight_decay)
    _compare_groups(kit, report, decoder, optimizer, facts)
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    optimizer.step()
    deltas = {
        name: float((p.detach() - before[name]).double().norm()) for name, p in decoder.named_parameters()
    }
    idle = facts["trainable_without_grad"]
    theirs = {key: value for key, value in facts["adamw_step_delta_norms"].items() if key not in idle}
    report.compare_each("ipkl/adamw_step_delta_norms", _published(kit, deltas), theirs, UPDATE)
    report.skip(
        "ipkl/adamw_step_delta_norms", f"{len(idle)} parameters that never get a gradient are not built"
    )


def _compare_groups(
    kit: Kit,
    report: Report,
    decoder: SegmentationDecoder,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> None:
    """Who learns at ten times the rate, and the rates and weight decays."""
    theirs = facts["param_groups"]
    published = {ours: name for name, ours in kit.our_names.items()}
    names = {p: published[name] for name, p in decoder.named_parameters()}
    base, fast = ([names[p] for p in group["params"]] for group in optimizer.param_groups)
    stray = set(fast) ^ set(theirs["x10 lr"])
    report.error("ipkl/param_groups/x10 lr", float(len(stray)), EXACT, f"names that differ of {len(fast)}")
    built = theirs["base lr count"] - len(set(facts["trainable_without_grad"]))
    report.error(
        "ipkl/param_groups/base lr count",
        float(abs(len(base) - built)),
        EXACT,
        "of the parameters built here",
    )
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    report.compare("ipkl/param_groups/lrs seen", vector(rates), vector(sorted(theirs["lrs seen"])), RATE)
    decays = sorted({group["weight_decay"] for group in optimizer.param_groups})
    seen = sorted(theirs["weight decays seen"])
    report.compare("ipkl/param_groups/weight decays seen", vector(decays), vector(seen), RATE)


def _compare_consistency(
    report: Report, student: Tensor, teacher: Tensor, facts: Mapping[str, float]
) -> None:
    """Our distances, weighted, summed and clamped as the published ones are."""
    for key, theirs in facts.items():
        kind, *words = key.split()
        given = {name: float(value) for name, value in (word.split("=") for word in words if "=" in word)}
        weight = given.get("lamb", 0.1)
        name = f"ipkl/alternative_consistency/{key}"
        match kind:
            case "kl":
                hot, cold = given["temp_s"], given["temp_t"]
                temperature = hot - given["iter"] / 40_000 * (hot - cold)
                pixels = student.shape[-2] * student.shape[-1]
                summed = pixels * kl_consistency(student, teacher, temperature=temperature)
                ours = min(weight * float(summed), given["max_v"])
            case "mse":
                ours = weight * float(mse_consistency(student, teacher))
            case "ce":
                ours = weight * float(ce_consistency(student, teacher))
            case "dice":
                ours = weight * float(dice_consistency(student, teacher, smooth=given.get("smooth", 1.0)))
            case _:
                report.skip(name, "diffcli offers mse, kl, ce and dice")
                continue
        report.error(name, scalar_error(ours, theirs), FORWARD)
