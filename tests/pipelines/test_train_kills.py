"""Training whose driver and workers are killed: the losses are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pyarrow.fs import copy_files

from pipelines.train import TrainReport, run_train
from robometer.configs import load
from robometer.corpus.storage import Storage
from tests import networks
from tests.conftest import TINY
from tests.object_store import SECRET
from tests.pipelines.test_deadlocks import STORE, node_running
from tests.pipelines.training_runs import checkpoints, driving, recorded

EVERY, STEPS = 10, 60


def _overrides(corpus: str, output: Path | str, *overrides: str) -> list[str]:
    """A run that is long enough to be killed between checkpoints, with dropout, whose draws must be the same too."""
    settings = [f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "train.validate=false", "model.dropout=0.1"]
    run = [f"corpus.path={corpus}", f"train.output={output}", "train.micro_batch_size=4"]
    return [*TINY, *run, *settings, *overrides]


def _losses(report: TrainReport) -> list[float]:
    return [entry["loss"] for entry in report.history if "loss" in entry]


def _kill_a_driver_then_workers(output: Path | str, first: list[str], second: list[str], log: Path) -> None:
    with driving(first, log) as driver:
        old = driver.wait_until(lambda: EVERY in checkpoints(output))
        driver.kill(old)
    last = max(checkpoints(output))
    with driving(second, log) as driver:
        new = driver.wait_until(lambda: last + EVERY in checkpoints(output)) - old
        assert new, "no training worker found to kill"
        for worker in new:
            worker.kill()
        driver.finish()


@pytest.mark.slow
def test_two_workers_killed_with_their_driver_resume_as_one(tiny_corpus: str, tmp_path: Path) -> None:
    whole = run_train(load(_overrides(tiny_corpus, tmp_path / "whole")))
    output = tmp_path / "killed"
    with driving(_overrides(tiny_corpus, output, "train.num_workers=2"), tmp_path / "log") as driver:
        driver.kill(driver.wait_until(lambda: EVERY in checkpoints(output)))
    resumed = run_train(load(_overrides(tiny_corpus, output)))
    assert max(checkpoints(output)) == STEPS
    np.testing.assert_allclose(_losses(resumed), _losses(whole), rtol=2e-5)


@pytest.mark.slow
def test_workers_reach_one_another_where_a_machine_takes_its_name_for_127_0_0_1(
    tiny_corpus: str, tmp_path: Path
) -> None:
    """Each node has a network of its own. Then one is cut off."""
    whole = run_train(load(_overrides(tiny_corpus, tmp_path / "whole")))
    output = tmp_path / "apart"
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(networks.cluster(STORE, 2))
        except RuntimeError as error:
            pytest.skip(str(error))
        overrides = _overrides(tiny_corpus, output, "train.num_workers=2")
        driver = stack.enter_context(driving(overrides, tmp_path / "log", started.address))
        driver.wait_until(lambda: EVERY in checkpoints(output))
        with networks.cut(node := node_running("RayTrainWorker", started)):
            time.sleep(45)
        started.remove_node(node, allow_graceful=False)
        started.add_node(num_cpus=1, object_store_memory=STORE, node_ip_address=networks.HEAD)
        driver.finish()
    losses = [entry["loss"] for entry in recorded(output).values()]
    np.testing.assert_allclose(losses, _losses(whole), rtol=2e-5)


@pytest.mark.slow
def test_a_killed_data_actor_is_replaced_and_nothing_else_changes(tiny_corpus: str, tmp_path: Path) -> None:
    whole = run_train(load(_overrides(tiny_corpus, tmp_path / "whole")))
    output = tmp_path / "killed"
    with driving(_overrides(tiny_corpus, output), tmp_path / "log") as driver:
        driver.wait_until(lambda: EVERY in checkpoints(output))
        while not (actors := driver.workers("MapBatches(Collate)")):
            assert driver.process.poll() is None, "it ended before its data actor was found"
        for actor in actors:
            actor.kill()
        driver.finish()
    resumed = [entry["loss"] for entry in recorded(output).values()]
    np.testing.assert_allclose(resumed, _losses(whole), rtol=1e-6)


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_with_a_sentence(tiny_corpus: str, tmp_path: Path) -> None:
    output = tmp_path / "hung"
    settings = ["train.steps=100000", "train.num_workers=2", "ray.stall_timeout_s=120"]
    with driving(_overrides(tiny_corpus, output, *settings), tmp_path / "log") as driver:
        driver.wait_until(lambda: EVERY in checkpoints(output))
        while not (workers := driver.workers()):
            pass
        hung = workers.pop()
        hung.suspend()  # the other one waits for it in a collective operation
        try:
            assert driver.process.wait(timeout=400) == 2
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                hung.kill()
    said = (tmp_path / "log").read_text()
    assert "error: training made no step for 12" in said
    assert re.search(r"were: rank \d: no word, so its process is frozen or gone; rank \d \(on .*with the others", said)


def _validations(report: TrainReport) -> dict[float, float]:
    return {entry["step"]: entry["seen/voc"] for entry in report.history if "seen/voc" in entry}


@pytest.mark.slow
def test_validations_that_a_kill_cut_off_are_made_by_the_resumed_run(tiny_corpus: str, tmp_path: Path) -> None:
    beside = ["train.validate=true", "train.validate_async=true"]
    whole = run_train(load(_overrides(tiny_corpus, tmp_path / "whole", *beside)))
    output = tmp_path / "killed"
    overrides = _overrides(tiny_corpus, output, *beside)
    with driving(overrides, tmp_path / "log") as driver:
        driver.kill(driver.wait_until(lambda: 2 * EVERY in checkpoints(output)))
    assert len(list(output.glob("validations/*"))) < len(checkpoints(output))
    resumed = run_train(load(overrides))
    assert list(_validations(resumed)) == list(range(EVERY, STEPS + 1, EVERY))
    assert _validations(resumed) == pytest.approx(_validations(whole), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), [(1, 2), (2, 1), (2, 2), (3, 2)])
def test_the_same_workers_resume_to_the_same_losses(stage: int, workers: int, tiny_corpus: str, tmp_path: Path) -> None:
    same = [f"train.zero_stage={stage}", f"train.num_workers={workers}"]
    whole = run_train(load(_overrides(tiny_corpus, tmp_path / "whole", *same)))
    output = tmp_path / "killed"
    overrides = _overrides(tiny_corpus, output, *same)
    _kill_a_driver_then_workers(output, overrides, overrides, tmp_path / "log")
    np.testing.assert_allclose(_losses(run_train(load(overrides))), _losses(whole), rtol=1e-6)


@pytest.mark.slow
def test_corpus_run_and_evaluation_in_a_bucket(tiny_corpus: str, tmp_path: Path, bucket: str) -> None:
    """The driver, then the workers are killed; the losses are those of a run on a disk, and the best is evaluated."""
    corpus, output, same = f"{bucket}/corpus", f"{bucket}/run", ["train.zero_stage=2", "train.num_workers=2"]
    storage = Storage(corpus)
    copy_files(tiny_corpus, storage.root, destination_filesystem=storage.fs, use_threads=False)
    with driving(_overrides(tiny_corpus, tmp_path / "whole", *same), tmp_path / "log") as driver:
        driver.finish()
    overrides = _overrides(corpus, output, *same)
    _kill_a_driver_then_workers(output, overrides, overrides, tmp_path / "log")
    losses = [[entry["loss"] for entry in recorded(one).values()] for one in (output, tmp_path / "whole")]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    kept = json.loads(Storage(output).read_bytes("best/provenance.json"))
    assert kept["step"] == STEPS and not Storage(output).hidden("")
    with driving(overrides, tmp_path / "again") as driver:
        driver.finish()
    assert "is finished" in (tmp_path / "again").read_text()
    scoring = [f"{output}/best", "--corpus", corpus, "--output", f"{bucket}/evaluation", "tracking.uri=none"]
    with driving(scoring, tmp_path / "log", job="evaluate") as driver:
        driver.finish()
    metrics = json.loads(Storage(f"{bucket}/evaluation").read_bytes("metrics.json"))
    assert metrics["provenance"]["checkpoint"] == f"{output}/best" and metrics["provenance"]["failed"] == 0
    assert not any("s3:" in str(path) for path in (*Path().iterdir(), *tmp_path.rglob("*")))
    assert SECRET not in (tmp_path / "log").read_text()
