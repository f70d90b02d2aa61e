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

_MOST_BYTES = 3 * 2**20
"""An answer with more content goes through shared memory too: the request is sent again. Ray's gRPC takes 4 MiB."""

_LARGE_ANSWERS = frozenset(["/v1/frames"])
"""Their answers are larger than what is asked."""

Answer = tuple[int, Sequence[tuple[bytes, bytes]], bytes]
"""Status, headers and content."""

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
        if BODY not in scope or self._routes.match_route("/") is None:
            return await self._app(scope, receive, send)
        gone = asyncio.ensure_future(_gone(receive))
        size = SHARED_BYTES if scope["path"] in _LARGE_ANSWERS else len(scope[BODY])
        try:
            answered = await self._call(scope, size, gone) or await self._call(scope, SHARED_BYTES, gone)
        except (RayActorError, RequestCancelledError, BackPressureError, DeploymentUnavailableError):
            return
        finally:
            gone.cancel()
        assert answered is not None  # where there is room for it
        status, headers, content = answered
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _call(self, scope: Scope, size: int, gone: asyncio.Future[None]) -> Answer | None:
        """What `answer` gives in a replica. It is told when the client has gone."""
        sent, options = {key: scope[key] for key in _SENT if key in scope}, way(size)
        ingress = self._routes.match_route("/")[1].options(method_name="answer", stream=False, **options)
        response = ingress.remote(sent, scope[BODY], _MOST_BYTES if not options["_by_reference"] else None)
        gone.add_done_callback(lambda gone: gone.cancelled() or response.cancel())
        answered = False
        try:
            answer: Answer | None = await response
            answered = True
        finally:
            if not answered:
                response.cancel()
        return answer


async def answer(app: ASGIApp, scope: Scope, body: bytes, most_bytes: int | None = None) -> Answer | None:
    """The other end of `Calls`: an application's answer; None where its content has more than `most_bytes`."""
    start: Message = {}
    chunks: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            chunks.append(message.get("body", b""))

    await app({**scope, BODY: body}, _never, send)
    if most_bytes is not None and sum(map(len, chunks)) > most_bytes:
        return None
    return start["status"], list(start["headers"]), b"".join(chunks)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    return await asyncio.Future()
