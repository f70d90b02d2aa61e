"""The HTTP interface around a scorer of this process, on a real socket: the endpoint without Ray."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn

from pipelines.serving.api import build_api
from pipelines.serving.backend import CompareRequest, Deployed, Limits, ModelInfo, ModelRequest, Outcome
from pipelines.serving.front import Front
from pipelines.serving.guard import GuardSettings
from pipelines.serving.heads import BoundedHeads
from robometer.configs import load
from robometer.frames import overridden
from robometer.scoring import Scorer, score_prefixes


class LocalBackend:
    """Backend that runs a scorer in a thread of this process."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def run(self, request: ModelRequest) -> Outcome:
        try:
            value = await asyncio.to_thread(self._answer, request)
        except ArithmeticError as error:  # what the `Model` says of an answer that is not finite
            failure = f"the model failed on this input ({type(error).__name__})"
            return Outcome(self._scorer.name, None, failure, False, 1, True)
        return Outcome(self._scorer.name, value, "", False, 1, True)

    async def info(self) -> ModelInfo:
        return ModelInfo(self._scorer.name, {}, self._scorer.info.image_encoder)

    async def ready(self) -> None:
        return None

    async def healthy(self) -> None:
        return None

    def _answer(self, request: ModelRequest):  # type: ignore[no-untyped-def]
        if isinstance(request, CompareRequest):
            return float(self._scorer.compare([(request.a, request.b)])[0])
        if request.prefixes:
            return score_prefixes(self._scorer, [request.clip])[0]
        return self._scorer.score([request.clip])[0]


@contextmanager
def endpoint(scorer: Scorer, overrides: Sequence[str] = (), **guard: Any) -> Iterator[str]:
    """URL of an endpoint that answers until the block ends; `guard` are `GuardSettings`."""
    config = load(list(overrides))
    limits = Limits.from_config(config, overridden(scorer.info.frames, {}))
    names = ("max_upload_bytes", "body_timeout_s", "max_held_bytes")
    defaults = {"token": "", "max_in_flight": 16, "timeout_s": 60.0} | {n: getattr(config.serve, n) for n in names}
    settings = GuardSettings(**(defaults | guard))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = Front(build_api(LocalBackend(scorer), limits, settings, Deployed.from_config(config.serve), "local"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", http=BoundedHeads))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """URL of a server that is no endpoint, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
