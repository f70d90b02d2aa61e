"""A node is killed during a job on three nodes: the job ends by itself, with the result of an undisturbed job.

`python -m pytest tests/pipelines/test_node_kills.py -m slow -s` prints the seconds. Ingest: `test_ingest_kills`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines.embed import run_embed
from pipelines.ingest import run_ingest
from pipelines.sweep import TRIAL_BYTES
from robometer.configs import load
from robometer.corpus.corpus import Corpus
from tests.conftest import TINY
from tests.corpus.formats.raw import BUNDLED
from tests.pipelines.test_deadlocks import cluster, node_running
from tests.pipelines.training_runs import Driver, checkpoints, driving, recorded

CLIPS = 160
LARGER = (*TINY, "ingest.short_edge=96", "ingest.max_frames=16", "ingest.shard_size=8", "ingest.max_bad_fraction=1")


@pytest.fixture
def three() -> Iterator[Any]:
    """A head and two nodes, of a CPU each."""
    with cluster(1, 1, 1) as started:
        yield started


@pytest.fixture(scope="module")
def larger(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger corpus, without embeddings."""
    raw, path = tmp_path_factory.mktemp("larger"), tmp_path_factory.mktemp("corpus")
    (raw / "videos").symlink_to(BUNDLED / "videos")
    lines = (BUNDLED / "trajectories.jsonl").read_text().splitlines()[:CLIPS]
    (raw / "trajectories.jsonl").write_text("\n".join(lines))
    run_ingest(load([*LARGER, f"corpus.path={path}", f"ingest.input={raw}"]))
    return path


def killed(driver: Driver, started: Any, title: str, done: Callable[[], int], first: int) -> None:
    """Kill a node that runs `title` once `first` items are done, then wait for the next item."""
    driver.wait_until(lambda: done() >= first)
    started.remove_node(node_running(title, started), allow_graceful=False)
    at, before = time.monotonic(), done()
    driver.wait_until(lambda: done() > before, timeout_s=300)
    print(f"  {driver.job}: {before} done when a node was killed, the next {time.monotonic() - at:.0f} s later")


@pytest.mark.slow
def test_embed_survives_a_node(three: Any, larger: Path, tmp_path: Path) -> None:
    run_embed(load([*LARGER, f"corpus.path={larger}"]))
    copy = tmp_path / "corpus"
    shutil.copytree(larger, copy, ignore=shutil.ignore_patterns("embeddings"))
    folder = copy / "embeddings/random_image"
    overrides = [*LARGER, f"corpus.path={copy}", "embed.actors=2"]
    with driving(overrides, tmp_path / "log", three.address, "embed") as driver:
        killed(driver, three, "EmbedShards", lambda: len(list(folder.glob("*.arrow"))), 3)
        driver.finish()
    folders = (larger / "embeddings/random_image", folder)
    one, other = ({file.name: pa.ipc.open_file(file).read_all() for file in path.iterdir()} for path in folders)
    assert one == other  # nothing more, no temporary file above all, and nothing less


@pytest.mark.slow
def test_evaluate_survives_a_node(three: Any, larger: Path, tmp_path: Path) -> None:
    def overrides(name: str) -> list[str]:
        splits = sorted(set(Corpus(str(larger)).manifest["split"].to_pylist()))
        settings = ["evaluate.scorer=baseline:frame_difference", f"evaluate.splits=[{','.join(splits)}]"]
        settings += [f"evaluate.output={tmp_path / name}", "evaluate.actors=2", "evaluate.bootstrap=50"]
        return [*TINY, *settings, f"corpus.path={larger}"]

    def metrics(name: str) -> Any:
        return json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]

    with driving(overrides("whole"), tmp_path / "log", three.address, "evaluate") as driver:
        driver.finish()
    with driving(overrides("killed"), tmp_path / "log", three.address, "evaluate") as driver:
        killed(driver, three, "Predictor", lambda: len(list((tmp_path / "killed/parts").glob("*.parquet"))), 3)
        driver.finish()
    assert metrics("killed") == metrics("whole")


RUN = ("train.checkpoint_every=10", "train.steps=60", "train.micro_batch_size=4", "train.warmup_ratio=0")


@pytest.mark.slow
@pytest.mark.parametrize("elastic", [False, True])
def test_training_survives_a_node(elastic: bool, three: Any, tiny_corpus: str, tmp_path: Path) -> None:
    """Two workers on the two remaining nodes, elastic or not."""

    def overrides(name: str) -> list[str]:
        run = [f"corpus.path={tiny_corpus}", f"train.output={tmp_path / name}", "train.num_workers=2"]
        run += ["train.validate=false", "model.dropout=0.1"]
        return [*TINY, *RUN, *run, *(["train.min_workers=1", "train.resize_every_s=600"] if elastic else [])]

    with driving(overrides("whole"), tmp_path / "log", three.address) as driver:
        driver.finish()
    output = tmp_path / "killed"
    with driving(overrides("killed"), tmp_path / "log", three.address) as driver:
        killed(driver, three, "RayTrainWorker", lambda: max(checkpoints(output), default=0), 10)
        driver.finish()
    losses = [[run[step]["loss"] for step in range(1, 61)] for run in map(recorded, (tmp_path / "whole", output))]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)


@pytest.mark.slow
def test_a_sweep_of_two_trials_at_a_time_survives_a_node(tiny_corpus: str, tmp_path: Path) -> None:
    """The node that is killed holds a trial, which Tune starts again; no trial fits on the head.

    Ray Train finds out through the dashboard that the CPU of a lost trial is free.
    """
    space = 'sweep.space=["loss.preference_weight=uniform(0.1,2)"]'

    def overrides(name: str) -> list[str]:
        sweep = ["sweep.num_trials=4", "sweep.max_concurrent=2", "sweep.scheduler=fifo", "sweep.metric=seen/voc", space]
        return [*TINY, *RUN, "train.steps=30", f"corpus.path={tiny_corpus}", f"sweep.output={tmp_path / name}", *sweep]

    def table(name: str) -> pd.DataFrame:
        return pd.read_csv(tmp_path / name / "trials.csv").drop(columns="trial").sort_values("loss.preference_weight")

    def done() -> int:
        return sum(max(checkpoints(trial), default=0) for trial in (tmp_path / "killed").glob("trials/*"))

    with cluster(1, 1, 1, memory=TRIAL_BYTES - 1, include_dashboard=True) as three:
        with driving(overrides("whole"), tmp_path / "log", three.address, "sweep") as driver:
            driver.finish()
        with driving(overrides("killed"), tmp_path / "log", three.address, "sweep") as driver:
            killed(driver, three, "ImplicitFunc", done, 20)
            driver.finish()
    one, other = table("whole"), table("killed")
    assert len(one) == 4
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), rtol=1e-3)
