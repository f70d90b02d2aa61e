"""`d_rbm`: the same tiny weights, raw frames in, upstream's ids, pixels, states, logits and gradients out."""

from __future__ import annotations

from pathlib import Path

from parity.groups.vlm import rows
from parity.recorded_set import RecordedSet


def test_every_recorded_case_of_the_vision_language_model_is_reproduced(golden: Path) -> None:
    compared = list(rows(RecordedSet(golden)))
    assert {"progress logits B", "preference logit", "training loss", "video mode"} <= {row.what for row in compared}
    assert not [row for row in compared if not row.passed]
