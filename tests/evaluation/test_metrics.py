"""Metrics against definitions, scikit-learn and SciPy; against upstream's numbers: tests/parity/test_metrics.py."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Resampling


def test_constant_prediction_has_no_pearson_and_zero_tau_a() -> None:
    assert math.isnan(metrics.pearson([1, 2, 3], [5, 5, 5]))
    assert math.isnan(metrics.spearman([1, 2, 3], [5, 5, 5]))
    assert metrics.kendall([1, 2, 3], [5, 5, 5]) == 0.0
    assert math.isnan(metrics.kendall([1], [1]))
    assert math.isnan(metrics.pearson([1, 2, 3], [1, math.nan, 3]))


def test_rows_are_correlated_as_one_by_one_and_what_is_undefined_stays_so() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.random((40, 7)), rng.integers(0, 4, (40, 7)) / 3
    x[3], y[5], y[7, 2] = 0.5, 0.0, math.nan
    for rows, one, reference in (
        (metrics.pearson_rows, metrics.pearson, pearsonr),
        (metrics.spearman_rows, metrics.spearman, spearmanr),
        (metrics.kendall_rows, metrics.kendall, None),
    ):
        values = rows(x, y)
        np.testing.assert_array_equal(values, [one(a, b) for a, b in zip(x, y, strict=True)])
        assert math.isnan(values[7])
        if reference is not None:
            assert np.isnan(values[[3, 5]]).all()
            is_finite = np.isfinite(values)
            expected = [reference(a, b).statistic for a, b in zip(x[is_finite], y[is_finite], strict=True)]
            np.testing.assert_allclose(values[is_finite], expected, atol=1e-12)


def test_closed_form_equals_the_average_over_all_choices_of_one_clip_per_label() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, 6)])
        scores = rng.integers(0, 5, len(labels)).astype(float)
        cells = [scores[labels == value] for value in range(3)]
        direct = np.mean([metrics.kendall([0, 1, 2], choice) for choice in product(*cells)])
        assert metrics.ranking(labels, scores).tau == pytest.approx(direct)


def test_ties_bound_the_ranking_and_count_half_in_its_accuracy() -> None:
    tied = metrics.ranking([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.9])
    assert (tied.tau, tied.ceiling, tied.accuracy, tied.pairs) == (0.5, 0.5, 0.75, 4)
    assert math.isnan(metrics.ranking([1, 1], [0.1, 0.2]).tau)


def test_a_clip_that_counts_twice_ranks_like_two_equal_clips() -> None:
    rng = np.random.default_rng(9)
    labels, scores = np.repeat([0, 1, 2], 5), rng.integers(0, 6, 15).astype(float)
    weights = rng.integers(1, 4, (4, 15))
    weighted = metrics.compare_labels(labels, scores, weights.astype(float))
    for i, counts in enumerate(weights):
        expected = metrics.compare_labels(np.repeat(labels, counts), np.repeat(scores, counts))
        for ours, copied in zip(weighted, expected, strict=True):
            assert (ours.wins[i], ours.ties[i], ours.total[i]) == (copied.wins[0], copied.ties[0], copied.total[0])


def test_tau_b_ceiling_is_reached_by_a_perfect_ranking() -> None:
    labels = np.repeat([0, 1, 2], 4)
    reached = kendalltau(labels, np.arange(12), variant="b").statistic
    assert metrics.tau_b_ceiling(labels) == pytest.approx(reached)
    assert reached < 1


@pytest.mark.parametrize("ties", [True, False])
def test_areas_equal_scikit_learn_with_and_without_weights(ties: bool) -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, 50).astype(float) if ties else rng.random(50)
    labels = rng.integers(0, 2, 50)
    weights = rng.integers(0, 4, (3, 50)).astype(float)
    for ours, reference in ((metrics.auroc, roc_auc_score), (metrics.auprc, average_precision_score)):
        assert ours(scores, labels)[0] == pytest.approx(reference(labels, scores))
        expected = [reference(labels, scores, sample_weight=w) for w in weights]
        assert ours(scores, labels, weights) == pytest.approx(expected)


def test_areas_of_resampled_clips_are_those_of_the_clips_drawn() -> None:
    rng = np.random.default_rng(5)
    scores, labels, group_of = rng.integers(0, 9, 60) / 8, rng.integers(0, 2, 60), np.arange(60) % 12
    areas, settings = metrics.Areas(scores, labels), Resampling(30, 0.95, 3)
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=30)[:, group_of]
    for ours, reference in ((areas.auroc, roc_auc_score), (areas.auprc, average_precision_score)):
        drawn = [reference(np.repeat(labels, times), np.repeat(scores, times)) for times in draws]
        replicates = metrics.estimate(ours, group_of, "task", settings).replicates
        np.testing.assert_allclose(replicates, drawn, atol=1e-12)


def test_resamples_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    areas, group_of = metrics.Areas(rng.random(50), rng.integers(0, 2, 50)), np.arange(50) % 10
    at_once = metrics.estimate(areas.auprc, group_of, "task", Resampling(40)).replicates
    monkeypatch.setattr(metrics, "_ELEMENTS_PER_CHUNK", 150)
    np.testing.assert_array_equal(metrics.estimate(areas.auprc, group_of, "task", Resampling(40)).replicates, at_once)


def test_areas_are_undefined_with_one_class_or_nothing() -> None:
    for area in (metrics.auroc, metrics.auprc):
        assert np.isnan(area([0.1, 0.2], [1, 1])[0])
        assert np.isnan(area([0.1, 0.2], [0, 0])[0])
        assert np.isnan(area([], [])[0])


def test_interval_of_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=400)
    estimate = metrics.estimate(metrics.weighted_mean(values), np.arange(400), "trajectory", Resampling(2000, 0.95, 0))
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_clustered_interval_is_wider_when_tasks_differ_and_seeded() -> None:
    tasks = np.repeat(np.arange(8), 25)
    values = tasks / 8 + np.random.default_rng(3).normal(scale=0.01, size=200)
    settings = Resampling(500, 0.95, 7)
    over_tasks = metrics.estimate(metrics.weighted_mean(values), tasks, "task", settings)
    over_clips = metrics.estimate(metrics.weighted_mean(values), np.arange(200), "trajectory", settings)
    assert over_tasks.high - over_tasks.low > 3 * (over_clips.high - over_clips.low)
    assert over_tasks == metrics.estimate(metrics.weighted_mean(values), tasks, "task", settings)
    assert over_tasks.groups == 8


def effective_n(values: np.ndarray, groups: np.ndarray) -> float:
    return metrics.estimate(metrics.weighted_mean(values), groups, "task", Resampling(1000, 0.95, 1)).effective_n


def test_equal_clips_of_a_task_count_once() -> None:
    values = np.random.default_rng(4).normal(size=40)
    assert effective_n(np.repeat(values, 10), np.repeat(np.arange(40), 10)) == pytest.approx(40, rel=0.25)


def test_effective_n_follows_kish_for_a_known_correlation_within_tasks() -> None:
    rng, size, correlation = np.random.default_rng(5), 8, 0.3
    shared, own = rng.normal(size=(400, 1)), rng.normal(size=(400, size))
    values = (math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own).ravel()
    expected = values.size / (1 + (size - 1) * correlation)
    assert effective_n(values, np.repeat(np.arange(400), size)) == pytest.approx(expected, rel=0.25)


def test_effective_n_is_n_where_every_clip_is_its_own_group_and_about_n_where_tasks_do_not_matter() -> None:
    values = np.random.default_rng(6).normal(size=2000)
    assert effective_n(values, np.arange(2000)) == 2000
    assert effective_n(values, np.repeat(np.arange(200), 10)) == pytest.approx(2000, rel=0.35)


def test_effective_n_is_above_n_where_every_task_has_its_share_of_easy_and_hard_clips() -> None:
    values = np.tile([0.0, 1.0], 50) + np.random.default_rng(7).normal(scale=0.1, size=100)
    assert effective_n(values, np.repeat(np.arange(50), 2)) > 300


def test_effective_n_of_an_area_counts_equal_frames_of_a_clip_once() -> None:
    rng = np.random.default_rng(8)
    labels = np.arange(60) % 2
    scores = labels + rng.normal(size=60)
    of_clip = np.repeat(np.arange(60), 20)
    estimate = metrics.estimate(
        lambda w: metrics.auroc(scores[of_clip], labels[of_clip], w), of_clip, "trajectory", Resampling(1000, 0.95, 1)
    )
    assert estimate.n == 1200 and estimate.effective_n == pytest.approx(60, rel=0.35)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_what_does_not_vary_has_no_effective_n(value: float) -> None:
    assert math.isnan(effective_n(np.full(30, value), np.repeat(np.arange(10), 3)))


def test_no_interval_without_resamples_or_with_one_group() -> None:
    statistic = metrics.weighted_mean([1.0, 2.0])
    for groups, settings in ((np.array([0, 1]), Resampling(0)), (np.array([0, 0]), Resampling())):
        estimate = metrics.estimate(statistic, groups, "task", settings)
        assert estimate.value == 1.5
        assert math.isnan(estimate.low) and math.isnan(estimate.high) and math.isnan(estimate.effective_n)


def test_tasks_are_resampled_only_where_there_are_enough() -> None:
    few = metrics.grouping(["a", "b"], ["x", "y"])
    many = metrics.grouping(list("abcde") * 2, [str(i) for i in range(10)])
    assert few[1] == "trajectory" and many[1] == "task" and many[0].max() == 4


def test_calibration_error_is_zero_where_shares_equal_probabilities_and_weights_count_clips() -> None:
    probabilities, labels = np.repeat([0.25, 0.75], 4), np.array([0, 0, 0, 1, 0, 1, 1, 1])
    assert metrics.calibration_error(probabilities, labels)[0] == pytest.approx(0.0)
    assert metrics.calibration_error(np.ones(4), [0, 0, 0, 1])[0] == pytest.approx(0.75)
    twice = metrics.calibration_error([0.9, 0.1], [1, 1], np.array([[1.0, 1.0], [3.0, 1.0]]))
    assert twice == pytest.approx([0.5, (3 * 0.1 + 0.9) / 4])
    assert math.isnan(metrics.calibration_error([], [])[0])


def test_bins_of_reliability_hold_both_ends() -> None:
    assert metrics.reliability_bin([0.0, 0.05, 0.1, 0.95, 1.0]).tolist() == [0, 0, 1, 9, 9]


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.9, 5.0, 95.0), (0.5, 25.0, 75.0), (0.0, 50.0, 50.0)])
def test_an_interval_leaves_half_of_the_rest_on_either_side(confidence: float, low: float, high: float) -> None:
    replicates = np.append(np.arange(101.0), [math.nan, math.inf])
    assert metrics.percentile_interval(replicates, confidence) == pytest.approx((low, high))
    assert all(map(math.isnan, metrics.percentile_interval(np.full(3, math.nan), confidence)))
