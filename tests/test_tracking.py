"""Tracked runs: what they hold, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from robometer import tracking
from robometer.configs import load


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


def _run(store: str, run_id: str) -> Any:
    return MlflowClient(store).get_run(run_id)


def test_a_run_ends_as_its_block_does_and_can_go_on(store: str, tmp_path: Path) -> None:
    config = load([f"tracking.uri={store}", "loss.success_weight=0.25"])
    with pytest.raises(ZeroDivisionError), tracking.start(config, "train", parent_run_id="a sweep") as run:
        assert _run(store, run.run_id).info.status == "RUNNING"
        run.metrics({"train/loss": 0.5, "train/grad_norm": 2.0}, 3)
        raise ZeroDivisionError
    failed = _run(store, run.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.params["loss.success_weight"] == "0.25"
    assert failed.data.tags["robometer.kind"] == "train" and failed.data.tags["mlflow.parentRunId"] == "a sweep"
    with tracking.start(config, "train", run_id=run.run_id) as again:
        assert again.run_id == run.run_id and _run(store, run.run_id).info.status == "RUNNING"
        again.metrics({"train/loss": 0.25}, 4)
    assert _run(store, run.run_id).info.status == "FINISHED"
    history = MlflowClient(store).get_metric_history(run.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(3, 0.5), (4, 0.25)]


def test_only_a_run_that_still_counts_as_running_is_closed(store: str) -> None:
    config = load([f"tracking.uri={store}"])
    with tracking.start(config, "train") as run:
        pass
    tracking.close_open_run(config, run.run_id)
    assert _run(store, run.run_id).info.status == "FINISHED"
    MlflowClient(store).update_run(run.run_id, status="RUNNING")
    tracking.close_open_run(config, run.run_id)
    assert _run(store, run.run_id).info.status == "KILLED"
