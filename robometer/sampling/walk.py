"""A walk that visits every row once before any row twice, in a new order each time: a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from robometer.sampling.columns import Columns
from robometer.sampling.partners import Groups

_WORD = 0xFFFFFFFFFFFFFFFF

_MIN_SLOTS = 1 << 16
"""Fewest slots of a block: weights of sources are exact to about one slot."""

_SLOT_SALT = 0x51075


@dataclass(frozen=True)
class Walk:
    """Rows, and the share of the walk that each source gets.

    Attributes:
        rows: rows by source; without weights, all rows in one group.
        slots: running sums from 0, int64 [groups + 1]: each block of `slots[-1]` steps gives group g
            `slots[g + 1] - slots[g]` of them.
    """

    rows: Groups
    slots: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, columns: Columns, weights: np.ndarray | None) -> Walk:
        """Walk through `rows`, each source by its weight (float64 [S]); without weights, through all rows alike."""
        if weights is None:
            return cls(Groups.of(np.zeros(len(rows), dtype=np.int64), rows, 1), np.array([0, 1]))
        rows = rows[weights[columns.source[rows]] > 0]
        present, group = np.unique(columns.source[rows], return_inverse=True)
        return cls(Groups.of(group, rows, len(present)), _slots(weights[present]))

    def __len__(self) -> int:
        return len(self.rows.rows)

    def row(self, seed: int, step: int) -> int:
        """Row of a step.

        With weights, every source gets its exact share of each block of `slots[-1]` steps, in shuffled order. After
        whole blocks, the visits to any two rows of a source differ by at most one.
        """
        group, rank = (0, step) if len(self.slots) == 2 else self._visit(seed, step)
        first, last = self.rows.span(group)
        epoch, position = divmod(rank, last - first)
        return int(self.rows.rows[first + permuted(position, last - first, seed + group, epoch)])

    def _visit(self, seed: int, step: int) -> tuple[int, int]:
        """Group of a step, and the number of earlier visits to that group."""
        block, position = divmod(step, int(self.slots[-1]))
        slot = permuted(position, int(self.slots[-1]), seed ^ _SLOT_SALT, block)
        group = int(self.slots.searchsorted(slot, side="right")) - 1
        first, last = int(self.slots[group]), int(self.slots[group + 1])
        return group, block * (last - first) + slot - first


def _slots(weights: np.ndarray) -> np.ndarray:
    """Running sums of whole slots in proportion to `weights` (all positive), at least one each."""
    total = max(_MIN_SLOTS, 16 * len(weights))
    exact = np.cumsum(weights / weights.sum()) * (total - len(weights)) + np.arange(1, len(weights) + 1)
    return np.concatenate([[0], np.rint(exact).astype(np.int64)])


def permuted(position: int, count: int, seed: int, epoch: int) -> int:
    """Where the epoch's shuffle puts `position` in [0, count): a bijection, in constant time and memory.

    A four-round Feistel network over the next power of two; results outside [0, count) go through it again (cycle
    walking).
    """
    bits = max(2, (count - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    key = _epoch_key(seed, epoch)
    while True:
        high, low = position >> low_bits, position & low_mask
        for r in (1, 3):
            high ^= _mix(key + r ^ low << 8) & high_mask
            low ^= _mix(key + r + 1 ^ high << 8) & low_mask
        position = high << low_bits | low
        if position < count:
            return position


@lru_cache(maxsize=1024)
def _epoch_key(seed: int, epoch: int) -> int:
    return _mix((seed & _WORD) ^ _mix(epoch + 1))


def _mix(value: int) -> int:
    """SplitMix64's finaliser: each input bit flips about half of the output bits."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
