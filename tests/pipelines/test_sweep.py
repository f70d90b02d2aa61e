"""Sweep: trials with drawn weights, the best trial, and a killed sweep that resumes."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipelines.sweep import (
    Search,
    SweepReport,
    _check_all_ended,
    _settings,
    _stored_sweep,
    best_checkpoint,
    run_sweep,
)
from pipelines.training.checkpointing import TrainingError, read_history
from robometer.configs import ConfigError, load
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.models.checkpoint import load_config
from robometer.runs import tracking
from robometer.sweeps.journal import Event, Journal
from robometer.sweeps.table import trial_table
from tests.conftest import TINY
from tests.screen import foreign

SWEEP = (
    "train.steps=4",
    "train.checkpoint_every=2",
    "sweep.num_trials=2",
    'sweep.space=["loss.preference_weight=uniform(0.1,2)","train.learning_rate=choice(1e-3,1e-2)"]',
)


def test_of_checkpoints_that_are_as_good_the_winner_is_one_that_was_kept(tmp_path: Path) -> None:
    """Steps 2, 4 and 5 had the same metric, so that Ray Train deleted the first, which Tune names as the best."""
    metrics = [{"step": 4, "seen/voc": 0.25}, {"step": 5, "seen/voc": 0.25}, {"step": 6, "seen/voc": 0.125}]
    results = [{"checkpoint_dir_name": f"step-{one['step']}", "metrics": one} for one in metrics]
    folder = tmp_path / "trials/0002/run"
    folder.mkdir(parents=True)
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps({"checkpoint_results": results}))
    output = Storage(str(tmp_path))
    assert best_checkpoint(output, ["0002"], "seen/voc", "max") == "trials/0002/run/step-5"
    assert best_checkpoint(output, ["0002"], "seen/voc", "min") == "trials/0002/run/step-6"


def test_what_ended_badly_is_named_and_what_can_run_again_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "journal")
    for name in ("0000", "0001", "0002"):
        journal.append(Event("start", name))
        journal.append(Event("report", name, metrics={"step": 2, "seen/voc": 0.5}))
    journal.append(Event("end", "0000"))
    journal.append(Event("end", "0001", reason="the loss is not a finite number at step 21"))
    journal.append(Event("fail", "0002", reason="the node is gone"))
    table = trial_table(journal.searched(), [], [("seen/voc", "max")])
    with pytest.raises(TrainingError, match=r"^1 of 3 trials failed; .*trials\.csv says why"):
        _check_all_ended(table, journal, Storage(str(tmp_path)))
    assert "Trial 0001 failed: the loss is not" in caplog.text and "Trial 0002 failed: the node" in caplog.text
    _check_all_ended(table[:2], journal, Storage(str(tmp_path)))  # one that diverged would do so again
    journal.append(Event("start", "0000-seed43"))
    _check_all_ended(table[:2], journal, Storage(str(tmp_path)))  # a run that confirms is no part of a trial
    with pytest.raises(TrainingError, match=r"^1 of 2 trials failed"):
        _check_all_ended(table[:2], journal, Storage(str(tmp_path)), [43])
    report = SweepReport(tmp_path, table, tmp_path)
    assert "the node is gone" in str(report) and "error" not in str(replace(report, table=table[:1]))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ('sweep.space=["loss.nothing=uniform(0,1)"]', "There is no setting loss.nothing"),
        ('sweep.space=["loss.balance_success=choice(true,maybe)"]', "must be true or false"),
        ('sweep.space=["train.batch_size=uniform(8,9)"]', "must be a whole number"),
        ('sweep.space=["loss.progress_weight=uniform(-9,-8)"]', "must be at least 0"),
        ('sweep.space=["loss.progress_weight=grid(1,2,3)"]', r"sweep.num_trials=8 must be 4: the grids have 3"),
        ('sweep.space=["train.seed=grid(1,2,3,4,5,6,7)"] sweep.confirm_seeds=2', "which sweep.space sets too"),
        ("sweep.search=optuna sweep.space=['loss.progress_weight=grid(1,2)']", "nothing to learn on a grid"),
        ("sweep.more_metrics=[seen/kendall]", "judges trials by one metric"),
        ("sweep.more_metrics=[seen/kendall:low]", "is not SPLIT/METRIC or SPLIT/METRIC:min"),
        ("sweep.confirm_seeds=1", "has no spread"),
        ("sweep.seeds_per_trial=2", "sweep.scheduler=asha judges a trial by one run"),
        ("sweep.max_gpu_hours=2", "without GPUs, set sweep.max_hours"),
        ("sweep.scheduler=pbt sweep.num_trials=3", "needs sweep.num_trials=4 or more"),
        ("sweep.scheduler=pbt sweep.confirm_seeds=2", "sweep.confirm_seeds=0: what it finds is a schedule"),
        ("sweep.scheduler=pbt sweep.search=optuna", "sweep.search=random"),
        ("sweep.scheduler=pbt sweep.seeds_per_trial=2", "sweep.scheduler=pbt judges a trial by one run"),
        ("sweep.scheduler=pbt sweep.perturb_every=300", "a multiple of train.checkpoint_every=200 below"),
        ("sweep.scheduler=pbt sweep.perturb_every=1000", "compares trials at every 1000 steps"),
        (
            "sweep.scheduler=pbt sweep.space=['train.learning_rate=uniform(0.1,1)']",
            "changes settings of the loss in mid-training, not train.learning_rate",
        ),
        (
            "sweep.scheduler=pbt sweep.space=['loss.supervise_b=choice(true,false)',"
            "'loss.success_weight=uniform(0,1) if loss.supervise_b=true']",
            "has no entries that depend on a choice",
        ),
        (
            'sweep.space=["train.seed=grid(1,2,3,4,5,6,7)"] sweep.seeds_per_trial=2 sweep.scheduler=fifo',
            "sweep.seeds_per_trial sets train.seed",
        ),
        ("sweep.first=['loss.progress_weight=4']", "lacks loss.success_weight"),
        (
            "sweep.confirm_seeds=2 sweep.confirm_metric=nowhere/voc",
            "sweep.confirm_metric=nowhere/voc cannot be measured",
        ),
        ("sweep.more_metrics=[seen/speed] sweep.scheduler=fifo", "sweep.more_metrics=seen/speed cannot be measured"),
    ],
)
def test_a_search_that_cannot_be_done_ends_before_any_trial(
    override: str, sentence: str, tiny_corpus: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        overrides = [*TINY, f"corpus.path={tiny_corpus}", f"sweep.output={tmp_path}/sweep"]
        run_sweep(load([*overrides, *re.split(r" (?=sweep)", override)]))
    assert not (tmp_path / "sweep").exists()


def test_a_longer_sweep_begins_with_the_trials_of_a_shorter_one_and_both_with_the_settings_as_they_are() -> None:
    space = 'sweep.space=["train.learning_rate=choice(1e-3,1e-2)","loss.preference_weight=uniform(0.1,2)"]'
    overrides = [space, "loss.preference_weight=0.75", "train.learning_rate=3e-3"]
    first = "sweep.first=['train.learning_rate=1e-3;loss.preference_weight=2']"
    short, longer = (Search.of(load([*overrides, first, f"sweep.num_trials={n}"])) for n in (4, 9))
    journal = Journal(Path("nowhere"))
    trials = [longer.values(i, journal) for i in range(9)]
    assert [short.values(i, journal) for i in range(4)] == trials[:4]
    assert trials[0] == {"train.learning_rate": 0.003, "loss.preference_weight": 0.75}
    assert trials[1] == {"train.learning_rate": 0.001, "loss.preference_weight": 2.0}
    assert {one["train.learning_rate"] for one in trials[2:]} == {0.001, 0.01}  # numbers, not texts


def test_a_grid_is_walked_through_after_the_trials_whose_settings_are_given() -> None:
    space = 'sweep.space=["model.attention=grid(causal,state)","model.window=choice(2,3) if model.attention=state"]'
    search = Search.of(load([space, "sweep.num_trials=5"]))
    trials = [search.values(i, Journal(Path("nowhere"))) for i in range(5)]
    assert [one["model.attention"] for one in trials[1:]] == ["causal", "state", "causal", "state"]
    assert ["model.window" in one for one in trials[1:]] == [False, True, False, True]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sweep.metric=held_out/voc",
            r"^sweep\.metric=held_out/voc cannot be measured: .* or choose another metric\.$",
        ),
        ("train.validate=false", "it needs train.validate=true"),
    ],
)
def test_a_sweep_without_its_metric_ends_before_any_trial(
    override: str, message: str, tiny_corpus: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sweep(load([*TINY, f"corpus.path={tiny_corpus}", f"sweep.output={tmp_path}/sweep", override]))
    assert not (tmp_path / "sweep").exists()


def _run(overrides: list[str]) -> subprocess.CompletedProcess[str]:
    """The job in a process and on a Ray of its own, as a user runs it."""
    command = [sys.executable, "-m", "jobs.sweep", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("search", "seeds"), [("random", 1), ("optuna", 2)])
def test_a_sweep_ends_with_a_table_a_plot_and_a_winner(
    tiny_corpus: str, tmp_path: Path, search: str, seeds: int
) -> None:
    output = tmp_path / "sweep"
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    overrides = [*TINY, *SWEEP, f"corpus.path={tiny_corpus}", f"sweep.output={output}", tracking]
    # Two trials fill the four CPUs of a small Ray: each needs one for its worker and one for its data, and no more.
    overrides += [f"sweep.seeds_per_trial={seeds}", f"sweep.scheduler={'fifo' if seeds > 1 else 'asha'}"]
    done = _run([*overrides, f"sweep.search={search}", "sweep.metric=seen/voc", "sweep.max_concurrent=2"])
    assert not foreign(done.stdout, done.stderr)
    table = pd.read_csv(output / "trials.csv")
    assert len(table) == 2
    assert table["seen/voc"].is_monotonic_decreasing
    winner = load_config(output / "best")
    assert winner.train.best_metric == "seen/voc"  # or its checkpoint may be gone
    assert winner.loss.preference_weight == pytest.approx(table["loss.preference_weight"][0])
    assert "<h1>Sweep of 2 trials</h1>" in (output / "sweep.html").read_text()
    if seeds > 1:
        runs = Journal(output / "journal.jsonl").trials
        assert {name: run.values.get("train.seed") for name, run in runs.items()} == {
            f"{trial:04d}{repeat}": 43 if repeat else None for trial in (0, 1) for repeat in ("", "-seed43")
        }
        for row in table.itertuples():
            both = [runs[name] for name in (f"{row.trial:04d}", f"{row.trial:04d}-seed43")]
            means = [
                sum(at) / 2 for at in zip(*([one["seen/voc"] for one in run.reports] for run in both), strict=True)
            ]
            assert max(means) == pytest.approx(table["seen/voc"][row.Index])

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("robometer").experiment_id])
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents.count(None) == 1 and len(runs) == 1 + 2 * seeds
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}  # killed: stopped early


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("train.steps=99", "train.steps=4, not 99"),
        ("train.learning_rate=1", "train.learning_rate=0.001, not 1.0"),
        ("sweep.search=optuna", "sweep.search='random', not 'optuna'"),
        ("loss.success_weight=9", "loss.success_weight=1.0, not 9.0"),
    ],
)
def test_a_resumed_sweep_with_other_settings_is_refused_and_its_tracked_run_stays_as_it_was(
    tiny_corpus: str, tmp_path: Path, changed: str, sentence: str
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = [*TINY, *SWEEP, f"corpus.path={tiny_corpus}", f"sweep.output={tmp_path}/sweep", f"tracking.uri={store}"]
    config = load(overrides)
    with tracking.start(config, "sweep") as run:
        pass
    (tmp_path / "sweep").mkdir()
    stored = {"run_id": run.run_id, "settings": _settings(config, Corpus(tiny_corpus))}
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=f"holds a sweep with {sentence}"):
        run_sweep(load([*overrides, changed]))
    with pytest.raises(
        ConfigError, match=r"a sweep of 2 trials, which sweep\.num_trials=1 cannot undo: set 2, or more"
    ):
        run_sweep(load([*overrides, "sweep.num_trials=1"]))
    assert MlflowClient(store).get_run(run.run_id).info.status == "FINISHED"
    old = json.loads(
        json.dumps(stored).replace("not_done_below_progress", "min_success").replace("trajectory_first", "rbm")
    )
    output = Storage(f"{tmp_path}/sweep")
    output.write_bytes("sweep.json", json.dumps(old).encode())
    assert _stored_sweep(output, stored["settings"]) == old  # an earlier version wrote it
    further = _settings(load([*overrides, "sweep.num_trials=3"]), Corpus(tiny_corpus))
    assert _stored_sweep(output, further) == old
    population = {"settings": further | {"sweep": further["sweep"] | {"scheduler": "pbt"}}}
    output.write_bytes("sweep.json", json.dumps(population).encode())
    assert _stored_sweep(output, population["settings"]) == population
    with pytest.raises(ConfigError, match=r"holds a population of 3 trials, which cannot grow: set"):
        _stored_sweep(output, population["settings"] | {"sweep": population["settings"]["sweep"] | {"num_trials": 4}})
    output.write_bytes("tune/anything", b"")
    with pytest.raises(ConfigError, match="a sweep of an earlier version, which kept no journal"):
        _stored_sweep(output, further)
    elsewhere = load([*overrides, "train.num_workers=2", "train.data_actors=3", "sweep.output=moved"])
    assert _settings(elsewhere, Corpus(tiny_corpus)) == stored["settings"]  # what only says how and where it runs


def _kill_when(command: list[str], log: Path, reached: Callable[[], bool]) -> None:
    """Start a sweep, and kill its driver once something has happened."""
    driver = subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT)
    end = time.monotonic() + 240
    while not reached():
        assert driver.poll() in (None, 0) and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def _table(output: str | Path) -> pd.DataFrame:
    text = Storage(str(output)).read_bytes("trials.csv").decode()
    return pd.read_csv(io.StringIO(text), dtype={"trial": str}, keep_default_na=False)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["tmp_path", "bucket"])
def test_a_sweep_that_is_killed_and_extended_ends_as_one_that_is_not(
    tiny_corpus: str, tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    """The third trial stops at its first validation because of the other two, which another process ran.

    That this is so after a kill at any moment, `test_trials.py` shows without Ray.
    """
    output = Storage(f"{request.getfixturevalue(where)}/sweep")
    overrides = [*TINY, *SWEEP, "sweep.scheduler=asha", "sweep.metric=seen/voc", f"corpus.path={tiny_corpus}"]
    overrides.append(f"sweep.output={output.path}")

    def both_ended() -> bool:
        return output.exists("journal.jsonl") and output.read_bytes("journal.jsonl").count(b'"kind": "end"') == 2

    _kill_when([sys.executable, "-m", "jobs.sweep", *overrides, "sweep.num_trials=2"], tmp_path / "log", both_ended)
    before = output.read_bytes("journal.jsonl")
    _run([*overrides, "sweep.num_trials=3"])
    table = _table(output.path)
    assert dict(zip(table["trial"], table["step"], strict=True)) == {"0000": 4, "0001": 4, "0002": 2}
    assert list(table["seen/voc"]) == sorted(table["seen/voc"], reverse=True)
    assert output.read_bytes("journal.jsonl").startswith(before)  # what has ended did not run again
    with output.local_copy("best") as best:
        assert load_config(best).train.best_metric == "seen/voc"
    assert b"<h1>Sweep of 3 trials</h1>" in output.read_bytes("sweep.html")
    trials, search = Journal(output.at("journal.jsonl")).trials, Search.of(load([*overrides, "sweep.num_trials=3"]))
    assert [trials[f"{i:04d}"].values for i in range(3)] == [
        search.values(i, Journal(Path("nowhere"))) for i in range(3)
    ]


@pytest.mark.slow
def test_the_winner_is_set_beside_the_settings_as_they_are_on_clips_that_did_not_choose_it(
    tiny_corpus: str, tmp_path: Path
) -> None:
    output = tmp_path / "sweep"
    overrides = [*TINY, *SWEEP, f"corpus.path={tiny_corpus}", f"sweep.output={output}", "sweep.scheduler=fifo"]
    overrides.append("train.validation_splits=[validation]")
    confirm = ["sweep.confirm_seeds=2", "sweep.confirm_metric=seen/voc", "sweep.metric=validation/voc"]
    done = _run([*overrides, *confirm, "sweep.max_concurrent=2"])
    table, journal = _table(output), Journal(output / "journal.jsonl")
    winner = table["trial"][0]
    assert list(table["trial"]) == ["0001", "0000"]  # else the winner has nothing to beat: choose another seed
    pairs = [[journal.trials[f"{name}-seed{seed}"] for name in ("0000", winner)] for seed in (43, 44)]
    best = [[one.best("validation/voc", "max") for one in pair] for pair in pairs]
    differences = [won["seen/voc"] - given["seen/voc"] for given, won in best]  # type: ignore[index]
    assert f"{sum(differences) / 2:+.4g} (95 % interval" in done.stdout and "Over 2 new seeds, seen/voc" in done.stdout
    assert table["tied"].dtype == bool and table["tied"][0]
    for (given, won), seed in zip(pairs, (43, 44), strict=True):
        assert given.values == journal.trials["0000"].values | {"train.seed": seed}
        assert won.values == journal.trials[winner].values | {"train.seed": seed}


@pytest.mark.slow
def test_a_population_that_is_killed_ends_as_one_that_is_not(tiny_corpus: str, tmp_path: Path) -> None:
    overrides = [*TINY, "train.steps=6", "train.checkpoint_every=2", f"corpus.path={tiny_corpus}"]
    overrides += ["sweep.scheduler=pbt", "sweep.num_trials=4", "sweep.max_concurrent=2", "sweep.metric=seen/voc"]
    whole, killed = Storage(f"{tmp_path}/whole"), Storage(f"{tmp_path}/killed")
    _run([*overrides, f"sweep.output={whole.path}"])

    def in_the_second_generation() -> bool:
        return killed.exists("journal.jsonl") and b'"0002-gen1"' in killed.read_bytes("journal.jsonl")

    command = [sys.executable, "-m", "jobs.sweep", *overrides, f"sweep.output={killed.path}"]
    _kill_when(command, tmp_path / "log", in_the_second_generation)
    _run([*overrides, f"sweep.output={killed.path}"])
    pd.testing.assert_frame_equal(_table(killed.path), _table(whole.path))
    one, other = (Journal(output.at("journal.jsonl")) for output in (whole, killed))
    assert {name: (run.source, run.values, run.reports) for name, run in one.trials.items()} == {
        name: (run.source, run.values, run.reports) for name, run in other.trials.items()
    }
    assert set(one.trials) == {f"{i:04d}{generation}" for i in range(4) for generation in ("", "-gen1", "-gen2")}
    assert list(_table(whole.path)["step"]) == [6] * 4
    moved = [run for run in one.trials.values() if run.source and run.source[:4] != run.name[:4]]
    assert len(moved) == 2 and b"Who went on from whom" in whole.read_bytes("sweep.html")
    for run in moved:  # it has the losses of the other one up to its step, and weights of its own after it
        own, source = (
            {
                one["step"]: one["loss"]
                for one in read_history(whole, f"trials/{name}/run/step-{step:07d}")
                if "loss" in one
            }
            for name, step in ((run.name, run.step), (run.source, run.step - 2))
        )
        assert {step: loss for step, loss in own.items() if step <= run.step - 2} == source
        with whole.local_copy(f"trials/{run.name}/run/step-{run.step:07d}/model") as model:
            assert load_config(model).loss.progress_weight == pytest.approx(run.values["loss.progress_weight"])
    with whole.local_copy("best") as best:
        winner = json.loads((best / "provenance.json").read_text())
    record = next(one for one in one.evolved() if one.name == _table(whole.path)["trial"][0])
    measured = record.best("seen/voc", "max")
    assert measured and winner["step"] == max(
        r["step"] for r in record.reports if r["seen/voc"] == measured["seen/voc"]
    )


STOPPED = """
import sys, time
from ray.util import placement_group_table
from pipelines.cluster import connected
from pipelines.sweep import run_sweep
from robometer.configs import load

config = load(sys.argv[1:])
with connected(config):
    table = run_sweep(config).table
    end = time.monotonic() + 30
    while any(one["state"] != "REMOVED" for one in placement_group_table().values()) and time.monotonic() < end:
        time.sleep(0.5)
    print("groups", len(placement_group_table()), {one["state"] for one in placement_group_table().values()})
    print("stopped early", sum(table["step"] < config.train.steps))
"""


@pytest.mark.slow
def test_trials_that_are_stopped_early_give_their_places_back(tiny_corpus: str, tmp_path: Path) -> None:
    sweep = ["sweep.num_trials=6", "sweep.max_concurrent=2", "sweep.metric=seen/voc", "ray.num_cpus=2", "train.steps=8"]
    overrides = [*TINY, *SWEEP, *sweep, f"corpus.path={tiny_corpus}", f"sweep.output={tmp_path / 'sweep'}"]
    command = [sys.executable, "-c", STOPPED, *overrides, "ray.stall_timeout_s=200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    match = re.search(r"groups (\d+) \{'REMOVED'\}\nstopped early (\d+)", done.stdout)
    assert match and int(match[1]) >= 6 and int(match[2]) >= 1, done.stdout[-1000:]
