"""Rows by what they can be paired with, as arrays that processes can share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robometer.sampling.columns import Columns
from robometer.sampling.segments import Draws
from robometer.trajectory import QUALITY_LABELS

GAP_TOLERANCE = 1e-6
"""0.6 and 0.4 are 0.2 apart, whatever binary fractions say."""


@dataclass(frozen=True)
class Groups:
    """Rows by group in compressed form: group g holds `rows[offsets[g]:offsets[g + 1]]` (int32)."""

    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, rows: np.ndarray, count: int) -> Groups:
        """Group `rows` by their `keys` in [0, count); within a group they keep their order."""
        offsets = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(keys, minlength=count), out=offsets[1:])
        return cls(offsets, rows.astype(np.int32)[np.argsort(keys, kind="stable")])

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each group, int64 [groups]; for one group `size` costs less."""
        return np.diff(self.offsets)

    def span(self, group: int) -> tuple[int, int]:
        """Where a group begins and ends in `rows`."""
        return int(self.offsets[group]), int(self.offsets[group + 1])

    def size(self, group: int) -> int:
        """Rows of a group."""
        first, last = self.span(group)
        return last - first

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
        embodied: successes by 2 x task + 1 for a robot's, 2 x task for a human's.
        grades: the unsuccessful ones by task, of each quality label apart.
        partial: rows with partial success by task, ascending in it; `partial_values` float64 beside `partial.rows`.
        tasks: tasks with successes, ascending.
        places: by source, ascending numbers of (source, task) places that have successes.
        place_task: task of each place, ascending within a source.
        place_rows: successes by place.
    """

    successes: Groups
    others: Groups
    embodied: Groups
    grades: dict[str, Groups]
    partial: Groups
    partial_values: np.ndarray
    tasks: np.ndarray
    places: Groups
    place_task: np.ndarray
    place_rows: Groups

    def shown_whole(self, columns: Columns) -> np.ndarray:
        """Ungraded unsuccessful rows whose task has a success, bool [R].

        They are shown whole, and lose against that success. Without one they go the way of all others, as upstream has
        it: they are the chosen of a pair, and their rewind or reverse, or a success of another task, is the rejected.
        """
        beaten = self.successes.sizes[columns.task] > 0
        return np.asarray(np.isnan(columns.partial_success) & ~columns.successful & beaten)

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
            embodied=Groups.of(columns.embodied_task[wins], wins, 2 * count),
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
