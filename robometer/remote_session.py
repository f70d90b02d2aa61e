"""Sessions of an endpoint over a WebSocket: a frame pushed is a reward back, and a lost replica is made up for."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from robometer.calls import npy, tls_remedy
from robometer.errors import InputError, RobometerError
from robometer.frames.window import Window

MAX_WAIT_S = 5.0
"""The longest pause between two tries to connect."""

MAX_MESSAGE_BYTES = 2**24
"""Bytes of a message that the endpoint takes: a frame for each trajectory."""


class SessionError(RobometerError):
    """A session cannot be opened, or a push is refused. The message quotes the endpoint's reason."""


class RemoteSession:
    """Scores several trajectories frame by frame over one connection, in one batch per push.

    It keeps the frames that the endpoint holds (at most `max_frames` of each trajectory). If the connection breaks, it
    joins its session again; if the session has gone with its replica, it opens a new one that continues from these
    frames, and no answer changes. A push counts once, however often it is sent.

    Attributes:
        session_id: of the endpoint; another one after the session was lost.

    Args:
        url: of the endpoint, `http://...` or `https://...`.
        tasks: the instruction of each trajectory.
        token: bearer token, if the endpoint requires one.
        patience_s: seconds in which a lost connection is tried again.
        tls: what to trust; None for the certificates of this machine.

    Raises:
        SessionError: the endpoint refuses the session, or does not answer in `patience_s`. All methods raise it where
            the endpoint refuses a push, or has got another model in the middle of the session.
    """

    def __init__(
        self,
        url: str,
        tasks: Sequence[str],
        token: str = "",
        timeout_s: float = 600.0,
        patience_s: float = 60.0,
        tls: ssl.SSLContext | None = None,
        model: str = "",
    ) -> None:
        query = f"?model={quote(model, safe='')}" if model else ""
        self._url = "ws" + url.removeprefix("http").rstrip("/") + "/v1/sessions" + query
        coded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
        self._subprotocols = [Subprotocol(name) for name in ("robometer", *([f"bearer.{coded}"] if token else []))]
        self._timeout_s, self._patience_s, self._tls = timeout_s, patience_s, tls
        self.tasks = list(tasks)
        self._socket: ClientConnection | None = None
        self._windows: list[Window[np.ndarray]] = []
        self.session_id, self._key, self._pushes = "", secrets.token_urlsafe(18), 0
        self._model: tuple[str, int | None] | None = None
        self._lasting(self._connected)

    def push(self, frame: np.ndarray) -> tuple[float, float]:
        """Push one frame uint8 [H, W, 3] to a session of one trajectory; returns (progress, success) at that frame."""
        [answer] = self.push_all([frame])
        return answer

    def push_all(self, frames: Sequence[np.ndarray], reset: Sequence[int] = ()) -> list[tuple[float, float]]:
        """Push one frame to each trajectory; those numbered in `reset` start anew with it.

        Raises:
            InputError: the frames do not fit the session.
            SessionError: the endpoint refuses them, or does not answer.
        """
        if len(frames) != len(self.tasks) or len({(f.shape, f.dtype) for f in frames}) > 1:
            raise InputError(f"push {len(self.tasks)} frames uint8 [H, W, 3] of one size, one for each trajectory")
        options = json.dumps({"index": self._pushes, "reset": [int(i) for i in reset]})
        message = options.encode() + b"\n" + npy(np.stack(frames))
        if len(message) > MAX_MESSAGE_BYTES:
            raise InputError(f"{len(message)} bytes are more than one push may have ({MAX_MESSAGE_BYTES})")
        answer = self._lasting(lambda: self._pushed(message))
        for i in reset:
            self._windows[i] = Window(self._windows[i].max_frames)
        for window, frame in zip(self._windows, frames, strict=True):
            window.make_room()
            window.add(np.array(frame))
        self._pushes += 1
        return list(zip(answer["progress"], answer["success"], strict=True))

    def close(self) -> None:
        """End the session."""
        if self._socket is not None:
            with suppress(ConnectionClosed, OSError, TimeoutError, SessionError, _Gone, _Busy):
                self._ask(json.dumps({"close": True}))  # else it ends by itself when it has been idle
        self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pushed(self, message: bytes) -> dict[str, Any]:
        self._connected()
        return self._ask(message)

    def _connected(self) -> dict[str, Any]:
        """Connect, unless connected: join the session, or open one that continues it."""
        if self._socket is not None:
            return {}
        self._socket = connect(
            self._url,
            subprotocols=self._subprotocols,
            max_size=MAX_MESSAGE_BYTES,
            compression=None,
            ssl=self._tls if self._url.startswith("wss") else None,
        )
        if self.session_id:
            try:
                return self._ask(json.dumps({"session_id": self.session_id}))
            except _Gone:
                self.session_id = ""
        return self._opened()

    def _opened(self) -> dict[str, Any]:
        held = [frame for window in self._windows for frame in window.items]
        continued = {"pushes": self._pushes, "pushed": [window.pushed for window in self._windows]} if held else {}
        answer = self._ask(json.dumps({"tasks": self.tasks, "key": self._key, **continued}))
        if held:
            message = npy(np.stack(held))
            if len(message) > MAX_MESSAGE_BYTES:
                raise SessionError(f"the session was lost, and its frames ({len(message)} bytes) are too many to go on")
            answer = self._ask(message)
        model = (answer["model"]["name"], answer["max_frames"])
        if self._model not in (None, model):
            raise SessionError(f"{self._url} was updated from {self._model} to {model}: open a new session")
        self.session_id, self._model = answer["session_id"], model
        self._key = secrets.token_urlsafe(18)  # of the next one, if this one is lost
        self._windows = self._windows or [Window(answer["max_frames"]) for _ in self.tasks]
        return answer

    def _ask(self, message: str | bytes) -> dict[str, Any]:
        assert self._socket is not None
        with suppress(ConnectionClosed):  # what the endpoint said before it closed can still be read
            self._socket.send(message)
        answer = json.loads(self._socket.recv(self._timeout_s))
        status = answer.get("status", 200)
        if status == 404:
            raise _Gone(answer["error"])
        if status in (429, 503):
            raise _Busy(answer["error"])
        if status >= 400:
            raise SessionError(f"{self._url} answered {status}: {answer['error']}")
        return dict(answer)

    def _lasting(self, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `attempt` returns, tried again on a new connection while the old one breaks."""
        deadline_s, pause_s = time.monotonic() + self._patience_s, 0.1
        while True:
            try:
                return attempt()
            except _Gone:
                self.session_id, reason = "", "the session has gone"
            except SessionError:
                if not self.session_id:
                    self._disconnect()
                raise
            except ssl.SSLCertVerificationError as error:
                remedy = tls_remedy(error.verify_message, self._tls is not None)
                raise SessionError(f"{self._url} is not trusted here: {error.verify_message}. {remedy}") from error
            except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError, _Busy) as error:
                reason = str(error) or type(error).__name__
            except InvalidURI as error:
                raise SessionError(f"{self._url} is not the URL of an endpoint: {error}") from error
            self._disconnect()
            if time.monotonic() > deadline_s:
                raise SessionError(f"{self._url} does not answer: {reason}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_WAIT_S)


class _Gone(Exception):
    """The endpoint does not know the session."""


class _Busy(Exception):
    """The endpoint cannot answer now."""
