"""The page of a sweep: what stands in its table and its drawings."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robometer.report.sweep_page import HIGH, SweepStory, _axis, importance, render
from robometer.sweeps.journal import TrialRecord
from robometer.sweeps.table import confirmation, trial_table, with_ties

KEYS = ["train.learning_rate", "model.attention"]
TWO = [("validation/voc", "max"), ("validation/mae", "min")]


def _record(name: str, rate: float, attention: str, voc: list[float], mae: float, error: str = "") -> TrialRecord:
    reports = [{"step": 10.0 * i, "validation/voc": one, "validation/mae": mae} for i, one in enumerate(voc, 1)]
    values = {"train.learning_rate": rate, "model.attention": attention}
    return TrialRecord(name, values, reports, not error.startswith("lost"), error)


RECORDS = [
    _record("0000", 1e-3, "causal", [0.25, 0.5], 0.3),
    _record("0001", 1e-4, "state", [0.5, 0.75], 0.4),
    _record("0002", 1e-2, "state", [0.125], 0.2),
    _record("0003", 5e-3, "causal", [], 0.0, "lost: <the node> is gone"),
    _record("0004", 2e-3, "causal", [0.2], 0.5, "the loss is not a finite number at step 21"),
]


def _page(objectives: list[tuple[str, str]] = TWO, confirmed: bool = False) -> str:
    table = trial_table(RECORDS, KEYS, objectives)
    result = None
    if confirmed:
        runs = [
            (43 + i, _record("g", 0, "", [0.5 + 0.1 * i], 0.3), _record("w", 0, "", [0.7 + 0.1 * i], 0.2))
            for i in (0, 1)
        ]
        result = confirmation(RECORDS[1], runs, "validation/voc", objectives)
        table = with_ties(table, "validation/voc", result.least)
    records = {record.name: record for record in RECORDS}
    return render(SweepStory(table, records, KEYS, objectives, {"search": "random"}, ["a remark"], confirmed=result))


def test_every_trial_has_its_row_the_winner_is_marked_and_reasons_are_shown_as_text() -> None:
    page = _page()
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(\d{4})( ★)?", page)
    assert rows == [("0001", " ★"), ("0000", ""), ("0002", ""), ("0003", ""), ("0004", "")]
    assert "lost: &lt;the node&gt; is gone" in page and "not a finite number at step 21" in page
    assert page.count("settings as they are</span>") == 1 and "a remark" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing from elsewhere


def test_an_axis_points_upwards_and_is_logarithmic_over_decades() -> None:
    rates = _axis("rate", [1e-3, 1e-4, 1e-2, None])
    assert rates["log"] and rates["heights"] == [HIGH / 2, HIGH, 0, None]
    assert _axis("weight", [1.0, 2.0, 3.0]) | {"ticks": 0} == {
        "name": "weight", "heights": [HIGH, HIGH / 2, 0], "ticks": 0, "log": False,
    }  # fmt: skip
    words = _axis("attention", ["state", "causal", "state"])
    assert words["heights"] == [0, HIGH, 0] and [tick["text"] for tick in words["ticks"]] == ["causal", "state"]
    assert _axis("one", [2.0, 2.0])["heights"] == [HIGH / 2, HIGH / 2]


def test_only_trials_that_ended_well_are_drawn_over_their_settings_and_the_best_lies_on_top() -> None:
    """The best trial: learning rate 1e-4 is the lowest of three, `state` the upper option, its result the highest."""
    lines = re.findall(r'<polyline class="trial( best)?" points="([^"]*)"', _page())
    assert len(lines) == 3 and [best for best, _ in lines] == ["", "", " best"]
    assert lines[-1][1] == f"0.0,{HIGH}.0 500.0,0.0 1000.0,0.0"


def test_learning_curves_show_failed_trials_too_as_far_as_they_came() -> None:
    curves = re.findall(r'<g class="learning ([a-z]*)"><title>trial (\d+): ([^<]*)</title>', _page())
    assert curves == [
        ("", "0002", "0.125 at 10"),
        ("", "0004", "0.200 at 10"),
        ("given", "0000", "0.250 at 10, 0.500 at 20"),
        ("best", "0001", "0.500 at 10, 0.750 at 20"),
    ]


def test_the_front_of_two_objectives_is_drawn_and_one_objective_has_none() -> None:
    """0001 has the largest voc, 0002 the smallest mae, and 0000 lies between them in both."""
    dots = dict(re.findall(r'<circle class="trial(?: best)?"[^>]*><title>trial (\d+): ([^<]*)<', _page()))
    front = re.findall(r'<circle class="trial best"[^>]*><title>trial (\d+)', _page())
    assert set(dots) == set(front) == {"0000", "0001", "0002"}
    assert 'id="pareto"' not in _page(TWO[:1])


def test_the_confirmation_stands_on_the_page_with_its_pairs() -> None:
    page = _page(confirmed=True)
    assert "Over 2 new seeds, validation/voc of the winner (trial 0001) is 0.75, and 0.55" in page
    assert "<td>43</td><td>0.500</td><td>0.700</td><td>+0.200</td>" in page
    assert 'id="confirmed"' not in _page()


def test_importance_is_a_rank_correlation_with_its_interval_over_trials() -> None:
    generator = np.random.default_rng(1)
    rate, noise = generator.uniform(size=30), generator.uniform(size=30)
    goal = rate**3 + 0.1 * generator.normal(size=30)
    table = pd.DataFrame({"rate": rate, "noise": noise, "same": 1.0, "kind": ["a", "b"] * 15, "m/x": goal})
    rows = {row["name"]: row for row in importance(table, ["rate", "noise", "same", "kind"], "m/x")}
    assert list(rows) == sorted(rows, key=lambda name: -abs(rows[name]["value"]))
    assert set(rows) == {"rate", "noise", "kind = b"}
    assert rows["rate"]["value"] == pytest.approx(stats.spearmanr(rate, goal).statistic)
    assert rows["rate"]["told"] and not rows["noise"]["told"]
    low = (rows["rate"]["left"] - 50) / 50
    assert 0.5 < low < rows["rate"]["value"]
    assert importance(table[:3], ["rate"], "m/x") == []  # three trials say nothing
    shares = pd.DataFrame({f"loss.{n}_weight": rate for n in "ab"} | {"a_share": rate, "m/x": goal})
    assert [row["name"] for row in importance(shares, ["loss.a_weight", "loss.b_weight"], "m/x")] == ["a_share"]
