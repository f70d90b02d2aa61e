"""Progress, success and preference losses (arXiv 2603.02115): masked means over the global batch, then weighted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robometer.training.batch import Batch, ClipTargets, RewardOutput
from robometer.training.config import LossConfig

LOGIT_CLAMP = 50.0
TERMS = ("progress", "success_positive", "success_negative", "preference")
"""The terms of the loss, in the order of `counts`."""


@dataclass
class Losses:
    """Scalar losses of one micro-batch: the weighted `total`, which is differentiated, and its unweighted parts."""

    total: Tensor
    progress: Tensor
    success: Tensor
    preference: Tensor


def two_hot(values: Tensor, bins: int) -> Tensor:
    """Progress [...] in [0, 1] as probabilities [..., bins], split between the two nearest of linspace(0, 1, bins)."""
    position = values.clamp(0.0, 1.0) * (bins - 1)
    lower = position.floor()
    mass = (position - lower).unsqueeze(-1)
    index = lower.long()
    low = F.one_hot(index, bins) * (1.0 - mass)
    high = F.one_hot((index + 1).clamp(max=bins - 1), bins) * mass
    return (low + high).to(values.dtype)


def progress_error(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """Error per frame [...]: cross-entropy with two-hot targets (discrete), |d| (l1) or d^2 (l2)."""
    if kind == "discrete":
        return -(two_hot(target, logits.shape[-1]) * logits.float().log_softmax(-1)).sum(-1)
    difference = logits.squeeze(-1).float() - target
    return difference.abs() if kind == "l1" else difference.square()


def _supervised(batch: Batch, config: LossConfig) -> list[ClipTargets]:
    both = config.supervise_b and batch.b.frame_mask.shape[1] > 0
    sides = [batch.a, batch.b] if both else [batch.a]
    if config.pair_progress:
        return sides
    single = ~batch.preference_mask[:, None]
    return [replace(side, progress_mask=side.progress_mask & single) for side in sides]


def counts(batch: Batch, config: LossConfig) -> Tensor:
    """Number of trained frames or pairs of each of `TERMS`, float64 [4]; the sum over workers normalises the losses."""
    total = torch.zeros(len(TERMS), dtype=torch.float64)
    for targets in _supervised(batch, config):
        positive = targets.success_mask & (targets.success_label > 0.5)
        total += torch.stack(
            [targets.progress_mask.sum(), positive.sum(), (targets.success_mask & ~positive).sum(), torch.tensor(0)]
        ).double()
    total[3] = batch.preference_mask.sum()
    return total


def compute_losses(
    output: RewardOutput, batch: Batch, config: LossConfig, progress_loss: str, global_counts: Tensor | None = None
) -> Losses:
    """Losses of a micro-batch, normalised by the counts of the global batch.

    Their sum over all micro-batches of all workers is the loss of the global batch, however it is split.

    Args:
        progress_loss: `discrete`, `l1` or `l2`.
        global_counts: float64 [4], the sum of `counts` over the global batch; None for the counts of this batch.
    """
    n = (counts(batch, config) if global_counts is None else global_counts).to(output.success_logits.device)
    zero = output.progress_logits.float().sum() * 0.0 + output.success_logits.float().sum() * 0.0
    progress, positive, negative = zero, zero, zero
    logits = [
        (output.progress_logits, output.success_logits),
        (output.progress_logits_b, output.success_logits_b),
    ]
    for targets, (progress_logits, success_logits) in zip(_supervised(batch, config), logits, strict=False):
        if progress_logits is None or success_logits is None:
            continue
        error = progress_error(progress_logits, targets.progress_target, progress_loss)
        progress = progress + (error * targets.progress_mask).sum()
        bce = binary_error(success_logits, targets.success_label) * targets.success_mask
        is_positive = targets.success_label > 0.5
        positive = positive + (bce * is_positive).sum()
        negative = negative + (bce * ~is_positive).sum()
    progress = progress / n[0].clamp(min=1)
    if config.balance_success:
        classes = (n[1] > 0).float() + (n[2] > 0).float()
        success = (positive / n[1].clamp(min=1) + negative / n[2].clamp(min=1)) / classes.clamp(min=1)
    else:
        success = (positive + negative) / (n[1] + n[2]).clamp(min=1)
    preference = zero
    if output.preference_logits is not None:
        error = binary_error(output.preference_logits, batch.preference_label)
        preference = zero + (error * batch.preference_mask).sum() / n[3].clamp(min=1)
    progress, success, preference = progress.float(), success.float(), preference.float()
    total = config.progress_weight * progress + config.success_weight * success + config.preference_weight * preference
    return Losses(total, progress, success, preference)


def binary_error(logits: Tensor, label: Tensor) -> Tensor:
    """Elementwise binary cross-entropy of success or preference logits, clamped to +-50, with labels 0 or 1."""
    clamped = logits.float().clamp(-LOGIT_CLAMP, LOGIT_CLAMP)
    return F.binary_cross_entropy_with_logits(clamped, label.float(), reduction="none")
