"""Bounds of a request's head, which uvicorn itself has not: a line that never ends would fill its memory."""

from __future__ import annotations

import asyncio

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0
"""From a connection to its first head, and from the first byte of a later one to its end."""


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol that ends a connection whose head is too long, or too long on its way."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # What came with the end of a head is not counted: it may be a body.
        self._head_bytes = self._head_bytes + len(data) if self._timer else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is longer than {MAX_HEAD_BYTES} bytes.")

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None


def install() -> None:
    """Make it the protocol of every uvicorn server that this process starts from now on and that names none."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHeads.__name__}"
