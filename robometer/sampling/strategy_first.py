"""Mode strategy_first: the strategy is drawn before the source, and the source before the trajectory (spec 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from robometer.sampling.eligible import PREFERENCE_KINDS, PROGRESS_KINDS, Eligible
from robometer.sampling.groups import members
from robometer.sampling.partners import Groups
from robometer.sampling.segments import Draws

KINDS = {"preference": PREFERENCE_KINDS, "progress": PROGRESS_KINDS}

UPSTREAM_SUBOPTIMAL_SOURCES = "suboptimal_fail"
"""Group of the sources of which upstream draws suboptimal pairs, where there are any."""


@dataclass(frozen=True)
class Pool:
    """Rows that serve one strategy.

    Attributes:
        rows: by source.
        sources: sources that may be drawn, ascending.
        weights: running sums of their weights, float64 [len(sources)].
    """

    rows: Groups
    sources: np.ndarray
    weights: np.ndarray

    def draw(self, draws: Draws) -> int:
        """A uniform row of a source drawn by weight, in O(log sources)."""
        value = draws.uniform() * self.weights[-1]
        place = min(int(self.weights.searchsorted(value, side="right")), len(self.sources) - 1)
        return self.rows.member(int(self.sources[place]), draws)


@dataclass(frozen=True)
class StrategyFirst:
    """What the mode draws from: by kind of sample, running sums of the strategies' weights, and a pool for each.

    A strategy that no row can serve has weight 0, and None for a pool.

    Fixed: in compat fixed a source is drawn among all that have a row for the strategy, and every row that is drawn
    serves it. Upstream draws suboptimal pairs of sources of group `suboptimal_fail` where the corpus has any, and
    draws source and row again, ten times at most, when a row cannot serve.

    In compat upstream that loop is taken to its limit: a source's weight is its own times the share of its offered
    rows that can serve. What upstream does after ten failures (the sampler's own strategy, then the other kind) is not
    followed: strategies without any row are never drawn.
    """

    weights: dict[str, tuple[float, ...]]
    pools: dict[str, tuple[Pool | None, ...]]

    @classmethod
    def of(cls, eligible: Eligible, source_weights: np.ndarray) -> StrategyFirst:
        """Sort the rows of each strategy by source; `source_weights` float64 [S]."""
        shared: dict[bytes, Groups] = {}
        pools = {
            kind: tuple(_pool(eligible, kind, strategy, source_weights, shared) for strategy in strategies)
            for kind, strategies in KINDS.items()
        }
        return cls({kind: tuple(accumulate(_weights(eligible, kind, pools[kind]))) for kind in KINDS}, pools)

    def can(self, kind: str) -> bool:
        """Whether any strategy of a kind with a weight has rows."""
        return self.weights[kind][-1] > 0

    def draw(self, kind: str, draws: Draws) -> tuple[str, int]:
        """A strategy by weight, and a row that serves it."""
        number = draws.choose(self.weights[kind])
        pool = self.pools[kind][number]
        assert pool is not None, "a strategy without rows has weight 0"
        return KINDS[kind][number], pool.draw(draws)


def _weights(eligible: Eligible, kind: str, pools: tuple[Pool | None, ...]) -> list[float]:
    ratios = getattr(eligible.config, f"{kind}_strategies")
    return [float(getattr(ratios, name)) * (pool is not None) for name, pool in zip(KINDS[kind], pools, strict=True)]


def _pool(
    eligible: Eligible, kind: str, strategy: str, source_weights: np.ndarray, shared: dict[bytes, Groups]
) -> Pool | None:
    if getattr(getattr(eligible.config, f"{kind}_strategies"), strategy) <= 0:
        return None
    rows = _by_source(eligible, eligible.serving(kind, strategy), shared)
    weights = source_weights * (rows.sizes > 0)
    if eligible.upstream:
        offered = _by_source(eligible, eligible.offered(strategy), shared)
        weights = weights * rows.sizes / np.maximum(offered.sizes, 1)
        preferred = np.isin(eligible.columns.sources, members(UPSTREAM_SUBOPTIMAL_SOURCES))
        if strategy == "suboptimal" and (weights * preferred).any():
            weights = weights * preferred
    sources = np.flatnonzero(weights)
    return Pool(rows, sources, weights[sources].cumsum()) if len(sources) else None


def _by_source(eligible: Eligible, mask: np.ndarray, shared: dict[bytes, Groups]) -> Groups:
    """Rows of a mask by source; strategies with the same rows share one copy."""
    key = np.packbits(mask).tobytes()
    if key not in shared:
        rows = np.flatnonzero(mask)
        source = eligible.columns.source[rows]
        shared[key] = Groups.of(source, rows, len(eligible.columns.sources))
    return shared[key]
