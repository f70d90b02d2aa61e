"""Which frames of a trajectory a clip shows: three-point segments, their index paths, and padding.

Everything is exact integer arithmetic on positions of stored frames; random choices come from a passed `Draws`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

DIRECTIONS = ("forward", "reverse", "rewind")

Triple = tuple[int, int | None, int | None]
"""(start, middle, end): a path from start to end, through middle if the segment is a rewind."""

_BLOCK = 256
_PER_SAMPLE = 16


@lru_cache(maxsize=64)
def _uniforms(seed: int, block: int) -> np.ndarray:
    """Uniform draws [256, 16] of a block of samples: building a Philox generator costs as much as a whole plan."""
    words = 0xFFFFFFFFFFFFFFFF
    key = np.array([seed & words, block & words], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((_BLOCK, _PER_SAMPLE))


class Draws:
    """The random numbers of one sample: a pure function of (seed, sample index), independent of earlier samples.

    A sample may draw 16 numbers; one more raises `StopIteration`.
    """

    def __init__(self, seed: int, sample_index: int) -> None:
        block, offset = divmod(sample_index, _BLOCK)
        self._next = iter(_uniforms(seed, block)[offset].tolist()).__next__

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(self._next())

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self._next() * count)

    def choose(self, cumulative: tuple[float, ...]) -> int:
        """Index of the first running sum above a uniform draw; a weight of 0 is never chosen."""
        value = self._next() * cumulative[-1]
        for i, total in enumerate(cumulative):
            if value < total:
                return i
        return cumulative.index(cumulative[-1])


def draw_triple(draws: Draws, num_frames: int, direction: str, max_frames: int) -> Triple | None:
    """Draw a segment of `direction`; None if the trajectory is too short for one.

    Three distinct frames f1 < f2 < f3 give forward f1..f3, reverse f3..f1, rewind f1..f3..f2. With `max_frames` of 1 or
    2, one or two frames are drawn instead; `needed_frames` refuses a rewind of two, which would be a forward pair.
    """
    if max_frames == 1:
        return draws.below(num_frames), None, None
    if max_frames == 2:
        if num_frames < 2:
            return None
        first = draws.below(num_frames - 1)
        last = first + 1 + draws.below(num_frames - 1 - first)
        return (last, None, first) if direction == "reverse" else (first, None, last)
    if num_frames < 3:
        return None
    f1, f2, f3 = _three_distinct(draws, num_frames)
    if direction == "reverse":
        return f3, None, f1
    return (f1, f3, f2) if direction == "rewind" else (f1, None, f3)


def _three_distinct(draws: Draws, count: int) -> tuple[int, int, int]:
    first, second, third = draws.below(count), draws.below(count - 1), draws.below(count - 2)
    second += second >= first
    low, high = min(first, second), max(first, second)
    third += third >= low
    third += third >= high
    low, middle, high = sorted((low, high, third))
    return low, middle, high


def segment_path(num_frames: int, start: int, end: int | None, middle: int | None, max_frames: int) -> np.ndarray:
    """Every frame from start to end, through middle (shown once) if there is one, int64 [L].

    Frames outside the video are clamped to its first or last. Videos of one or two frames are shown whole; without an
    end, or with `max_frames` of 1, only the start is shown.
    """
    if num_frames == 1:
        return np.zeros(1, dtype=np.int64)
    if num_frames == 2:
        return np.arange(1 if max_frames == 1 else 2)
    last = num_frames - 1
    start = min(max(start, 0), last)
    if end is None or max_frames == 1:
        return np.array([start])
    end = min(max(end, 0), last)
    if middle is None:
        return _leg(start, end)
    middle = min(max(middle, 0), last)
    back = _leg(middle, end)
    return np.concatenate([_leg(start, middle), back[back != middle]])


def _leg(first: int, last: int) -> np.ndarray:
    return np.arange(first, last + 1) if last >= first else np.arange(first, last - 1, -1)


def keep_position(positions: np.ndarray, position: int) -> np.ndarray:
    """`positions` (ascending) with the inner one nearest to `position`, which lies between them, moved onto it."""
    after = int(positions.searchsorted(position))
    if len(positions) < 3 or positions[after] == position:
        return positions
    nearest = after - 1 if 2 * position < positions[after - 1] + positions[after] else after
    moved = positions.copy()
    moved[min(max(nearest, 1), len(positions) - 2)] = position
    return moved


def pad(values: np.ndarray, length: int) -> np.ndarray:
    """Repeat the last entry up to `length` entries along the first axis."""
    missing = length - len(values)
    if missing <= 0 or len(values) == 0:
        return values
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
