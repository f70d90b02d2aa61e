"""A WebSocket in Ray's proxy: one message at a time, within the limits of its token, until the endpoint drains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from typing import Any

from starlette.types import Message, Receive, Send

from pipelines.serving.errors import ApiError, problem, unavailable
from pipelines.serving.quotas import Quotas
from pipelines.serving.tokens import Client

ADMISSION_HEADER = b"x-robometer-admission"
"""Tells the proxy, with the acceptance of a WebSocket, whose it is, and of which start of the endpoint."""

COME_AGAIN = 1012
"""The code with which a socket is closed because the endpoint ends."""


class FrontSocket:
    """Passes messages on. The next one is read when the one before has its answer: a client cannot fill the memory.

    Args:
        hold: counts bytes that are held, and messages that have no answer yet; negative when one has got it.
        admitted: from the value of `ADMISSION_HEADER` to the client; raises `ApiError` while the endpoint drains.
        drained: is set when it does.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        request_id: str,
        subprotocol: str | None,
        quotas: Quotas,
        hold: Callable[[int, int], None],
        admitted: Callable[[bytes], Client],
        drained: asyncio.Event,
    ) -> None:
        self._receive, self._send, self._request_id = receive, send, request_id
        self._subprotocol = subprotocol  # a browser gives up where it is told none of those that it offered
        self._quotas, self._hold, self._admitted, self._drained = quotas, hold, admitted, drained
        self._client: Client | None = None
        self._answered, self._place = asyncio.Event(), ExitStack()
        self._answered.set()
        self.closed = False

    async def receive(self) -> Message:
        """The next message that the client may send."""
        while True:
            await self._answered.wait()
            message = await self._next()
            if message["type"] != "websocket.receive" or await self._takes(message):
                return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Pass an answer on; after the end nothing more."""
        if self.closed:
            return
        if message["type"] == "websocket.accept":
            headers = list(message.get("headers", []))
            [admission] = [value for name, value in headers if name == ADMISSION_HEADER] or [b""]
            message = {**message, "headers": [pair for pair in headers if pair[0] != ADMISSION_HEADER]}
            try:
                self._client = self._admitted(admission) if admission else Client()
            except ApiError as error:
                return await self._refuse(error, message)
        elif message["type"] == "websocket.close" and self._client is None:
            lost = unavailable("No replica of the endpoint answers. Try again in a moment.")
            return await self._refuse(lost, {"type": "websocket.accept", "subprotocol": self._subprotocol})
        self.closed = message["type"] == "websocket.close"
        self.release()
        await self._send(message)

    async def _refuse(self, error: ApiError, acceptance: MutableMapping[str, Any]) -> None:
        """Say why the client must come again, which it can read only of a socket that was accepted."""
        self.closed = True
        await self._send(acceptance)
        await self._send({"type": "websocket.send", "text": json.dumps(problem(error, self._request_id))})
        await self._send({"type": "websocket.close", "code": COME_AGAIN})

    def release(self) -> None:
        """The message has its answer, or will not get one."""
        self._place.close()
        self._answered.set()

    async def _next(self) -> Message:
        waits = [asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._drained.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if waits[0].done():
                message: Message = waits[0].result()  # type: ignore[assignment]
                return message
            return {"type": "websocket.disconnect", "code": COME_AGAIN}
        finally:
            for wait in waits:
                wait.cancel()

    async def _takes(self, message: Message) -> bool:
        """Count a message until it is answered; answer it where the client's token has used up its limits."""
        size_bytes = len(message.get("bytes") or b"") + len(message.get("text") or "")
        try:
            self._place.enter_context(self._quotas.place(self._client or Client(), size_bytes))
        except ApiError as error:
            await self._send({"type": "websocket.send", "text": json.dumps(problem(error, self._request_id))})
            return False
        self._hold(size_bytes, 1)
        self._place.callback(self._hold, -size_bytes, -1)
        self._answered.clear()
        return True
