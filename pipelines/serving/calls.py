"""How the `Front` reaches ingress replicas: one call of Ray Serve for a request, whose body goes with it.

Ray's proxy would pass a request on as a stream of messages, pickled once more. A call takes fewer steps, and chooses
how its arguments travel: small ones in the call itself, large ones in shared memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = "robometer.body"
"""Key of an upload's body, bytes, in its scope. A replica that asked the proxy for it would wait for another call."""

SHARED_BYTES = 2**20
"""Arguments of at least this many bytes go through shared memory: below, its cost is higher than that of a copy."""

_SENT = "type http_version method scheme path raw_path query_string root_path headers client server".split()


def way(size_bytes: int) -> dict[str, Any]:
    """Options of a handle whose next call has arguments of this size."""
    return {"_by_reference": size_bytes >= SHARED_BYTES}


class Calls:
    """ASGI application around Ray's own: answers requests by calls to ingress replicas, and leaves the rest to Ray."""

    def __init__(self, app: Any) -> None:
        """Take the application of Ray's proxy, in which its table of routes is found."""
        self._app: ASGIApp = app
        while not hasattr(app, "proxy_router"):
            app = app._app
        self._routes = app.proxy_router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose body, if any, is in its scope; no answer comes where client or replica has gone."""
        found = self._routes.match_route("/") if BODY in scope else None
        if found is None:
            return await self._app(scope, receive, send)
        body = scope[BODY]
        sent = {key: scope[key] for key in _SENT if key in scope}
        ingress = found[1].options(method_name="answer", stream=False, **way(len(body)))
        response = ingress.remote(sent, body)
        left = asyncio.ensure_future(_gone(receive))
        left.add_done_callback(lambda left: left.cancelled() or response.cancel())
        answered = False
        try:
            status, headers, content = await response
            answered = True
        except (RayActorError, RequestCancelledError, BackPressureError, DeploymentUnavailableError):
            return
        finally:
            left.cancel()
            if not answered:
                response.cancel()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def answer(app: ASGIApp, scope: Scope, body: bytes) -> tuple[int, Sequence[tuple[bytes, bytes]], bytes]:
    """Status, headers and content of an ASGI application's answer: the other end of `Calls`."""
    start: Message = {}
    chunks: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            chunks.append(message.get("body", b""))

    await app({**scope, BODY: body}, _never, send)
    return start["status"], list(start["headers"]), b"".join(chunks)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    return await asyncio.Future()
