"""Strengths of clips, against strengths computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robometer.evaluation.bradley_terry import PRIOR_GAMES, bradley_terry


def matrix(*upper: float) -> np.ndarray:
    """The probabilities of two clips from [0, 1], or of three from [0, 1], [0, 2], [1, 2]."""
    size = {1: 2, 3: 3}[len(upper)]
    probabilities = np.full((size, size), 0.5)
    probabilities[np.triu_indices(size, 1)] = upper
    probabilities.T[np.triu_indices(size, 1)] = 1 - np.array(upper)
    return probabilities


def test_two_clips() -> None:
    """Strengths 2 and 1/2: the first wins 2 / (2 + 1/2) = 4/5 of its game and 2 / (2 + 1) = 2/3 of each prior game.

    The likelihood is at its maximum where expected and counted wins agree: P + prior / 2 = 4/5 + prior * 2/3.
    """
    strengths = bradley_terry(matrix(4 / 5 + PRIOR_GAMES / 6))
    assert strengths == pytest.approx([np.log(2), -np.log(2)], abs=2e-6)


def test_three_clips_need_not_be_in_order() -> None:
    """Strengths 1/2, 2 and 1; each probability has the share of the prior that makes the wins agree."""
    prior = PRIOR_GAMES / 12
    strengths = bradley_terry(matrix(1 / 5 - prior, 1 / 3 - prior, 2 / 3 + prior))
    assert strengths == pytest.approx([-np.log(2), np.log(2), 0], abs=2e-6)


def test_a_weak_prior_leaves_what_the_probabilities_say() -> None:
    """P = 3/4 is a ratio of 3."""
    first, second = bradley_terry(matrix(3 / 4), prior_games=1e-6)
    assert first - second == pytest.approx(np.log(3), abs=1e-4)


def test_a_clip_that_always_wins_has_a_finite_strength() -> None:
    strengths = bradley_terry(matrix(1, 1, 1))
    assert np.isfinite(strengths).all() and (np.diff(strengths) < 0).all()
    assert strengths.sum() == pytest.approx(0, abs=2e-6)
    assert strengths[1] == 0 and strengths[0] == -strengths[2]


def test_equal_clips_are_equal_and_a_circle_has_no_best() -> None:
    assert bradley_terry(matrix(0.5, 0.5, 0.5)).tolist() == [0, 0, 0]
    assert bradley_terry(matrix(1, 0, 1)).tolist() == [0, 0, 0]  # 0 beats 1 beats 2 beats 0


def test_many_clips_converge_to_the_maximum() -> None:
    """There, every clip has won as much as its strength says."""
    draws = np.random.default_rng(0).random((16, 16))
    probabilities = (draws + 1 - draws.T) / 2
    strengths = bradley_terry(probabilities, prior_games=1e-9)
    expected = 1 / (1 + np.exp(strengths - strengths[:, None]))
    off = ~np.eye(16, dtype=bool)
    np.testing.assert_allclose((expected * off).sum(1), (probabilities * off).sum(1), atol=1e-5)
