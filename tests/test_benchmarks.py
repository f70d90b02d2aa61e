"""Benchmarks run: what they time gives equal results. What they measure is for a quiet machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import evaluation
from benchmarks.predictions import SUCCESSFUL_VIEWS, predictions
from robometer.trajectory import SUCCESSFUL


def test_synthetic_predictions_hold_what_an_evaluation_asks_for() -> None:
    made = predictions(90, tasks=5)
    good = [clip for clip in made.clips if clip.view == "forward" and clip.quality_label == SUCCESSFUL]
    assert len(made.clips) == 90 + len(good) * (len(SUCCESSFUL_VIEWS) - 1) and len(good) == 30
    assert {record.kind for record in made.instructions} == {"own", "other", "counterfactual", "paraphrase"}
    assert {(pair.kind, pair.chosen_quality) for pair in made.pairs} == {
        ("quality", SUCCESSFUL), ("quality", "suboptimal"), ("task", SUCCESSFUL), ("reversed", SUCCESSFUL),
    }  # fmt: skip
    again = predictions(90, tasks=5)
    assert all(np.array_equal(a.progress, b.progress) for a, b in zip(made.clips, again.clips, strict=True))


@pytest.mark.parametrize("part", [evaluation.metrics, evaluation.tau, evaluation.prefix])
def test_a_part_runs_on_little(part: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part(tmp_path, True)  # type: ignore[operator]
    assert capsys.readouterr().out.count("\n") > 3


@pytest.mark.slow
def test_two_actors_predict_what_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation.actors(tmp_path, True)
    assert "predictions differ by" in capsys.readouterr().out


def test_results_that_differ_end_a_benchmark() -> None:
    assert evaluation.must_agree(1e-6, 1e-5) == "1e-06"
    for apart in (1e-4, float("nan")):
        with pytest.raises(SystemExit, match="results differ"):
            evaluation.must_agree(apart, 1e-5)


def test_a_rate_leaves_out_the_start_and_the_end() -> None:
    assert evaluation.steady_rate([30.0, 31.0, 32.0, 33.0], 1) == pytest.approx(1.0)
    assert evaluation.steady_rate([30.0, 35.0, 36.0, 37.0, 38.0, 60.0], 2) == pytest.approx(1.0)
    with pytest.raises(SystemExit, match="too few"):
        evaluation.steady_rate([1.0, 2.0], 1)
