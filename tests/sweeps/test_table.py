"""The table of trials, and what its differences are worth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats

from robometer.sweeps.journal import TrialRecord
from robometer.sweeps.table import confirmation, pareto, trial_table, with_ties

MAX, MIN = [("seen/voc", "max")], [("seen/voc", "min")]


def _record(name: str, weight: float, voc: list[float], ended: bool = True, error: str = "") -> TrialRecord:
    """A trial that was validated every 10 steps."""
    reports = [{"step": 10 * i, "seen/voc": one, "seen/kendall": float(10 * i)} for i, one in enumerate(voc, 1)]
    return TrialRecord(name, {"loss.preference_weight": weight}, reports, ended, error)


@pytest.mark.parametrize(("objectives", "order"), [(MAX, ["b", "a", "c"]), (MIN, ["c", "a", "b"])])
def test_failed_trials_stay_in_the_table_with_their_reason_and_do_not_win(
    objectives: list[tuple[str, str]], order: list[str]
) -> None:
    records = [
        _record("lost", 0.1, [], ended=False, error="the node is gone"),
        _record("a", 0.2, [0.25, 0.5, 0.375]),
        _record("diverged", 0.3, [9.0, -9.0], error="the loss is not a finite number at step 21"),
        _record("b", 0.4, [0.75, math.nan]),
        _record("silent", 0.6, []),
        _record("killed", 0.6, [8.0, -8.0], ended=False),
        _record("c", 0.5, [0.125]),
    ]
    table = trial_table(records, ["loss.preference_weight"], objectives)
    assert list(table) == ["trial", "loss.preference_weight", "seen/voc", "seen/kendall", "step", "error"]
    assert list(table["trial"]) == [*order, "lost", "diverged", "silent", "killed"]
    by_trial = table.set_index("trial")
    assert list(by_trial.loc["a", ["seen/voc", "seen/kendall"]]) == ([0.5, 20] if objectives == MAX else [0.25, 10])
    assert list(by_trial.loc[["a", "b", "c"], "step"]) == [30, 20, 10]
    assert list(by_trial.loc[["lost", "diverged", "silent", "killed"], "error"]) == [
        "the node is gone",
        "the loss is not a finite number at step 21",
        "it reported no seen/voc",
        "it did not end",
    ]


def test_the_share_of_each_loss_is_shown_where_all_three_weights_are_swept() -> None:
    weights = {"loss.progress_weight": 0.5, "loss.success_weight": 1.0, "loss.preference_weight": 2.5}
    record = TrialRecord("0000", weights, [{"step": 2, "seen/voc": 0.5}], True)
    row = trial_table([record], list(weights), MAX).iloc[0]
    assert list(row[["progress_share", "success_share", "preference_share"]]) == [0.125, 0.25, 0.625]
    assert "progress_share" not in trial_table([_record("0000", 1.0, [0.5])], ["loss.preference_weight"], MAX)


def test_a_trial_is_on_the_front_unless_another_is_as_good_in_all_and_better_in_one() -> None:
    objectives = [("m/a", "max"), ("m/b", "min")]
    points = [(1.0, 5.0), (2.0, 5.0), (3.0, 9.0), (3.0, 9.0), (0.0, 1.0), (math.nan, 0.5), (2.5, math.nan)]
    rows = [{"m/a": a, "m/b": b} for a, b in points]
    assert pareto(rows, objectives) == [False, True, True, True, True, True, False]
    records = [TrialRecord(f"{i}", {}, [{"step": 1} | row], True) for i, row in enumerate(rows[:5])]
    table = trial_table(records, [], objectives)
    assert dict(zip(table["trial"], table["pareto"], strict=True)) == {
        "0": False, "1": True, "2": True, "3": True, "4": True,
    }  # fmt: skip


def _run(voc: float, kendall: float) -> TrialRecord:
    return TrialRecord("x", {}, [{"step": 2, "seen/voc": voc, "held_out/kendall": kendall}], True)


def test_the_winner_is_compared_over_seeds_in_pairs() -> None:
    """Differences 0.1, 0.2 and 0.3: mean 0.2, standard deviation 0.1, so that the interval is 0.2 ± t(2) 0.1 / sqrt 3.

    `seen/voc` has variance 0.01 with the settings as they are and 0.03 with the winner's: the noise is sqrt 0.02.
    """
    given, won = [0.5, 0.1, 0.3], [0.6, 0.3, 0.6]
    spread = [-0.1, 0.0, 0.1]
    runs = [(43 + i, _run(0.5 + spread[i], given[i]), _run(0.7 + math.sqrt(3) * spread[i], won[i])) for i in range(3)]
    result = confirmation(_run(0, 0), runs, "held_out/kendall", MAX)
    assert result.seeds == [43, 44, 45] and result.given == given and result.won == won
    assert result.difference == pytest.approx(0.2)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert result.interval == pytest.approx((0.2 - half, 0.2 + half)) and not result.differs
    assert result.noise == pytest.approx(math.sqrt(0.02))
    assert result.least == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(0.02) * math.sqrt(2))
    assert "It is no more than seeds explain." in str(result) and "+0.2 (95 % interval -0.04841 to +0.4484" in str(
        result
    )


def test_runs_that_measured_nothing_or_did_not_end_well_leave_their_pair_out() -> None:
    whole = (1, _run(0.5, 0.1), _run(0.5, 0.2))
    half = (2, _run(0.5, math.nan), _run(0.5, 0.2))
    silent = (3, TrialRecord("x", {}), _run(0.5, 0.2))
    running, failed = replace(_run(0.5, 0.9), ended=False), replace(_run(0.5, 0.9), error="the loss is not finite")
    broken = [half, silent, (5, running, _run(0.5, 0.2)), (6, _run(0.5, 0.1), failed)]
    with pytest.raises(ValueError, match="only 1 of 5 pairs of runs ended well and measured held_out/kendall"):
        confirmation(_run(0, 0), [whole, *broken], "held_out/kendall", MAX)
    again = (4, _run(0.5, 0.1), _run(0.5, 0.3))
    result = confirmation(_run(0, 0), [whole, *broken, again], "held_out/kendall", MAX)
    assert result.seeds == [1, 4]


def test_trials_within_the_noise_are_tied_with_the_first() -> None:
    records = [_record("a", 0, [0.5]), _record("b", 0, [0.45]), _record("c", 0, [0.25]), _record("d", 0, [], error="x")]
    table = with_ties(trial_table(records, ["loss.preference_weight"], MAX), "seen/voc", 0.125)
    assert list(table["tied"]) == [True, True, False, ""]
    assert list(table)[-3:] == ["tied", "step", "error"]
