"""Losses: what the corrected ones promise; those of upstream are in tests/parity."""

from __future__ import annotations

import pytest
import torch

from robometer.batch import Batch, ClipTargets, RewardOutput, progress_from_logits
from robometer.configs.schema import LossConfig
from robometer.losses import compute_losses, counts, two_hot


def _targets(batch: int, length: int, seed: int) -> ClipTargets:
    g = torch.Generator().manual_seed(seed)
    valid = torch.arange(length) < torch.randint(1, length + 1, (batch, 1), generator=g)
    return ClipTargets(
        frame_mask=valid,
        progress_target=torch.rand(batch, length, generator=g),
        progress_mask=valid & (torch.rand(batch, 1, generator=g) > 0.3),
        success_label=(torch.rand(batch, length, generator=g) > 0.7).float(),
        success_mask=valid,
    )


def _batch(batch: int, length: int = 6) -> Batch:
    return Batch(
        sample_index=torch.arange(batch),
        inputs={},
        a=_targets(batch, length, 1),
        b=_targets(batch, length, 2),
        preference_label=torch.arange(batch).remainder(2).float(),
        preference_mask=torch.arange(batch).remainder(3) > 0,
        strategy=torch.zeros(batch, dtype=torch.int64),
    )


def _output(batch: int, length: int = 6, bins: int = 10) -> RewardOutput:
    g = torch.Generator().manual_seed(3)
    frames = [torch.randn(batch, length, bins, generator=g), torch.randn(batch, length, generator=g)]
    other = [torch.randn(batch, length, bins, generator=g), torch.randn(batch, length, generator=g)]
    return RewardOutput(*frames, *other, preference_logits=torch.randn(batch, generator=g))


def _rows(batch: Batch, output: RewardOutput, rows: slice) -> tuple[Batch, RewardOutput]:
    part = Batch.from_arrays({name: value[rows] for name, value in batch.to_arrays().items()})
    return part, RewardOutput(*(value[rows] for value in output))


@pytest.mark.parametrize("balance", [True, False])
def test_shares_of_micro_batches_add_up_to_the_global_loss(balance: bool) -> None:
    batch, output, config = _batch(9), _output(9), LossConfig(balance_success=balance)
    whole = compute_losses(output, batch, config, "discrete")
    parts = [_rows(batch, output, rows) for rows in (slice(0, 2), slice(2, 7), slice(7, 9))]
    total = torch.stack([counts(b, config) for b, _ in parts]).sum(0)
    shares = [compute_losses(o, b, config, "discrete", total) for b, o in parts]
    for name in ("total", "progress", "success", "preference"):
        share = sum(float(getattr(s, name)) for s in shares)
        assert share == pytest.approx(float(getattr(whole, name)), rel=1e-5)


def test_the_loss_weights_are_what_they_say() -> None:
    batch, output = _batch(8), _output(8)
    losses = compute_losses(output, batch, LossConfig(2.0, 3.0, 5.0), "discrete")
    expected = 2 * losses.progress + 3 * losses.success + 5 * losses.preference
    torch.testing.assert_close(losses.total, expected)


def test_balanced_success_counts_both_classes_alike() -> None:
    batch, output = _batch(8), _output(8)
    config = LossConfig(supervise_b=False)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        output.success_logits, batch.a.success_label, reduction="none"
    )
    positive = batch.a.success_mask & (batch.a.success_label > 0.5)
    negative = batch.a.success_mask & ~positive
    expected = 0.5 * (bce[positive].mean() + bce[negative].mean())
    torch.testing.assert_close(compute_losses(output, batch, config, "discrete").success, expected)


def test_padding_and_masked_frames_do_not_count() -> None:
    batch, output = _batch(8), _output(8)
    before = compute_losses(output, batch, LossConfig(), "discrete")
    output.progress_logits[~batch.a.progress_mask] += 7.0
    output.success_logits[~batch.a.success_mask] -= 9.0
    after = compute_losses(output, batch, LossConfig(), "discrete")
    torch.testing.assert_close(before.total, after.total)


def test_a_batch_without_pairs_or_supervision_gives_zero_with_gradient() -> None:
    batch, output = _batch(3), _output(3)
    for targets in (batch.a, batch.b):
        targets.progress_mask[:] = False
        targets.success_mask[:] = False
    batch.preference_mask[:] = False
    output.progress_logits.requires_grad_()
    total = compute_losses(output, batch, LossConfig(), "discrete").total
    assert float(total) == 0.0
    total.backward()
    assert output.progress_logits.grad is not None


@pytest.mark.parametrize("bins", [2, 5, 10, 32])
def test_two_hot_keeps_the_value(bins: int) -> None:
    values = torch.linspace(0, 1, 101)
    target = two_hot(values, bins)
    torch.testing.assert_close(target.sum(-1), torch.ones(101))
    torch.testing.assert_close((target * torch.linspace(0, 1, bins)).sum(-1), values)
    assert float(target[-1, -1]) == 1.0
    torch.testing.assert_close(progress_from_logits(target.clamp(min=1e-20).log()), values, atol=1e-5, rtol=0)


def test_progress_of_pairs_can_be_left_out() -> None:
    batch, output = _batch(8), _output(8)
    expected = compute_losses(output, batch, LossConfig(pair_progress=False), "discrete")
    for targets in (batch.a, batch.b):
        targets.progress_mask[batch.preference_mask] = False
    actual = compute_losses(output, batch, LossConfig(), "discrete")
    assert float(actual.progress) == pytest.approx(float(expected.progress)) and float(actual.progress) > 0
