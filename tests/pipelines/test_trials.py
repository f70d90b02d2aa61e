"""Trials of a sweep, without Ray: who begins, what the journal says, and a scheduler that is told it again."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from pipelines import trials
from pipelines.trials import NOT_A_NUMBER, TRIALS, Waiting, Written, make_scheduler, replay
from robometer.configs import Config, load
from robometer.sweeps.journal import Event, Journal

ASHA = ("train.steps=8", "train.checkpoint_every=2", "sweep.metric=seen/voc", "sweep.scheduler=asha")
VOC = {
    "0000": [0.5, 0.5, 0.5, 0.5],
    "0001": [0.7, 0.2, 0.9, 0.9],
    "0002": [0.1, 0.9, 0.9, 0.9],
    "0003": [0.6, 0.6, 0.4, 0.9],
    "0004": [0.52, 0.9, 0.9, 0.9],
    "0005": [0.8, 0.8, 0.8, 0.8],
}
"""What each trial would measure at steps 2, 4, 6 and 8, if it were not stopped."""

REACHED = {"0000": 8, "0001": 4, "0002": 2, "0003": 8, "0004": 2, "0005": 8}
"""By hand: at steps 2 and 4 a trial stops below the median of those that came there before it; at 8 all end.

Step 2: 0001 is above 0.5; 0002 below 0.6, the median of (0.5, 0.7); 0003 above 0.5, that of (0.5, 0.7, 0.1); 0004 below
0.55, that of (0.5, 0.7, 0.1, 0.6); 0005 above all. Step 4: 0001 is below 0.5; 0003 and 0005 are above all.
"""


class _Trial:
    def __init__(self, trial_id: str, error: str = "") -> None:
        self.trial_id, self._error = trial_id, error

    def get_pickled_error(self) -> Exception | None:
        return RuntimeError(self._error) if self._error else None


def _go_on(config: Config, journal: Journal, scheduler: TrialScheduler, most: float = math.inf) -> None:
    """Run the trials one after the other as Tune would, until `most` events are written."""
    controller = cast(Any, None)
    for name, values in VOC.items():
        record = journal.trials.get(name)
        if record and record.ended:
            continue
        trial = cast(Trial, _Trial(name))
        if len(journal.events) >= most:
            return
        journal.append(Event("start", name))
        scheduler.on_trial_add(controller, trial)
        for step, voc in zip((2, 4, 6, 8), values, strict=True):  # a trial reports again what it reported before
            result = {"step": step, "seen/voc": voc}
            decision = scheduler.on_trial_result(controller, trial, result)
            if len(journal.events) >= most:
                return
            journal.append(Event("report", name, metrics=result))
            if decision == TrialScheduler.STOP:
                break
        if len(journal.events) >= most:
            return
        scheduler.on_trial_complete(controller, trial, result)
        journal.append(Event("end", name))


def test_a_sweep_that_is_killed_anywhere_stops_the_same_trials_as_one_that_is_not(tmp_path: Path) -> None:
    config = load(ASHA)
    whole = Journal(tmp_path / "whole")
    _go_on(config, whole, make_scheduler(config))
    reached = {name: record.step for name, record in whole.trials.items()}
    assert reached == REACHED
    for cut in range(1, len(whole.events)):
        path = tmp_path / f"cut-{cut}"
        _go_on(config, Journal(path), make_scheduler(config), cut)
        journal, scheduler = Journal(path), make_scheduler(config)
        assert len(journal.events) == cut
        replay(journal, scheduler)
        _go_on(config, journal, scheduler)
        assert {name: record.step for name, record in journal.trials.items()} == reached, cut
        assert all(record.ended for record in journal.trials.values())


def test_a_scheduler_that_is_told_nothing_stops_other_trials(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    config = load(ASHA)
    _go_on(config, Journal(tmp_path / "journal"), make_scheduler(config), 10)
    journal = Journal(tmp_path / "journal")
    _go_on(config, journal, make_scheduler(config))
    assert {name: record.step for name, record in journal.trials.items()} != REACHED


def test_runs_that_confirm_are_not_told_to_the_scheduler(tmp_path: Path) -> None:
    config, journal = load(ASHA), Journal(tmp_path / "journal")
    _go_on(config, journal, make_scheduler(config), 7)
    for name in ("0000-seed43", "0000-seed44"):  # they would raise the median of step 2 above all others
        journal.append(Event("start", name))
        journal.append(Event("report", name, metrics={"step": 2, "seen/voc": 0.9}))
        journal.append(Event("end", name))
    scheduler = make_scheduler(config)
    replay(journal, scheduler)
    _go_on(config, journal, scheduler)
    assert {name: record.step for name, record in journal.trials.items() if name.isdigit()} == REACHED


def _waiting(tmp_path: Path, concurrent: int, end: float = math.inf) -> tuple[Waiting, Journal]:
    from ray.tune import register_trainable

    journal = Journal(tmp_path / "journal")
    waiting = Waiting(["0002", "0003", "0004"], lambda name: {"a": int(name)}, journal, concurrent, end)
    register_trainable("nothing", lambda config: None)
    waiting._spec, waiting._parser = {"run": "nothing"}, _parser()
    return waiting, journal


def _parser() -> Any:
    from ray.tune.experiment.config_parser import _make_parser

    return _make_parser()


def test_trials_begin_in_their_order_as_many_as_there_is_room_for_and_under_their_own_names(tmp_path: Path) -> None:
    waiting, journal = _waiting(tmp_path, 2)
    first, second = waiting.next_trial(), waiting.next_trial()
    assert first and second and (first.trial_id, second.trial_id) == ("0002", "0003")
    assert first.config == {"a": 2} and waiting.next_trial() is None and not waiting.is_finished()
    assert [(event.kind, event.trial, event.values) for event in journal.events] == [
        ("start", "0002", {"a": 2}),
        ("start", "0003", {"a": 3}),
    ]
    waiting.on_trial_complete("0002", error=True)
    third = waiting.next_trial()
    assert third and third.trial_id == "0004" and waiting.is_finished()


def test_no_trial_begins_after_the_hours_are_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting, journal = _waiting(tmp_path, 2, time.monotonic() - 1)
    assert waiting.next_trial() is None and waiting.is_finished() and not journal.events
    assert "sweep.max_hours is over: 3 trials wait" in caplog.text


def test_the_journal_says_how_trials_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    written = Written(journal, tmp_path, ["0000", "0001", "0002"])
    for name in ("0000", "0001", "0002"):
        journal.append(Event("start", name))
    (tmp_path / TRIALS / "0001").mkdir(parents=True)
    (tmp_path / TRIALS / "0001" / NOT_A_NUMBER).write_text("the loss is not a finite number at step 21")
    result = {"step": 2, "seen/voc": 0.5, "config": {"a": 1}, "time_total_s": 3.0, "checkpoint_path": "/x/y"}
    written.on_trial_result(0, [], cast(Trial, _Trial("0000")), result)
    written.on_trial_complete(0, [], cast(Trial, _Trial("0000")))
    written.on_trial_complete(0, [], cast(Trial, _Trial("0001")))
    written.on_trial_error(0, [], cast(Trial, _Trial("0002", "the node\nis gone")))
    states = {name: (record.ended, record.error) for name, record in journal.trials.items()}
    assert states == {
        "0000": (True, ""),
        "0001": (True, "the loss is not a finite number at step 21"),
        "0002": (False, "the node is gone"),
    }
    assert journal.trials["0000"].reports == [{"step": 2, "seen/voc": 0.5}]


def test_the_progress_counts_the_trials_that_run_now_and_those_among_them_that_ended_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        trials, "progress_bar", lambda name, total, interactive: lambda done, _: shown.append((done, total))
    )
    journal = Journal(tmp_path / "journal")
    for name in ("0000", "0001", "0001-seed43", "0001-seed44"):
        journal.append(Event("start", name))
    for name in ("0000", "0001", "0001-seed43"):
        journal.append(Event("end", name))
    written = Written(journal, tmp_path, ["0001-seed43", "0001-seed44"])
    written.on_step_begin(0, [])
    written.on_trial_complete(0, [], cast(Trial, _Trial("0001-seed44")))
    assert shown == [(1, 2), (2, 2)]
