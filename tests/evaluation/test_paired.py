"""The paired bootstrap: narrower where two models find the same clips hard, refused where clips cannot be paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Estimate, Resampling
from robometer.evaluation.paired import paired

SETTINGS = Resampling(2000, 0.95, 5)


def estimate(values: np.ndarray, settings: Resampling = SETTINGS) -> Estimate:
    return metrics.estimate(metrics.weighted_mean(values), np.arange(len(values)), "trajectory", settings)


def test_a_constant_shift_over_the_same_clips_is_certain_when_paired_and_not_when_unpaired() -> None:
    hardness = np.random.default_rng(0).normal(size=60)
    first, second = estimate(hardness), estimate(hardness + 0.1)
    difference = paired(first, second, SETTINGS)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference.p == pytest.approx(2 / 2001)
    assert first.high > second.low  # their own intervals overlap: unpaired, nothing could be said


def test_the_paired_interval_has_the_width_of_the_standard_error_of_the_difference() -> None:
    rng = np.random.default_rng(1)
    hardness, noise = rng.normal(size=400), rng.normal(scale=0.2, size=400)
    first, second = estimate(hardness), estimate(hardness + noise)
    difference = paired(first, second, SETTINGS)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * noise.std() / 20, rel=0.1)
    unpaired = math.hypot(first.high - first.low, second.high - second.low)
    assert difference.high - difference.low < unpaired / 4


def test_swapping_the_models_turns_the_difference_around() -> None:
    rng = np.random.default_rng(2)
    first, second = estimate(rng.random(30)), estimate(rng.random(30))
    forth, back = paired(first, second, SETTINGS), paired(second, first, SETTINGS)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert forth.p == back.p


def test_p_of_two_equal_models_is_one() -> None:
    values = np.random.default_rng(3).random(20)
    assert paired(estimate(values), estimate(values), SETTINGS).p == 1.0


def test_p_is_small_in_few_of_many_comparisons_without_a_difference() -> None:
    rng = np.random.default_rng(4)
    small = 0
    for _ in range(200):
        first, second = rng.normal(size=(2, 40))
        settings = Resampling(200, 0.95, 5)
        small += paired(estimate(first, settings), estimate(second, settings), settings).p < 0.05
    assert 2 <= small <= 24  # 10 expected


@pytest.mark.parametrize("others", [np.ones(7), np.ones(0)])
def test_other_clips_are_refused_with_the_reason(others: np.ndarray) -> None:
    difference = paired(estimate(np.ones(8)), estimate(others), SETTINGS)
    assert math.isnan(difference.value) and math.isnan(difference.p) and "n = 8" in difference.reason


def test_without_replicates_there_is_a_difference_but_no_interval() -> None:
    none = Resampling(0)
    difference = paired(estimate(np.zeros(4), none), estimate(np.ones(4), none), none)
    assert difference.value == 1.0 and math.isnan(difference.low) and "replicates" in difference.reason
