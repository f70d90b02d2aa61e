"""Trials of a sweep, without Ray: who begins, what the journal says, and a scheduler that is told it again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from pipelines import trials
from pipelines.sweep import _limits, gpu_hours
from pipelines.train import fork, kept_checkpoints
from pipelines.training.checkpointing import TrainingError
from pipelines.trials import NOT_A_NUMBER, TRIALS, Waiting, Written, make_scheduler, replay
from robometer.configs import Config, load
from robometer.corpus.storage import Storage
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


def _waiting(tmp_path: Path, concurrent: int, *overrides: str) -> tuple[Waiting, Journal]:
    from ray.tune import register_trainable

    journal = Journal(tmp_path / "journal")
    over = _limits(load(list(overrides)), journal)
    waiting = Waiting(
        ["0002", "0003", "0004"], lambda name: {"train.seed": int(name)}, journal, concurrent, over, {"0003": "0001"}
    )
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
    assert first.config == {"train.seed": 2} and waiting.next_trial() is None and not waiting.is_finished()
    assert [(event.kind, event.trial, event.values) for event in journal.events] == [
        ("start", "0002", {"train.seed": 2}),
        ("start", "0003", {"train.seed": 3}),
    ]
    waiting.on_trial_complete("0002", error=True)
    third = waiting.next_trial()
    assert third and third.trial_id == "0004" and waiting.is_finished()
    assert [event.source for event in journal.events] == ["", "0001", ""]


def test_no_trial_begins_after_the_hours_are_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting, journal = _waiting(tmp_path, 2, "sweep.max_hours=1e-9")
    assert waiting.next_trial() is None and waiting.is_finished() and not journal.events
    assert "sweep.max_hours=1e-09 are over. Trials left for the next run of this sweep: 3." in caplog.text


def test_gpu_hours_are_those_of_all_runs_and_attempts_with_the_gpus_that_each_had(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal, config = Journal(path), load(["train.use_gpu=true", "train.num_workers=2"])
    journal.append(Event("start", "0000", at=3600.0))
    journal.append(Event("report", "0000", metrics={"step": 2.0}, at=5400.0))
    journal.append(Event("start", "0000", at=9000.0))  # the sweep was killed at any time after 5400
    journal.append(Event("start", "0001", {"train.num_workers": 4}, at=9000.0))
    journal.append(Event("end", "0000", at=10800.0))
    journal.append(Event("fail", "0001", at=12600.0))
    journal.append(Event("start", "0002", at=12600.0))
    for one in (journal, Journal(path)):
        assert gpu_hours(config, one, (), 16200) == (0.5 + 0.5) * 2 + 1 * 4
        assert gpu_hours(config, one, ("0002",), 16200) == 6 + 1 * 2


def test_no_trial_begins_after_the_gpu_hours_are_used_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    share = ("train.use_gpu=true", "train.gpus_per_worker=0.25", "sweep.max_gpu_hours=0.5")
    waiting, journal = _waiting(tmp_path, 3, *share)
    for name in ("0002", "0003"):
        assert waiting.next_trial()
        journal.trials[name].at -= 3700
    assert waiting.next_trial() is None and waiting.is_finished()
    assert "sweep.max_gpu_hours=0.5 are used up. Trials left for the next run of this sweep: 1." in caplog.text


def test_the_journal_says_how_trials_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    written = Written(journal, Storage(str(tmp_path)), ["0000", "0001", "0002"])
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


def _kept(output: Storage, *steps: int) -> None:
    """Checkpoints of a run, as Ray Train writes them down."""
    results = [{"checkpoint_dir_name": f"step-{step:07d}", "metrics": {"step": step}} for step in steps]
    for one in results:
        output.write_bytes(f"run/{one['checkpoint_dir_name']}/state/part", f"state of {one['metrics']}".encode())
    more = {"checkpoint_report_indices": [3, 4], "latest_checkpoint_result": results[-1], "current_report_index": 5}
    record = {"ray_version": "2", "checkpoint_results": results, "validated_checkpoint_dir_names": ["a"]} | more
    output.write_bytes("run/checkpoint_manager_snapshot.json", json.dumps(record).encode())


@pytest.mark.parametrize("where", ["tmp_path", "bucket"])
def test_a_run_that_goes_on_from_another_has_its_checkpoint_of_that_step_and_no_other(
    request: pytest.FixtureRequest, where: str
) -> None:
    place = request.getfixturevalue(where)
    source, target = Storage(f"{place}/0001"), Storage(f"{place}/0000-gen1")
    _kept(source, 2, 4)
    with pytest.raises(TrainingError, match=r"0001 has kept no checkpoint of step 3"):
        fork(source, 3, target)
    assert not target.tree("run")
    fork(source, 4, target)
    assert target.read_bytes("run/step-0000004/state/part") == b"state of {'step': 4}"
    assert set(target.tree("run")) == {"step-0000004/state/part", "checkpoint_manager_snapshot.json"}
    assert kept_checkpoints(target) == [({"step": 4}, "run/step-0000004")]
    written = json.loads(target.read_bytes("run/checkpoint_manager_snapshot.json"))
    assert written["latest_checkpoint_result"]["metrics"] == {"step": 4}
    assert [written["checkpoint_report_indices"], written["current_report_index"]] == [[0], 1]
    assert written["validated_checkpoint_dir_names"] == [] and written["ray_version"] == "2"
    assert len(kept_checkpoints(source)) == 2
    _kept(source, 4)
    target.write_bytes("run/step-0000004/state/part", b"went on")
    fork(source, 4, target)  # the trial starts again
    assert target.read_bytes("run/step-0000004/state/part") == b"went on"


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
    written = Written(journal, Storage(str(tmp_path)), ["0001-seed43", "0001-seed44"])
    written.on_step_begin(0, [])
    written.on_trial_complete(0, [], cast(Trial, _Trial("0001-seed44")))
    assert shown == [(1, 2), (2, 2)]
