"""The journal of a sweep: what it remembers, and what a kill leaves of it."""

from __future__ import annotations

import math
import posixpath
from pathlib import Path

from robometer.corpus.storage import Storage
from robometer.sweeps.journal import Event, Journal, TrialRecord, number_of, repeated


def _write(path: str) -> Journal:
    journal = Journal(path)
    journal.append(Event("start", "0001", {"a": 1.5}))
    journal.append(Event("report", "0001", metrics={"step": 2, "seen/voc": 0.25}))
    journal.append(Event("start", "0000", {"a": 1.0}))
    journal.append(Event("report", "0001", metrics={"step": 4, "seen/voc": math.nan}))
    journal.append(Event("end", "0001"))
    journal.append(Event("fail", "0000", reason="the node is gone"))
    return journal


def test_another_process_reads_what_was_written(path: str) -> None:
    written, read = _write(path), Journal(path)
    assert [event.kind for event in read.events] == ["start", "report", "start", "report", "end", "fail"]
    assert repr(read.trials) == repr(written.trials)
    ended, failed = read.trials["0001"], read.trials["0000"]
    assert (ended.ended, ended.error, ended.step, ended.values) == (True, "", 4, {"a": 1.5})
    assert (failed.ended, failed.error, failed.step) == (False, "the node is gone", 0)
    assert [record.name for record in read.searched()] == ["0000", "0001"]


def test_a_line_that_a_kill_cut_off_is_no_event_and_the_next_one_is_whole(path: str) -> None:
    _write(path)
    folder, name = posixpath.split(path)
    Storage(folder).write_bytes(name, Storage(folder).read_bytes(name) + b'{"kind": "end", "tri')
    assert len(Journal(path).events) == 6
    journal = Journal(path)
    journal.append(Event("start", "0000", {"a": 1.0}))
    again = Journal(path)
    assert len(again.events) == 7 and again.trials["0000"].error == ""


def test_what_a_trial_reports_again_counts_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(Event("start", "0000", {}))
    for step, voc in ((2, 0.5), (4, 0.25), (2, 0.5), (4, 0.25), (6, 0.125)):
        journal.append(Event("report", "0000", metrics={"step": step, "seen/voc": voc}))
    assert [one["step"] for one in journal.trials["0000"].reports] == [2, 4, 6]


def test_the_best_validation_is_the_first_of_the_best_that_measured_the_metric() -> None:
    values = [0.25, 0.5, 0.5, math.nan, -1.0]
    reports = [{"step": 2.0 * i, "seen/voc": value} for i, value in enumerate(values, 1)]
    record = TrialRecord("0000", {}, [*reports, {"step": 12.0}])
    best, worst = record.best("seen/voc", "max"), record.best("seen/voc", "min")
    assert best and worst and (best["step"], worst["step"]) == (4, 10)
    assert record.best("seen/kendall", "max") is None


def test_names_of_trials_sort_by_number_and_repeats_are_none_of_the_search(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for name in (number_of(10), repeated(number_of(2), 43), number_of(9)):
        journal.append(Event("start", name, {}))
    assert [record.name for record in journal.searched()] == ["0009", "0010"]


def test_a_setting_of_an_earlier_version_has_its_name_of_today(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"kind": "start", "trial": "0000", "values": {"sampling.min_success": 0.25}}\n')
    assert Journal(path).trials["0000"].values == {"sampling.not_done_below_progress": 0.25}


def test_a_trial_has_measured_nothing_while_one_of_its_runs_has_not_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(Event("start", "0000", {"a": 1.0}))
    journal.append(Event("report", "0000", metrics={"step": 2, "seen/voc": 0.5}))
    journal.append(Event("end", "0000"))
    [record], [alone] = journal.searched([43]), journal.searched()
    assert (record.reports, record.ended) == ([], False) and (alone.step, alone.ended) == (2, True)


def test_a_trial_of_several_runs_is_their_mean_where_all_of_them_measured(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    other = repeated("0000", 43)
    for name, values in (("0000", (0.25, 0.5)), (other, (0.75, 0.25))):
        journal.append(Event("start", name, {"a": 1.0}))
        assert next(journal.searched([43])).reports == [], "one of its runs has not begun, or measured nothing"
        for step, voc in zip((2, 4), values, strict=True):
            journal.append(Event("report", name, metrics={"step": step, "seen/voc": voc}))
    journal.append(Event("report", "0000", metrics={"step": 6, "seen/voc": 1.0}))
    journal.append(Event("end", "0000"))
    [record] = journal.searched([43])
    assert record.reports == [{"step": 2, "seen/voc": 0.5}, {"step": 4, "seen/voc": 0.375}]
    assert (record.name, record.values, record.ended) == ("0000", {"a": 1.0}, False)
    journal.append(Event("fail", other, reason="the node is gone"))
    assert next(journal.searched([43])).error == "0000-seed43: the node is gone"
    journal.append(Event("start", other, {"a": 1.0}))
    journal.append(Event("end", other))
    [record], [alone] = journal.searched([43]), journal.searched()
    assert record.ended and not record.error and alone.step == 6
