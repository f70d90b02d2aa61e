"""Upstream's training losses (`compute_loss` in robometer/trainers/rbm_heads_trainer.py)."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor

from robometer.training.batch import Batch, RewardOutput
from robometer.training.config import LossConfig
from robometer.training.losses import Losses, compute_losses


def upstream_losses(output: RewardOutput, batch: Batch, config: LossConfig, progress_loss: str) -> Losses:
    """Our losses of the pairs and those of the single clips, each a mean of its own, added up.

    Of a pair upstream trains A alone, its class weights of success cancel out, and it divides the progress loss by the
    frames of a clip once more. Where no frame is supervised its success loss is NaN and dropped; here it is 0.
    """
    frames = batch.a.progress_mask.shape[1]
    config = replace(config, supervise_b=False, balance_success=False, progress_weight=config.progress_weight / frames)
    parts = []
    for members in (batch.preference_mask, ~batch.preference_mask):
        own = RewardOutput(*(None if part is None else part[members] for part in output))  # type: ignore[arg-type]
        # The inputs of the vision-language model are packed: no row of theirs is a sample.
        targets = replace(batch, inputs={}).map(itemgetter(members))
        parts.append(compute_losses(own, targets, config, progress_loss))
    total, progress, success, preference = (
        torch.stack([getattr(part, name) for part in parts]).sum()
        for name in ("total", "progress", "success", "preference")
    )
    return Losses(total, progress / frames, success, preference)


def mean_by_clip(error: Tensor, mask: Tensor) -> Tensor:
    """Upstream's mean of an error [B, T] under a float mask [B, T] or [B, 1].

    It counts the mask as it is given: [B, 1] gives the mean over frames that was meant; [B, T], which all its batches
    have, gives that divided by T once more.
    """
    return (error * mask).mean(-1).sum() / (mask.sum() + 1e-8)
