"""Losses; those of upstream are tested in tests/parity."""

from __future__ import annotations

import math

import pytest
import torch

from robometer.training.batch import Batch, ClipTargets, RewardOutput, progress_from_logits
from robometer.training.config import LossConfig
from robometer.training.losses import compute_losses, counts, two_hot


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


# --- two samples of three frames, by hand ---
#
# Sample 0 is a pair: A has three frames, B two. Sample 1 is one clip of two frames. Probabilities are powers of 1/2, so
# that every error is a multiple of ln 2. Padding and unsupervised frames have absurd logits.

LN2 = math.log(2)
ABSURD = 7.0


def by_hand(kind: str = "discrete") -> tuple[Batch, RewardOutput]:
    a = ClipTargets(
        frame_mask=torch.tensor([[True, True, True], [True, True, False]]),
        progress_target=torch.tensor([[0.0, 0.5, 1.0], [0.5, 1.0, 0.0]]),
        progress_mask=torch.tensor([[True, True, True], [True, False, False]]),
        success_label=torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        success_mask=torch.tensor([[True, False, True], [True, False, False]]),
    )
    b = ClipTargets(
        frame_mask=torch.tensor([[True, True], [False, False]]),
        progress_target=torch.tensor([[0.25, 1.0], [0.0, 0.0]]),
        progress_mask=torch.tensor([[True, True], [False, False]]),
        success_label=torch.zeros(2, 2),
        success_mask=torch.tensor([[True, True], [False, False]]),
    )
    batch = Batch(
        sample_index=torch.arange(2),
        inputs={},
        a=a,
        b=b,
        preference_label=torch.tensor([1.0, 0.0]),
        preference_mask=torch.tensor([True, False]),
        strategy=torch.zeros(2, dtype=torch.int64),
    )
    if kind == "discrete":  # probabilities of progress 0, 1/2 and 1
        progress_a = [
            [[1 / 2, 1 / 4, 1 / 4], [7 / 16, 1 / 8, 7 / 16], [1 / 4, 1 / 4, 1 / 2]],
            [[1 / 4, 1 / 2, 1 / 4], [1e-9, 1.0, 1e-9], [1e-9, 1.0, 1e-9]],
        ]
        progress_b = [[[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 4, 1 / 2]], [[1e-9, 1.0, 1e-9]] * 2]
        of_a, of_b = (torch.tensor(side).log() for side in (progress_a, progress_b))
    else:
        of_a = torch.tensor([[0.25, 0.5, 0.5], [1.0, ABSURD, ABSURD]])[..., None]
        of_b = torch.tensor([[0.75, 0.5], [ABSURD, ABSURD]])[..., None]
    success_a = torch.tensor([[_logit(1 / 2), ABSURD, _logit(1 / 4)], [_logit(1 / 2), -ABSURD, ABSURD]])
    success_b = torch.tensor([[_logit(3 / 4), _logit(1 / 2)], [ABSURD, ABSURD]])
    return batch, RewardOutput(of_a, success_a, of_b, success_b, torch.tensor([_logit(1 / 4), ABSURD]))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# Progress, in ln 2: A0 -log 1/2, -log 1/8, -log 1/2 = 1 + 3 + 1; B0 half of -log 1/2 and half of -log 1/4, then
# -log 1/2 = 1.5 + 1; A1 -log 1/2 = 1.
# Success: positive A0 -log 1/4 = 2; negative A0 1, A1 1, B0 -log 1/4 and -log 1/2 = 2 + 1.
# Preference: -log 1/4 = 2, of one pair.
@pytest.mark.parametrize(
    ("config", "progress", "success", "preference"),
    [
        (LossConfig(), (5 + 2.5 + 1) / 6, (2 / 1 + 5 / 4) / 2, 2),
        (LossConfig(2.0, 4.0, 8.0), (5 + 2.5 + 1) / 6, (2 / 1 + 5 / 4) / 2, 2),
        (LossConfig(balance_success=False), (5 + 2.5 + 1) / 6, (2 + 5) / 5, 2),
        (LossConfig(supervise_b=False), (5 + 1) / 4, (2 / 1 + 2 / 2) / 2, 2),
        (LossConfig(pair_progress=False), 1 / 1, (2 / 1 + 5 / 4) / 2, 2),
    ],
)
def test_every_term_by_hand(config: LossConfig, progress: float, success: float, preference: float) -> None:
    batch, output = by_hand()
    losses = compute_losses(output, batch, config, "discrete")
    assert float(losses.progress) == pytest.approx(progress * LN2, rel=1e-6)
    assert float(losses.success) == pytest.approx(success * LN2, rel=1e-6)
    assert float(losses.preference) == pytest.approx(preference * LN2, rel=1e-6)
    total = config.progress_weight * progress + config.success_weight * success + config.preference_weight * preference
    assert float(losses.total) == pytest.approx(total * LN2, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "progress"),
    [
        ("l1", (0.25 + 0 + 0.5 + 0.5 + 0.5 + 0.5) / 6),
        ("l2", (0.0625 + 0 + 0.25 + 0.25 + 0.25 + 0.25) / 6),
    ],
)
def test_progress_as_one_value_by_hand(kind: str, progress: float) -> None:
    batch, output = by_hand(kind)
    assert float(compute_losses(output, batch, LossConfig(), kind).progress) == pytest.approx(progress, rel=1e-6)


def test_counts_by_hand() -> None:
    """Supervised frames; positives; negatives; pairs."""
    batch, _ = by_hand()
    assert counts(batch, LossConfig()).tolist() == [6, 1, 4, 1]
    assert counts(batch, LossConfig(supervise_b=False)).tolist() == [4, 1, 2, 1]
    assert counts(batch, LossConfig(pair_progress=False)).tolist() == [1, 1, 4, 1]


@pytest.mark.parametrize(("missing", "success"), [("positive", 5 / 4), ("negative", 2 / 1)])
def test_a_class_that_is_missing_halves_nothing(missing: str, success: float) -> None:
    batch, output = by_hand()
    for side in (batch.a, batch.b):
        side.success_mask &= side.success_label == (0.0 if missing == "positive" else 1.0)
    losses = compute_losses(output, batch, LossConfig(), "discrete")
    assert float(losses.success) == pytest.approx(success * LN2, rel=1e-6)


@pytest.mark.parametrize(("logit", "error"), [(-1.0, math.log1p(math.e)), (-40.0, 40.0), (-60.0, 50.0)])
def test_logits_are_clamped_at_fifty(logit: float, error: float) -> None:
    batch, output = by_hand()
    output = output._replace(preference_logits=torch.tensor([logit, 0.0]))
    losses = compute_losses(output, batch, LossConfig(), "discrete")
    assert float(losses.preference) == pytest.approx(error, rel=1e-5)


def test_the_loss_falls_in_the_direction_of_the_labels() -> None:
    """A small step against each gradient prefers A, raises success where it is, and moves progress to its target."""
    batch, output = by_hand()
    leaves = RewardOutput(*(part.clone().requires_grad_() for part in output))
    compute_losses(leaves, batch, LossConfig(), "discrete").total.backward()
    assert leaves.preference_logits is not None and leaves.preference_logits.grad is not None
    assert leaves.preference_logits.grad[0] < 0 and leaves.preference_logits.grad[1] == 0
    assert leaves.success_logits.grad is not None
    assert [[float(g) for g in row.sign()] for row in leaves.success_logits.grad] == [[1, 0, -1], [1, 0, 0]]
    for logits, mask in (
        (leaves.progress_logits, batch.a.progress_mask),
        (leaves.progress_logits_b, batch.b.progress_mask),
    ):
        assert logits is not None and logits.grad is not None
        assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)


def test_progress_is_the_mean_of_its_bins() -> None:
    probabilities = torch.tensor([[1 / 2, 1 / 4, 1 / 4], [0.0, 0.0, 1.0]])
    assert progress_from_logits(probabilities.log()).tolist() == pytest.approx([0.375, 1.0])
    assert progress_from_logits(torch.tensor([[0.25], [1.0]])).tolist() == [0.25, 1.0]


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


def _one_frame(progress: float, success: float) -> ClipTargets:
    yes = torch.tensor([[True]])
    return ClipTargets(yes, torch.tensor([[progress]]), yes, torch.tensor([[success]]), yes)


def test_one_success_and_one_failure_of_a_frame_each_weigh_the_same() -> None:
    """The smallest batch of all terms: a pair of clips of one frame each."""
    batch = Batch(
        sample_index=torch.arange(1),
        inputs={},
        a=_one_frame(1.0, 1.0),
        b=_one_frame(0.0, 0.0),
        preference_label=torch.tensor([1.0]),
        preference_mask=torch.tensor([True]),
        strategy=torch.zeros(1, dtype=torch.int64),
    )
    bins_a, bins_b = torch.tensor([[[1 / 2, 1 / 2]]]).log(), torch.tensor([[[1 / 4, 3 / 4]]]).log()
    success_a, success_b = torch.tensor([[_logit(1 / 2)]]), torch.tensor([[_logit(7 / 8)]])
    output = RewardOutput(bins_a, success_a, bins_b, success_b, torch.tensor([_logit(1 / 2)]))
    assert counts(batch, LossConfig()).tolist() == [2, 1, 1, 1]
    losses = compute_losses(output, batch, LossConfig(), "discrete")
    # Progress: A -log 1/2, B -log 1/4. Success: A -log 1/2, B -log(1 - 7/8). Preference: -log 1/2. All in ln 2.
    terms = [float(term) / LN2 for term in (losses.progress, losses.success, losses.preference)]
    assert terms == pytest.approx([(1 + 2) / 2, (1 + 3) / 2, 1])
