"""Sessions over HTTP and WebSocket: a frame pushed is a reward back."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

from fastapi import APIRouter, Request, WebSocket
from starlette.responses import Response
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from pipelines.serving.backend import (
    Backend,
    OpenSession,
    Outcome,
    ReadSession,
    SessionAnswer,
    SessionRequest,
    SessionState,
    revision,
)
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError, problem, unavailable
from pipelines.serving.front import FRONT_HEADER
from pipelines.serving.handshake import SUBPROTOCOL
from pipelines.serving.metrics import Metrics
from pipelines.serving.outcomes import checked
from pipelines.serving.schemas import (
    ModelRef,
    PushAnswer,
    SessionInfo,
    error_responses,
    push_body,
    session_body,
)
from pipelines.serving.session_bodies import (
    checked_id,
    npy_frames,
    open_session,
    parsed,
    push_frames,
    push_options,
    read_open,
    read_push,
    with_frames,
    with_id,
)
from pipelines.serving.tokens import Client

logger = logging.getLogger(__name__)

OPEN_S = 30.0
"""Seconds in which a WebSocket has to open or join a session."""

MAX_LINE = 16_384
"""Bytes of the line of JSON before the frames of a push, at most."""

_ERRORS = error_responses(400, 401, 404, 408, 409, 411, 413, 415, 422, 429, 500, 503)


@dataclass(frozen=True)
class Sessions:
    """What both interfaces do: ask the model, and shape its answers."""

    backend: Backend
    decoders: Decoders
    metrics: Metrics
    idle_s: float
    timeout_s: float

    async def ask(self, request: SessionRequest) -> Outcome:
        """The model's outcome. Raises `ApiError` where the request is refused or fails."""
        return checked(await self.backend.run(request), self.metrics)

    async def opened(self, request: OpenSession, request_id: str) -> SessionInfo:
        """Open a session."""
        return await self.info(await self.ask(request), request.session_id, request_id)

    async def info(self, outcome: Outcome, session_id: str, request_id: str) -> SessionInfo:
        """The answer about a session, from its state."""
        state, model = cast(SessionState, outcome.value), ModelRef(name=outcome.model, revision=revision(outcome.model))
        last = None
        if state.answer is not None:
            last = self.pushed(replace(outcome, value=state.answer), session_id, request_id)
        return SessionInfo(
            request_id=request_id,
            session_id=session_id,
            model=model,
            tasks=state.tasks,
            pushes=state.pushes,
            pushed=state.pushed,
            max_frames=(await self.backend.info()).max_frames,
            idle_s=self.idle_s,
            last=last,
        )

    @staticmethod
    def pushed(outcome: Outcome, session_id: str, request_id: str) -> PushAnswer:
        """The answer to a push."""
        answer = cast(SessionAnswer, outcome.value)
        return PushAnswer(
            request_id=request_id,
            session_id=session_id,
            model=ModelRef(name=outcome.model, revision=revision(outcome.model)),
            index=answer.index,
            progress=answer.progress,
            success=answer.success,
            preference=answer.preference,
        )


def session_routes(sessions: Sessions) -> APIRouter:
    """Open, push, read and close over HTTP."""
    router = APIRouter(responses=_ERRORS)

    @router.post("/v1/sessions", summary="Open a session", status_code=201, openapi_extra=session_body())
    async def open_(request: Request) -> SessionInfo:
        """Start to score one trajectory (`task`) or several (`tasks`) frame by frame.

        With `pushed` and the frames that it held, a session that was lost goes on. What is sent again with the same
        `key` is answered with the session that it has opened.
        """
        key, max_frames = request.headers[FRONT_HEADER], (await sessions.backend.info()).max_frames
        with ExitStack() as held:
            asked = await read_open(request, key, client_of(request), sessions.decoders, held, max_frames)
            return await sessions.opened(asked, request.state.request_id)

    @router.post("/v1/sessions/{session_id}/frames", summary="Push a frame", openapi_extra=push_body())
    async def push(session_id: str, request: Request) -> PushAnswer:
        """Push one frame to each trajectory of a session; the answer is their progress and success now.

        A push that is sent again with the same `index` counts once.
        """
        with ExitStack() as held:
            asked = await read_push(request, checked_id(session_id), client_of(request).name, sessions.decoders, held)
            asked = replace(asked, sent_id=request.headers[FRONT_HEADER])
            return sessions.pushed(await sessions.ask(asked), session_id, request.state.request_id)

    @router.get("/v1/sessions/{session_id}", summary="What a session has come to")
    async def read(session_id: str, request: Request) -> SessionInfo:
        """Its tasks, the number of its frames, and its last answer."""
        outcome = await sessions.ask(ReadSession(checked_id(session_id), client_of(request).name))
        return await sessions.info(outcome, session_id, request.state.request_id)

    @router.delete("/v1/sessions/{session_id}", summary="Close a session", status_code=204)
    async def close(session_id: str, request: Request) -> Response:
        """End a session, which frees its place at once."""
        await sessions.ask(ReadSession(checked_id(session_id), client_of(request).name, close=True))
        return Response(status_code=204)

    @router.websocket("/v1/sessions")
    async def stream(socket: WebSocket) -> None:
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
        await Stream(sessions, socket).run()

    return router


class Stream:
    """One WebSocket, which opens or joins a session.

    Text messages are JSON objects: the first one opens a session (`task` or `tasks`) or joins one (`session_id`), and
    `{"close": true}` ends it. A binary message is an `.npy` file of a frame, or of one frame for each trajectory. A
    line of JSON with the options of the push may stand before it.
    """

    def __init__(self, sessions: Sessions, socket: WebSocket) -> None:
        self._sessions, self._socket = sessions, socket
        self._client, self._request_id = client_of(socket), str(socket.scope["state"]["request_id"])
        self._session_id, self._done = "", False
        self._opening: OpenSession | None = None

    async def run(self) -> None:
        """Answer messages until the client has gone, or is silent for as long as a session lives.

        A client that has opened no session after `OPEN_S` has to come again.
        """
        opens_s = asyncio.get_running_loop().time() + min(OPEN_S, self._sessions.idle_s)
        try:
            while not self._done:
                now_s = asyncio.get_running_loop().time()
                async with asyncio.timeout_at(now_s + self._sessions.idle_s if self._session_id else opens_s):
                    message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._socket.send_text(json.dumps(await self._answer(message)))
            await self._socket.close()
        except TimeoutError:
            await self._socket.close(1001, "The session was idle for too long.")
        except (WebSocketDisconnect, RuntimeError):  # the client has gone while it was being answered
            pass

    async def _answer(self, message: Message) -> dict[str, Any]:
        try:
            self._socket.scope["state"]["check_token"]()  # it may have been revoked
            data = message.get("bytes")
            async with asyncio.timeout(self._sessions.timeout_s):
                return await (self._text(message.get("text") or "") if data is None else self._binary(data))
        except TimeoutError:
            late = f"No answer within {self._sessions.timeout_s:g} s. Send the push again with its index."
            return problem(unavailable(late), self._request_id)
        except ApiError as error:
            self._done = error.status == 401
            return problem(error, self._request_id)
        except Exception:  # a bug is logged, and answered without its traceback
            logger.exception("A session of request %s failed.", self._request_id)
            bug = ApiError(500, "The endpoint failed on this message. Its log has the cause under the request id.")
            return problem(bug, self._request_id)

    async def _text(self, text: str) -> dict[str, Any]:
        values = parsed(text.encode("utf-8", "surrogatepass"))
        if self._session_id:
            return await self._command(values)
        if "session_id" in values:
            return await self._join(values["session_id"])
        asked = open_session(values, secrets.token_urlsafe(18), self._client)
        if any(asked.pushed):
            self._opening = asked
            return {"waiting_for": "frames"}
        return await self._open(with_id(asked))

    async def _command(self, values: dict[str, Any]) -> dict[str, Any]:
        if values == {"close": True}:
            await self._sessions.ask(ReadSession(self._session_id, self._client.name, close=True))
            self._done = True
            return {"closed": self._session_id}
        raise ApiError(422, 'The session is open: send frames as binary messages, or {"close": true}.')

    async def _join(self, session_id: Any) -> dict[str, Any]:
        asked = ReadSession(checked_id(session_id if isinstance(session_id, str) else ""), self._client.name)
        info = await self._sessions.info(await self._sessions.ask(asked), asked.session_id, self._request_id)
        self._session_id = asked.session_id
        return info.model_dump()

    async def _open(self, asked: OpenSession) -> dict[str, Any]:
        info = await self._sessions.opened(asked, self._request_id)
        self._session_id, self._opening = asked.session_id, None
        return info.model_dump()

    async def _binary(self, data: bytes) -> dict[str, Any]:
        sessions = self._sessions
        if not self._session_id and self._opening is None:
            raise ApiError(422, 'Send a text message {"task": "..."} first: it opens the session.')
        line, data = data.split(b"\n", 1) if data.startswith(b"{") and b"\n" in data[:MAX_LINE] else (b"{}", data)
        options = push_options(parsed(line))
        frames = await npy_frames(data, "frames", sessions.decoders)
        with sessions.decoders.counted(frames):
            if self._opening is not None:
                max_frames = (await sessions.backend.info()).max_frames
                opening = with_frames(self._opening, frames, max_frames)
                return await self._open(await asyncio.to_thread(with_id, opening))
            outcome = await sessions.ask(push_frames(self._session_id, self._client.name, frames, options))
        return sessions.pushed(outcome, self._session_id, self._request_id).model_dump()


def client_of(connection: Request | WebSocket) -> Client:
    """Who asks, as the guard has found."""
    return cast(Client, connection.scope["state"]["client"])
