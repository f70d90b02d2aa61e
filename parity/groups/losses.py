"""Group b_losses: progress, success and total loss with their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.difference import close, exact, wrong_upstream
from parity.groups.logged import logged_rows, spearman, success_metrics
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.upstream.losses import mean_by_clip, upstream_losses
from robometer.sampling.targets import success_mask
from robometer.training.batch import Batch, ClipTargets, RewardOutput, progress_from_logits
from robometer.training.config import LossConfig
from robometer.training.losses import binary_error, compute_losses, progress_error, two_hot

GROUP = "b_losses"
_LOSS = {"atol": 1e-5, "rtol": 1e-5}
_GRADIENT = {"atol": 1e-12, "rtol": 1e-4}

_METRICS = {
    "accuracy": "accuracy",
    "auprc": "auprc",
    "weighted": "m_weighted_accuracy",
    "positive": "m_positive_accuracy_scalar",
    "negative": "m_negative_accuracy_scalar",
    "loss_weight": "m_success_loss_weight",
    "num_positives": "m_num_positives",
    "num_negatives": "m_num_negatives",
}
"""Recorded arrays of our names of what `success_metrics` gives."""

Arrays = dict[str, Tensor]


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    compare = {"progress": _progress, "success": _success, "total": _total}
    for recorded in read(recorded_set.folder / GROUP / "cases.json"):
        case = f"{GROUP}/{recorded['kind']}/{recorded['case']:04d}"
        if "error" in recorded:
            yield _raised(case, recorded)
            continue
        with np.load(recorded_set.folder / GROUP / recorded["file"]) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        yield from compare[recorded["kind"]](case, recorded, tensors)


def continuous(target: Tensor) -> Tensor:
    """Targets [B, S] of two-hot rows [B, S, bins]; others as they are."""
    return target if target.ndim == 2 else (target * torch.linspace(0, 1, target.shape[-1])).sum(-1)


def success_frames(progress: Tensor, label: Tensor, quality: list[str | None], min_success: float) -> Tensor:
    """Frames [B, S] that train the success head, by our sampling rules."""
    pairs = zip(progress.numpy(), label.numpy(), quality, strict=True)
    return torch.from_numpy(np.stack([success_mask(p, y, q, min_success) for p, y, q in pairs]))


def _frames_of(recorded: dict[str, Any]) -> int:
    """Of a video given as such, every second frame has a prediction."""
    return 1 if recorded["use_multi_image"] or not recorded["base_is_qwen"] else 2


def _progress(case: str, recorded: dict[str, Any], arrays: Arrays) -> Iterator[Row]:
    step = _frames_of(recorded)
    target = arrays["target"][:, ::step]
    if recorded["target"] == "index":
        target = target.clamp(0, recorded["bins"] - 1) / (recorded["bins"] - 1)
    target = continuous(target)
    mask = arrays["mask"] if arrays["mask"].shape[1] == 1 else arrays["mask"][:, ::step]
    if "predict_last_frame_mask" in arrays:
        mask = mask * arrays["predict_last_frame_mask"][:, ::step]
    elif recorded["predict_last_frame_progress"]:
        mask = mask * _last_frame(target)
    prediction = arrays["pred"].clone().requires_grad_()
    discrete = recorded["loss"] == "discrete"
    logits = prediction if discrete else prediction[..., None]
    error = progress_error(logits, target, recorded["loss"])
    loss = mean_by_clip(error, mask)
    loss.backward()
    yield close(case, "progress loss", loss, arrays["loss"], **_LOSS)
    if mask.shape[1] > 1 and mask.any():
        mean = (error * mask).sum() / mask.sum()
        yield wrong_upstream(case, "progress loss", "it is divided by the frames of a clip once more", loss, mean)
    yield close(case, "progress loss by frame", error * mask, arrays["masked_loss"], **_LOSS)
    yield close(case, "gradient of the progress loss", prediction.grad, arrays["grad_pred"], **_GRADIENT)
    ranks = spearman(progress_from_logits(logits.detach()), target, mask)
    yield close(case, "Spearman of progress", ranks, arrays["masked_spearman"], **_LOSS)
    yield close(case, "Spearman of progress, mean", ranks.mean(), arrays["spearman"], **_LOSS)
    if "masked_correct" in arrays:
        correct = (logits.argmax(-1) == two_hot(target, recorded["bins"]).argmax(-1)) * mask
        yield exact(case, "most likely bin is right", correct, arrays["masked_correct"])


def _last_frame(target: Tensor) -> Tensor:
    mask = torch.zeros_like(target)
    mask[:, -1] = 1
    return mask


def _raised(case: str, recorded: dict[str, Any]) -> Row:
    """Upstream cannot mask all but the last frame of two-hot targets; its inputs are not recorded."""
    generator = torch.Generator().manual_seed(recorded["case"])
    shape = (recorded["B"], recorded["S"])
    target = torch.rand(shape, generator=generator)
    logits = torch.randn((*shape, recorded["bins"] or 1), generator=generator)
    loss = mean_by_clip(progress_error(logits, target, recorded["loss"]), _last_frame(target))
    reason = "the mask of the last frame has the shape of index targets"
    ours = f"{loss.item():.4f} on random inputs of that shape"
    return wrong_upstream(case, "progress loss", reason, f"{recorded['error']}: {recorded['message']}", ours)


def _batch(targets: ClipTargets, label: Tensor, is_pair: Tensor) -> Batch:
    n = len(label)
    return Batch(torch.arange(n), {}, targets, targets, label, is_pair, torch.zeros(n, dtype=torch.int64))


def _success(case: str, recorded: dict[str, Any], arrays: Arrays) -> Iterator[Row]:
    step = _frames_of(recorded)
    logits = arrays["logits"].clone().requires_grad_()
    frame_logits, label = logits[:, ::step], arrays["success_labels"][:, ::step]
    progress = continuous(arrays["target_progress"])[:, ::step]
    mask = success_frames(progress, label, recorded["quality_labels"] or [None] * len(label), recorded["min_success"])
    none = torch.zeros_like(mask)
    single = torch.zeros(len(label), dtype=torch.bool)
    batch = _batch(ClipTargets(~none, progress, none, label, mask), single.float(), single)
    output = RewardOutput(torch.zeros(*label.shape, 1), frame_logits)
    loss = upstream_losses(output, batch, LossConfig(), "l2").success
    loss.backward()
    what = "success loss"
    if mask.any():
        yield close(case, what, loss, arrays["loss"], **_LOSS)
    else:
        yield wrong_upstream(case, what, "it is NaN where no frame is supervised", arrays["loss"], loss)
    yield close(case, "gradient of the success loss", logits.grad, arrays["grad_logits"], **_GRADIENT)
    yield from _success_metrics(case, frame_logits.detach(), label, mask, arrays)
    if arrays["m_success_loss_weight"] != 1:
        ours = compute_losses(output, batch, LossConfig(), "l2").success
        yield wrong_upstream(case, what, "its class weights cancel out of the loss", arrays["loss"], ours)


def _success_metrics(case: str, logits: Tensor, label: Tensor, mask: Tensor, arrays: Arrays) -> Iterator[Row]:
    right = ((logits > 0) == (label > 0.5)).float()
    yield exact(case, "success is right", right * mask, arrays["m_masked_correct"])
    yield close(case, "success loss by frame", binary_error(logits, label) * mask, arrays["m_masked_loss"], **_LOSS)
    for name, own in {"positive": mask & (label > 0.5), "negative": mask & (label <= 0.5)}.items():
        values = torch.where(own, right, math.nan)
        yield close(case, f"success is right, {name}", values, arrays[f"m_{name}_accuracy"])
        if right[own].any() and own.sum() == mask.sum():
            theirs, ours = arrays[f"m_{name}_accuracy_scalar"], right[own].mean()
            reason = "it is 0 where all frames are of that class"
            yield wrong_upstream(case, f"success accuracy, {name}", reason, theirs, ours)
    scores = success_metrics(logits, label, mask)
    for metric, array in _METRICS.items():
        yield close(case, f"success {metric.replace('_', ' ')}", scores[metric], arrays[array], **_LOSS)


def _total(case: str, recorded: dict[str, Any], arrays: Arrays) -> Iterator[Row]:
    """A preference and a progress batch of upstream are one mixed batch of ours."""
    counts = {"pin_": recorded["num_preferences"], "gin_": recorded["num_progress"]}
    arrays = {name: value for name, value in arrays.items() if counts.get(name[:4], 1)}
    batch = mixed_targets(arrays, recorded["pref_inputs"], recorded["progress_inputs"], recorded["min_success"])
    output, leaves = _mixed_output(arrays, batch)
    config = LossConfig(
        pair_progress=recorded["predict_pref_progress"],
        success_weight=float(recorded["train_success_head"]),
    )
    losses = upstream_losses(output, batch, config, recorded["loss"])
    losses.total.backward()
    yield close(case, "total loss", losses.total, arrays["total_loss"], **_LOSS)
    for name, leaf in leaves.items():
        # What upstream does not train has no gradient there, and a gradient of 0 here.
        theirs = arrays.get(f"grad_{name}", torch.zeros_like(leaf))
        ours = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        yield close(case, f"gradient of {name}", ours, theirs, **_GRADIENT)
    facts = recorded["pref_inputs"], recorded["progress_inputs"]
    supervised = supervised_samples(arrays)
    yield from logged_rows(case, output, batch, supervised, facts, config, recorded["loss"], recorded["logged"])


def mixed_targets(arrays: Arrays, pairs: dict[str, Any], singles: dict[str, Any], min_success: float) -> Batch:
    """Targets of a preference batch (`pin_*`) and a progress batch (`gin_*`) together; either may be missing."""
    sides = []
    for prefix, suffix, facts, quality in (
        ("pin_", "_A", pairs, "trajectory_A_quality_label"),
        ("gin_", "", singles, "quality_labels"),
    ):
        if f"{prefix}target_progress{suffix}" in arrays:
            progress = continuous(arrays[f"{prefix}target_progress{suffix}"])
            label = arrays[f"{prefix}success_labels{suffix}"]
            valid = arrays[f"{prefix}target_progress{suffix}_mask"].reshape(-1, 1)
            mask = valid * arrays[f"{prefix}predict_last_frame_mask{suffix}"]
            frames = success_frames(progress, label, facts[quality], min_success)
            sides.append((torch.ones_like(frames), progress, mask > 0, label, frames))
    targets = ClipTargets(*(torch.cat(parts) for parts in zip(*sides, strict=True)))
    label = torch.zeros(len(targets.frame_mask))
    labels = arrays.get("pin_preference_labels", label[:0])
    label[: len(labels)] = labels
    return _batch(targets, label, torch.arange(len(label)) < len(labels))


def supervised_samples(arrays: Arrays) -> Tensor:
    """Samples bool [B] of a mixed batch whose progress is trained."""
    names = ("pin_target_progress_A_mask", "gin_target_progress_mask")
    return torch.cat([arrays[name].reshape(-1) for name in names if name in arrays]) > 0


def _mixed_output(arrays: Arrays, batch: Batch) -> tuple[RewardOutput, Arrays]:
    """Recorded outputs as one `RewardOutput`, and the tensors that they came from, which collect gradients."""
    pairs = int(batch.preference_mask.sum())
    names = ["pref_progress_A", "pref_success_A", "pref_logits"] if pairs else []
    names += ["progress_A", "success_A"] if pairs < len(batch.preference_mask) else []
    leaves = {name: arrays[name].clone().requires_grad_() for name in names}
    progress, success = (
        torch.cat([leaves[name] for name in (f"pref_{kind}_A", f"{kind}_A") if name in leaves])
        for kind in ("progress", "success")
    )
    preference = torch.zeros(len(batch.preference_label))
    if pairs:
        preference = torch.cat([leaves["pref_logits"][:, 0], preference[pairs:]])
    return RewardOutput(
        progress if progress.ndim == 3 else progress[..., None], success, None, None, preference
    ), leaves
