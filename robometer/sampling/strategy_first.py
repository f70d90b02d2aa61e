"""Mode strategy_first: draw a strategy, then a source, then a trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from robometer.sampling.eligible import PREFERENCE_KINDS, PROGRESS_KINDS, Eligible
from robometer.sampling.partners import Groups
from robometer.sampling.segments import Draws

KINDS = {"preference": PREFERENCE_KINDS, "progress": PROGRESS_KINDS}


@dataclass(frozen=True)
class Pool:
    """Rows that can serve one strategy.

    Attributes:
        rows: the rows by source.
        sources: sources that can be drawn, ascending.
        weights: running sums of their weights, float64 [len(sources)].
    """

    rows: Groups
    sources: np.ndarray
    weights: np.ndarray

    def draw(self, draws: Draws) -> int:
        """A random row of a source drawn by weight, in O(log sources)."""
        value = draws.uniform() * self.weights[-1]
        place = min(int(self.weights.searchsorted(value, side="right")), len(self.sources) - 1)
        return self.rows.member(int(self.sources[place]), draws)


@dataclass(frozen=True)
class StrategyFirst:
    """What the mode draws from: by kind of sample, the running sums of the strategies' weights and their pools.

    A strategy that no row can serve has weight 0 and no pool. A source is drawn among those with a row that can serve
    the strategy, and every drawn row can serve it.
    """

    weights: dict[str, tuple[float, ...]]
    pools: dict[str, tuple[Pool | None, ...]]

    @classmethod
    def of(cls, eligible: Eligible, source_weights: np.ndarray) -> StrategyFirst:
        """Group the rows of each strategy by source; `source_weights` float64 [S]."""
        shared: dict[bytes, Groups] = {}
        pools = {
            kind: tuple(_pool(eligible, kind, strategy, source_weights, shared) for strategy in strategies)
            for kind, strategies in KINDS.items()
        }
        return cls({kind: tuple(accumulate(_weights(eligible, kind, pools[kind]))) for kind in KINDS}, pools)

    def can(self, kind: str) -> bool:
        """Whether any strategy of the kind has a weight above 0 and rows."""
        return self.weights[kind][-1] > 0

    def draw(self, kind: str, draws: Draws) -> tuple[str, int]:
        """A strategy drawn by weight, and a row that can serve it."""
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
