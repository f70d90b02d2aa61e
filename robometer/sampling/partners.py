"""The rows that another row can be paired with, as arrays that processes can share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robometer.sampling.columns import Columns
from robometer.sampling.segments import Draws
from robometer.trajectory import QUALITY_LABELS

GAP_TOLERANCE = 1e-6
"""Binary fractions must not keep 0.6 and 0.4 from being 0.2 apart."""


@dataclass(frozen=True)
class Groups:
    """Rows by group, compressed: group g holds `rows[offsets[g]:offsets[g + 1]]` (int32)."""

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
        """Number of rows of each group, int64 [groups]; `size` is cheaper for one group."""
        return np.diff(self.offsets)

    def span(self, group: int) -> tuple[int, int]:
        """Start and end of a group in `rows`."""
        return int(self.offsets[group]), int(self.offsets[group + 1])

    def size(self, group: int) -> int:
        """Number of rows of a group."""
        first, last = self.span(group)
        return last - first

    def group(self, group: int) -> np.ndarray:
        """Rows of a group."""
        first, last = self.span(group)
        return self.rows[first:last]

    def member(self, group: int, draws: Draws) -> int:
        """A random row of a group, all equally likely."""
        first, last = self.span(group)
        return int(self.rows[first + draws.below(last - first)])


@dataclass(frozen=True)
class Partners:
    """Usable rows that another row can be paired with.

    Attributes:
        successes, others: successful and unsuccessful rows, by task.
        embodied: successful rows by 2 x task + 1 for a robot's, 2 x task for a human's.
        grades: by quality label, the unsuccessful rows by task.
        partial: rows with a partial success by task, in ascending order of it; `partial_values` float64 goes with
            `partial.rows`.
        tasks: tasks with a success, ascending.
        places: (source, task) combinations with a success, numbered in ascending order, by source.
        place_task: task of each place, ascending within a source.
        place_rows: successful rows by place.
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
        """Unsuccessful rows without a partial success whose task has a success, bool [R].

        They are shown whole and lose against that success. Where their task has none they are treated like all other
        rows, as upstream does: they are the chosen clip of a pair, and the rejected one is their rewind or reverse, or
        a success of another task.
        """
        beaten = self.successes.sizes[columns.task] > 0
        return np.asarray(np.isnan(columns.partial_success) & ~columns.successful & beaten)

    @classmethod
    def of(cls, columns: Columns, usable: np.ndarray) -> Partners:
        """Group the `usable` rows (bool [R])."""
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
