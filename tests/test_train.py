"""Training: the same losses for any ZeRO stage and number of workers, and after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines.train import TrainReport, run_train
from robometer.configs import Config, ConfigError, load
from robometer.corpus.corpus import Corpus
from robometer.models.checkpoint import CheckpointError, load_model, load_scorer
from tests.conftest import TINY

TOLERANCE = 2e-5
"""Relative difference of losses between ZeRO stages and numbers of workers: float32 sums in another order."""


def _config(corpus: str, output: Path, *overrides: str) -> Config:
    run = [f"corpus.path={corpus}", f"train.output={output}", "train.steps=6", "train.checkpoint_every=3"]
    return load([*TINY, *run, "model.members=2", *overrides])


def _losses(report: TrainReport) -> np.ndarray:
    return np.array([entry["loss"] for entry in report.history if "loss" in entry])


@pytest.fixture(scope="module")
def reference(tiny_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """One worker, ZeRO 1, uninterrupted."""
    return run_train(_config(tiny_corpus, tmp_path_factory.mktemp("reference"), "train.zero_stage=1"))


def test_a_run_leaves_a_checkpoint_a_plot_and_falling_losses(reference: TrainReport, tiny_corpus: str) -> None:
    losses = _losses(reference)
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert {"seen/voc", "seen/voc_reversed", "seen/preference_accuracy"} <= set(reference.metrics)
    assert (reference.best.parent / "training.png").stat().st_size > 10_000
    assert "preference/rewind" in json.loads((reference.best.parent / "sampling.json").read_text())["strategies"]
    validations = [entry for entry in reference.history if "seen/preference_accuracy" in entry]
    best = max(validations, key=lambda entry: (entry["seen/preference_accuracy"], entry["step"]))
    assert len(validations) == 2
    assert json.loads((reference.best / "provenance.json").read_text())["step"] == best["step"]
    scorer, corpus = load_scorer(reference.best), Corpus(tiny_corpus)
    score = scorer.score([corpus.clip(0)])[0]
    assert len(score.progress) == corpus.manifest["num_frames"][0].as_py()
    assert ((0 <= score.progress) & (score.progress <= 1)).all()


@pytest.mark.parametrize(("stage", "workers"), [(2, 1), (3, 1), (1, 2), (2, 2), (3, 2)])
def test_losses_do_not_depend_on_zero_stage_or_workers(
    reference: TrainReport, tiny_corpus: str, tmp_path: Path, stage: int, workers: int
) -> None:
    report = run_train(
        _config(tiny_corpus, tmp_path, f"train.zero_stage={stage}", f"train.num_workers={workers}", "train.steps=6")
    )
    np.testing.assert_allclose(_losses(report), _losses(reference), rtol=TOLERANCE)


def test_gradient_accumulation_equals_the_big_batch(reference: TrainReport, tiny_corpus: str, tmp_path: Path) -> None:
    report = run_train(_config(tiny_corpus, tmp_path, "train.zero_stage=1", "train.micro_batch_size=2"))
    np.testing.assert_allclose(_losses(report), _losses(reference), rtol=TOLERANCE)


def test_the_tiny_vision_language_model_trains_through_the_same_pipeline(tiny_corpus: str, tmp_path: Path) -> None:
    report = run_train(_config(tiny_corpus, tmp_path, "model=tiny", "train.zero_stage=3", "train.batch_size=4"))
    assert np.isfinite(_losses(report)).all() and len(_losses(report)) == 6
    score = load_scorer(report.best).score([Corpus(tiny_corpus).clip(0)])[0]
    assert np.isfinite(score.progress).all()


def _workers() -> set[psutil.Process]:
    """Training workers on this machine; the raylet that started them is no child of the driver.

    Ray rewrites a worker's title at every call, so that one look can miss it.
    """
    found = psutil.process_iter(["cmdline"])
    return {process for process in found if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])}


def _run_in_process(config_overrides: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.train", *config_overrides]
    environment = os.environ | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, env=environment)


def _wait_for(path: Path, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 240) -> set[psutil.Process]:
    """Wait until `path` exists; returns the training workers that were seen meanwhile."""
    end = time.monotonic() + timeout_s
    workers: set[psutil.Process] = set()
    while not path.exists():
        workers |= _workers()
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)
    return workers


def _killable(corpus: str, output: Path) -> list[str]:
    """A run long enough to be killed between its checkpoints, with dropout, whose draws must be repeated too."""
    settings = ["train.steps=160", "train.checkpoint_every=20", "train.validate=false", "model.dropout=0.1"]
    return [*TINY, f"corpus.path={corpus}", f"train.output={output}", *settings]


def _history(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "history.jsonl").read_text().splitlines()]


def test_a_killed_worker_and_a_killed_driver_resume_to_the_same_losses(tiny_corpus: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    whole = run_train(load(_killable(tiny_corpus, tmp_path / "whole")))
    output = tmp_path / "killed"
    overrides = _killable(tiny_corpus, output)

    driver = _run_in_process(overrides, log)
    old_workers = _wait_for(output / "run/step-0000020", driver, log) | _workers()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(old_workers, timeout=60)  # they outlive it by a moment, in which they go on training
    last = max(int(folder.name.removeprefix("step-")) for folder in (output / "run").glob("step-*"))

    driver = _run_in_process(overrides, log)
    new_workers = _wait_for(output / f"run/step-{last + 20:07d}", driver, log) - old_workers
    assert new_workers, "no training worker found to kill"
    for worker in new_workers:
        worker.kill()
    assert driver.wait(timeout=240) == 0, log.read_text()[-3000:]
    np.testing.assert_allclose(_history(output), [e["loss"] for e in whole.history], rtol=1e-6)


def test_the_same_command_on_a_finished_run_returns_its_result(reference: TrainReport, tiny_corpus: str) -> None:
    output = reference.best.parent
    again = run_train(_config(tiny_corpus, output, "train.zero_stage=1"))
    assert again.history == reference.history


def test_other_settings_in_the_same_folder_are_refused(reference: TrainReport, tiny_corpus: str) -> None:
    with pytest.raises(ConfigError, match="loss.preference_weight=1.0, not 0.5"):
        run_train(_config(tiny_corpus, reference.best.parent, "train.zero_stage=1", "loss.preference_weight=0.5"))


def test_a_loss_that_is_not_a_number_names_its_trajectories(tiny_corpus: str, tmp_path: Path) -> None:
    from pipelines.training.worker import TrainingError

    with pytest.raises(TrainingError, match="not a number at step"):
        run_train(_config(tiny_corpus, tmp_path, "train.learning_rate=1e30", "train.warmup_ratio=0", "train.steps=20"))
    blamed = json.loads(next(tmp_path.glob("nan-step*-rank0.json")).read_text())
    ids = set(Corpus(tiny_corpus).manifest["id"].to_pylist())
    assert len(blamed) == 8 and all(set(sample["trajectories"]) <= ids for sample in blamed)


def test_a_damaged_checkpoint_is_one_sentence(reference: TrainReport, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(CheckpointError, match="is not a checkpoint folder"):
        load_scorer(tmp_path)
    shutil.copytree(reference.best, tmp_path / "damaged")
    weights = tmp_path / "damaged/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(tmp_path / "damaged")
    shutil.copytree(reference.best, tmp_path / "misfit")
    config = tmp_path / "misfit/config.yaml"
    config.write_text(config.read_text().replace("num_layers: 1", "num_layers: 2"))
    with pytest.raises(CheckpointError, match="Missing key"):
        load_model(tmp_path / "misfit")
