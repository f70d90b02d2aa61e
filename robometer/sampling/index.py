"""What plans look up, as arrays: a plan takes microseconds at a million rows, and processes can share the index."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.sampling.columns import Columns
from robometer.sampling.config import SamplingConfig
from robometer.sampling.eligible import DIFFERENT_TASK, Eligible
from robometer.sampling.groups import resolve, source_weights
from robometer.sampling.partners import Partners
from robometer.sampling.strategies import MIN_FRAMES_OF_SEGMENT, Rules
from robometer.sampling.strategy_first import StrategyFirst
from robometer.sampling.types import SamplingError
from robometer.sampling.walk import Walk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManifestIndex:
    """What a plan looks up; picklable (arrays out of band), read-only by convention.

    Attributes:
        config: the settings that the index was built with; `plan` needs the same.
        rules: the part of the settings that targets depend on.
        columns: facts by row.
        partners: rows that another row can be paired with.
        options, preference_weights, progress_weights: see `Eligible`.
        preference_walk, progress_walk: rows that mode trajectory_first walks through.
        strategy_first: what mode strategy_first draws from; None in mode trajectory_first.
    """

    config: SamplingConfig
    rules: Rules
    columns: Columns
    partners: Partners
    options: np.ndarray
    preference_walk: Walk
    progress_walk: Walk
    strategy_first: StrategyFirst | None
    preference_weights: list[tuple[float, ...]]
    progress_weights: list[tuple[float, ...]]

    @classmethod
    def from_table(cls, table: pa.Table, config: SamplingConfig) -> ManifestIndex:
        """Index a manifest (columns of `MANIFEST_SCHEMA`) for `config`.

        Raises:
            SamplingError: the corpus lacks a source that the settings name, or no row of `config.split` can make a
                kind of sample whose ratio is above 0.
        """
        columns = Columns.from_table(table, config)
        usable = _usable(table, columns, config)
        partners = Partners.of(columns, usable)
        eligible = Eligible.of(columns, partners, usable, config)
        weights = source_weights(config.source_weights, columns.sources)
        walk_weights = weights if config.source_weights else None
        index = cls(
            config=copy.deepcopy(config),
            rules=Rules.of(config),
            columns=columns,
            partners=partners,
            options=eligible.options,
            preference_walk=Walk.of(np.flatnonzero(eligible.preference()), columns, walk_weights),
            progress_walk=Walk.of(np.flatnonzero(eligible.progress()), columns, walk_weights),
            strategy_first=StrategyFirst.of(eligible, weights) if config.mode == "strategy_first" else None,
            preference_weights=eligible.preference_weights,
            progress_weights=eligible.progress_weights,
        )
        index._check(int(usable.sum()))
        return index

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def preference_rows(self) -> np.ndarray:
        """Rows that can be drawn for a pair, int32."""
        return self.preference_walk.rows.rows

    @property
    def progress_rows(self) -> np.ndarray:
        """Rows that can be drawn for a progress sample, int32."""
        return self.progress_walk.rows.rows

    def has_other_task(self, row: int) -> bool:
        """Whether a task other than the row's has a success."""
        return bool(self.options[row] >> DIFFERENT_TASK & 1)

    def _check(self, usable: int) -> None:
        split = self.config.split
        if not usable:
            chosen = f" of sources {', '.join(self.config.sources)}" if self.config.sources else ""
            raise SamplingError(
                f"the corpus has no trajectory of split {split!r}{chosen} with enough frames "
                f"(sampling.min_frames_per_trajectory={self.config.min_frames_per_trajectory}): "
                "choose another sampling.split, or ingest more"
            )
        for kind, walk in (("preference", self.preference_walk), ("progress", self.progress_walk)):
            possible = len(walk) > 0 if self.strategy_first is None else self.strategy_first.can(kind)
            if getattr(self.config, kind) > 0 and not possible:
                weighted = " and sampling.source_weights" if self.config.source_weights else ""
                raise SamplingError(
                    f"no trajectory of split {split!r} can make a {kind} sample with these "
                    f"sampling.{kind}_strategies{weighted}: set sampling.{kind}=0 or enable more of them"
                )
        logger.info(
            "Sampling split %s: %d of %d rows can be used, %d for preference and %d for progress.",
            split, usable, len(self), len(self.preference_walk), len(self.progress_walk),
        )  # fmt: skip


def _usable(table: pa.Table, columns: Columns, config: SamplingConfig) -> np.ndarray:
    """Rows of the split and of the chosen sources, with enough frames."""
    in_split = pc.fill_null(pc.equal(table["split"], config.split), False).to_numpy()
    usable = in_split & (columns.num_frames >= max(config.min_frames_per_trajectory, MIN_FRAMES_OF_SEGMENT))
    if config.sources:
        usable &= columns.of_sources(set(resolve(config.sources, columns.sources)).__contains__)
    return np.asarray(usable)
