"""Which rows can serve which sampling strategy, as masks over the manifest."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np

from robometer.sampling.columns import Columns
from robometer.sampling.config import PreferenceStrategies, ProgressStrategies, SamplingConfig
from robometer.sampling.partners import GAP_TOLERANCE, Partners
from robometer.sampling.strategies import needed_frames

PROGRESS_KINDS = tuple(f.name for f in fields(ProgressStrategies))
PREFERENCE_KINDS = tuple(f.name for f in fields(PreferenceStrategies))

DIFFERENT_TASK = PREFERENCE_KINDS.index("different_task")


@dataclass(frozen=True)
class Eligible:
    """Masks bool [R] over the manifest, used only while an index is built.

    Attributes:
        usable: rows of the split and of the chosen sources with enough frames.
        whole: rows that are shown whole, and only as the rejected clip of a pair (see `Partners.shown_whole`).
        options: preference strategies that a row can serve, bit k for `PREFERENCE_KINDS[k]`, uint8 [R].
        preference_weights: running sums of the strategies' weights, for each value of `options`.
        progress_weights: running sums of the strategies' weights, where no other task has a success and where one has.
    """

    columns: Columns
    partners: Partners
    config: SamplingConfig
    usable: np.ndarray
    whole: np.ndarray
    options: np.ndarray
    preference_weights: list[tuple[float, ...]]
    progress_weights: list[tuple[float, ...]]

    @classmethod
    def of(cls, columns: Columns, partners: Partners, usable: np.ndarray, config: SamplingConfig) -> Eligible:
        """Find out what the `usable` rows (bool [R]) can serve."""
        return cls(
            columns=columns,
            partners=partners,
            config=config,
            usable=usable,
            whole=partners.shown_whole(columns),
            options=_options(columns, partners, config),
            preference_weights=_preference_weights(config),
            progress_weights=_progress_weights(config),
        )

    def preference(self) -> np.ndarray:
        """Rows that make a pair in mode trajectory_first.

        Rows that are shown whole belong to the strategy `suboptimal`, whose weight of 0 leaves them out.
        """
        pairs_whole = self.config.preference_strategies.suboptimal > 0
        has_strategy = ~self.whole & (np.array([w[-1] for w in self.preference_weights]) > 0)[self.options]
        return np.asarray(self.usable & (self.whole & pairs_whole | has_strategy))

    def progress(self) -> np.ndarray:
        """Rows that make a progress sample in mode trajectory_first: those that train progress."""
        has_strategy = (np.array([w[-1] for w in self.progress_weights]) > 0)[self._has_other_task]
        return np.asarray(self.usable & self.columns.supervised & has_strategy)

    def serving(self, kind: str, strategy: str) -> np.ndarray:
        """Rows that make a sample of `kind` in mode strategy_first: those that can serve `strategy`."""
        if kind == "preference":
            can_serve = ~self.whole & (self.options >> PREFERENCE_KINDS.index(strategy) & 1 > 0)
            return np.asarray(self.usable & (self.whole & (strategy == "suboptimal") | can_serve))
        possible = (self._has_other_task > 0) | (strategy != "different_instruction")
        possible &= self.config.max_frames >= needed_frames(strategy)
        return np.asarray(self.usable & possible & self.columns.supervised)

    @property
    def _has_other_task(self) -> np.ndarray:
        """Whether a task other than the row's has a success, uint8 [R], 0 or 1."""
        return np.asarray(self.options >> DIFFERENT_TASK & 1)


def _options(columns: Columns, partners: Partners, config: SamplingConfig) -> np.ndarray:
    task, partial = columns.task, columns.partial_success
    has_others = partners.others.sizes[task] > 0
    first, last = partners.partial.offsets[:-1], partners.partial.offsets[1:] - 1
    graded = partners.partial.sizes > 0
    low, high = np.full(len(graded), np.nan), np.full(len(graded), np.nan)
    low[graded], high[graded] = partners.partial_values[first[graded]], partners.partial_values[last[graded]]
    gap = config.partial_success_threshold - GAP_TOLERANCE
    has_gap = (partial - low[task] >= gap) | (high[task] - partial >= gap)
    possible = {
        "rewind": True,
        "reverse": True,
        "suboptimal": np.where(np.isnan(partial), columns.successful & has_others, has_gap),
        "different_task": len(partners.tasks) - (partners.successes.sizes[task] > 0) > 0,
        "paired": columns.successful & (partners.embodied.sizes[columns.embodied_task ^ 1] > 0),
    }
    options = np.zeros(len(columns), dtype=np.uint8)
    for bit, kind in enumerate(PREFERENCE_KINDS):
        fits = config.max_frames >= needed_frames(kind)
        options |= np.asarray(possible[kind] & np.bool_(fits), dtype=np.uint8) << np.uint8(bit)
    return options


def _preference_weights(config: SamplingConfig) -> list[tuple[float, ...]]:
    ratios = [float(getattr(config.preference_strategies, kind)) for kind in PREFERENCE_KINDS]
    masks = range(1 << len(ratios))
    return [tuple(accumulate(r * (mask >> bit & 1) for bit, r in enumerate(ratios))) for mask in masks]


def _progress_weights(config: SamplingConfig) -> list[tuple[float, ...]]:
    fits = [config.max_frames >= needed_frames(kind) for kind in PROGRESS_KINDS]
    ratios = [float(getattr(config.progress_strategies, kind)) for kind in PROGRESS_KINDS]
    usable = [[ok and (other or kind != "different_instruction") for ok, kind in zip(fits, PROGRESS_KINDS, strict=True)]
              for other in (False, True)]  # fmt: skip
    return [tuple(accumulate(r * ok for r, ok in zip(ratios, oks, strict=True))) for oks in usable]
