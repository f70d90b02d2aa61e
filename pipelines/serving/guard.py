"""Checks before every route of an ingress replica: token, size, admission, time limit; and its metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.calls import BODY
from pipelines.serving.choice import MODEL_HEADER, Choice
from pipelines.serving.cors import with_cors
from pipelines.serving.errors import ApiError, error_response, no_such_route, unavailable
from pipelines.serving.front import (
    ADMIT,
    DRAIN,
    ENVIRONMENT,
    FRONT_HEADER,
    JOBS,
    REPLICA_HEADER,
    UPLOAD_ROUTES,
    Admission,
    is_upload,
    too_large,
)
from pipelines.serving.front_socket import ADMISSION_HEADER
from pipelines.serving.handshake import is_foreign, refuse
from pipelines.serving.metrics import Metrics
from pipelines.serving.page_routes import PAGE_FILES
from pipelines.serving.records import HEADER, Record, begin, current
from pipelines.serving.tokens import ANONYMOUS, Client, Tokens

logger = logging.getLogger(__name__)

OPEN_ROUTES = PAGE_FILES.keys() | {"/health", "/docs", "/docs/swagger-ui.js", "/docs/swagger-ui.css", "/openapi.json"}
"""Need no token: none of these tells more than the source code does."""

SPLIT_ROUTES = UPLOAD_ROUTES - {"/v1/sessions"}
"""What the canary answers a share of: whatever belongs to a session must go to one model."""

ROUTES = (
    OPEN_ROUTES | UPLOAD_ROUTES | {"/ready", "/metrics", "/v1/model", "/v1/models", "/model_info", "/gpu_status", ADMIT}
)

UNPROTECTED = (
    "The endpoint runs without its checks of uploads, so it answers nothing. Start Ray again, with "
    f"{'='.join(*ENVIRONMENT.items())} in its environment."
)
"""The sentence of the 503 to requests that did not come through a `Front`."""


def route_name(path: str) -> str:
    """The route of a path, as metrics name it: ids of sessions and jobs are left out."""
    if path.startswith(JOBS) and path not in UPLOAD_ROUTES:
        return f"{JOBS}id/result" if path.endswith("/result") else f"{JOBS}id"
    if path.startswith("/v1/sessions/"):
        return "/v1/sessions/id/frames" if path.endswith("/frames") else "/v1/sessions/id"
    return path if path in ROUTES else "other"


CLIENT_GONE = 499
"""The status in the metrics of a request whose client did not wait for the answer."""


@dataclass(frozen=True)
class GuardSettings:
    """Limits of one ingress replica.

    Attributes:
        token: bearer token that requests must carry; empty: none, or one of the file.
        token_file: file of more tokens, see `pipelines.serving.tokens`; empty: none.
        max_upload_bytes: limit of one request body.
        max_in_flight: limit of scoring requests at a time; more are answered 503.
        timeout_s: limit in seconds from the end of a request's body to the answer.
        body_timeout_s: limit in seconds from a request's head to the end of its body.
        max_held_bytes: limit of all bodies at a time in the HTTP proxy, and of all frames in this replica.
        drain_key: whoever has it may tell the HTTP proxy to take no more requests; empty: nobody.
        instance: names one start of the endpoint.
        audit_log: file for a line about each request; empty: none.
        cors_origins: origins whose pages may use the endpoint; `*`: all.
        session_idle_s: seconds after which a session without a push ends.
        max_sockets: limit of WebSockets that are open at a time.
        models: what a request may name beside the default.
    """

    token: str = field(repr=False)
    max_upload_bytes: int
    max_in_flight: int
    timeout_s: float
    body_timeout_s: float
    max_held_bytes: int
    drain_key: str = field(default="", repr=False)
    instance: str = ""
    session_idle_s: float = 600.0
    max_sockets: int = 1000
    token_file: str = ""
    cors_origins: tuple[str, ...] = ()
    models: Choice = field(default_factory=Choice)
    audit_log: str = ""

    @property
    def wants_token(self) -> bool:
        """Whether requests must carry a token."""
        return bool(self.token or self.token_file)


class Guard:
    """ASGI middleware behind a `Front`; it admits requests and counts every answer."""

    def __init__(self, app: ASGIApp, settings: GuardSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._tokens = Tokens(settings.token, settings.token_file)
        self._in_flight = self._sockets = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await self._socket(scope, receive, send)
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if BODY in scope:  # a job's request comes without the proxy
            receive = _with_body(scope.pop(BODY), receive)
        headers, started_s = Headers(scope=scope), time.monotonic()
        request_id = headers.get("x-request-id", "")  # `Front` makes one where the client sent none
        scope.setdefault("state", {}).update(request_id=request_id, client=Client())
        record = Record(self._settings.audit_log, ANONYMOUS, route_name(scope["path"]))
        begin(record)
        answer = _Answer(send, self._metrics.replica, record)

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await self._serve(scope, headers, receive, send)
            except ApiError as error:
                await answer.refuse(error, scope, receive, send)
            except Exception:  # a bug is logged, and answered without its traceback
                logger.exception("Request %s failed.", request_id)
                bug = ApiError(500, "The endpoint failed on this request. Its log has the cause under the request id.")
                await answer.refuse(bug, scope, receive, send)

        try:
            await with_cors(guarded, self._settings.cors_origins)(scope, receive, answer)
        except asyncio.CancelledError:  # how Ray says that the client has gone, which is no failure
            answer.status = answer.status or CLIENT_GONE
            raise
        finally:
            if (record.route, answer.status) != (ADMIT, 200):  # an upload that may come counts once it has come
                self._metrics.observe_request(record, answer.status, time.monotonic() - started_s)

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if FRONT_HEADER not in headers:
            raise unavailable(UNPROTECTED, 60)
        if scope["path"] == DRAIN:
            self._check_drain_key(headers)
            return await self._admission(Client(), scope, receive, send)
        client = Client() if scope["path"] in OPEN_ROUTES else self._tokens.authenticate(scope)
        scope["state"]["client"], current().client = client, client.name
        if scope["path"] not in OPEN_ROUTES:
            key = headers.get("x-request-id", "") if scope["path"] in SPLIT_ROUTES else ""
            self._settings.models.choose(headers.get(MODEL_HEADER), scope["query_string"], key)
        if scope["path"] == ADMIT:
            self._admit(headers)
            return await self._admission(client, scope, receive, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server in front sends no body to HEAD
        if not is_upload(scope):
            return await self._within_time(scope, receive, send)
        self._admit(headers)
        self._change_in_flight(1)
        try:
            await self._within_time(scope, receive, send)
        finally:
            self._change_in_flight(-1)

    async def _within_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._app(scope, receive, send)
        except TimeoutError:
            raise unavailable(f"No answer within {self._settings.timeout_s:g} s. Send less, or try later.") from None

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket."""
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["request_id"] = request_id = headers.get("x-request-id", "")
        record = Record(self._settings.audit_log, ANONYMOUS, route_name(scope["path"]))
        client = Client()

        async def send_with_record(message: Message) -> None:
            if message["type"] == "websocket.accept":
                admission = (ADMISSION_HEADER, self._admission_of(client).response_body())
                ours = [(HEADER, record.as_header()), admission]
                message = {**message, "headers": [*message.get("headers", []), *ours]}
            await send(message)

        try:
            if FRONT_HEADER not in headers:
                raise unavailable(UNPROTECTED, 60)
            if is_foreign(headers) and not {headers["origin"], "*"} & {*self._settings.cors_origins}:
                raise ApiError(403, "A page of another host may not open a session.")
            client = self._tokens.authenticate(scope)
            scope["state"] |= {"client": client, "check_token": lambda: self._tokens.authenticate(scope)}
            record.client = client.name
            if self._sockets >= self._settings.max_sockets:
                raise unavailable(f"{self._sockets} WebSockets are open already (serve.max_sessions).", 5)
            self._settings.models.choose(headers.get(MODEL_HEADER), scope["query_string"])
            if scope["path"] != "/v1/sessions":
                raise no_such_route()
        except ApiError as error:
            return await refuse(error, request_id, scope, receive, send_with_record)
        self._sockets += 1
        try:
            await self._app(scope, receive, send_with_record)
        finally:
            self._sockets -= 1

    def _check_drain_key(self, headers: Headers) -> None:
        authorization, key = headers.get("authorization", "").encode("latin-1"), self._settings.drain_key
        if not key or not hmac.compare_digest(authorization, f"Bearer {key}".encode()):
            raise no_such_route()

    async def _admission(self, client: Client, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._admission_of(client).response_body()
        await Response(body, media_type="application/json")(scope, receive, send)

    def _admission_of(self, client: Client) -> Admission:
        settings = self._settings
        return Admission(
            settings.max_upload_bytes, settings.body_timeout_s, settings.max_held_bytes, settings.instance, client
        )

    def _admit(self, headers: Headers) -> None:
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._settings.max_upload_bytes:
            raise too_large(self._settings.max_upload_bytes)
        if self._in_flight >= self._settings.max_in_flight:
            raise unavailable(f"{self._in_flight} requests are already being served. Try again later.")

    def _change_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._metrics.set_in_flight(self._in_flight)


def _with_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given


class _Answer:
    """A `send` that adds the replica's name and the record to an answer and keeps its status."""

    def __init__(self, send: Send, replica: str, record: Record) -> None:
        self._send, self._replica, self._record, self.status = send, replica, record, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [(REPLICA_HEADER, self._replica.encode()), (HEADER, self._record.as_header())]
            message = {**message, "headers": [*message["headers"], *ours]}
        await self._send(message)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Send an error, unless an answer has begun."""
        if self.status == 0:
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
