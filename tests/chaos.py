"""Faults during every stage, on a cluster of this machine: `python -m tests.chaos --output outputs/chaos`.

Each round starts a cluster of a head and two nodes, runs one stage on it, breaks something in the middle, and compares
what came out with an undisturbed run. A job that a fault may end, as it ends its driver, is started again by the same
command. The table says what was lost, what is there twice, how far the numbers are off, and how long the stage stood
still; the command ends with status 1 where a round did not end as an undisturbed one.

`--stages`, `--faults` and `--rounds` choose. One process should run at a time: the seconds are of a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from pipelines.cluster import free_port
from robometer.calls import ScoringError
from robometer.client import RemoteScorer
from robometer.scoring import Clip
from tests import networks
from tests.conftest import TINY
from tests.corpus.formats.raw import BUNDLED
from tests.pipelines.test_deadlocks import STORE, cluster, node_running
from tests.pipelines.test_ingest_kills import small_disk
from tests.pipelines.training_runs import Driver, checkpoints, recorded

CLIPS = 120
STEPS = 60
HUNG_S = 420.0
"""A stage that stands still for so long hangs."""
SLOW_S, CUT_S, NOTICE_S, FULL_S = 15.0, 45.0, 10, 10.0
TOLERANCE = 1e-3
"""Largest relative difference that is rounding: losses of other numbers of workers, summed in another order."""


@dataclass
class Outcome:
    """What a round ended with.

    Attributes:
        difference: the largest of all numbers that came out, relative.
        seconds: from the fault to the next item that was done, or the longest time without an answer.
        restarts: how often the job was started again.
        remark: what went wrong; empty if nothing did.
    """

    stage: str
    fault: str
    lost: int = 0
    twice: int = 0
    difference: float = 0.0
    seconds: float = math.nan
    restarts: int = 0
    remark: str = ""

    @property
    def well(self) -> bool:
        """Whether it ended as an undisturbed run."""
        return not (self.lost or self.twice or self.remark) and self.difference <= TOLERANCE


@dataclass(frozen=True)
class Stage:
    """A job, how to follow it, and how to tell what it lost.

    Attributes:
        job: module of `jobs`.
        title: of a process that does its work.
        overrides: for an output folder.
        progress: items that are done for good.
        compare: lost items, items that are there twice, and the largest relative difference, of two output folders.
    """

    job: str
    title: str
    overrides: Callable[[Path], list[str]]
    progress: Callable[[Path], int]
    compare: Callable[[Path, Path], tuple[int, int, float]]


@dataclass
class Scene:
    """A round while it runs."""

    stage: Stage
    started: Any
    output: Path
    log: Path
    driver: Driver
    disk: Path | None
    restarts: int = 0

    def start(self) -> None:
        """Start the job, with the same command each time."""
        self.driver = Driver(self.stage.overrides(self.output), self.log, self.started.address, self.stage.job)

    def step(self) -> None:
        """Start a job again that has ended badly."""
        if self.driver.process.poll() not in (None, 0) and self.restarts < 3:
            self.restarts += 1
            self.start()

    def replace_node(self, node: Any) -> None:
        """Take a dead node away, and add another one."""
        with suppress(Exception):
            self.started.remove_node(node, allow_graceful=False)
        at = self.started.head_node.node_ip_address
        self.started.add_node(num_cpus=1, object_store_memory=STORE, node_ip_address=at)


def _tree(node: Any) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


@contextmanager
def _stopped(processes: list[psutil.Process], seconds: float) -> Iterator[None]:
    for process in processes:
        with suppress(psutil.Error):
            process.suspend()
    try:
        time.sleep(seconds)
        yield
    finally:
        for process in processes:
            with suppress(psutil.Error):
                process.resume()


def _driver(scene: Scene) -> None:
    """The job is killed, and started again."""
    scene.driver.process.kill()
    scene.driver.process.wait()


def _worker(scene: Scene) -> None:
    """A process that does the work is killed."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        node = node_running(scene.stage.title, scene.started)
        for process in _tree(node)[1:]:
            with suppress(psutil.Error):
                if scene.stage.title in " ".join(process.cmdline()):
                    process.kill()
                    return
    raise AssertionError(f"no {scene.stage.title} found")


def _node(scene: Scene) -> None:
    """A node that does the work is killed, and another one comes."""
    scene.replace_node(node_running(scene.stage.title, scene.started))


def _raylet(scene: Scene) -> None:
    """Only the raylet of such a node is killed."""
    node = node_running(scene.stage.title, scene.started)
    node.kill_raylet()
    time.sleep(5)
    scene.replace_node(node)


def _slow(scene: Scene) -> None:
    """All processes of such a node stand still for a while, and go on."""
    with _stopped(_tree(node_running(scene.stage.title, scene.started)), SLOW_S):
        pass


def _silent(scene: Scene) -> None:
    """The raylet of such a node is silent until the cluster takes it for dead; its workers go on meanwhile."""
    node = node_running(scene.stage.title, scene.started)
    with _stopped(_tree(node)[:1], CUT_S):
        pass
    scene.replace_node(node)


def _cut(scene: Scene) -> None:
    """Such a node is cut off from the network until the cluster takes it for dead; its processes go on meanwhile."""
    node = node_running(scene.stage.title, scene.started)
    with networks.cut(node):
        time.sleep(CUT_S)
    scene.replace_node(node)


_FILL = """
import sys, time, numpy as np, ray, ray._private.internal_api as api
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At
address, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False)
piece = ray.remote(num_cpus=0)(lambda: np.ones(2**23, np.uint8))
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
held = [piece.options(scheduling_strategy=At(n, soft=True)).remote() for n in nodes for _ in range(size // 2**23)]
ray.wait(held, num_returns=len(held), fetch_local=False)
time.sleep(seconds)
print(api.memory_summary(address, stats_only=True))
"""


def _store(scene: Scene) -> None:
    """Another job fills the object stores one and a half times for a while, so that they spill to the disk."""
    command = [sys.executable, "-c", _FILL, scene.started.address, str(3 * STORE // 2), str(FULL_S)]
    summary = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Spilled" in summary, f"nothing was spilled: {summary}"


def _notice(scene: Scene) -> None:
    """Such a node is announced to go, as spot machines are, and then killed."""
    node = node_running(scene.stage.title, scene.started)
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "chaos"]
    where = ["--address", scene.started.address, "--node-id", node.node_id]
    command = ["drain-node", *where, *why, "--deadline-remaining-seconds", str(NOTICE_S)]
    scene.started.add_node(num_cpus=1, object_store_memory=STORE)
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command], check=True, capture_output=True)
    time.sleep(NOTICE_S)
    with suppress(Exception):
        scene.started.remove_node(node, allow_graceful=False)


def _disk(scene: Scene) -> None:
    """The disk of the outputs is full for a while."""
    assert scene.disk is not None
    ballast = scene.disk / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    time.sleep(FULL_S)
    ballast.unlink()


def _head(scene: Scene) -> None:
    """The GCS, the head's memory, is killed, and starts again from what it keeps in RocksDB."""
    head = scene.started.head_node
    head.kill_gcs_server()
    time.sleep(2)
    head.start_gcs_server()


FAULTS: dict[str, Callable[[Scene], None]] = {
    "driver": _driver,
    "worker": _worker,
    "node": _node,
    "raylet": _raylet,
    "slow": _slow,
    "silent": _silent,
    "cut": _cut,
    "notice": _notice,
    "disk": _disk,
    "store": _store,
    "head": _head,
}


def _ids(corpus: Path) -> list[str]:
    return [id for file in (corpus / "manifest").glob("*.parquet") for id in pq.read_table(file)["id"].to_pylist()]


def _count(whole: list[Any], other: list[Any]) -> tuple[int, int]:
    """How many items of `whole` are not in `other`, and how many are there more often."""
    expected, found = Counter(whole), Counter(other)
    return (expected - found).total(), (found - expected).total()


def _same_corpus(whole: Path, other: Path) -> tuple[int, int, float]:
    return *_count(_ids(whole), _ids(other)), 0.0


def _embeddings(corpus: Path) -> dict[str, Any]:
    return {file.name: ipc.open_file(file).read_all() for file in (corpus / "embeddings/random_image").glob("*.arrow")}


def _same_embeddings(whole: Path, other: Path) -> tuple[int, int, float]:
    one, two = _embeddings(whole), _embeddings(other)
    lost, twice = _count(list(one), list(two))
    return lost, twice, float(any(two.get(name) != table for name, table in one.items()))


def _off(one: Any, other: Any) -> float:
    """Largest relative difference of numbers; where one is not a number, neither may be."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    if (np.isnan(one) != np.isnan(other)).any():
        return math.inf
    return float(np.nanmax(np.abs(one - other) / np.maximum(np.abs(one), 1e-2), initial=0.0))


def _same_training(whole: Path, other: Path) -> tuple[int, int, float]:
    one, two = recorded(whole), recorded(other)
    path = other / f"run/step-{checkpoints(other)[-1]:07d}/history.jsonl"
    steps = [entry["step"] for entry in map(json.loads, path.read_text().splitlines()) if "loss" in entry]
    lost, twice = _count(list(one), steps)
    return lost, twice, _off([one[s]["loss"] for s in one], [two[s]["loss"] if s in two else math.nan for s in one])


def _same_sweep(whole: Path, other: Path) -> tuple[int, int, float]:
    one, two = (pd.read_csv(path / "trials.csv", dtype={"trial": str}).set_index("trial") for path in (whole, other))
    lost, twice = _count(list(one.index), list(two.index))
    numbers = one.select_dtypes("number").columns
    return lost, twice, math.inf if lost else _off(one[numbers], two.loc[one.index, numbers])


def _predicted(output: Path) -> list[Any]:
    """Every clip and pair that was scored."""
    clips, pairs = (pq.read_table(output / f"{name}.parquet") for name in ("predictions", "pairs"))
    keys = [(clips, ["split", "id", "view"]), (pairs, ["split", "kind", "task", "chosen_id", "rejected_id"])]
    return [tuple(row.values()) for table, names in keys for row in table.select(names).to_pylist()]


def _same_evaluation(whole: Path, other: Path) -> tuple[int, int, float]:
    one, two = (json.loads((path / "metrics.json").read_text())["metrics"] for path in (whole, other))
    lost, twice = _count(_predicted(whole), _predicted(other))
    return lost, twice, 0.0 if one == two else math.inf


@dataclass(frozen=True)
class Given:
    """What the stages read: made once, in `folder`."""

    folder: Path

    @property
    def raw(self) -> Path:
        """Clips of the bundled corpus."""
        return self.folder / "raw"

    @property
    def corpus(self) -> Path:
        """The clips as a corpus, with embeddings."""
        return self.folder / "corpus"

    @property
    def model(self) -> Path:
        """A model that was trained on it."""
        return self.folder / "model"

    def make(self) -> None:
        """Make what is not there."""
        if not self.raw.exists():
            self.raw.mkdir(parents=True)
            (self.raw / "videos").symlink_to(BUNDLED / "videos")
            lines = (BUNDLED / "trajectories.jsonl").read_text().splitlines()
            chosen = lines[:: len(lines) // CLIPS][:CLIPS]
            (self.raw / "trajectories.jsonl").write_text("\n".join(chosen))
        for job, settings in (
            ("ingest", [*_INGEST, f"ingest.input={self.raw}"]),
            ("embed", []),
            ("train", ["train.steps=20", "train.checkpoint_every=10", f"train.output={self.model}"]),
        ):
            command = [sys.executable, "-m", f"jobs.{job}", *TINY, *settings, f"corpus.path={self.corpus}"]
            subprocess.run(command, check=True, capture_output=True)


_INGEST = ("ingest.short_edge=96", "ingest.max_frames=16", "ingest.shard_size=4")
_TRAIN = (
    "train.micro_batch_size=4",
    "train.checkpoint_every=10",
    f"train.steps={STEPS}",
    "train.warmup_ratio=0",
    "train.validate=false",
)
_SWEEP = (
    "train.micro_batch_size=4",
    "train.checkpoint_every=10",
    "train.steps=20",
    "train.validation_splits=[train]",
    "sweep.num_trials=3",
    "sweep.max_concurrent=2",
    "sweep.scheduler=fifo",
    "sweep.metric=train/voc",
    'sweep.space=["loss.preference_weight=uniform(0.1,2)"]',
)


def stages(given: Given) -> dict[str, Stage]:
    """Every stage but `serve`."""
    at = f"corpus.path={given.corpus}"

    def copied(output: Path) -> list[str]:
        if not output.exists():
            shutil.copytree(given.corpus, output, ignore=shutil.ignore_patterns("embeddings"))
        return [*TINY, f"corpus.path={output}", "embed.actors=2"]

    def files(folder: str, pattern: str) -> Callable[[Path], int]:
        return lambda output: len(list((output / folder).glob(pattern)))

    def trained(output: Path) -> int:
        return max(checkpoints(output), default=0)

    return {
        "ingest": Stage(
            "ingest",
            "make_shard",
            lambda output: [*TINY, *_INGEST, f"ingest.input={given.raw}", f"corpus.path={output}"],
            files("manifest", "*.parquet"),
            _same_corpus,
        ),
        "embed": Stage("embed", "EmbedShards", copied, files("embeddings/random_image", "*.arrow"), _same_embeddings),
        "train": Stage(
            "train",
            "RayTrainWorker",
            lambda output: [*TINY, *_TRAIN, at, f"train.output={output}", "train.num_workers=2", "model.dropout=0.1"],
            trained,
            _same_training,
        ),
        "sweep": Stage(
            "sweep",
            "RayTrainWorker",
            lambda output: [*TINY, *_SWEEP, at, f"sweep.output={output}"],
            lambda output: sum(trained(trial) for trial in output.glob("trials/*")),
            _same_sweep,
        ),
        "evaluate": Stage(
            "evaluate",
            "Predictor",
            lambda output: [
                *TINY,
                "evaluate.scorer=baseline:frame_difference",
                "evaluate.splits=[train]",
                "evaluate.actors=2",
                "evaluate.bootstrap=50",
                f"evaluate.output={output}",
                at,
            ],
            files("parts", "*.parquet"),
            _same_evaluation,
        ),
    }


@contextmanager
def _with_rocksdb(kept: bool) -> Iterator[None]:
    """Environment in which a cluster's GCS keeps its state on the disk."""
    if not kept:
        yield
        return
    folder = tempfile.mkdtemp(prefix="gcs")
    os.environ |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": folder}
    try:
        yield
    finally:
        for name in ("RAY_gcs_storage", "RAY_gcs_storage_path"):
            del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


def _three_nodes(fault: str, **of_head: Any) -> AbstractContextManager[Any]:
    """A head and two nodes, which can be cut off if that is the fault."""
    return networks.cluster(STORE, 2, **of_head) if fault == "cut" else cluster(1, 1, 1, **of_head)


def run_round(name: str, stage: Stage, fault: str, folder: Path, rng: random.Random, whole: Path) -> Outcome:
    """One stage with one fault; `whole` is the output of an undisturbed run."""
    outcome = Outcome(name, fault)
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk")) if fault == "disk" else None
        if fault == "disk" and disk is None:
            return replace(outcome, remark="no file system could be mounted", seconds=math.nan)
        stack.enter_context(_with_rocksdb(fault == "head"))
        started = stack.enter_context(_three_nodes(fault, include_dashboard=name == "sweep"))
        output, log = (disk or folder) / "output", folder / "log"
        scene = Scene(
            stage, started, output, log, Driver(stage.overrides(output), log, started.address, stage.job), disk
        )
        stack.callback(lambda: _end(scene))
        goal = rng.randrange(1, 4) if stage.job in ("ingest", "embed", "evaluate") else 10
        if not _until(scene, lambda: stage.progress(output) >= goal) or scene.driver.process.poll() is not None:
            return replace(outcome, remark=f"nothing to break: {_tail(log)}")
        at, before = time.monotonic(), stage.progress(output)
        FAULTS[fault](scene)
        going = _until(scene, lambda: stage.progress(output) > before)
        outcome.seconds = time.monotonic() - at
        ended = going and _until(scene, lambda: False)
        outcome.restarts = scene.restarts
        if not ended:
            return replace(outcome, remark="hung" if scene.driver.process.poll() is None else f"failed: {_tail(log)}")
        outcome.lost, outcome.twice, outcome.difference = stage.compare(whole, output)
    return outcome


def _until(scene: Scene, met: Callable[[], bool]) -> bool:
    """Whether it came to pass, or the job ended well, before it hung or failed for good."""
    seen, since = -1, time.monotonic()
    while not met():
        scene.step()
        status = scene.driver.process.poll()
        if status is not None:
            return status == 0
        now = scene.stage.progress(scene.output)
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > HUNG_S:
            return False
        time.sleep(0.1)
    return True


def _end(scene: Scene) -> None:
    if scene.driver.process.poll() is None:
        scene.driver.process.send_signal(signal.SIGKILL)
        scene.driver.process.wait()


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split())[-300:]


def run_serve_round(fault: str, folder: Path, given: Given) -> Outcome:
    """Clients ask an endpoint of two replicas on other nodes while something breaks: all must be answered."""
    outcome, port = Outcome("serve", fault), free_port()
    overrides = [f"serve.checkpoint={given.model}/best", f"serve.port={port}", "serve.replicas=2", "serve.max_jobs=0"]
    stage = Stage("serve", "ServeReplica", lambda _: [*TINY, *overrides], lambda _: 0, lambda *_: (0, 0, 0.0))
    with ExitStack() as stack:
        stack.enter_context(_with_rocksdb(fault == "head"))
        started = stack.enter_context(_three_nodes(fault))
        log = folder / "log"
        scene = Scene(stage, started, folder, log, Driver(stage.overrides(folder), log, started.address, "serve"), None)
        stack.callback(lambda: _end(scene))
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            if scene.driver.process.poll() is not None or time.monotonic() > end:
                return replace(outcome, remark=f"did not start: {_tail(log)}")
            time.sleep(0.5)
        clients = _Clients(url)
        clients.run_for(5)
        at = time.monotonic()
        with clients:
            FAULTS[fault](scene)
            time.sleep(40)
        outcome.lost, outcome.difference = clients.lost, clients.off
        outcome.seconds = clients.longest_gap(at)
        outcome.remark = clients.remark
    return outcome


class _Clients:
    """Four clients, each of which asks for the same answers again and again."""

    def __init__(self, url: str) -> None:
        rng = np.random.default_rng(0)
        self._clips = [
            Clip(rng.integers(0, 255, (n, 64, 64, 3), dtype=np.uint8), "open the drawer") for n in (3, 4, 5, 6)
        ]
        self._scorer = RemoteScorer(url)
        self._expected = [self._scorer.score([clip])[0].progress for clip in self._clips]
        self.answers, self.lost, self.off, self.remark = list[float](), 0, 0.0, ""
        self._stop = threading.Event()
        self._threads = list[threading.Thread]()

    def __enter__(self) -> _Clients:
        self._stop.clear()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(len(self._clips))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def run_for(self, seconds: float) -> None:
        """Ask for a while."""
        with self:
            time.sleep(seconds)

    def _ask(self, index: int) -> None:
        while not self._stop.is_set():
            try:
                [score] = self._scorer.score([self._clips[index]])
            except ScoringError as error:
                self.lost += 1
                self.remark = str(error)[:200]
                continue
            self.off = max(self.off, _off(self._expected[index], score.progress))
            self.answers.append(time.monotonic())

    def longest_gap(self, since: float) -> float:
        """Longest time without any answer since then."""
        times = [since, *(at for at in sorted(self.answers) if at > since)]
        return float(np.diff(times).max(initial=0.0))


NOT_FOR = {("serve", "driver"), ("serve", "disk")}
"""An endpoint ends with its command, and writes nothing."""


def main() -> int:
    """Run the rounds, and print the table."""
    given_stages = ("ingest", "embed", "train", "sweep", "evaluate", "serve")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stages", nargs="*", default=given_stages, choices=given_stages)
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--rounds", type=int, default=1, help="of each stage with each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/chaos"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    given = Given(arguments.output.absolute() / "given")
    given.make()
    outcomes = list[Outcome]()
    for name in arguments.stages:
        whole = arguments.output.absolute() / f"{name}-whole"
        stage = stages(given).get(name)
        if stage is not None:
            shutil.rmtree(whole, ignore_errors=True)
            with cluster(1, 1, 1) as started:
                log = arguments.output / f"{name}-whole.log"
                Driver(stage.overrides(whole), log, started.address, stage.job).finish()
        for number in range(arguments.rounds):
            for fault in arguments.faults:
                if (name, fault) in NOT_FOR:
                    continue
                rng = random.Random(f"{arguments.seed} {number} {name} {fault}")
                with tempfile.TemporaryDirectory(prefix="chaos") as folder:
                    try:
                        outcome = (
                            run_round(name, stage, fault, Path(folder), rng, whole)
                            if stage
                            else run_serve_round(fault, Path(folder), given)
                        )
                    except Exception as error:  # noqa: BLE001 - the others go on
                        outcome = Outcome(name, fault, remark=f"{type(error).__name__}: {error}"[:300])
                    if not outcome.well:
                        with suppress(OSError):
                            shutil.copy(Path(folder, "log"), arguments.output / f"{name}-{fault}-{number}.log")
                outcomes.append(outcome)
                print(f"{'well' if outcome.well else 'BAD '} {asdict(outcome)}", flush=True)
                pd.DataFrame([asdict(one) for one in outcomes]).to_csv(arguments.output / "chaos.csv", index=False)
    table = pd.DataFrame([asdict(one) for one in outcomes])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    bad = sum(not one.well for one in outcomes)
    print(f"{len(outcomes)} faults, {bad} of which ended badly")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
