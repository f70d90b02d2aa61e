"""The HTTP interface around a scorer of this process, on a real socket: the endpoint without Ray."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn

from pipelines.serving.answerer import Answerer
from pipelines.serving.api import build_api
from pipelines.serving.backend import Deployed, Limits, ModelInfo, ModelRequest, Outcome, SessionLimits
from pipelines.serving.choice import chosen
from pipelines.serving.front import Front
from pipelines.serving.guard import GuardSettings
from pipelines.serving.heads import BoundedHeads
from pipelines.serving.job_runner import JobRunner, through
from pipelines.serving.job_store import JobStore
from robometer.configs import Config, load
from robometer.frames import overridden
from robometer.scoring import Scorer


class LocalBackend:
    """Backend that answers in a thread of this process, with what a model replica answers with."""

    def __init__(self, scorer: Scorer, limits: SessionLimits, others: Mapping[str, Scorer] | None = None) -> None:
        self.scorers, self._lock = {"": scorer, **(others or {})}, threading.Lock()
        self._answerers = {name: Answerer(one, limits) for name, one in self.scorers.items()}

    async def run(self, request: ModelRequest) -> Outcome:
        return await asyncio.to_thread(self._run, request)

    async def info(self) -> ModelInfo:
        scorer = self.scorers[chosen()]
        info = scorer.info
        return ModelInfo(scorer.name, {}, info.image_encoder, max_frames=info.max_frames)

    async def ready(self) -> None:
        return None

    async def healthy(self) -> None:
        return None

    def _run(self, request: ModelRequest) -> Outcome:
        with self._lock:
            [outcome] = self._answerers[chosen()].answer([request])
        return outcome


def front(backend: LocalBackend, config: Config, jobs: Path | None = None, **guard: Any) -> Front:
    """The application behind the socket; `jobs` is their folder, `guard` are `GuardSettings`."""
    frames = {name: overridden(scorer.info.frames, {}) for name, scorer in backend.scorers.items()}
    limits = Limits.from_config(config, frames[""], frames)
    names = ("max_upload_bytes", "body_timeout_s", "max_held_bytes")
    defaults = {"token": "", "max_in_flight": 16, "timeout_s": 60.0} | {n: getattr(config.serve, n) for n in names}
    settings = GuardSettings(**(defaults | guard))
    deployed, queue = Deployed.from_config(config.serve), None
    if jobs is not None:  # as the Jobs deployment does it
        inner = build_api(backend, limits, replace(settings, token="", token_file=""), deployed, "jobs")
        store = JobStore(jobs, config.serve.max_jobs, config.serve.max_jobs_bytes, config.serve.job_ttl_s)
        queue = JobRunner(store, through(inner), config.serve.max_running_jobs)
    return Front(build_api(backend, limits, settings, deployed, "local", queue))


@contextmanager
def endpoint(
    scorer: Scorer,
    overrides: Sequence[str] = (),
    others: Mapping[str, Scorer] | None = None,
    jobs: Path | None = None,
    **guard: Any,
) -> Iterator[str]:
    """URL of an endpoint that answers until the block ends.

    Args:
        others: its other models.
        jobs: their folder; None: no jobs.
        guard: `GuardSettings`.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = load(list(overrides))
    app = front(LocalBackend(scorer, SessionLimits.from_config(config.serve), others), config, jobs, **guard)
    tls = {"ssl_certfile": config.serve.tls_certificate or None, "ssl_keyfile": config.serve.tls_key or None}
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", http=BoundedHeads, **tls))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http{'s' if config.serve.tls_certificate else ''}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], pair: tuple[str, str] | None = None) -> Iterator[str]:
    """URL of a server that is no endpoint, until the block ends; `pair` is its certificate and key."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if pair is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
