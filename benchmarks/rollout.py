"""What eight clients lose while `serve deploy` replaces the model, and while replicas come and go.

    python -m benchmarks.rollout
    python -m benchmarks.rollout --scale

It starts a Ray head of its own, deploys `cluster/serve.yaml` with a small checkpoint, and deploys it again with another
one under load, which sees other frames. Clients do not retry. A request is lost unless it answers 200 with the numbers
that the checkpoint which it names gives in this process. With `--scale` nothing is replaced: replicas follow the load.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import yaml

from pipelines.cluster import free_port
from pipelines.serving.front import ENVIRONMENT
from robometer.configs import load
from robometer.models.checkpoint import save_checkpoint
from robometer.models.rewind import Rewind
from robometer.scorers import load_scorer
from robometer.scoring import Clip, Scorer

CLIENTS = 8
TASK = "open the drawer"
_FILE = Path(__file__).resolve().parents[1] / "cluster/serve.yaml"


def make_checkpoint(folder: Path, seed: int, max_frames: int = 8) -> str:
    """Write a small ReWiND checkpoint with random weights, for clips of `max_frames`, and return its folder."""
    torch.manual_seed(seed)
    config = load(["embed.image_encoder=random_image", "embed.text_encoder=random_text", "sampling.max_frames=8"])
    model = Rewind(64, 32, 32, 1, 2, 8, 10, dropout=0.0)
    state = model.state_dict()
    config.model.hidden_dim, config.model.num_layers, config.model.num_heads, config.model.max_len = 32, 1, 2, 8
    config.model.dropout, config.sampling.progress_bins = 0.0, 10
    save_checkpoint(folder, state, config, {"frames": {"max_frames": max_frames, "short_edge": 64}})
    return str(folder)


@contextmanager
def head(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A Ray head of its own, with `environment`; the environment with which one deploys on it."""
    folder = tempfile.mkdtemp(prefix="head")  # a short path, for Ray's sockets
    own = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", *ENVIRONMENT)}
    own |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,
        **environment,
    }
    dashboard, gcs = free_port(), free_port()
    names = ("ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", *(f"--{name}={free_port()}" for name in names)]
    sizes = ["--num-cpus=4", "--object-store-memory=300000000"]
    command = ["ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1", *ports, *sizes]
    process = subprocess.Popen(
        command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield own | {"RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}", "RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def deploy(environment: Mapping[str, str], port: int, settings: Mapping[str, Any], patience_s: float = 90) -> None:
    """`serve deploy` of `cluster/serve.yaml` with these settings, again until the head is up."""
    content = yaml.safe_load(_FILE.read_text())
    content["http_options"]["port"] = port
    content["applications"][0]["args"] |= {"serve.jobs_folder": f"{environment['RAY_TMPDIR']}/jobs", **settings}
    end = time.monotonic() + patience_s
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        while True:
            done = subprocess.run(["serve", "deploy", file.name], env=dict(environment), capture_output=True, text=True)
            if done.returncode == 0:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"serve deploy failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            time.sleep(1)


def status(environment: Mapping[str, str]) -> dict[str, Any]:
    """What `serve status` says of the application."""
    done = subprocess.run(["serve", "status"], env=dict(environment), capture_output=True, text=True, check=True)
    return dict(yaml.safe_load(done.stdout)["applications"]["robometer"])


def wait_until(environment: Mapping[str, str], wanted: str, patience_s: float = 120) -> dict[str, Any]:
    """The status of the application when it is `wanted`."""
    end = time.monotonic() + patience_s
    while (now := status(environment))["status"] != wanted:
        if time.monotonic() > end or now["status"] == "DEPLOY_FAILED":
            raise RuntimeError(f"the application is not {wanted}: {now}")
        time.sleep(0.5)
    return now


class Clients:
    """Clients that ask until they are stopped, and count the outcomes: a model's name, or what was lost."""

    def __init__(self, url: str, scorers: Sequence[Scorer]) -> None:
        self._url, self._stopped, self._lock = url, threading.Event(), threading.Lock()
        self._frames = [np.random.default_rng(i).integers(0, 255, (3 + i, 64, 64, 3), np.uint8) for i in range(CLIENTS)]
        self._expected = {
            scorer.name: [score.progress for score in scorer.score([Clip(f, TASK) for f in self._frames])]
            for scorer in scorers
        }
        self.outcomes, self.slowest_s = Counter[str](), 0.0
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until every client has its last answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, i: int) -> None:
        body = io.BytesIO()
        np.save(body, self._frames[i])
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as http:
            while not self._stopped.is_set():
                started_s = time.monotonic()
                outcome = self._one(http, body.getvalue(), i)
                with self._lock:
                    self.outcomes[outcome] += 1
                    self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)

    def _one(self, http: httpx.Client, body: bytes, i: int) -> str:
        try:
            answer = http.post("/v1/score", data={"task": TASK}, files={"frames": ("f.npy", body)})
        except httpx.HTTPError as error:
            return f"LOST: {type(error).__name__}"
        if answer.status_code != 200:
            return f"LOST: {answer.status_code} {answer.text[:100]}"
        values = answer.json()
        expected = self._expected[values["model"]["name"]][i]
        is_right = np.allclose(values["progress"], expected, atol=1e-5)
        return str(values["model"]["name"]) if is_right else "LOST: a wrong answer"


def measure(settings: Mapping[str, Any] | None = None) -> Counter[str]:
    """Outcomes of all requests around one update, by the model that answered."""
    folder, port = Path(tempfile.mkdtemp()), free_port()
    names = [make_checkpoint(folder / name, seed, 8 - seed) for seed, name in enumerate(("before", "after"))]
    scorers = [load_scorer(name) for name in names]
    try:
        with head(ENVIRONMENT) as environment:
            deploy(environment, port, {"serve.checkpoint": names[0], **(settings or {})})
            wait_until(environment, "RUNNING")
            clients = Clients(f"http://127.0.0.1:{port}", scorers)
            time.sleep(3)
            started_s = time.monotonic()
            deploy(environment, port, {"serve.checkpoint": names[1], **(settings or {})})
            time.sleep(1)
            wait_until(environment, "RUNNING")
            took_s = time.monotonic() - started_s
            time.sleep(3)
            clients.stop()
        _report(clients, f"the update took {took_s:.1f} s")
        return clients.outcomes
    finally:
        shutil.rmtree(folder)


def scale(load_s: float = 40) -> Counter[str]:
    """Outcomes of all requests while load makes replicas start; prints how many run, then and after the load."""
    folder, port = Path(tempfile.mkdtemp()), free_port()
    name = make_checkpoint(folder / "one", 0)
    settings = {"serve.checkpoint": name, "serve.num_cpus": 0.5, "serve.max_replicas": 3, "serve.max_batch_size": 2}
    settings |= {"serve.upscale_delay_s": 1, "serve.downscale_delay_s": 5}
    try:
        with head(ENVIRONMENT) as environment:
            deploy(environment, port, settings)
            wait_until(environment, "RUNNING")
            clients, started_s = Clients(f"http://127.0.0.1:{port}", [load_scorer(name)]), time.monotonic()
            for phase, until_s in (("load", load_s), ("no load", load_s + 60)):
                while (now_s := time.monotonic() - started_s) < until_s:
                    print(f"{now_s:.0f} s, {phase}: {status(environment)['deployments']['Model']['replica_states']}")
                    time.sleep(5)
                if phase == "load":
                    clients.stop()
        _report(clients, "no update")
        return clients.outcomes
    finally:
        shutil.rmtree(folder)


def _report(clients: Clients, about: str) -> None:
    lost = sum(count for outcome, count in clients.outcomes.items() if outcome.startswith("LOST"))
    print(f"{clients.outcomes.total()} requests, {lost} lost, slowest {clients.slowest_s:.2f} s")
    print(about, *clients.outcomes.most_common(), sep="\n    ")


def main() -> None:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", action="store_true", help="replicas follow the load")
    if parser.parse_args().scale:
        scale()
    else:
        measure()


if __name__ == "__main__":
    main()
