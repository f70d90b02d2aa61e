"""Sweep: trials with drawn weights, the best trial, and a killed sweep that resumes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from ray import tune

from pipelines.sweep import (
    NOT_A_NUMBER,
    SweepReport,
    _check_all_ended,
    _settings,
    _stored_sweep,
    _trial_table,
    best_checkpoint,
    parse_space,
    run_sweep,
)
from pipelines.training.checkpointing import TrainingError
from robometer.configs import ConfigError, load
from robometer.corpus.corpus import Corpus
from robometer.models.checkpoint import load_config
from robometer.runs import tracking
from tests.conftest import TINY
from tests.screen import foreign

SWEEP = (
    "train.steps=4",
    "train.checkpoint_every=2",
    "sweep.num_trials=2",
    'sweep.space=["loss.preference_weight=uniform(0.1,2)","train.learning_rate=choice(1e-3,1e-2)"]',
)


def test_the_space_is_parsed_and_mistakes_are_named() -> None:
    space = parse_space(["loss.progress_weight=loguniform(0.1,3)", "model.attention=choice(causal,state)"])
    assert 0.1 <= space["loss.progress_weight"].sample() <= 3
    assert space["model.attention"].sample() in ("causal", "state")
    for wrong in ("loss.progress_weight", "loss.progress_weight=normal(0,1)", "loss.progress_weight=uniform(1,2,3)"):
        with pytest.raises(ConfigError, match=r"sweep.space entry"):
            parse_space([wrong])


def test_of_checkpoints_that_are_as_good_the_winner_is_one_that_was_kept(tmp_path: Path) -> None:
    """Steps 2, 4 and 5 had the same metric, so that Ray Train deleted the first, which Tune names as the best."""
    metrics = [{"step": 4, "seen/voc": 0.25}, {"step": 5, "seen/voc": 0.25}, {"step": 6, "seen/voc": 0.125}]
    results = [{"checkpoint_dir_name": f"step-{one['step']}", "metrics": one} for one in metrics]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint_manager_snapshot.json").write_text(json.dumps({"checkpoint_results": results}))
    assert best_checkpoint(tmp_path, "seen/voc", "max") == tmp_path / "run/step-5"
    assert best_checkpoint(tmp_path, "seen/voc", "min") == tmp_path / "run/step-6"


def _result(output: Path, trial: str, weight: float, voc: list[float], error: Exception | None = None) -> tune.Result:
    """What Tune keeps of a trial that was validated every 10 steps; its last report repeats the first."""
    (output / "trials" / trial).mkdir(parents=True)
    config, path = {"loss.preference_weight": weight}, str(output / f"tune/run_trial_{trial}_1_loss=1_2026")
    if voc:
        steps = [10 * i for i in range(1, len(voc) + 1)]
        columns = {"step": [*steps, 10], "seen/voc": [*voc, voc[0]], "seen/kendall": [*steps, 10], "config/seen/x": 0}
        return tune.Result({"config": config}, None, error, path, pd.DataFrame(columns))
    Path(path).mkdir(parents=True)
    Path(path, "params.json").write_text(json.dumps(config))  # all that Tune keeps of a trial without a report
    return tune.Result({}, None, error, path)


@pytest.mark.parametrize(("mode", "order"), [("max", ["b_1", "a", "c"]), ("min", ["c", "a", "b_1"])])
def test_failed_trials_stay_in_the_table_with_their_reason_and_do_not_win(
    mode: str, order: list[str], tmp_path: Path
) -> None:
    config = load(["sweep.metric=seen/voc", f"sweep.mode={mode}"])
    results = [
        _result(tmp_path, "lost", 0.1, [], RuntimeError("the node\nis gone")),
        _result(tmp_path, "a", 0.2, [0.25, 0.5, 0.375]),
        _result(tmp_path, "diverged", 0.3, [9.0, -9.0]),
        _result(tmp_path, "b_1", 0.4, [0.75, math.nan]),
        _result(tmp_path, "c", 0.5, [0.125]),
    ]
    (tmp_path / "trials/diverged" / NOT_A_NUMBER).write_text("the loss is not a finite number at step 21")
    table = _trial_table(config, tmp_path, results, ["loss.preference_weight"])
    assert list(table) == ["trial", "loss.preference_weight", "seen/voc", "seen/kendall", "step", "error"]
    assert list(table["trial"]) == [*order, "lost", "diverged"]
    by_trial = table.set_index("trial")
    assert list(by_trial.loc["a", ["seen/voc", "seen/kendall"]]) == ([0.5, 20] if mode == "max" else [0.25, 10])
    assert list(by_trial.loc[["a", "b_1", "c"], "step"]) == [30, 20, 10]
    assert list(by_trial.loc[["lost", "diverged"], "error"]) == [
        "the node is gone",
        "the loss is not a finite number at step 21",
    ]
    with pytest.raises(TrainingError, match=r"^1 of 5 trials failed; .*trials\.csv says why"):
        _check_all_ended(table, results, tmp_path)
    _check_all_ended(table, results[1:], tmp_path)  # one that diverged would do so again
    report = SweepReport(tmp_path, table, tmp_path)
    assert "the node is gone" in str(report) and "error" not in str(replace(report, table=table[:3]))
    with pytest.raises(TrainingError, match="reported seen/voc: the node is gone"):
        _trial_table(config, tmp_path, results[:1], ["loss.preference_weight"])


def test_unknown_swept_keys_end_before_any_trial(tiny_corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        run_sweep(load([*TINY, f"corpus.path={tiny_corpus}", 'sweep.space=["loss.nothing=uniform(0,1)"]']))


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


def _run(overrides: list[str]) -> None:
    """The job in a process and on a Ray of its own, as a user runs it."""
    command = [sys.executable, "-m", "jobs.sweep", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not foreign(done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_sweep_ends_with_a_table_a_plot_and_a_winner(tiny_corpus: str, tmp_path: Path, search: str) -> None:
    output = tmp_path / "sweep"
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    overrides = [*TINY, *SWEEP, f"corpus.path={tiny_corpus}", f"sweep.output={output}", tracking]
    # Two trials fill the four CPUs of a small Ray: each needs one for its worker and one for its data, and no more.
    _run([*overrides, f"sweep.search={search}", "sweep.metric=seen/voc", "sweep.max_concurrent=2"])
    table = pd.read_csv(output / "trials.csv")
    assert len(table) == 2
    assert table["seen/voc"].is_monotonic_decreasing
    winner = load_config(output / "best")
    assert winner.train.best_metric == "seen/voc"  # or its checkpoint may be gone
    assert winner.loss.preference_weight == pytest.approx(table["loss.preference_weight"][0])
    assert (output / "sweep.png").stat().st_size > 5000

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("robometer").experiment_id])
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents.count(None) == 1 and len(runs) == 3
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}  # killed: stopped early


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("train.steps=99", "train.steps=4, not 99"),
        ("train.learning_rate=1", "train.learning_rate=0.001, not 1.0"),
        ("sweep.num_trials=9", "sweep.num_trials=2, not 9"),
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
    assert MlflowClient(store).get_run(run.run_id).info.status == "FINISHED"
    old = json.loads(
        json.dumps(stored).replace("not_done_below_progress", "min_success").replace("trajectory_first", "rbm")
    )
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(old))
    assert _stored_sweep(tmp_path / "sweep", stored["settings"]) == old  # an earlier version wrote it
    elsewhere = load([*overrides, "train.num_workers=2", "train.data_actors=3", "sweep.output=moved"])
    assert _settings(elsewhere, Corpus(tiny_corpus)) == stored["settings"]  # what only says how and where it runs


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_keeps_its_trials(tiny_corpus: str, tmp_path: Path) -> None:
    output, log = tmp_path / "sweep", tmp_path / "log"
    overrides = [*TINY, *SWEEP, f"corpus.path={tiny_corpus}", f"sweep.output={output}", "sweep.scheduler=fifo"]
    command = [sys.executable, "-m", "jobs.sweep", *overrides]
    environment = os.environ | {"TUNE_GLOBAL_CHECKPOINT_S": "1"}
    driver = subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, env=environment)
    end = time.monotonic() + 240
    while not list(output.glob("trials/*/best")):
        assert driver.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)
    first = {path.parent.name for path in output.glob("trials/*/best")}
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    trials = pd.read_csv(output / "trials.csv", dtype={"trial": str})
    assert len(trials) == 2 and first <= set(trials["trial"])  # those too whose end Tune did not live to write down
    assert list(trials["step"]) == [4, 4] and trials["seen/preference_accuracy"].notna().all()
    settings = json.loads((output / "sweep.json").read_text())["settings"]
    assert settings["sweep"]["num_trials"] == 2


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
