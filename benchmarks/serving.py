"""What eight clients lose, and for how long, while replicas of the endpoint are killed and the endpoint is stopped.

    python -m benchmarks.serving
    python -m benchmarks.serving --soak 30   # minutes, with a kill in each, and the memory of every process

Each client sends one request after the other without retries, as curl would, and compares the answer with the same
scorer in this process. A request is lost if its connection breaks, its answer is wrong, or its status is neither 200
nor 503. It does not count if it was sent after the endpoint had announced its end and its connection broke. The
endpoint is `run_serve` in its own process, with a scorer that takes 50 ms a batch; kills are `kill -9`.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from pipelines.serving.front import SHUTTING_DOWN
from robometer.baselines.trivial import FrameDifference
from robometer.configs import load
from robometer.scorers import ScorerReference
from robometer.scoring import Clip, ClipScore, Scorer

CLIENTS = 8
PHASE_S = 10.0
MODEL, INGRESS = "ray::ServeReplica:robometer:Model", "ray::ServeReplica:robometer:Ingress"
_MARK = "ROBOMETER_BENCHMARK"
"""Environment variable that identifies the endpoint's processes."""


class Slow(FrameDifference):
    """A scorer that takes 50 ms a batch."""

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        time.sleep(0.05)
        return super().score(clips)


class SlowReference(ScorerReference):
    """`Slow`, for `run_serve`."""

    def load(self, device: str = "cpu") -> Scorer:
        """See `ScorerReference.load`."""
        return Slow()

    def identity(self) -> str:
        """See `ScorerReference.identity`."""
        return "slow"


class Load:
    """Clients that send requests until they are stopped; `take` returns the outcomes since its last call."""

    def __init__(self, url: str) -> None:
        self._url, self._lock, self._stopped = url, threading.Lock(), threading.Event()
        self._ending = threading.Event()
        self._outcomes: Counter[str] = Counter()
        self._slowest_s = 0.0
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def take(self) -> tuple[Counter[str], float]:
        """Outcomes by name, and the seconds of the slowest request."""
        with self._lock:
            outcomes = self._outcomes, self._slowest_s
            self._outcomes, self._slowest_s = Counter(), 0.0
        return outcomes

    def stop(self) -> None:
        """Wait until every client has its last answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, i: int) -> None:
        frames = np.random.default_rng(i).integers(0, 255, (3 + i, 48, 64, 3), dtype=np.uint8)
        expected = FrameDifference().score([Clip(frames, "open the drawer")])[0].progress.tolist()
        body = io.BytesIO()
        np.save(body, frames)
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as http:
            while not self._stopped.is_set():
                started_s = time.monotonic()
                outcome = self._one(http, body.getvalue(), expected)
                with self._lock:
                    self._outcomes[outcome] += 1
                    self._slowest_s = max(self._slowest_s, time.monotonic() - started_s)
                if not outcome.startswith("200"):
                    time.sleep(0.2)

    def _one(self, http: httpx.Client, body: bytes, expected: list[float]) -> str:
        files = {"frames": ("f.npy", body)}
        was_ending = self._ending.is_set()
        try:
            answer = http.post("/v1/score", data={"task": "open the drawer"}, files=files)
        except httpx.ConnectError:
            return "refused: nobody listens"
        except httpx.HTTPError as error:
            name = type(error).__name__
            return f"refused: {name}, after the end was told" if was_ending else f"LOST: {name}"
        if answer.status_code == 200:
            return "200" if answer.json()["progress"] == expected else "LOST: a wrong answer"
        if answer.status_code == 503:
            sentence = answer.json()["error"]
            if sentence == SHUTTING_DOWN:
                self._ending.set()
            return f"refused: 503 {sentence[:60]}"
        return f"LOST: status {answer.status_code}"


def processes(mark: str, title: str = "") -> list[int]:
    """The processes of the endpoint, or only those whose command line begins with `title`."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            is_of_endpoint = f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes()
            if is_of_endpoint and (entry / "cmdline").read_bytes().startswith(title.encode()):
                pids.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return pids


@contextmanager
def running() -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """URL, mark and process of an endpoint; whatever is left of it at the end is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mark, url = uuid.uuid4().hex, f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.serving", "--port", str(port)]
    endpoint = subprocess.Popen(command, env=os.environ | {_MARK: mark})
    try:
        _wait_for(url, endpoint)
        yield url, mark, endpoint
    finally:
        for pid in processes(mark):
            os.kill(pid, signal.SIGKILL)


def measure(phase_s: float = PHASE_S) -> dict[str, tuple[Counter[str], float]]:
    """Outcomes and slowest request of each phase; raises if a process of the endpoint survives."""
    with running() as (url, mark, endpoint):
        clients, phases = Load(url), {}
        for name, title in (("undisturbed", ""), ("kill -9 of the model replica", MODEL), ("of the ingress", INGRESS)):
            if title:
                _kill(mark, title)
            time.sleep(phase_s)
            phases[name] = clients.take()
            print(*_line(name, *phases[name]), sep="\n", flush=True)
        endpoint.send_signal(signal.SIGTERM)
        started_s = time.monotonic()
        endpoint.wait(120)
        clients.stop()
        name = f"SIGTERM (ended in {time.monotonic() - started_s:.1f} s)"
        phases["SIGTERM"] = clients.take()
        print(*_line(name, *phases["SIGTERM"]), sep="\n", flush=True)
        time.sleep(2)  # Ray's last processes notice that their parent is gone
        if left := processes(mark):
            raise RuntimeError(f"{len(left)} processes are still running: {[_command(pid) for pid in left]}")
        return phases


def soak(minutes: int, period_s: float = 60.0) -> tuple[Counter[str], list[dict[str, int]]]:
    """Outcomes of all requests while a replica is killed in each period, and the memory of the processes after each."""
    with running() as (url, mark, endpoint):
        clients, sizes, outcomes = Load(url), list[dict[str, int]](), Counter[str]()
        for minute in range(minutes):
            _kill(mark, (MODEL, INGRESS)[minute % 2])
            time.sleep(period_s)
            part, slowest_s = clients.take()
            outcomes += part
            sizes.append(memory(mark))
            print(*_line(f"minute {minute + 1}", part, slowest_s), sizes[-1], sep="\n", flush=True)
        clients.stop()
        outcomes += clients.take()[0]
        endpoint.send_signal(signal.SIGTERM)
        endpoint.wait(120)
    print(*_line("all", outcomes, 0.0), f"first {sizes[0]}", f"last {sizes[-1]}", sep="\n")
    return outcomes, sizes


def memory(mark: str) -> dict[str, int]:
    """Megabytes (PSS) of the endpoint's processes, by what they are."""
    kinds = {MODEL: "model", INGRESS: "ingress", "ray::ServeController": "controller", "ray::ProxyActor": "proxy"}
    sizes = Counter[str]()
    for pid in processes(mark):
        kind = next((kind for title, kind in kinds.items() if _command(pid).startswith(title)), "Ray and the rest")
        try:
            lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        sizes[kind] += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024
    return dict(sizes)


def _kill(mark: str, title: str) -> None:
    [victim] = processes(mark, title)
    os.kill(victim, signal.SIGKILL)


def _command(pid: int) -> str:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]


def _wait_for(url: str, endpoint: subprocess.Popen[bytes]) -> None:
    while endpoint.poll() is None:
        try:
            if httpx.get(f"{url}/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the endpoint ended with status {endpoint.returncode}")


def _line(name: str, outcomes: Counter[str], slowest_s: float) -> list[str]:
    lost = sum(count for outcome, count in outcomes.items() if outcome.startswith("LOST"))
    head = f"{name}: {outcomes.total()} requests, {lost} lost, slowest {slowest_s:.2f} s"
    return [head, *(f"    {count} x {outcome}" for outcome, count in outcomes.most_common())]


def main() -> None:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="only serve, on this port")
    parser.add_argument("--soak", type=int, metavar="MINUTES", help="kill a replica in each of so many minutes")
    arguments = parser.parse_args()
    if arguments.soak:
        outcomes, _ = soak(arguments.soak)
        raise SystemExit(any("LOST" in outcome for outcome in outcomes))
    if arguments.port is None:
        measure()
        return
    from pipelines.serve import run_serve

    run_serve(load([f"serve.port={arguments.port}"]), scorer=SlowReference())


if __name__ == "__main__":
    main()
