"""How far two values are apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.recorded import gap, read, unless_wrong


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]}, 0.5),
        (math.nan, None, 0.0),
        (math.inf, math.inf, 0.0),
        (np.array([0.5]), [0.25], 0.25),
        (math.nan, 1.0, math.inf),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        (1.0, [1.0], math.inf),
        ("a", "b", math.inf),
        (None, {"a": 1.0}, math.inf),
    ],
)
def test_gap_is_the_largest_difference_and_infinite_between_different_shapes(
    ours: Any, theirs: Any, expected: float
) -> None:
    assert gap(ours, theirs) == expected


def test_texts_of_numbers_that_are_not_finite_are_read_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(json.dumps({"a": ["NaN", "-Infinity", "text", 1]}))
    values = read(tmp_path / "file.json")["a"]
    assert math.isnan(values[0]) and values[1:] == [-math.inf, "text", 1]


def test_a_mistake_of_upstream_excuses_only_the_records_that_have_it() -> None:
    excused, not_excused = (unless_wrong("c", "w", 1.0, 2.0, 0.1, wrong, "ties") for wrong in (True, False))
    assert excused.passed and excused.ours == "1" and excused.reason == "ties"
    assert not not_excused.passed and not_excused.error == 1.0
