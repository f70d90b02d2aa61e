"""Other ways to show a clip: with its frames in another order, or under other words. They turn any corpus into a test.

A view is a list of positions: which stored frame to show at each moment. A successful clip is taken to progress evenly,
so the right progress at a moment is how far into the clip its frame lies: `true_progress`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

FORWARD, REVERSED, REWOUND, RETRY, CYCLE, HESITATION, MEMORY = (
    "forward", "reversed", "rewound", "retry", "cycle", "hesitation", "memory",
)  # fmt: skip


def _rewound(n: int) -> np.ndarray:
    """To the end, and back to the middle."""
    return np.r_[0:n, n - 2 : (n - 1) // 2 - 1 : -1] if n > 2 else np.arange(n)


def _retry(n: int) -> np.ndarray:
    """Two thirds of the way, back to one third, and then to the end: a failed attempt and a second one."""
    first, second = (n - 1) // 3, 2 * (n - 1) // 3
    return np.concatenate([np.arange(second + 1), np.arange(second - 1, first - 1, -1), np.arange(first + 1, n)])


def _cycle(n: int) -> np.ndarray:
    """To the end, back to the start, and to the end again."""
    return np.concatenate([np.arange(n), np.arange(n - 2, -1, -1), np.arange(1, n)])


def _hesitation(n: int) -> np.ndarray:
    """Half way, a stop as long as half the clip, and then to the end."""
    return np.concatenate([np.arange(n // 2), np.full(n // 2, n // 2), np.arange(n // 2, n)])


VIEWS: dict[str, Callable[[int], np.ndarray]] = {
    FORWARD: np.arange,
    REVERSED: lambda n: np.arange(n)[::-1],
    REWOUND: _rewound,
    RETRY: _retry,
    CYCLE: _cycle,
    HESITATION: _hesitation,
}
"""Positions int [T'] of a clip of T frames, by view. `predict` makes `memory`, which takes a second clip."""


def true_progress(positions: np.ndarray) -> np.ndarray:
    """True progress of a successful clip at the frames of a view, float64 [T'] in [0, 1]."""
    last = int(positions.max(initial=0))
    return positions / last if last else np.zeros(len(positions))


_OPPOSITES = (
    ("open", "close"), ("left", "right"), ("push", "pull"), ("up", "down"), ("top", "bottom"), ("on", "off"),
    ("into", "out of"), ("insert", "remove"), ("lock", "unlock"), ("front", "back"), ("raise", "lower"),
    ("fold", "unfold"), ("lift", "lower"), ("pick up", "put down"), ("first", "last"),
)  # fmt: skip
_SWAP = {a: b for pair in reversed(_OPPOSITES) for a, b in (pair, pair[::-1])}
_WORD = re.compile(rf"\b({'|'.join(sorted(_SWAP, key=len, reverse=True))})(?:ing|e?d|s)?\b", re.IGNORECASE)


def counterfactual(task: str) -> str | None:
    """The instruction with its first reversible word replaced by the opposite (open: close); None if it has none."""
    match = _WORD.search(task)
    return task[: match.start()] + _SWAP[match[1].lower()] + task[match.end() :] if match else None


def paraphrases(task: str) -> tuple[str, ...]:
    """The same instruction in other words, which should not change the progress."""
    plain = task.strip().rstrip(".")
    plain = plain[:1].lower() + plain[1:]
    return f"Please {plain}.", f"The robot should {plain}.", plain.upper()
