"""The sessions of one model replica: bounded in number and bytes, ended when idle, pushed in batches."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.serving.backend import (
    OpenSession,
    PushFrames,
    ReadSession,
    SessionAnswer,
    SessionLimits,
    SessionRequest,
    SessionState,
)
from robometer.errors import InputError
from robometer.scoring import Clip, Scorer
from robometer.sessions import NOT_FINITE, WindowSession, clip_bytes, joined, push_all, session_of


class SessionRefusal(InputError):
    """A request about a session that cannot be done; `status` is that of HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class _Held:
    owner: str
    trajectories: list[WindowSession]
    reference: Clip | None
    used_s: float
    pushes: int = 0
    sent_id: str = ""
    answer: SessionAnswer | None = None
    size_bytes: int = 0
    tasks: list[str] = field(default_factory=list)

    def measured_bytes(self) -> int:
        return clip_bytes(self.reference) + sum(session.size_bytes() for session in self.trajectories)


class SessionStore:
    """Holds sessions by id. All calls come from one thread.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, scorer: Scorer, limits: SessionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._scorer, self._limits, self._clock = scorer, limits, clock
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the least recently used first
        self.trajectories = self.size_bytes = 0

    def open(self, request: OpenSession) -> SessionState:
        """Open a session, or continue one that ended on another replica. One that is open already stays as it is.

        Raises:
            SessionRefusal: 503, too many are open or hold too much; 429, too many are the owner's.
            InputError: the frames to continue from are not those that a session would hold.
        """
        self.expire()
        if request.session_id in self._held:  # the answer to the same request was lost
            return self.read(ReadSession(request.session_id, request.owner))
        limits, count = self._limits, len(request.tasks)
        own = sum(len(held.trajectories) for held in self._held.values() if held.owner == request.owner)
        if request.most is not None and own + count > request.most:
            raise SessionRefusal(
                429,
                f"The token {request.owner} has {own} trajectories in sessions and may have {request.most}. Close one.",
            )
        if self.trajectories + count > limits.max_sessions:
            raise SessionRefusal(
                503, f"{self.trajectories} trajectories are in sessions already (serve.max_sessions). Try again later."
            )
        trajectories = [self._session(task) for task in request.tasks]
        reference = request.reference and joined(trajectories[0].look(list(request.reference.frames)))
        held = _Held(request.owner, trajectories, reference, self._clock())
        for session, pushed, frames in zip(held.trajectories, request.pushed, request.frames, strict=False):
            session.restore(pushed, frames)
        held.pushes, held.tasks = request.pushes, list(request.tasks)
        self._free(held.measured_bytes())
        self._held[request.session_id] = held
        self.trajectories += count
        self._measure(held)
        return self._state(held)

    def answer(self, requests: Sequence[SessionRequest]) -> list[SessionAnswer | SessionState]:
        """Answer requests one after another; raises what `open`, `push` and `read` raise."""
        answers: list[SessionAnswer | SessionState] = []
        for request in requests:
            if isinstance(request, PushFrames):
                answers += self.push([request])
            else:
                answers.append(self.open(request) if isinstance(request, OpenSession) else self.read(request))
        return answers

    def can_push(self, request: PushFrames) -> bool:
        """Whether nothing but the model can make this push fail."""
        try:
            self._pushable(request)
        except InputError:
            return False
        return True

    def push(self, requests: Sequence[PushFrames]) -> list[SessionAnswer]:
        """Push the frames of requests for different sessions, in one batch.

        Raises:
            SessionRefusal: 404, there is no such session; 409, the push does not follow the last one; 503, there is no
                room for its frames.
            InputError: the frames do not fit the session.
            Exception: what the model raises. In all cases no frame counts.
        """
        found = [self._pushable(request) for request in requests]
        fresh = [(h, r) for h, r in zip(found, requests, strict=True) if not self._is_repeated(h, r)]
        pushed = [
            [self._session(held.tasks[i]) if i in request.reset else t for i, t in enumerate(held.trajectories)]
            for held, request in fresh
        ]
        sessions = [session for trajectories in pushed for session in trajectories]
        self._free(sum(_added_bytes(held, request) for held, request in fresh), {r.session_id for r in requests})
        numbers = [session.window.pushed for session in sessions]
        values = np.array(push_all(sessions, [frame for _, request in fresh for frame in request.frames]))
        start = 0
        for (held, request), trajectories in zip(fresh, pushed, strict=True):
            held.trajectories, held.sent_id = trajectories, request.sent_id
            part = slice(start, start + len(held.trajectories))
            start = part.stop
            held.answer = SessionAnswer(numbers[part], values[part, 0].tolist(), values[part, 1].tolist(), None)
            held.pushes += 1
        for held, request in zip(found, requests, strict=True):
            held.used_s = self._clock()
            self._held.move_to_end(request.session_id)
            self._measure(held)
        answers = [held.answer for held in found if held.answer is not None]
        self._free(0)
        return answers

    def compare(self, requests: Sequence[PushFrames]) -> list[list[float]]:
        """P(trajectory so far is better than the reference) of each trajectory, after a push that asks for it.

        Raises:
            Exception: what the model raises.
        """
        held = [self._find(request.session_id, request.owner) for request in requests]
        pairs = [(session.clip(), h.reference) for h in held for session in h.trajectories if h.reference]
        values = self._scorer.compare(pairs)
        if not np.isfinite(values).all():
            raise ArithmeticError(NOT_FINITE)
        ends = np.cumsum([len(h.trajectories) for h in held])
        return [part.tolist() for part in np.split(values, ends[:-1])]

    def read(self, request: ReadSession) -> SessionState:
        """What a session has come to; with `close` it ends.

        Raises:
            SessionRefusal: 404, there is none.
        """
        held = self._find(request.session_id, request.owner)
        state = self._state(held)
        if request.close:
            self._end(request.session_id)
        return state

    def expire(self) -> None:
        """End the sessions that were idle for too long."""
        oldest_s = self._clock() - self._limits.idle_s
        while self._held and next(iter(self._held.values())).used_s < oldest_s:
            self._end(next(iter(self._held)))

    def _session(self, task: str) -> WindowSession:
        return session_of(self._scorer, task)

    def _find(self, session_id: str, owner: str) -> _Held:
        held = self._held.get(session_id)
        if held is None or held.owner != owner:
            raise SessionRefusal(
                404,
                "There is no such session: it has ended, or was idle too long, or its replica has gone. Open a "
                "new one with the frames that it held.",
            )
        return held

    def _pushable(self, request: PushFrames) -> _Held:
        held = self._find(request.session_id, request.owner)
        if not self._is_repeated(held, request):
            self._check(held, request)
        return held

    @staticmethod
    def _is_repeated(held: _Held, request: PushFrames) -> bool:
        """Whether this is the last push once more, whose answer was lost on the way."""
        same = request.sent_id != "" and request.sent_id == held.sent_id
        return held.answer is not None and (same or request.index == held.pushes - 1)

    def _check(self, held: _Held, request: PushFrames) -> None:
        count = len(held.trajectories)
        if request.index not in (None, held.pushes):
            raise SessionRefusal(409, f"Push {request.index} does not follow: the session expects push {held.pushes}.")
        if len(request.frames) != count:
            raise InputError(f"the push has {len(request.frames)} frames, but the session has {count} trajectories")
        if any(i >= count for i in request.reset):
            raise InputError(f"trajectory {max(request.reset)} is to start anew, but the session has {count}")
        if request.compare and held.reference is None:
            raise InputError("the session was opened without a reference to compare with")
        for i, (session, frame) in enumerate(zip(held.trajectories, request.frames, strict=True)):
            (self._session("") if i in request.reset else session).check(frame)

    def _measure(self, held: _Held) -> None:
        self.size_bytes -= held.size_bytes
        held.size_bytes = held.measured_bytes()
        self.size_bytes += held.size_bytes

    def _free(self, wanted_bytes: int, wanting: Collection[str] = ()) -> None:
        """Make room: the least recently used sessions forget what can be computed again, then end.

        Args:
            wanting: sessions that must stay; they forget last.

        Raises:
            SessionRefusal: 503, these want more than all sessions may hold. None has ended.
        """
        limit = self._limits.max_bytes - wanted_bytes
        if self.size_bytes <= limit:
            return
        for session_id in sorted(self._held, key=lambda name: name in wanting):
            for session in self._held[session_id].trajectories:
                session.forget()
            self._measure(self._held[session_id])
            if self.size_bytes <= limit:
                return
        if sum(self._held[session_id].size_bytes for session_id in wanting) > limit:
            raise SessionRefusal(503, "The session would hold more than all sessions may (serve.max_session_bytes).")
        for session_id in [name for name in self._held if name not in wanting]:
            self._end(session_id)
            if self.size_bytes <= limit:
                return

    def _end(self, session_id: str) -> None:
        held = self._held.pop(session_id)
        self.trajectories -= len(held.trajectories)
        self.size_bytes -= held.size_bytes

    @staticmethod
    def _state(held: _Held) -> SessionState:
        return SessionState(held.tasks, [s.window.pushed for s in held.trajectories], held.pushes, held.answer)


def _added_bytes(held: _Held, request: PushFrames) -> int:
    """What a push adds to a session, as far as that is known before."""
    pairs = enumerate(zip(held.trajectories, request.frames, strict=True))
    return sum(
        session.first_bytes(frame) - session.size_bytes() if i in request.reset else session.added_bytes(frame)
        for i, (session, frame) in pairs
    )
