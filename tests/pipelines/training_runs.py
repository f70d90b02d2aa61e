"""Training runs in processes of their own, to be watched and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipelines.train import kept_checkpoints
from pipelines.training.checkpointing import read_history
from robometer.corpus.storage import Storage

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}
MARK = "ROBOMETER_TEST_DRIVER"
"""Environment variable that everything a driver starts inherits."""


class Driver:
    """A job, by default `robometer train`, in a process of its own."""

    def __init__(self, overrides: list[str], log: Path, address: str = "", job: str = "train") -> None:
        self.job = job
        self._mark = uuid.uuid4().hex
        environment = os.environ | ENVIRONMENT | {MARK: self._mark} | ({"RAY_ADDRESS": address} if address else {})
        command = [sys.executable, "-m", f"jobs.{job}", *overrides]
        self._log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    def wait_until(self, met: Callable[[], bool], timeout_s: float = 600) -> set[psutil.Process]:
        """Wait until `met`; returns the training workers that were seen meanwhile."""
        end, workers = time.monotonic() + timeout_s, set[psutil.Process]()
        while not met():
            workers |= self.workers()
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < end, self._log.read_text()[-3000:]
            time.sleep(0.2)
        return workers | self.workers()

    def workers(self, title: str = "RayTrainWorker") -> set[psutil.Process]:
        """Workers of this title of the local Ray that this driver has started, whose raylet is no child of the driver.

        Ray rewrites a worker's title at every call, so that one look can miss it.
        """
        processes = set()
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                raylet = process.parent() if title in " ".join(process.info["cmdline"] or []) else None
                if raylet and raylet.environ().get(MARK) == self._mark:  # other runs on this machine are not ours
                    processes.add(process)
        return processes

    def finish(self, timeout_s: float = 900) -> None:
        """Wait for its end; it must succeed."""
        assert self.process.wait(timeout=timeout_s) == 0, self._log.read_text()[-3000:]

    def kill(self, workers: set[psutil.Process]) -> None:
        """Kill it, and wait for the end of its `workers`, which go on training for a moment."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        psutil.wait_procs(workers, timeout=60)


@contextlib.contextmanager
def driving(overrides: list[str], log: Path, address: str = "", job: str = "train") -> Iterator[Driver]:
    """A driver that does not outlive the block."""
    driver = Driver(overrides, log, address, job)
    try:
        yield driver
    finally:
        if driver.process.poll() is None:
            driver.kill(driver.workers())


def checkpoints(output: Path | str) -> list[int]:
    """Steps of the checkpoints that a run has committed, oldest first; a folder may be there before it is whole."""
    try:
        kept = kept_checkpoints(Storage(str(output)))
    except json.JSONDecodeError:  # just being written
        return []
    return [int(name.rpartition("step-")[2]) for _, name in kept]


def recorded(output: Path | str) -> dict[int, dict[str, float]]:
    """What the latest checkpoint of a run has recorded, by training step."""
    storage = Storage(str(output))
    history = read_history(storage, kept_checkpoints(storage)[-1][1])
    return {int(entry["step"]): entry for entry in history if "loss" in entry}
