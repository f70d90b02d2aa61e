"""An ingest is killed again and again, and the corpus ends the same: none lost, none twice, nothing left over.

The real job runs as a process of its own on a Ray cluster of three nodes. At random moments the job, one of its workers
or a node is killed with SIGKILL, or the disk is full. Raw data and corpus lie on a disk, then in a bucket. The default
is one kill of each kind; `ROBOMETER_KILLS=24 python -m pytest tests/pipelines/test_ingest_kills.py -s` does it for
longer and prints the log.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pyarrow.fs import FileSelector, FileType
from ray.cluster_utils import Cluster

from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from tests.corpus.formats.raw import BUNDLED
from tests.object_store import SECRET, upload

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("ROBOMETER_KILLS", "4"))
CLIPS = 50 * KILLS
DISK_MB = 512


class Trial:
    """A cluster, the job that runs on it, and the ways to kill parts of both."""

    def __init__(self, folder: Path, disk: Path | None) -> None:
        self.folder, self.disk, self.raw = folder, disk, str(folder / "raw")
        self.log = (folder / "driver.log").open("wb")
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, corpus: str) -> None:
        if self.driver is None or self.driver.poll() is not None:
            settings = (
                "ingest.short_edge=64",
                "ingest.max_frames=8",
                "ingest.shard_size=4",
                "ingest.max_bad_fraction=1",
            )
            where = (f"corpus.path={corpus}", f"ingest.input={self.raw}")
            environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
            command = [sys.executable, "-m", "jobs.ingest", *where, *settings]
            self.driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)

    def wait(self, timeout_s: float = 240.0) -> int:
        assert self.driver is not None
        return self.driver.wait(timeout_s)

    def kill_driver(self) -> str:
        assert self.driver is not None
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()
        return f"the job, pid {self.driver.pid}"

    def kill_worker(self) -> str:
        deadline = time.monotonic() + 5
        while not (workers := _workers()):
            if time.monotonic() > deadline:
                return ""
        worker = random.choice(workers)
        worker.send_signal(signal.SIGKILL)
        return f"a worker, pid {worker.pid}"

    def kill_node(self) -> str:
        node = self.nodes.pop(0)
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        return f"a node, {node.node_id[:8]}"

    def fill_disk(self) -> str:
        if self.disk is None:
            return ""
        ballast = self.disk / "ballast"
        try:
            with ballast.open("wb") as file:
                while True:
                    file.write(bytes(2**16))
                    file.flush()
        except OSError:
            pass
        code = self.wait()
        ballast.unlink()
        tail = (self.folder / "driver.log").read_text(errors="replace")[-3000:]
        assert code == 0 or (code == 2 and "No space left on device" in tail), tail
        return f"the disk was full, the job ended with status {code}"

    def close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.kill_driver()
        self.cluster.shutdown()
        self.log.close()


def _workers() -> list[psutil.Process]:
    """Processes that make shards now, by the title that Ray gives them."""
    title = "ray::MapBatches(make_shard)"
    workers = []
    for process in psutil.Process().children(recursive=True):  # of this cluster, and no other on the machine
        try:
            workers += [process] if title in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return workers


@contextmanager
def small_disk(path: Path) -> Iterator[Path | None]:
    """A small file system that can be filled, if this process may mount one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield path if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def write_raw(folder: Path) -> None:
    """`CLIPS` clips, of which three cannot be read."""
    lines = (BUNDLED / "trajectories.jsonl").read_text().splitlines()[:CLIPS]
    folder.mkdir()
    (folder / "videos").symlink_to(BUNDLED / "videos")
    bad = []
    for name, content in (("empty", b""), ("text", b"no video"), ("half", b"\x00\x00\x00\x18ftypmp42")):
        (folder / f"{name}.mp4").write_bytes(content)
        bad.append(json.dumps({"video": f"{name}.mp4", "task": "t"}))
    (folder / "trajectories.jsonl").write_text("\n".join([*lines[:7], *bad, *lines[7:]]))


def state(corpus: str) -> tuple[str, list[str]]:
    """Content hash, and the sorted ids of all manifest files, with duplicates."""
    storage = Storage(corpus)
    names = storage.list("manifest", ".parquet")
    ids = [id for name in names for id in storage.read_parquet(name, ["id"])["id"].to_pylist()]
    return Corpus(corpus).content_hash, sorted(ids)


def leftovers(corpus: str) -> list[str]:
    """Files that do not belong to a corpus."""
    storage = Storage(corpus)
    files = storage.fs.get_file_info(FileSelector(storage.root, recursive=True))
    known = ("arrow", "parquet", "json")
    return [file.path for file in files if file.type == FileType.File and file.extension not in known]


def commits(corpus: str) -> int:
    return len(Storage(corpus).list("manifest", ".parquet"))


@pytest.mark.timeout(120 + 60 * KILLS)
@pytest.mark.slow
def test_an_ingest_that_is_killed_again_and_again_ends_with_the_same_corpus(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    with small_disk(tmp_path / "disk") as disk:
        trial = Trial(tmp_path, disk)
        try:
            kinds = [trial.kill_driver, trial.kill_worker, trial.kill_node, trial.fill_disk]
            kill_again_and_again(trial, str(tmp_path / "whole"), str((disk or tmp_path) / "corpus"), kinds)
        finally:
            trial.close()


@pytest.mark.timeout(120 + 60 * KILLS)
@pytest.mark.slow
def test_so_does_one_from_bucket_to_bucket_and_no_log_has_the_credentials(tmp_path: Path, bucket: str) -> None:
    """The nodes have the credentials in their environment, and the workers on them get them from there."""
    write_raw(tmp_path / "raw")
    trial = Trial(tmp_path, None)
    try:
        kinds = [trial.kill_driver, trial.kill_worker, trial.kill_node]
        raw = f"{bucket}/raw"
        names = [json.loads(line)["video"] for line in (tmp_path / "raw/trajectories.jsonl").read_text().splitlines()]
        upload(tmp_path / "raw", raw, ["trajectories.jsonl", *names])
        kill_again_and_again(trial, str(tmp_path / "whole"), f"{bucket}/corpus", kinds, raw)
        logs = [file for file in Path(trial.cluster.head_node.get_session_dir_path()).rglob("*") if file.is_file()]
        assert len(logs) > 20
        for file in [tmp_path / "driver.log", *logs]:
            assert SECRET.encode() not in file.read_bytes(), file
    finally:
        trial.close()


def kill_again_and_again(trial: Trial, whole: str, corpus: str, kinds: list[Callable[[], str]], raw: str = "") -> None:
    """Ingest into `whole` without a kill, and from `raw` into folders whose names start with `corpus` with kills."""
    rng = random.Random(0)
    trial.start(whole)
    assert trial.wait() == 0, (trial.folder / "driver.log").read_text()[-3000:]
    expected = state(whole)
    assert len(expected[1]) == CLIPS and not leftovers(whole)
    trial.raw = raw or trial.raw
    done, round_number = 0, 0
    while done < KILLS:
        folder = f"{corpus}{round_number}"
        done += killed_round(trial, folder, kinds, rng, KILLS - done, commits(whole))
        assert state(folder) == expected
        assert Corpus(folder).quarantine().num_rows == 3
        assert not leftovers(folder)
        round_number += 1
    print(f"{done} kills in {round_number} corpora: the same {CLIPS} trajectories each time, no file left over")


def killed_round(
    trial: Trial, corpus: str, kinds: list[Callable[[], str]], rng: random.Random, most: int, shards: int
) -> int:
    """Ingest into `corpus`, killing something after every few commits; returns how many kills it took."""
    kills = 0
    while True:
        trial.start(corpus)
        assert trial.driver is not None
        goal = commits(corpus) + rng.randrange(1, 5)
        deadline = time.monotonic() + 120
        while commits(corpus) < min(goal, shards) and trial.driver.poll() is None:
            assert time.monotonic() < deadline, (trial.folder / "driver.log").read_text()[-3000:]
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        if kills >= most or trial.driver.poll() is not None:
            break
        kind = kinds.pop(0)
        kinds.append(kind)
        what = kind()
        kills += bool(what)
        print(f"  {corpus}: {commits(corpus)} of {shards} shards committed; killed {what or 'nothing'}")
    code = trial.wait()
    assert code == 0, (trial.folder / "driver.log").read_text()[-3000:]
    for _ in range(2):  # a worker that outlived its job for a moment may have finished after the last look
        trial.start(corpus)
        assert trial.wait() == 0
    return kills
