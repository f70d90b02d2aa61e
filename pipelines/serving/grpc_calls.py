"""gRPC calls as requests to the `Front` of the same process, and its answers as theirs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from grpc.aio import EOF
from starlette.types import ASGIApp, Message, Scope

from pipelines.serving.choice import MODEL_HEADER
from pipelines.serving.front import RELABEL
from pipelines.serving.wire import CONTENT_TYPE, chunk

logger = logging.getLogger(__name__)

STREAM = RELABEL.replace("/RelabelRewards", "/StreamRelabelRewards")

_NO_LENGTH = 411
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    _NO_LENGTH: grpc.StatusCode.FAILED_PRECONDITION,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_BAD_INPUT = 422  # answered in the message, as clients repeat a call that fails

_GRACE_S = 1.0  # Ray cancels a replica's work when it sees a client go, and tries again when it is cancelled itself

Context = Any
"""`grpc.aio.ServicerContext`, whose messages are bytes here."""


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the calls of `RewardRelabelService`.

    Both methods are handled as streams: gRPC would read the message of a unary call before anything is checked.
    """

    def __init__(self, max_arriving: int, idle_timeout_s: float) -> None:
        """Answer none yet: set `app`, the `Front`.

        Args:
            max_arriving: messages that may be on their way at a time, and streams that may be open.
            idle_timeout_s: how long an open stream may wait for its next message.
        """
        self.app: ASGIApp | None = None
        self._max_streams, self._idle_timeout_s = max_arriving, idle_timeout_s
        self._arriving = asyncio.Semaphore(max_arriving)
        self._open_streams = 0

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method; None where there is none."""
        if handler_call_details.method == RELABEL:
            return grpc.stream_unary_rpc_method_handler(self._unary)
        if handler_call_details.method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return None

    async def _unary(self, _: object, context: Context) -> bytes:
        answer = await self._ask(context, partial(self._read, context))
        if answer is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no message.")
        assert answer is not None
        return answer

    async def _stream(self, _: object, context: Context) -> None:
        if self._open_streams >= self._max_streams:
            sentence = f"{self._open_streams} streams are open already. Close one, or call RelabelRewards."
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
        self._open_streams += 1
        try:
            answer = await self._ask(context, partial(self._read, context))  # nothing is read before the token
            while answer is not None:
                await context.write(answer)
                message = await self._next(context)
                answer = None if message is EOF else await self._ask(context, partial(_known, message))
        finally:
            self._open_streams -= 1

    async def _read(self, context: Context) -> Any:
        async with self._arriving:
            return await context.read()

    async def _next(self, context: Context) -> Any:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await context.read()
        except TimeoutError:
            sentence = f"No message came for {self._idle_timeout_s:g} s. Open another stream."
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, sentence)

    async def _ask(self, context: Context, read: Callable[[], Awaitable[Any]]) -> bytes | None:
        """The response to the message that `read` gives; None if it gives `EOF`. Ends the call for a refusal."""
        if self.app is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The endpoint is starting. Try again in a moment.")
        assert self.app is not None
        exchange = _Exchange(read)
        task = asyncio.ensure_future(self.app(_scope(context), exchange.receive, exchange.send))
        try:
            await asyncio.wait({task, asyncio.ensure_future(exchange.answered.wait())}, return_when="FIRST_COMPLETED")
        finally:  # also where the client has gone: what works for it stops
            exchange.gone.set()
            exchange.answered.set()
            await _ended(task, 0 if exchange.is_reading else _GRACE_S)
        if exchange.status == 0:
            return None
        return await _response(exchange, context)


@dataclass
class _Exchange:
    """One request and its answer, as ASGI sees them."""

    read: Callable[[], Awaitable[Any]]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    is_read: bool = False
    is_reading: bool = False

    async def receive(self) -> Message:
        if not (self.is_read or self.answered.is_set()):
            self.is_read = self.is_reading = True
            message = await self.read()
            self.is_reading = False
            if message is not EOF:
                return {"type": "http.request", "body": message, "more_body": False}
            self.gone.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        elif not self.answered.is_set():  # `Front` sends a body in one piece
            self.body = message["body"]
            self.answered.set()


async def _response(exchange: _Exchange, context: Context) -> bytes:
    """The message of an answer, or the status of a refusal."""
    trailing = (("x-request-id", exchange.headers["x-request-id"]),)
    if exchange.status == 200:
        context.set_trailing_metadata(trailing)
        return exchange.body
    sentence = str(json.loads(exchange.body)["error"])
    if exchange.status == _NO_LENGTH:
        sentence = "The token has a limit of bytes, and a gRPC message does not declare its size: use another token."
    if exchange.status == _BAD_INPUT:
        context.set_trailing_metadata(trailing)
        return chunk(4, sentence.encode())  # `message`; `ok` is false where it is not written
    await context.abort(_CODES.get(exchange.status, grpc.StatusCode.INTERNAL), sentence, trailing)
    raise AssertionError("abort raises")


async def _known(message: bytes) -> bytes:
    return message


async def _ended(task: asyncio.Future[None], grace_s: float) -> None:
    """Wait until a request has seen that its client is gone; end it where it does not look."""
    await asyncio.wait({task}, timeout=grace_s)
    task.cancel()
    with suppress(asyncio.CancelledError):
        try:
            await task
        except Exception:
            logger.exception("The proxy failed on a gRPC call.")


def _scope(context: Context) -> Scope:
    """An ASGI scope with the metadata that `Front` looks at, as headers."""
    names = ("authorization", "x-request-id", MODEL_HEADER)
    metadata = [(str(name), value) for name, value in context.invocation_metadata() or () if name in names]
    headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in metadata]
    host, _, port = unquote(context.peer()).partition(":")[2].rpartition(":")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": "POST",
        "scheme": "http",
        "path": RELABEL,
        "raw_path": RELABEL.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [*headers, (b"host", b"grpc"), (b"content-type", CONTENT_TYPE.encode())],
        "client": (host.strip("[]"), int(port)) if port.isdecimal() else None,
        "server": None,
    }
