"""Upstream's losses against their formulas, written out here once more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parity.upstream.losses import mean_by_clip, upstream_losses
from robometer.training.batch import Batch, ClipTargets, RewardOutput
from robometer.training.config import LossConfig

PAIR = torch.tensor([True, False, True, False, False])


def targets(seed: int) -> ClipTargets:
    """Of five clips of three frames; the last one trains no success."""
    random = torch.Generator().manual_seed(seed)
    progress, label, *masks = (torch.rand(5, 3, generator=random) for _ in range(4))
    success_mask = (masks[1] > 0.2) & (torch.arange(5) < 4)[:, None]
    return ClipTargets(
        torch.ones(5, 3, dtype=torch.bool), progress, masks[0] > 0.3, (label > 0.6).float(), success_mask
    )


def sample() -> tuple[RewardOutput, Batch]:
    random = torch.Generator().manual_seed(0)
    shapes = ((5, 3, 1), (5, 3), (5, 3, 1), (5, 3), (5,))
    output = RewardOutput(*(torch.randn(shape, generator=random).requires_grad_() for shape in shapes))
    label = torch.tensor([1.0, 0, 0, 0, 0])
    return output, Batch(torch.arange(5), {}, targets(1), targets(2), label, PAIR, torch.zeros(5, dtype=torch.int64))


def by_formula(output: RewardOutput, batch: Batch, members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = batch.a
    error = (output.progress_logits[..., 0] - a.progress_target)[members] ** 2
    progress = error[a.progress_mask[members]].sum() / a.progress_mask[members].sum() / 3
    shown = a.success_mask & members[:, None]
    return progress, F.binary_cross_entropy_with_logits(output.success_logits[shown], a.success_label[shown])


def test_pairs_and_clips_have_means_of_their_own_and_progress_is_divided_by_the_frames_again() -> None:
    output, batch = sample()
    losses = upstream_losses(output, batch, LossConfig(), "l2")
    parts = [by_formula(output, batch, members) for members in (PAIR, ~PAIR)]
    assert output.preference_logits is not None
    preference = F.binary_cross_entropy_with_logits(output.preference_logits[PAIR], batch.preference_label[PAIR])
    progress, success = (sum(part[i].item() for part in parts) for i in (0, 1))
    assert losses.progress.item() == pytest.approx(progress, abs=1e-6)
    assert losses.success.item() == pytest.approx(success, abs=1e-6)
    assert losses.preference.item() == pytest.approx(preference.item(), abs=1e-6)
    assert losses.total.item() == pytest.approx(progress + success + preference.item(), abs=1e-6)


def test_of_a_pair_only_the_first_clip_is_trained() -> None:
    output, batch = sample()
    upstream_losses(output, batch, LossConfig(), "l2").total.backward()
    assert output.progress_logits.grad is not None and output.progress_logits.grad.any()
    for untrained in (output.progress_logits_b, output.success_logits_b):
        assert untrained is not None and (untrained.grad is None or not untrained.grad.any())


def test_a_batch_without_pairs_has_no_preference_loss() -> None:
    output, batch = sample()
    batch.preference_mask = torch.zeros(5, dtype=torch.bool)
    losses = upstream_losses(output, batch, LossConfig(), "l2")
    progress, success = by_formula(output, batch, ~batch.preference_mask)
    assert losses.preference.item() == 0
    assert losses.total.item() == pytest.approx((progress + success).item(), abs=1e-6)


def test_a_mask_of_clips_gives_the_mean_and_one_of_frames_that_mean_divided_by_the_frames() -> None:
    error = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert mean_by_clip(error, torch.tensor([[1.0], [0.0]])).item() == pytest.approx(2.0)
    assert mean_by_clip(error, torch.tensor([[1.0, 1.0], [0.0, 0.0]])).item() == pytest.approx(1.0)
