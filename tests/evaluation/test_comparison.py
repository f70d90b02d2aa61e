"""Runs compared on pairs and clips made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from robometer.evaluation import suite
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction, PairPrediction, Predictions
from robometer.report.comparison import common, compare_runs, remarks
from robometer.report.runs import EvaluationRun

SETTINGS = EvaluateConfig(scorer="x/y", bootstrap=50, splits=["seen"], evaluations=["preference"])


def pair(number: int, chosen: float, error: str = "", source: str = "lab") -> PairPrediction:
    """A pair of one task each, whose better clip gets this probability in both orders."""
    a, b = f"{source}-a{number}", f"{source}-b{number}"
    return PairPrediction("seen", "quality", f"t{number}", a, b, "successful", "failure", chosen, chosen, error)


def clip(name: str, source: str, split: str = "seen") -> ClipPrediction:
    none = np.zeros(0, np.float32)
    two = np.array([0.1, 0.9], np.float32)
    return ClipPrediction(split, name, 0, source, "t", "successful", "forward", two, two, none, none)


def run(name: str, predictions: Predictions, provenance: Mapping[str, Any] | None = None) -> EvaluationRun:
    results = suite.evaluate_all(predictions, SETTINGS)
    return EvaluationRun(name, predictions, provenance or {}, results, SETTINGS)


def accuracy(of: EvaluationRun) -> tuple[float, int]:
    metric = of.metric("preference", "seen", "accuracy_quality")
    assert metric is not None
    return metric.estimate.value, metric.estimate.n


def test_a_difference_is_the_other_run_less_the_first_over_what_both_scored() -> None:
    """Of 8 common pairs the first run has 2 right and the second 6; at another one the second failed."""
    first = run("first", Predictions(pairs=[pair(i, 0.9 if i in (0, 1, 8) else 0.1) for i in range(9)]))
    second = run(
        "second", Predictions(pairs=[pair(i, 0.9 if i < 6 else 0.1, "broken" if i == 8 else "") for i in range(9)])
    )
    assert accuracy(first) == (pytest.approx(3 / 9), 9)
    difference = compare_runs([first, second]).differences["second"]["preference", "seen", "accuracy_quality"]
    assert (difference.value, difference.n, difference.reason) == (pytest.approx(4 / 8), 8, "")
    assert 0 < difference.low < 0.5 < difference.high <= 1
    back = compare_runs([second, first]).differences["first"]["preference", "seen", "accuracy_quality"]
    mirrored = [-x for x in (difference.value, difference.high, difference.low)]
    assert [back.value, back.low, back.high] == pytest.approx(mirrored)


def test_runs_over_the_same_records_stay_as_they_are() -> None:
    first, second = (run(name, Predictions(pairs=[pair(0, 0.9), pair(1, 0.2)])) for name in ("a", "b"))
    assert all(one is other for one, other in zip(common(first, second), (first, second), strict=True))
    assert compare_runs([first]).several is False
    assert compare_runs([first, second]).several is True


def test_only_what_both_scored_is_common_of_each_kind() -> None:
    words = [InstructionPrediction("seen", "c0", 0, "t", text, 0.5) for text in ("t", "u")]
    first = run("a", Predictions([clip("c0", "lab"), clip("c1", "lab")], words, [pair(0, 0.9)]))
    second = run("b", Predictions([clip("c1", "lab"), clip("c2", "lab")], words[1:], [pair(0, 0.1, "broken")]))
    for cut in common(first, second):
        assert [record.id for record in cut.predictions.clips] == ["c1"]
        assert [record.instruction for record in cut.predictions.instructions] == ["u"]
        assert cut.predictions.pairs == []


def test_each_source_is_evaluated_on_its_own_pairs() -> None:
    pairs = [pair(i, 0.9, source="lab") for i in range(3)] + [
        pair(i, 0.1 + 0.8 * (i == 0), source="home") for i in range(4)
    ]
    clips = [
        clip(name, source) for p in pairs for name in (p.chosen_id, p.rejected_id) for source in [name.split("-")[0]]
    ]
    both = run("a", Predictions(clips=clips, pairs=pairs))
    sources = compare_runs([both]).sources["a"]
    assert {name: accuracy(of) for name, of in sources.items()} == {"lab": (1.0, 3), "home": (pytest.approx(1 / 4), 4)}
    assert {len(of.predictions.clips) for of in sources.values()} == {6, 8}
    of_one = run("a", Predictions(clips=clips[:6], pairs=pairs[:3]))
    assert compare_runs([of_one]).sources["a"]["lab"] is of_one


@pytest.mark.parametrize("scored_by_second", [True, False])
def test_why_runs_are_not_directly_comparable(scored_by_second: bool) -> None:
    whole = Predictions([clip(f"c{i}", "lab") for i in range(5)], pairs=[pair(0, 0.9)])
    part = Predictions([clip(f"c{i}", "lab") for i in range(3, 6)] if scored_by_second else [], pairs=[pair(0, 0.9)])
    first = run("first", whole, {"mode": "whole clip", "frames": 8})
    second = run("second", part, {"mode": "prefix", "frames": 8})
    clips = "On seen, first scored clips, but second scored none."
    if scored_by_second:
        clips = "On seen, second scored 3 clips and first 5. Differences are over the 2 clips that both scored."
    assert remarks([first, second]) == [clips, "The runs differ in mode: first: whole clip; second: prefix."]
    assert remarks([second, first])[0] == (
        "On seen, first scored 5 clips and second 3. Differences are over the 2 clips that both scored."
        if scored_by_second
        else clips
    )
    assert remarks([first, first]) == []
    assert remarks([first, run("third", whole, {"mode": "whole clip"})]) == [
        "The runs differ in frames: first: 8; third: unknown."
    ]
