"""One comparison with a recorded number of upstream: what, and how far apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: the recorded case, such as `d_rbm/default_1_preference_B2T4_64x64`.
        what: what was compared in it, such as `progress logits A`.
        error: the largest absolute difference, in the unit of what was compared (0 or 1 for what must be exact).
        tolerance: the largest error that passes.
        reason: where upstream is wrong, why (one sentence); such a row is listed apart and fails nothing.
        ours: with `reason`, our value beside upstream's, as text.
    """

    case: str
    what: str
    error: float
    tolerance: float
    reason: str = ""
    ours: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance, or upstream is wrong here."""
        return bool(self.reason) or self.error <= self.tolerance
