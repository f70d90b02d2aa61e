"""What the endpoint adds to its model, and what its batches and sessions save: `python -m benchmarks.load`.

All figures are medians or ratios within one run, on a real Ray Serve over HTTP and WebSocket, with one replica of a
model. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from pipelines.cluster import connected
from pipelines.serve import start, stop
from pipelines.serving.backend import OpenSession, PushFrames, SessionLimits
from pipelines.serving.front import ENVIRONMENT
from pipelines.serving.session_store import SessionStore
from robometer import text
from robometer.baselines.trivial import Clock
from robometer.client import RemoteScorer
from robometer.configs import load
from robometer.configs.schema import Config
from robometer.models.robometer import build_robometer, load_processor
from robometer.models.robometer_scorer import RobometerScorer
from robometer.scorers import ScorerReference, load_scorer
from robometer.scoring import Clip, ClipScore, Scorer, score_prefixes
from robometer.sessions import score_as_session

TASK = "open the drawer"
BATCH_S, MAX_BATCH = 0.04, 16


class Gpu(Clock):
    """A stand-in for a model on a GPU: 40 ms a batch of up to 16 clips, whatever its size."""

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        time.sleep(BATCH_S)
        return super().score(clips)


def tiny(max_frames: int = 32) -> RobometerScorer:
    """A random vision-language model."""
    config = load(["model.kind=robometer", "model.base_model=tiny", f"sampling.max_frames={max_frames}"])
    torch.manual_seed(0)
    return RobometerScorer(build_robometer(config)[0], load_processor(config), config)


@dataclass(frozen=True)
class Made(ScorerReference):
    """One of this module's scorers by its name, or a checkpoint."""

    name: str

    def load(self, device: str = "cpu") -> Scorer:
        """See `ScorerReference.load`."""
        makers: dict[str, Callable[[], Scorer]] = {"clock": Clock, "gpu": Gpu, "tiny": tiny}
        return makers[self.name]() if self.name in makers else load_scorer(self.name, device)

    def identity(self) -> str:
        """See `ScorerReference.identity`."""
        return self.name


def clip_of(num_frames: int, seed: int = 0) -> Clip:
    """Noise of 240x320 pixels."""
    return Clip(np.random.default_rng(seed).integers(0, 255, (num_frames, 240, 320, 3), dtype=np.uint8), TASK)


def median_s(call: Callable[[], object], rounds: int = 60) -> float:
    """Median seconds of a call, after two that do not count."""
    seconds = []
    for _ in range(rounds + 2):
        started_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds[2:])


@contextmanager
def served(name: str, *overrides: str) -> Iterator[str]:
    """URL of an endpoint of a scorer, on the Ray that is connected."""
    yield start(load([f"serve.port={free_port()}", *overrides]), Made(name))
    stop()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def request_of(clip: Clip, url: str, client: httpx.Client) -> Callable[[], object]:
    """A call that scores the clip over HTTP, with its body made beforehand."""
    stream = io.BytesIO()
    np.save(stream, clip.frames)
    request = client.build_request(
        "POST", f"{url}/v1/score", data={"task": clip.task}, files={"frames": ("f.npy", stream.getvalue())}
    )
    headers, body = dict(request.headers), request.read()
    return lambda: client.post(f"{url}/v1/score", headers=headers, content=body).raise_for_status()


Maker = Callable[[Clip, str, httpx.Client], Callable[[], object]]


def throughput(
    url: str, clip: Clip, clients: int, seconds: float = 8.0, make: Maker = request_of
) -> tuple[float, float]:
    """Requests a second of so many clients, and the 99th percentile of their seconds."""
    ends_s = time.perf_counter() + seconds

    def ask(_: int) -> list[float]:
        taken = []
        with httpx.Client(timeout=60, trust_env=False) as client:
            call = make(clip, url, client)
            while time.perf_counter() < ends_s:
                started_s = time.perf_counter()
                call()
                taken.append(time.perf_counter() - started_s)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        all_taken = [taken for part in pool.map(ask, range(clients)) for taken in part]
    return len(all_taken) / seconds, float(np.percentile(all_taken, 99))


class PlainModel:
    """Answers at once."""

    async def run(self, frames: np.ndarray) -> int:
        """The number of frames."""
        return len(frames)


class PlainIngress:
    """The least that Ray Serve needs to bring frames to a model: no limit, token, field, batch, metric or check."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model

    async def __call__(self, request: Request) -> int:
        """The model's answer to a body of `numpy.save`."""
        answer: int = await self._model.run.remote(np.load(io.BytesIO(await request.body())))
        return answer


def plain_request(clip: Clip, url: str, client: httpx.Client) -> Callable[[], object]:
    """A call that sends the clip to `PlainIngress`."""
    stream = io.BytesIO()
    np.save(stream, clip.frames)
    return lambda: client.post(url, content=stream.getvalue()).raise_for_status()


def plain() -> tuple[float, float]:
    """Of `PlainIngress`: median seconds of 8 frames, and requests of 2 frames a second of 32 clients."""
    port = free_port()
    serve.start(http_options={"port": port})
    model: Any = serve.deployment(PlainModel)
    ingress: Any = serve.deployment(PlainIngress)
    serve.run(ingress.bind(model.bind()))
    url = f"http://127.0.0.1:{port}/"
    with httpx.Client(timeout=60, trust_env=False) as client:
        seconds = median_s(plain_request(clip_of(8), url, client))
    rate, _ = throughput(url, clip_of(2), 32, make=plain_request)
    serve.shutdown()
    return seconds, rate


def overhead(plain_s: float) -> list[list[str]]:
    """A request with a model that takes no time, at one client, and one to the least that Ray Serve needs."""
    clip = clip_of(8)
    with served("clock") as url, httpx.Client(timeout=60, trust_env=False) as client:
        seconds = median_s(request_of(clip, url, client))
        with RemoteScorer(url) as remote, remote.open_session(TASK) as session:
            push_s = median_s(lambda: session.push(clip.frames[0]))
    return [
        [
            "a request of 8 frames of 240x320, over its model",
            f"{1000 * seconds:.1f} ms; the least that Ray Serve takes is {1000 * plain_s:.1f} ms",
        ],
        ["a push to a session over WebSocket, over its model", f"{1000 * push_s:.1f} ms"],
    ]


def batches(plain_rate: float) -> list[list[str]]:
    """The stand-in for a GPU at some numbers of clients, against one client, and against no model at all."""
    rows, large = [], clip_of(2)
    small = Clip(clip_of(8).frames[:, :64, :64], TASK)
    with served("gpu", f"serve.max_batch_size={MAX_BATCH}") as url:
        for name, clip in (("8 frames of 64x64", small), ("2 frames of 240x320", large)):
            alone, _ = throughput(url, clip, 1)
            for clients in (8, 16, 32):
                rate, slowest_s = throughput(url, clip, clients)
                rows.append(
                    [
                        f"40 ms a batch, {clients} clients, {name}",
                        f"{rate / alone:.1f} x one client, p99 {slowest_s / BATCH_S:.1f} batches, {rate:.0f} a second",
                    ]
                )
    rows.append(["32 clients, 2 frames of 240x320, no model, the least of Ray Serve", f"{plain_rate:.0f} a second"])
    return rows


@contextmanager
def cores_of(name: str) -> Iterator[list[float]]:
    """How many cores the process of this name has had, in the list at the end of the block."""
    [process] = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith(name)]
    started_s, before_s, cores = time.perf_counter(), sum(process.cpu_times()[:2]), list[float]()
    yield cores
    cores.append((sum(process.cpu_times()[:2]) - before_s) / (time.perf_counter() - started_s))


def real(checkpoint: str) -> list[list[str]]:
    """A checkpoint at 1, 8 and 32 clients, against the same scorer in a loop of this process."""
    torch.set_num_threads(1)
    clip, scorer = clip_of(8), load_scorer(checkpoint)
    bare_s = median_s(lambda: scorer.score([clip]), 20)
    batch_s = median_s(lambda: scorer.score([clip] * 8), 8) / 8
    rows = [["the checkpoint in process, 8 frames", f"{1000 * bare_s:.1f} ms, {1000 * batch_s:.1f} ms in a batch of 8"]]
    with served(checkpoint) as url:
        with httpx.Client(timeout=60, trust_env=False) as client:
            one_s = median_s(request_of(clip, url, client), 30)
        rows.append(["a request at one client", f"{1000 * one_s:.1f} ms: {1000 * (one_s - bare_s):+.1f} ms"])
        for clients in (8, 32):
            with cores_of("ray::ServeReplica:robometer:Model") as cores:
                rate, slowest_s = throughput(url, clip, clients)
            bare = rate * batch_s
            rows.append(
                [
                    f"{clients} clients",
                    f"{bare:.2f} of its batches in process, {bare / cores[0]:.2f} of those in the time that the model "
                    f"had a core ({cores[0]:.2f} of it), p99 {slowest_s:.2f} s",
                ]
            )
    session = scorer.open_session(TASK)
    if scorer.info.image_encoder is not None:
        encode = scorer._images.encode  # type: ignore[attr-defined]
        encode_s = median_s(lambda: encode(clip.frames[:1]), 200)
        push_s = median_s(lambda: session.push(clip.frames[0]), 200)
        rows.append(
            ["a push in process, over the encoder alone", f"{push_s / encode_s:.2f} x {1000 * encode_s:.1f} ms"]
        )
    return rows


def prefixes() -> list[list[str]]:
    """Dense rewards of 32 frames in one request, against a request for each prefix."""
    rows, clip = [], clip_of(32)
    for max_frames, mode in ((32, "prefix"), (8, "session")):
        scorer = tiny(max_frames)
        each_s = median_s(lambda: [scorer.score([clip.up_to(n)]) for n in range(1, 33)], 1)  # noqa: B023
        if mode == "prefix":
            once_s = median_s(lambda: score_prefixes(scorer, [clip]), 3)  # noqa: B023
        else:
            once_s = median_s(lambda: score_as_session(scorer, clip), 3)  # noqa: B023
        rows.append([f"mode={mode}, model of {max_frames} frames", f"{each_s / once_s:.1f} x one by one"])
    return rows


def sessions() -> list[list[str]]:
    """The time of a push along 1000 frames."""
    session, frames, taken = tiny(16).open_session(TASK), clip_of(16).frames, []
    for t in range(1000):
        started_s = time.perf_counter()
        session.push(frames[t % 16])
        taken.append(1000 * (time.perf_counter() - started_s))
    parts = [statistics.median(taken[first:end]) for first, end in ((10, 60), (200, 400), (900, 1000))]
    times = ", ".join(f"{part:.1f}" for part in parts) + " ms"
    return [["a push to a vision-language model of 16 frames, at frames 10-59, 200-399, 900-999", times]]


def memory(checkpoint: str) -> list[list[str]]:
    """The memory of 1000 sessions of 20 frames in one store."""
    frames = clip_of(16).frames
    scorer = load_scorer(checkpoint)
    store = SessionStore(scorer, SessionLimits(1000, 2**31, 600.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(1000):
        store.open(OpenSession(str(i), [TASK]))
    for t in range(20):
        for first in range(0, 1000, 50):
            store.push([PushFrames(str(i), [frames[t % 16]]) for i in range(first, first + 50)])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return [
        [
            "1000 sessions of the checkpoint, 20 frames each",
            f"{store.size_bytes / 2**20:.0f} MB held, {grown:.0f} MB more",
        ]
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="outputs/quickstart/train/best", help="of the quickstart")
    parser.add_argument("--only", nargs="*", default=["sessions", "prefixes", "overhead", "batches", "real", "memory"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.nice(15)  # like all workers of Ray: our clients would take the cores from them before any other process
    parts: dict[str, Callable[[], list[list[str]]]] = {
        "sessions": sessions,
        "prefixes": prefixes,
        "overhead": lambda: overhead(plain_s),
        "batches": lambda: batches(plain_rate),
        "real": lambda: real(arguments.checkpoint),
        "memory": lambda: memory(arguments.checkpoint),
    }
    config: Config = load([])
    rows = []
    with connected(config):  # without our checks in Ray's proxy
        plain_s, plain_rate = plain() if {"overhead", "batches"} & {*arguments.only} else (0.0, 0.0)
    with connected(config, ENVIRONMENT):
        for name in arguments.only:
            rows += parts[name]()
            print(text.table(["what", "measured"], rows), flush=True)


if __name__ == "__main__":
    main()
