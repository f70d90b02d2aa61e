"""What a client says when it opens a WebSocket: what it speaks, and where its page comes from."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from pipelines.serving.errors import ApiError, problem

SUBPROTOCOL = "robometer"
"""The subprotocol of sessions; one with a token may follow it (see `pipelines.serving.tokens`)."""


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another host opens the socket, perhaps without its visitor's knowledge."""
    origin = headers.get("origin", "")
    try:
        return bool(origin) and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # it is no URL
        return True


async def refuse(error: ApiError, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Accept a socket, say what is wrong, and close it: of one that is not accepted, a browser tells nothing."""
    socket = WebSocket(scope, receive, send)
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None)
    await socket.send_json(problem(error, request_id))
    await socket.close(1013 if error.status == 503 else 1008)
