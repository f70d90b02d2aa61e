"""Jobs on clusters of one or two CPUs, alone and two at a time: each ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.conftest import TINY
from tests.pipelines.training_runs import ENVIRONMENT, checkpoints, driving

STORE = 150 * 2**20


@contextlib.contextmanager
def cluster(*cpus: int, **of_head: int) -> Iterator[Any]:
    """A head and further nodes with so many CPUs; this process is not connected to it."""
    head, *others = ({"num_cpus": n, "object_store_memory": STORE} for n in cpus)
    started = Cluster(initialize_head=True, head_node_args=head | {"include_dashboard": False} | of_head)
    try:
        for node in others:
            started.add_node(**node)
        yield started
    finally:
        started.shutdown()


def node_running(title: str, started: Any, timeout_s: float = 60) -> Any:
    """A node, not the head, on which a process of this title runs; Ray rewrites a title at every call."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        for node in started.worker_nodes:
            with contextlib.suppress(psutil.Error):
                raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
                if any(title in " ".join(child.cmdline()) for child in raylet.children(recursive=True)):
                    return node
        time.sleep(0.02)
    raise AssertionError(f"no {title} runs on a node")


def run_at_once(jobs: Mapping[str, list[str]], folder: Path, address: str = "", timeout_s: float = 420) -> None:
    """Run jobs (`NAME number`: overrides) at the same time; all must succeed. Prints the seconds of each."""
    environment = os.environ | ENVIRONMENT | ({"RAY_ADDRESS": address} if address else {})
    running = {}
    with contextlib.ExitStack() as stack:
        for name, overrides in jobs.items():
            log = stack.enter_context((folder / f"{name}.log").open("ab"))
            command = [sys.executable, "-m", f"jobs.{name.split()[0]}", *overrides, "ray.stall_timeout_s=200"]
            running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            stack.callback(running[name].kill)
        started, left = time.monotonic(), dict(running)
        while left:
            for name, job in list(left.items()):
                if job.poll() is not None:
                    print(f"  {name}: status {job.returncode} after {time.monotonic() - started:.0f} s")
                    assert left.pop(name).returncode == 0, (folder / f"{name}.log").read_text()[-3000:]
            assert time.monotonic() - started < timeout_s, {n: (folder / f"{n}.log").read_text()[-2000:] for n in left}
            time.sleep(0.2)


SHORT = ("train.steps=2", "train.checkpoint_every=1", "train.micro_batch_size=4")
SWEEP = ("sweep.num_trials=2", "sweep.max_concurrent=2", "sweep.scheduler=fifo")
EVALUATE = ("evaluate.splits=[seen]", "evaluate.bootstrap=20", "evaluate.evaluations=[reward_alignment]")


def every_job(corpus: str, raw: Path, folder: Path, number: int) -> list[tuple[str, list[str]]]:
    """Each job with settings with which it takes seconds; those of equal `number` use one another's results."""
    out, at = folder / str(number), f"corpus.path={corpus}"
    own = f"corpus.path={out / 'corpus'}"
    return [
        ("ingest", [*TINY, own, f"ingest.input={raw}"]),
        ("embed", [*TINY, own]),
        ("train", [*TINY, *SHORT, at, f"train.output={out / 'train'}"]),
        ("sweep", [*TINY, *SHORT, *SWEEP, at, f"sweep.output={out / 'sweep'}"]),
        (
            "evaluate",
            [
                *TINY,
                *EVALUATE,
                at,
                f"evaluate.scorer={out / 'train/best'}",
                f"evaluate.output={out / 'evaluation'}",
            ],
        ),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_every_job_ends_on_a_local_ray_of_few_cpus(
    tiny_corpus: str, raw_clips: Path, tmp_path: Path, cpus: int
) -> None:
    for name, overrides in every_job(tiny_corpus, raw_clips, tmp_path, 0):
        run_at_once({name: [*overrides, f"ray.num_cpus={cpus}"]}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_two_of_every_job_end_on_a_head_of_few_cpus(
    tiny_corpus: str, raw_clips: Path, tmp_path: Path, cpus: int
) -> None:
    with cluster(cpus) as head:
        pairs = zip(*(every_job(tiny_corpus, raw_clips, tmp_path, i) for i in range(2)), strict=True)
        for one, other in pairs:
            run_at_once({f"{one[0]} 1": one[1], f"{other[0]} 2": other[1]}, tmp_path, head.address)


def _endless(corpus: str, output: Path) -> list[str]:
    run = [f"corpus.path={corpus}", f"train.output={output}", "train.steps=100000", "train.validate=false"]
    return [*TINY, *run, "train.num_workers=2", "train.micro_batch_size=4", "train.checkpoint_every=10"]


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_on_nodes_of_one_cpu_steps_again_when_one_is_lost(
    tiny_corpus: str, tmp_path: Path, replaced: bool
) -> None:
    """Elastic training where the node is not replaced; two workers where it is replaced at once."""
    output = tmp_path / "run"
    overrides = _endless(tiny_corpus, output) + ([] if replaced else ["train.min_workers=1", "train.resize_every_s=5"])
    with cluster(1, 1, 1) as three, driving(overrides, tmp_path / "log", three.address) as driver:
        driver.wait_until(lambda: 10 in checkpoints(output))
        three.remove_node(node_running("RayTrainWorker", three), allow_graceful=False)
        killed, at = time.monotonic(), max(checkpoints(output))
        if replaced:
            three.add_node(num_cpus=1, object_store_memory=STORE)
        driver.wait_until(lambda: max(checkpoints(output)) >= at + 20, timeout_s=300)
        print(f"  20 steps further {time.monotonic() - killed:.0f} s after a node was killed")
