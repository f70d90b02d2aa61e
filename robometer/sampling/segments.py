"""Which frames of a trajectory are shown: three-point segments, their index paths, thinning and padding.

Everything is exact integer arithmetic on positions of stored frames; random choices come from a passed `Draws`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

DIRECTIONS = ("forward", "reverse", "rewind")

Triple = tuple[int, int | None, int | None]
"""(start, middle, end): a path from start to end, by way of middle where the segment is a rewind."""

_BLOCK = 256
_PER_SAMPLE = 16


@lru_cache(maxsize=64)
def _uniforms(seed: int, block: int) -> np.ndarray:
    """Uniform draws [256, 16] of a block of samples; building a Philox costs as much as a whole plan."""
    words = 0xFFFFFFFFFFFFFFFF
    key = np.array([seed & words, block & words], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((_BLOCK, _PER_SAMPLE))


class Draws:
    """The random numbers of one sample: a pure function of (seed, sample index), whatever was drawn before.

    A sample makes at most 16 draws; one more raises `StopIteration`.
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
    """Draw a segment of `direction`; None where the trajectory is too short for one.

    Three distinct frames f1 < f2 < f3 give forward f1..f3, reverse f3..f1, rewind f1..f3..f2. Clips of one or two
    frames are drawn as such; `needed_frames` refuses a rewind of two, which would be a forward pair.
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
    """Every frame from start to end, by way of middle where there is one (shown once), int64 [L].

    Frames beyond the video are taken as its first or last. Videos of one or two frames are shown whole; without an
    end, or for clips of one frame, only the start is shown.
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


@lru_cache(maxsize=4096)
def linspace_positions(total: int, count: int) -> np.ndarray:
    """At most `count` of `total` positions, evenly spaced, first and last always among them, int64 [<= count].

    One position is the last. Halves round to even (numpy rint). The result is shared: it is read-only.
    """
    if total <= count:
        positions = np.arange(total)
    elif count == 1:
        positions = np.array([total - 1])
    else:
        positions = np.rint(np.linspace(0, total - 1, count)).astype(np.int64)
    positions.flags.writeable = False
    return positions


def keep_position(positions: np.ndarray, wanted: int) -> np.ndarray:
    """`positions` (ascending) with the inner one nearest to `wanted`, which lies between them, moved onto it."""
    after = int(positions.searchsorted(wanted))
    if len(positions) < 3 or positions[after] == wanted:
        return positions
    nearest = after - 1 if 2 * wanted < positions[after - 1] + positions[after] else after
    moved = positions.copy()
    moved[min(max(nearest, 1), len(positions) - 2)] = wanted
    return moved


def pad(values: np.ndarray, length: int) -> np.ndarray:
    """Repeat the last entry up to `length` entries along the first axis."""
    missing = length - len(values)
    if missing <= 0 or len(values) == 0:
        return values
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
