"""What stands before every route: request id, token, size, admission, time limit, metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.errors import ApiError, error_response, unavailable
from pipelines.serving.metrics import Metrics

logger = logging.getLogger(__name__)

OPEN_ROUTES = frozenset({"/health"})
ROUTES = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json", "/v1/model", "/v1/score", "/v1/compare"})


@dataclass(frozen=True)
class GuardSettings:
    """Bounds of one ingress replica.

    Attributes:
        token: bearer token that requests must carry; empty: none.
        max_upload_bytes: of one request body.
        max_in_flight: scoring requests at a time; more are answered 503.
        timeout_s: from the first byte of a request to its answer.
    """

    token: str
    max_upload_bytes: int
    max_in_flight: int
    timeout_s: float


class Guard:
    """ASGI middleware; refuses before the body is read, and counts every answer."""

    def __init__(self, app: ASGIApp, settings: GuardSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, started_s = Headers(scope=scope), time.monotonic()
        # Ray Serve's proxy makes an id where the client sent none, and puts it on every answer.
        request_id = headers.get("x-request-id", "") or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send)
        try:
            await self._serve(scope, headers, receive, answer)
        except ApiError as error:
            await self._refuse(error, scope, receive, answer, request_id)
        except Exception:  # the last border: a bug is logged here and answered without its traceback
            logger.exception("request %s failed", request_id)
            bug = ApiError(500, "the endpoint failed on this request; its log names the request id")
            await self._refuse(bug, scope, receive, answer, request_id)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.observe_request(route, answer.status, time.monotonic() - started_s)

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_ROUTES:
            self._authenticate(headers)
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._admit(headers)
        self._change_in_flight(1)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._app(scope, self._limited(receive), send)
        except TimeoutError:
            raise unavailable(f"no answer within {self._settings.timeout_s:g} s; send less or try later") from None
        finally:
            self._change_in_flight(-1)

    def _authenticate(self, headers: Headers) -> None:
        token = self._settings.token
        given = headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            sentence = "a bearer token is required: send the header 'Authorization: Bearer TOKEN'"
            if given:
                sentence = "the bearer token is not the one this endpoint was started with"
            raise ApiError(401, sentence, {"WWW-Authenticate": "Bearer"})

    def _admit(self, headers: Headers) -> None:
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._settings.max_upload_bytes:
            raise self._too_large()
        if self._in_flight >= self._settings.max_in_flight:
            raise unavailable(f"{self._in_flight} requests are being served already; try again later")

    def _change_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._metrics.set_in_flight(self._in_flight)

    def _limited(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._settings.max_upload_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ApiError:
        limit = self._settings.max_upload_bytes
        return ApiError(413, f"the request body is larger than {limit} bytes (serve.max_upload_bytes)")

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, answer: _Answer, request_id: str) -> None:
        if answer.status == 0:
            await error_response(error, request_id)(scope, receive, answer)


class _Answer:
    """`send` that remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
