"""Pages of other origins that may use the endpoint from a browser: none, unless `serve.cors_origins` names them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

HEADERS = ("authorization", "content-type", "x-request-id", "x-robometer-model")
"""What a page may send. Credentials (cookies) are never allowed: the token is a header."""

PREFLIGHT = frozenset({b"origin", b"access-control-request-method", b"access-control-request-headers"})
"""Headers by which a browser asks."""


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, which also answers browsers that ask for pages of these origins; without any, as it is."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=HEADERS,
        allow_credentials=False,
        expose_headers=("x-request-id", "retry-after"),
    )


def cors_headers(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those headers of an answer that let a page read it."""
    return [(name, value) for name, value in headers if name.lower().startswith((b"access-control-", b"vary"))]
