"""Strengths of several clips from the probability, for each two of them, that one did better (Bradley and Terry)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

PRIOR_GAMES = 0.1
"""Games that each clip has drawn against an average one before it met any other."""

_PRECISION = {"gtol": 1e-9, "maxiter": 1000}


def bradley_terry(probabilities: np.ndarray, prior_games: float = PRIOR_GAMES) -> np.ndarray:
    """The strengths that explain the probabilities best, as logarithms whose mean is 0.

    The model is P(i better than j) = s_i / (s_i + s_j): a clip whose log-strength is 1 above that of another is the
    better one with probability 1 / (1 + exp(-1)) = 0.73. Each pair counts as one game, of which clip i wins the share
    `probabilities[i, j]`. As a clip that wins all games would be infinitely strong, each clip has also drawn
    `prior_games` games against one of strength 1, which draws all strengths together a little. The logarithm of the
    likelihood of all games is concave and has one maximum, which Newton steps within a trusted radius find.

    Args:
        probabilities: [N, N], P(row better than column), where [i, j] and [j, i] add up to 1; the diagonal is ignored.
        prior_games: more than 0.

    Returns:
        Float64 [N], with 6 decimals, so that equal clips are equal. One input always gives the same numbers.
    """
    games = 1.0 - np.eye(len(probabilities))
    wins = (games * probabilities).sum(axis=1) + prior_games / 2

    def loss(logs: np.ndarray) -> float:
        pairs = np.triu(np.logaddexp(logs[:, None], logs), 1)
        return float(pairs.sum() + prior_games * np.logaddexp(logs, 0).sum() - (wins * logs).sum())

    def slope(logs: np.ndarray) -> np.ndarray:
        return np.asarray((games * expit(logs[:, None] - logs)).sum(axis=1) + prior_games * expit(logs) - wins)

    def curvature(logs: np.ndarray) -> np.ndarray:
        pairs = games * _variance(logs[:, None] - logs)
        return np.asarray(np.diag(pairs.sum(axis=1) + prior_games * _variance(logs)) - pairs)

    logs = minimize(loss, np.zeros(len(games)), jac=slope, hess=curvature, method="trust-exact", options=_PRECISION).x
    return np.asarray(np.round(logs - logs.mean(), 6) + 0.0)


def _variance(logs: np.ndarray) -> np.ndarray:
    return np.asarray(expit(logs) * expit(-logs))
