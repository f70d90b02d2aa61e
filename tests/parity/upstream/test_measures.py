"""Upstream's definitions, each where it is not ours."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from parity.upstream import measures
from parity.upstream.measures import Judged
from robometer.evaluation import metrics
from robometer.evaluation.measures.policy_ranking import summary
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction, PairPrediction
from robometer.evaluation.views import FORWARD
from robometer.trajectory import QUALITY_LABELS


def _judged(quality: str, reward: float, name: str = "a", partial_success: float | None = None) -> Judged:
    return Judged(name, "t", quality, [np.array([0.0, reward], dtype=np.float32)], (), partial_success)


@pytest.mark.parametrize("correlation", ["kendall", "spearman"])
def test_ranking_is_the_mean_over_every_choice_of_one_clip_per_label(correlation: str) -> None:
    rng = np.random.default_rng(0)
    judged = [_judged(QUALITY_LABELS[i % 3], float(rng.integers(0, 4))) for i in range(9)]
    cells = [[t.last_predictions()[0] for t in judged if t.quality_label == label] for label in QUALITY_LABELS]
    function = {"kendall": metrics.kendall, "spearman": metrics.spearman}[correlation]
    direct = np.nanmean([function([0, 1, 2], choice) for choice in product(*cells)])
    found = measures.rank_by_quality(judged, correlation=correlation)
    assert found.metrics[correlation] == pytest.approx(direct)
    assert found.per_task["t"][correlation] == pytest.approx(direct)


def test_a_tie_is_right_or_wrong_by_the_order_of_the_trajectories() -> None:
    better, worse = _judged("successful", 0.5, "b"), _judged("failure", 0.5, "w")
    assert measures.rank_by_quality([worse, better]).metrics["ranking_acc"] == 1.0
    assert measures.rank_by_quality([better, worse]).metrics["ranking_acc"] == 0.0


def test_ranking_of_our_predictions_is_ours_where_nothing_ties() -> None:
    none = np.zeros(0, dtype=np.float32)
    rng = np.random.default_rng(1)
    clips = [
        ClipPrediction("s", str(i), i, "s", f"task {i % 2}", QUALITY_LABELS[i % 3], FORWARD,
                       rng.random(4, dtype=np.float32), none, none, none)
        for i in range(12)
    ]  # fmt: skip
    found = measures.rank_by_quality([Judged.of(clip) for clip in clips]).metrics
    ours = summary(clips)
    assert found["kendall"] == pytest.approx(ours["kendall"])
    assert found["ranking_acc"] == pytest.approx(ours["accuracy"])


def test_differences_without_a_label_and_with_a_nan_are_nan() -> None:
    judged = [_judged("failure", 0.1), _judged("successful", 0.9)]
    found = measures.rank_by_quality(judged)
    assert found.metrics["avg_succ_fail_diff"] == pytest.approx(0.8)
    assert math.isnan(found.metrics["max_succ_subopt_diff"]) and math.isnan(found.per_task["t"]["succ_subopt_diff"])
    unknown = measures.rank_by_quality([*judged, _judged("successful", math.nan)]).metrics
    assert math.isnan(unknown["min_succ_fail_diff"]) and unknown["kendall"] == 0.0


def test_nothing_can_be_ranked_with_one_label_or_one_grade() -> None:
    assert measures.rank_by_quality([_judged("failure", 0.1), _judged("failure", 0.2)]).metrics == {}
    same = [_judged("failure", reward, partial_success=0.5) for reward in (0.1, 0.2)]
    assert measures.rank_by_partial_success([*same, _judged("failure", 0.3)]).metrics == {}


def test_graded_ranking_bins_partial_success_in_thirds() -> None:
    judged = [
        _judged("failure", reward, partial_success=grade) for grade, reward in ((0.0, 0.9), (0.3, 0.1), (1.0, 0.6))
    ]
    found = measures.rank_by_partial_success(judged).metrics
    assert found["ranking_acc_rba"] == pytest.approx(1 / 3)
    assert found["kendall_rewind_rba"] == 1.0  # (0.9 + 0.1) / 2 < 0.6


def test_rewards_of_relative_predictions_are_of_their_running_sum() -> None:
    progress = np.array([0.5, 0.25], dtype=np.float32)
    assert [measures.trajectory_reward(progress, how, True) for how in measures.AGGREGATES] == [0.75, 0.625, 1.25]
    empty = [measures.trajectory_reward(progress[:0], how) for how in measures.AGGREGATES]
    assert empty[0] == empty[2] == 0.0 and math.isnan(empty[1])


def test_an_empty_cell_of_the_confusion_matrix_is_a_reward_of_zero() -> None:
    records = [
        InstructionPrediction("s", "i", 0, task, said, value)
        for task, said, value in (("a", "a", 0.8), ("b", "b", 0.6), ("a", "b", 0.4))
    ]
    matrix, found = measures.confusion_matrix(records)
    assert matrix.values == [[0.8, 0.0], [0.4, 0.6]]
    assert found["normalized_trace_minus_offdiag"] == pytest.approx(0.7 - 0.2)


def test_prefix_k_is_scored_at_its_frame_k() -> None:
    shown = [np.array([0.1, 0.2], dtype=np.float32), np.array([0.3, 0.4], dtype=np.float32)] * 2
    judged = Judged("a", "t", "successful", shown, shown)
    assert measures.scored_frames(judged, prefixes=True)[0].tolist() == pytest.approx([0.1, 0.4, 0.2, 0.4])
    assert measures.scored_frames(judged, True, last_only=True)[0].tolist() == pytest.approx([0.2, 0.4, 0.2, 0.4])
    assert measures.scored_frames(judged, prefixes=False)[0].tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_cross_entropy_is_torchs_call(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=shape).astype(np.float32)
    target = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(target), reduction="none")
    assert measures.cross_entropy(logits, target) == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_bias_to_the_first_clip_does_not_show() -> None:
    pairs = [PairPrediction("s", "quality", "t", "a", "b", "successful", "failure", 0.9, 0.1) for _ in range(3)]
    assert measures.preference_accuracy(pairs) == 1.0
    assert measures.preference_by_quality(pairs) == {"failure_vs_successful": 1.0}


def test_a_class_without_frames_has_no_accuracy() -> None:
    found = measures.success_rates(np.array([0.2, 0.7]), np.zeros(2))
    assert found["success_auprc"] == 0.0 and found["negative_success_acc"] == 0.5
    assert math.isnan(found["positive_success_acc"])
