"""The part of the endpoint that runs in Ray Serve's HTTP proxy, so that no replica waits for a client.

It checks a request and reads its whole body, within a deadline and a limit on all bodies together. Only then does it
pass the request to a replica; if the replica dies, the next one gets the request. What Ray's proxy would answer itself
(no route yet, no replica, a dead replica) becomes a 503 in the form of all errors.

Ray loads this into its proxy where the variable of `ENVIRONMENT` is set in the proxy's process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving import heads
from pipelines.serving.audit import AuditLog
from pipelines.serving.calls import BODY, Calls
from pipelines.serving.choice import MODEL_HEADER
from pipelines.serving.cors import PREFLIGHT, cors_headers
from pipelines.serving.errors import AGAIN_HEADER, ApiError, error_response, no_such_route, unavailable
from pipelines.serving.front_socket import COME_AGAIN, FrontSocket
from pipelines.serving.handshake import SUBPROTOCOL, refuse
from pipelines.serving.quotas import Quotas
from pipelines.serving.records import HEADER as RECORD_HEADER
from pipelines.serving.tokens import Client, TokenLimits

logger = logging.getLogger(__name__)

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "pipelines.serving.front.middlewares"}

RELABEL = "/distributed.RewardRelabelService/RelabelRewards"
"""The route of gRPC calls; it is their method's name."""

JOBS = "/v1/jobs/"
"""Jobs are below this: to submit one with the kind of its upload, to look at one with its id."""

UPLOAD_ROUTES = {RELABEL, *(f"{JOBS}{kind}" for kind in ("score", "scores", "rank", "compare"))} | frozenset(
    "/v1/score /v1/scores /v1/rank /v1/compare /v1/frames /v1/sessions /evaluate_batch /evaluate_batch_npy".split()
)
_PUSH = re.compile(r"/v1/sessions/[^/]+/frames")
ADMIT, DRAIN, RAY_HEALTH = "/-/admit", "/-/drain", "/-/healthz"

REPLICA_HEADER = b"x-robometer-replica"
"""Marks every answer of a replica; an answer without it came from Ray."""

FRONT_HEADER = "x-robometer-front"
"""Marks every request that came through a `Front`, which lets no such header of a client pass."""

SHUTTING_DOWN = "The endpoint is shutting down and takes no more requests. Try again later."
"""The sentence of the 503 to requests that come after the end was asked for."""

PATIENCE_S = {"POST": 30.0, "GET": 3.0, "HEAD": 3.0}
"""How long a request is passed to one replica after another."""

PERMISSION_S = 1.0
"""How long a replica's permission to send a body is used for more bodies."""

_MAX_PERMISSIONS, _MAX_PERMISSION_BYTES = 1000, 4096

LARGE_ANSWER = 2**16
"""Bytes of an answer above which it is watched until the client has taken it."""

DISCARD_S = 2.0
"""How long the rest of a refused body is read."""

_FORWARDED = frozenset(
    b"accept authorization content-encoding content-length content-type host x-robometer-model".split()
)
_FORWARDED |= PREFLIGHT
"""No other header is passed on: Ray's proxy obeys some, such as one that sets a request's timeout."""

_WHO_ASKS = frozenset({b"authorization", b"host", b"origin", MODEL_HEADER.encode()})
"""Headers by which a replica admits a client; of a WebSocket no other header is passed on."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:+=/@-]{1,128}")


@dataclass(frozen=True)
class Admission:
    """An ingress replica's permission to send a body: its limits, the endpoint's instance, and the client."""

    max_upload_bytes: int
    body_timeout_s: float
    max_held_bytes: int
    instance: str
    client: Client

    def response_body(self) -> bytes:
        """The permission as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of_body(cls, body: bytes) -> Admission:
        """What `response_body` wrote."""
        values = json.loads(body)
        client = Client(values["client"]["name"], TokenLimits(**values["client"]["limits"]))
        return cls(**{**values, "client": client})


def middlewares() -> list[Middleware]:
    """Ray's proxy calls this before it starts its servers."""
    from pipelines.serving import grpc_server  # which needs this module

    heads.install()
    behind = grpc_server.install()
    return [Middleware(lambda app: behind(Front(Calls(app))))]


class Front:
    """ASGI middleware of the proxy on the head node."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._uploads = self._held_bytes = 0
        self._permissions = dict[frozenset[tuple[bytes, bytes]], _Permission]()
        self._quotas, self._audit = Quotas(), AuditLog()
        self._draining: str | None = None  # the instance that takes no more requests
        self._drained = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await self._socket(scope, receive, send)
        request_id, client, started_s = uuid.uuid4().hex, _Client(receive), time.monotonic()
        try:
            request_id = _request_id(scope) or request_id
            reply = await self._answer(_forwarded(scope, request_id, _FORWARDED), client)
        except ApiError as error:
            reply = _Reply()
            await error_response(error, request_id)(scope, receive, reply)
            reply.headers += client.cors_headers
        self._record(scope, request_id, 499 if client.gone else reply.status, client, time.monotonic() - started_s)
        if client.gone:
            return
        headers = [(name, value) for name, value in reply.headers if name.lower() != b"x-request-id"]
        headers.append((b"x-request-id", request_id.encode()))
        if self._draining:  # the next request on this connection would meet the end of this process
            headers = [(name, value) for name, value in headers if name.lower() != b"connection"]
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self._send_body(b"".join(reply.chunks), client.is_sending, send)
        if client.is_sending:
            await client.discard()
            await send({"type": "http.response.body", "body": b""})

    async def _send_body(self, body: bytes, more: bool, send: Send) -> None:
        """Send an answer. A large one counts as held until its client has taken most of it."""
        is_large = len(body) > LARGE_ANSWER and not more
        self._held_bytes += len(body)
        try:
            await send({"type": "http.response.body", "body": body, "more_body": more or is_large})
            if is_large:  # the server waits with this until there is room for it
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._held_bytes -= len(body)

    async def _answer(self, scope: Scope, client: _Client) -> _Reply:
        path = scope["path"]
        if path == DRAIN and scope["method"] == "POST":
            return await self._drain(scope, client)
        if path.startswith("/-/") and path != RAY_HEALTH:
            raise no_such_route()
        if is_upload(scope):
            return await self._upload(scope, client)
        if path == RAY_HEALTH:
            reply = _Reply()
            await self._app(scope, client.nothing_more, reply)
            return reply
        return await self._pass_on(scope, client, b"")

    def _record(self, scope: Scope, request_id: str, status: int, client: _Client, total_s: float) -> None:
        record, route = client.record, client.record.get("route", "other")
        if route == ADMIT:  # the refusal of an upload
            route = scope["path"] if scope["path"] in UPLOAD_ROUTES else "/v1/sessions/id/frames"
        self._audit.name_file(record.get("audit_log", self._audit.path))
        seconds = {"body": client.body_s, **record.get("seconds", {}), "total": total_s}
        self._audit.write(
            request_id=request_id,
            remote=(scope.get("client") or [""])[0],
            token=record.get("client", ""),
            route=route,
            status=status,
            model=record.get("model", ""),
            bytes=client.size_bytes,
            frames=record.get("frames", 0),
            ms={name: round(1000 * value, 1) for name, value in seconds.items()},
        )

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on, until the endpoint drains: then the client is told to come again (code 1012)."""
        request_id, client, started_s = uuid.uuid4().hex, _Client(receive), time.monotonic()
        try:
            request_id = _request_id(scope) or request_id
            scope = _forwarded(scope, request_id, _WHO_ASKS)
        except ApiError as error:
            await refuse(error, request_id, scope, client.receive, send)
            return self._record(scope, request_id, 1008, client, time.monotonic() - started_s)

        async def send_recorded(message: Message) -> None:
            if message["type"] == "websocket.accept":
                message = {**message, "headers": list(message.get("headers", []))}
                client.record = _taken_out(message["headers"])
            client.code = client.code or (message.get("code", 0) if message["type"] == "websocket.close" else 0)
            await send(message)

        socket = FrontSocket(
            client.receive,
            send_recorded,
            request_id,
            SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None,
            self._quotas,
            self._hold,
            self._admitted,
            self._drained,
        )
        try:
            await self._app(scope, socket.receive, socket.send)
        except Exception:  # the replica has gone: so does the connection
            logger.exception("A WebSocket ended early.")
        finally:
            socket.release()
        with suppress(Exception):  # the client has gone
            await socket.send({"type": "websocket.close", "code": COME_AGAIN})
        self._record(scope, request_id, client.code, client, time.monotonic() - started_s)

    def _hold(self, size_bytes: int, messages: int) -> None:
        self._held_bytes += size_bytes
        self._uploads += messages

    def _admitted(self, value: bytes) -> Client:
        admission = Admission.of_body(value)
        if admission.instance == self._draining:
            raise unavailable(SHUTTING_DOWN, 5)
        return admission.client

    async def _upload(self, scope: Scope, client: _Client) -> _Reply:
        self._uploads += 1
        client.is_sending = True
        chunks: list[bytes] = []
        try:
            reply = await self._admission(scope, client)
            if reply.status != 200:
                return reply
            client.cors_headers = cors_headers(reply.headers)
            admission, declared = Admission.of_body(b"".join(reply.chunks)), _declared_bytes(scope)
            if admission.instance == self._draining:
                raise unavailable(SHUTTING_DOWN, 5)
            if (declared or 0) > admission.max_upload_bytes:
                raise too_large(admission.max_upload_bytes)
            with self._quotas.place(admission.client, declared):
                started_s = time.monotonic()
                try:
                    await self._read_body(chunks, client, admission)
                finally:
                    client.body_s = time.monotonic() - started_s
                chunks[:] = [b"".join(chunks)]  # not twice in memory
                return reply if client.gone else await self._pass_on(scope, client, chunks[0])
        finally:
            self._uploads -= 1
            self._held_bytes -= sum(map(len, chunks))

    async def _admission(self, scope: Scope, client: _Client) -> _Reply:
        """A replica's answer to whether a body may be sent; a permission holds for a moment for equal headers.

        The replica that gets the body checks all of it again.
        """
        now_s = self._clock()
        key = frozenset((name, value) for name, value in scope["headers"] if name in _WHO_ASKS)
        if (known := self._permissions.get(key)) and now_s < known.until_s:
            client.record = dict(known.record)
            return known.reply
        reply = await self._pass_on(_inner(scope, ADMIT), client)
        self._permissions.pop(key, None)
        is_small = sum(len(value) for _, value in key) < _MAX_PERMISSION_BYTES
        if reply.status == 200 and is_small and Admission.of_body(b"".join(reply.chunks)).instance != self._draining:
            if len(self._permissions) >= _MAX_PERMISSIONS:
                self._permissions.clear()
            self._permissions[key] = _Permission(reply, dict(client.record), now_s + PERMISSION_S)
        return reply

    async def _read_body(self, chunks: list[bytes], client: _Client, admission: Admission) -> None:
        size_bytes = 0
        try:
            async with asyncio.timeout(admission.body_timeout_s):
                while client.is_sending:
                    chunk = (await client.receive()).get("body", b"")
                    chunks.append(chunk)
                    size_bytes += len(chunk)
                    self._held_bytes += len(chunk)
                    if size_bytes > admission.max_upload_bytes:
                        raise too_large(admission.max_upload_bytes)
                    if self._held_bytes > admission.max_held_bytes:
                        raise unavailable("Too many request bodies are arriving at once. Try again later.")
        except TimeoutError:
            sentence = f"The body did not arrive within {admission.body_timeout_s:g} s (serve.body_timeout_s)."
            raise ApiError(408, sentence, {"Connection": "close"}) from None

    async def _pass_on(self, scope: Scope, client: _Client, body: bytes | None = None) -> _Reply:
        """A replica's answer to a request; None: it has no body, and the client is not watched."""
        deadline_s, pause_s = time.monotonic() + PATIENCE_S.get(scope["method"], 3.0), 0.05
        while True:
            reply = _Reply()
            try:
                receive = _never if body is None else client.nothing_more
                await self._app({**scope, BODY: body or b""}, receive, reply)
            except Exception:  # Ray's proxy failed: the next try may reach another replica
                logger.exception("The proxy failed on request %r.", scope["path"][:80])
            if reply.is_from_replica:
                client.record = _taken_out(reply.headers)
            if client.gone or reply.is_from_replica:
                return reply
            if time.monotonic() > deadline_s:
                raise unavailable("No replica of the endpoint answers. Try again in a moment.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    async def _drain(self, scope: Scope, client: _Client) -> _Reply:
        """Refuse uploads to the instance whose key the request has; answers how many are in flight."""
        reply = await self._pass_on(_inner(scope, DRAIN), client)
        if reply.status == 200:
            self._draining = Admission.of_body(b"".join(reply.chunks)).instance
            self._permissions.clear()
            self._drained.set()  # for the sockets that are open
            self._drained = asyncio.Event()
            reply = _Reply()
            await JSONResponse({"in_flight": self._uploads})(scope, client.receive, reply)
        return reply


def is_upload(scope: Scope) -> bool:
    """Whether a request has a body, which is read before a replica is asked to answer."""
    path = scope["path"]
    return scope["method"] == "POST" and (path in UPLOAD_ROUTES or _PUSH.fullmatch(path) is not None)


def too_large(limit: int) -> ApiError:
    """The 413 of a body of more than `limit` bytes."""
    return ApiError(413, f"The request body is larger than {limit} bytes (serve.max_upload_bytes).")


class _Client:
    """Wraps `receive`; knows whether the client is still sending a body and whether it has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.gone, self.is_sending = receive, False, False
        self.size_bytes, self.body_s, self.code = 0, 0.0, 0  # the code that closed a WebSocket
        self.record: dict[str, Any] = {}  # that a replica wrote
        self.cors_headers: list[tuple[bytes, bytes]] = []  # that a replica gave, for a refusal of ours

    async def receive(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        self.is_sending = self.is_sending and message.get("more_body", False)
        self.size_bytes += len(message.get("body") or message.get("bytes") or (message.get("text") or "").encode())
        self.code = message.get("code") or self.code
        return message

    async def discard(self) -> None:
        """Read on for a while after a refusal: closing the connection on a sender would lose the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while self.is_sending:
                    await self.receive()

    async def nothing_more(self) -> Message:
        """Wait until the client has gone: nothing else comes after a body."""
        while not self.gone:
            await self.receive()
        return {"type": "http.disconnect"}


async def _never() -> Message:
    return await asyncio.Future()


@dataclass(frozen=True)
class _Permission:
    """A replica's 200 to `ADMIT`, and its record."""

    reply: _Reply
    record: dict[str, Any]
    until_s: float


@dataclass
class _Reply:
    """A `send` that collects an answer."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    whole: bool = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.chunks.append(message.get("body", b""))
            self.whole = not message.get("more_body", False)

    @property
    def is_from_replica(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return self.whole and REPLICA_HEADER in names and AGAIN_HEADER.encode() not in names


def _taken_out(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """The record among the headers of an answer, which it is taken out of."""
    found = [value for name, value in headers if name.lower() == RECORD_HEADER]
    headers[:] = [(name, value) for name, value in headers if name.lower() != RECORD_HEADER]
    return dict(json.loads(found[0])) if found else {}


def _inner(scope: Scope, path: str) -> Scope:
    """A GET of `path` with the headers of `scope`."""
    return {**scope, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}


def _declared_bytes(scope: Scope) -> int | None:
    """The size of the body, as its head says; the server holds the client to it."""
    return next((int(value) for name, value in scope["headers"] if name == b"content-length"), None)


def _forwarded(scope: Scope, request_id: str, names: frozenset[bytes]) -> Scope:
    """The scope with these headers alone, the request's id and our mark. Raises `ApiError`, see `_singles`."""
    headers = [(name, value) for name, value in _singles(scope) if name in names]
    ours = [(b"x-request-id", request_id.encode()), (FRONT_HEADER.encode(), uuid.uuid4().hex.encode())]
    return {**scope, "headers": [*headers, *ours]}


def _request_id(scope: Scope) -> str:
    """The client's id; empty without one. Raises `ApiError` where it is not safe to log and to send back."""
    ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if not ids:
        return ""
    if len(ids) > 1 or not _REQUEST_ID.fullmatch(ids[0]):
        raise ApiError(400, "Send one x-request-id of 1 to 128 letters, digits and ._:+=/@- only.")
    return str(ids[0].decode())


def _singles(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers. Raises `ApiError` where one that matters here is given twice."""
    names = [name for name, _ in scope["headers"] if name in _FORWARDED - {b"accept"}]
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"Header {doubled.decode()!r} is given more than once.")
    return list(scope["headers"])
