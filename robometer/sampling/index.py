"""Which rows can serve which strategy, and the partners of each, as arrays: a plan costs microseconds at 1e6 rows."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.configs.schema import PreferenceStrategies, ProgressStrategies, SamplingConfig
from robometer.errors import RobometerError
from robometer.sampling.columns import Columns
from robometer.sampling.segments import Draws
from robometer.sampling.strategies import MIN_FRAMES_OF_SEGMENT, Rules, needed_frames
from robometer.trajectory import QUALITY_LABELS

logger = logging.getLogger(__name__)

PROGRESS_KINDS = tuple(f.name for f in fields(ProgressStrategies))
PREFERENCE_KINDS = tuple(f.name for f in fields(PreferenceStrategies))

_DIFFERENT_TASK = PREFERENCE_KINDS.index("different_task")

GAP_TOLERANCE = 1e-6
"""0.6 and 0.4 are 0.2 apart, whatever binary fractions say."""


class SamplingError(RobometerError):
    """Nothing to sample; the message is one sentence that says what is missing and what to change."""


@dataclass(frozen=True)
class Groups:
    """Rows by group in compressed form: group g holds `rows[offsets[g]:offsets[g + 1]]`."""

    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, rows: np.ndarray, count: int) -> Groups:
        """Group `rows` by their `keys` in [0, count); within a group they keep their order."""
        offsets = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(keys, minlength=count), out=offsets[1:])
        return cls(offsets, rows[np.argsort(keys, kind="stable")])

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each group, int64 [groups]."""
        return np.diff(self.offsets)

    def span(self, group: int) -> tuple[int, int]:
        """Where a group begins and ends in `rows`."""
        return int(self.offsets[group]), int(self.offsets[group + 1])

    def group(self, group: int) -> np.ndarray:
        """Rows of a group."""
        first, last = self.span(group)
        return self.rows[first:last]

    def member(self, group: int, draws: Draws) -> int:
        """A uniform row of a group."""
        first, last = self.span(group)
        return int(self.rows[first + draws.below(last - first)])


@dataclass(frozen=True)
class Partners:
    """Eligible rows that another row can be paired with.

    Attributes:
        successes, others: by task, successful and not.
        grades: the unsuccessful ones by task, of each quality label apart.
        partial: rows with partial success by task, ascending in it; `partial_values` float64 beside `partial.rows`.
        tasks: tasks with successes, ascending.
        places: by source, ascending numbers of (source, task) places that have successes.
        place_task: task of each place, ascending within a source.
        place_rows: successes by place.
    """

    successes: Groups
    others: Groups
    grades: dict[str, Groups]
    partial: Groups
    partial_values: np.ndarray
    tasks: np.ndarray
    places: Groups
    place_task: np.ndarray
    place_rows: Groups

    @classmethod
    def of(cls, columns: Columns, usable: np.ndarray) -> Partners:
        """Sort the rows that are `usable` (bool [R])."""
        count = int(columns.task.max(initial=-1)) + 1
        wins, rest = np.flatnonzero(usable & columns.successful), np.flatnonzero(usable & ~columns.successful)
        successes = Groups.of(columns.task[wins], wins, count)
        graded = np.flatnonzero(usable & ~np.isnan(columns.partial_success))
        graded = graded[np.argsort(columns.partial_success[graded], kind="stable")]
        partial = Groups.of(columns.task[graded], graded, count)
        code = columns.source[wins].astype(np.int64) * count + columns.task[wins]
        place_code, place = np.unique(code, return_inverse=True)
        numbers = np.arange(len(place_code))
        return cls(
            successes=successes,
            others=Groups.of(columns.task[rest], rest, count),
            grades={
                label: Groups.of(columns.task[rows], rows, count)
                for code, label in enumerate(QUALITY_LABELS[:-1])
                for rows in [np.flatnonzero(usable & (columns.quality == code))]
            },
            partial=partial,
            partial_values=columns.partial_success[partial.rows],
            tasks=np.flatnonzero(successes.sizes),
            places=Groups.of(place_code // max(count, 1), numbers, len(columns.sources)),
            place_task=place_code % max(count, 1),
            place_rows=Groups.of(place, wins, len(place_code)),
        )


@dataclass(frozen=True)
class ManifestIndex:
    """All that a plan looks up; picklable, read-only by convention.

    Attributes:
        config: the settings it was built with; `plan` takes the same.
        rules: the part of them that targets depend on.
        columns: facts by row.
        partners: rows by what they can be paired with.
        options: preference strategies that a row can serve, bit k for `PREFERENCE_KINDS[k]`, uint8 [R].
        preference_rows, progress_rows: rows that the stream walks through, int64.
        preference_weights: running sums of the strategies' weights for each value of `options`.
        progress_weights: running sums of the strategies' weights, without and with another task to be had.
    """

    config: SamplingConfig
    rules: Rules
    columns: Columns
    partners: Partners
    options: np.ndarray
    preference_rows: np.ndarray
    progress_rows: np.ndarray
    preference_weights: list[tuple[float, ...]]
    progress_weights: list[tuple[float, ...]]

    @classmethod
    def from_table(cls, table: pa.Table, config: SamplingConfig) -> ManifestIndex:
        """Index a manifest (columns of `MANIFEST_SCHEMA`) for `config`.

        Raises:
            SamplingError: no row of `config.split` can make a sample that the ratios ask for.
        """
        columns = Columns.from_table(table, config)
        usable = _usable(table, columns, config)
        partners = Partners.of(columns, usable)
        options = _options(columns, partners, config)
        preference_weights, progress_weights = _preference_weights(config), _progress_weights(config)
        index = cls(
            config=copy.deepcopy(config),
            rules=Rules.of(config),
            columns=columns,
            partners=partners,
            options=options,
            preference_rows=_preference_rows(columns, partners, options, preference_weights, usable, config),
            progress_rows=_progress_rows(columns, options, progress_weights, usable, config),
            preference_weights=preference_weights,
            progress_weights=progress_weights,
        )
        index._check(int(usable.sum()))
        return index

    def __len__(self) -> int:
        return len(self.columns)

    def has_other_task(self, row: int) -> bool:
        """Whether another task than the row's has a success."""
        return bool(self.options[row] >> _DIFFERENT_TASK & 1)

    def _check(self, usable: int) -> None:
        split = self.config.split
        if not usable:
            raise SamplingError(
                f"the corpus has no trajectory of split {split!r} with enough frames "
                f"(sampling.min_frames_per_trajectory={self.config.min_frames_per_trajectory}): "
                "choose another sampling.split, or ingest more"
            )
        for kind, rows in (("preference", self.preference_rows), ("progress", self.progress_rows)):
            if getattr(self.config, kind) > 0 and not len(rows):
                raise SamplingError(
                    f"no trajectory of split {split!r} can make a {kind} sample with these "
                    f"sampling.{kind}_strategies: set sampling.{kind}=0 or enable more of them"
                )
        logger.info(
            "sampling split %s: %d of %d rows usable, %d for preference, %d for progress",
            split, usable, len(self), len(self.preference_rows), len(self.progress_rows),
        )  # fmt: skip


def _usable(table: pa.Table, columns: Columns, config: SamplingConfig) -> np.ndarray:
    """Rows of the split with enough frames (upstream: more than `min_frames_per_trajectory`, fixed: at least)."""
    least = config.min_frames_per_trajectory + (config.compat == "upstream")
    in_split = pc.fill_null(pc.equal(table["split"], config.split), False).to_numpy()
    return np.asarray(in_split & (columns.num_frames >= max(least, MIN_FRAMES_OF_SEGMENT)))


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
        "rewind": config.max_frames >= needed_frames("rewind", config.compat),
        "reverse": config.max_frames >= needed_frames("reverse", config.compat),
        "suboptimal": np.where(np.isnan(partial), has_others, has_gap),
        "different_task": len(partners.tasks) - (partners.successes.sizes[task] > 0) > 0,
    }
    options = np.zeros(len(columns), dtype=np.uint8)
    for bit, kind in enumerate(PREFERENCE_KINDS):
        options |= np.asarray(possible[kind], dtype=np.uint8) << np.uint8(bit)
    return options


def _preference_weights(config: SamplingConfig) -> list[tuple[float, ...]]:
    ratios = [float(getattr(config.preference_strategies, kind)) for kind in PREFERENCE_KINDS]
    masks = range(1 << len(ratios))
    return [tuple(accumulate(r * (mask >> bit & 1) for bit, r in enumerate(ratios))) for mask in masks]


def _progress_weights(config: SamplingConfig) -> list[tuple[float, ...]]:
    shown = [config.max_frames >= needed_frames(kind, config.compat) for kind in PROGRESS_KINDS]
    ratios = [float(getattr(config.progress_strategies, kind)) for kind in PROGRESS_KINDS]
    can = [[ok and (other or kind != "different_instruction") for ok, kind in zip(shown, PROGRESS_KINDS, strict=True)]
           for other in (False, True)]  # fmt: skip
    return [tuple(accumulate(r * ok for r, ok in zip(ratios, oks, strict=True))) for oks in can]


def _preference_rows(
    columns: Columns,
    partners: Partners,
    options: np.ndarray,
    weights: list[tuple[float, ...]],
    usable: np.ndarray,
    config: SamplingConfig,
) -> np.ndarray:
    """Rows that make a pair. An ungraded unsuccessful one needs a success of its task to be rejected against.

    Fixed: such rows count as `suboptimal`, so that a weight of 0 leaves them out (upstream always uses them).
    """
    whole = np.isnan(columns.partial_success) & ~columns.successful
    wanted = config.preference_strategies.suboptimal > 0 or config.compat == "upstream"
    rejected = whole & (partners.successes.sizes[columns.task] > 0) & wanted
    drawn = ~whole & (np.array([w[-1] for w in weights]) > 0)[options]
    return np.flatnonzero(usable & (rejected | drawn))


def _progress_rows(
    columns: Columns,
    options: np.ndarray,
    weights: list[tuple[float, ...]],
    usable: np.ndarray,
    config: SamplingConfig,
) -> np.ndarray:
    """Rows that make a progress sample (fixed: those whose progress is trained; upstream: successes)."""
    has_other = options >> _DIFFERENT_TASK & 1
    asked = columns.successful if config.compat == "upstream" else columns.supervised
    return np.flatnonzero(usable & asked & (np.array([w[-1] for w in weights]) > 0)[has_other])
