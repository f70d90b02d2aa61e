"""Training on a cluster that shrinks and grows, and on a node that is given notice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from tests.conftest import TINY
from tests.pipelines.training_runs import checkpoints, driving, recorded

NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
"""Room for one training worker."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head with room for a worker and the data stages; this process is not connected to it."""
    head = {"num_cpus": 3, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    yield started
    started.shutdown()


def _overrides(corpus: str, output: Path, *overrides: str) -> list[str]:
    run = [f"corpus.path={corpus}", f"train.output={output}", "train.steps=100000", "train.validate=false"]
    scale = ["train.num_workers=2", "train.cpus_per_worker=2", "train.micro_batch_size=4", "model.dropout=0.1"]
    scale += ["train.warmup_ratio=0"]  # weights that hardly move would hide a lost optimizer
    return [*TINY, *run, *scale, *overrides]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_that_loses_a_node_and_gets_another_has_the_losses_of_one_that_did_not(
    stage: int, cluster: Any, tiny_corpus: str, tmp_path: Path
) -> None:
    output, settings = tmp_path / "elastic", [f"train.zero_stage={stage}", "train.checkpoint_every=20"]
    elastic = ["train.min_workers=1", "train.resize_every_s=2"]
    node = cluster.add_node(**NODE)

    def number(workers: int) -> bool:
        """Whether the latest checkpoint is of this many workers."""
        return bool(checkpoints(output)) and list(recorded(output).values())[-1]["workers"] == workers

    with driving(_overrides(tiny_corpus, output, *settings, *elastic), tmp_path / "log", cluster.address) as driver:
        driver.wait_until(lambda: number(2))
        cluster.remove_node(node, allow_graceful=False)
        driver.wait_until(lambda: number(1))
        cluster.add_node(**NODE)
        driver.wait_until(lambda: number(2))
    steps = recorded(output)
    whole = tmp_path / "whole"
    alone = [*settings, "train.num_workers=1", "train.cpus_per_worker=1"]
    with driving(_overrides(tiny_corpus, whole, *alone), tmp_path / "log") as driver:
        driver.wait_until(lambda: bool(checkpoints(whole)) and max(checkpoints(whole)) >= max(steps))
    expected = recorded(whole)
    workers = [steps[step]["workers"] for step in sorted(steps)]
    assert [n for i, n in enumerate(workers) if i == 0 or workers[i - 1] != n] == [2, 1, 2]
    losses = [[run[step]["loss"] for step in sorted(steps)] for run in (steps, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


@pytest.mark.slow
def test_a_node_that_is_given_notice_leaves_a_checkpoint(cluster: Any, tiny_corpus: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    overrides = _overrides(tiny_corpus, output, "train.checkpoint_every=30", "train.keep_checkpoints=100")
    node = cluster.add_node(**NODE)
    with driving(overrides, tmp_path / "log", cluster.address) as driver:
        driver.wait_until(lambda: 30 in checkpoints(output))
        notice = ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        command = ["drain-node", "--address", cluster.address, *notice, "--deadline-remaining-seconds", "60"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command], check=True)
        driver.wait_until(lambda: any(step % 30 for step in checkpoints(output)))
    step = next(step for step in checkpoints(output) if step % 30)
    folder = output / f"run/step-{step:07d}"
    assert json.loads((folder / "step.json").read_text())["state"] == "zero2-none-2"
    assert len(list(folder.glob("state/*/*optim_states.pt"))) == 2 and not (folder / "model").exists()
