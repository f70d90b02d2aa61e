"""What a client says when it opens a WebSocket: what it speaks, and where its page comes from."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers

SUBPROTOCOL = "robometer"
"""The subprotocol of sessions; one with a token may follow it (see `pipelines.serving.tokens`)."""


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another host opens the socket, perhaps without its visitor's knowledge."""
    origin = headers.get("origin", "")
    try:
        return bool(origin) and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # it is no URL
        return True
