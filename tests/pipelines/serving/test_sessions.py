"""Sessions of the endpoint: over HTTP and WebSocket, equal to those in process, bounded, and nobody else's."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import ClientConnection, connect

from pipelines.serving import sessions
from pipelines.serving.answerer import Answerer
from pipelines.serving.backend import (
    ModelRequest,
    OpenSession,
    Outcome,
    PushFrames,
    ReadSession,
    ScoreRequest,
    SessionAnswer,
    SessionLimits,
    SessionState,
)
from pipelines.serving.front import DRAIN, FRONT_HEADER
from pipelines.serving.front_socket import COME_AGAIN, FrontSocket
from pipelines.serving.quotas import Quotas
from pipelines.serving.tokens import Client, TokenLimits, add_token
from robometer.client import RemoteScorer
from robometer.configs import load
from robometer.errors import InputError
from robometer.remote_session import RemoteSession, SessionError
from robometer.scoring import Clip, ClipScore, ScorerInfo
from robometer.sessions import WindowSession
from tests.local_endpoint import LocalBackend, endpoint, front

TOKEN = "a token: ümlaut"
AUTH = {"Authorization": f"Bearer {TOKEN}".encode()}
WIDE = SessionLimits(100, 10**9, 600.0)


class Brightness:
    """Progress is the brightness of the last frame, success the number of frames in the window, by 100."""

    name, info = "brightness@12ab", ScorerInfo(max_frames=4)

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        if any(clip.task == "fail" and len(clip) > 1 for clip in clips):
            raise RuntimeError("of this test")
        level = [np.full(len(c), np.nan if c.task == "nan" else c.frames[-1, 0, 0, 0] / 256) for c in clips]
        return [ClipScore(v, np.full(len(v), len(v) / 100)) for v in level]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        return np.array([len(a) / (len(a) + len(b)) for a, b in pairs], dtype=np.float32)

    def open_session(self, task: str) -> WindowSession:
        return WindowSession(self, task)


def frame(level: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), level, dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with endpoint(Brightness(), ["serve.max_sessions=20"], token=TOKEN) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=AUTH, timeout=30) as client:
        yield client


@contextmanager
def stream(url: str, token: str | None = TOKEN, **kwargs: object) -> Iterator[ClientConnection]:
    coded = [] if token is None else ["bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")]
    with connect("ws" + url[4:] + "/v1/sessions", subprotocols=["robometer", *coded], **kwargs) as socket:  # type: ignore[arg-type]
        yield socket


def ask(socket: ClientConnection, message: object) -> dict[str, object]:
    socket.send(message if isinstance(message, bytes) else json.dumps(message))
    return dict(json.loads(socket.recv(10)))


# --- the store


def opened(answerer: Answerer, session_id: str = "s", tasks: Sequence[str] = ("t",), **fields: object) -> Outcome:
    return answerer.answer([OpenSession(session_id, tasks, **fields)])[0]  # type: ignore[arg-type]


def test_pushes_of_a_batch_go_to_their_sessions_in_order() -> None:
    answerer = Answerer(Brightness(), WIDE)
    for name, tasks in (("a", ["t", "u"]), ("b", ["t"])):
        assert not opened(answerer, name, tasks).error
    requests: list[ModelRequest] = [
        PushFrames("b", [frame(64)]),
        PushFrames("a", [frame(0), frame(128)]),
        PushFrames("b", [frame(192)]),
        PushFrames("unknown", [frame(1)]),
        PushFrames("a", [frame(32), frame(16)]),
    ]
    outcomes = answerer.answer(requests)
    values = [o.value for o in outcomes]
    assert [(v.index, v.progress, v.success) for v in values if isinstance(v, SessionAnswer)] == [
        ([0], [0.25], [0.01]),
        ([0, 0], [0.0, 0.5], [0.01, 0.01]),
        ([1], [0.75], [0.02]),
        ([1, 1], [0.125, 0.0625], [0.02, 0.02]),
    ]
    assert outcomes[3].rejected and outcomes[3].status == 404 and values[3] is None


def test_a_push_sent_twice_counts_once_and_one_too_far_is_refused() -> None:
    answerer = Answerer(Brightness(), WIDE)
    opened(answerer)
    first, again, far, second = (
        answerer.answer([PushFrames("s", [frame(level)], index=index)])[0]
        for level, index in ((64, 0), (64, 0), (1, 2), (128, 1))
    )
    assert first.value == again.value and far.status == 409 and "expects push 1" in far.error
    assert second.value == SessionAnswer([1], [0.5], [pytest.approx(0.02)], None)


def test_a_push_that_the_endpoint_sends_again_counts_once() -> None:
    answerer = Answerer(Brightness(), WIDE)
    opened(answerer)
    pushes = [PushFrames("s", [frame(64)], sent_id=sent) for sent in ("one", "one", "two", "two")]
    values = [answerer.answer([push])[0].value for push in pushes]
    assert [v.index for v in values if isinstance(v, SessionAnswer)] == [[0], [0], [1], [1]]


def test_a_failed_push_starts_no_trajectory_anew() -> None:
    answerer = Answerer(Brightness(), WIDE)
    opened(answerer, "s", ["fail"], pushes=1, pushed=[1], frames=[[frame(9)]])
    opened(answerer, "t", ["nan"], pushes=1, pushed=[1], frames=[[frame(9)]])
    assert answerer.answer([PushFrames("t", [frame(1)], reset=[0])])[0].error
    state = answerer.answer([ReadSession("t")])[0].value
    assert isinstance(state, SessionState) and state.pushed == [1]


def test_idle_sessions_end_though_nobody_asks_for_them() -> None:
    now = [0.0]
    answerer = Answerer(Brightness(), SessionLimits(3, 10**6, 10.0), clock=lambda: now[0])
    opened(answerer, "a", ["t", "t"])
    now[0] = 11.0
    answerer.answer([ScoreRequest(Clip(frame(1)[None], "t"))])
    assert answerer._sessions.trajectories == 0 and answerer._sessions.size_bytes == 0


def test_a_session_that_is_opened_twice_takes_one_place() -> None:
    answerer = Answerer(Brightness(), SessionLimits(1, 10**6, 10.0))
    assert not opened(answerer).error and not answerer.answer([PushFrames("s", [frame(1)])])[0].error
    state = opened(answerer).value
    assert isinstance(state, SessionState) and state.pushed == [1]
    assert answerer._sessions.trajectories == 1


@pytest.mark.parametrize("task", ["fail", "nan"])
def test_a_push_that_fails_counts_nowhere(task: str) -> None:
    answerer = Answerer(Brightness(), WIDE)
    for name, its_task in (("good", "t"), ("bad", task)):
        opened(answerer, name, [its_task], pushes=1, pushed=[1], frames=[[frame(9)]])
    good, bad = answerer.answer([PushFrames("good", [frame(64)]), PushFrames("bad", [frame(64)])])
    assert isinstance(good.value, SessionAnswer) and good.value.success == [pytest.approx(0.02)]
    assert bad.error.startswith("the model failed") and not bad.rejected
    states = [answerer.answer([ReadSession(name)])[0].value for name in ("good", "bad")]
    assert [s.pushed for s in states] == [[2], [1]]  # type: ignore[union-attr]


def test_a_trajectory_starts_anew_and_is_compared_with_the_reference() -> None:
    answerer, reference = Answerer(Brightness(), WIDE), Clip(np.zeros((3, 8, 8, 3), np.uint8), "t")
    opened(answerer, "s", ["t", "t"], reference=reference)
    push = PushFrames("s", [frame(1), frame(2)])
    answerer.answer([push])
    [outcome] = answerer.answer([replace(push, reset=[1], compare=True)])
    assert isinstance(outcome.value, SessionAnswer)
    assert outcome.value.index == [1, 0] and outcome.value.preference == pytest.approx([2 / 5, 1 / 4])
    [refused] = answerer.answer([replace(push, reset=[2])])
    assert refused.status == 422 and "trajectory 2" in refused.error
    opened(answerer, "without")
    [refused] = answerer.answer([PushFrames("without", [frame(1)], compare=True)])
    assert refused.status == 422 and "without a reference" in refused.error


def test_sessions_are_bounded_in_number_and_bytes_and_end_when_idle() -> None:
    now = [0.0]
    answerer = Answerer(Brightness(), SessionLimits(3, 6 * 192, 10.0), clock=lambda: now[0])
    opened(answerer, "a", ["t", "t"])
    refused = opened(answerer, "b", ["t", "t"])
    assert refused.status == 503 and "2 trajectories are in sessions already (serve.max_sessions)" in refused.error
    assert not opened(answerer, "b").error
    for level in range(3):  # three frames of 192 bytes for each of two trajectories: as many as there may be
        assert not answerer.answer([PushFrames("a", [frame(level), frame(level)])])[0].error
    assert not answerer.answer([PushFrames("b", [frame(1)])])[0].error  # `a` was used longer ago, and makes room
    assert answerer.answer([ReadSession("a")])[0].status == 404
    now[0] = 10.5
    assert answerer.answer([PushFrames("b", [frame(1)])])[0].status == 404
    assert not opened(answerer, "c", ["t"] * 3).error


def test_room_for_frames_is_made_before_they_are_pushed() -> None:
    held: list[int] = []

    class Watching(Brightness):
        def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
            held.append(answerer._sessions.size_bytes)
            return super().score(clips)

    def push(name: str, **options: object) -> Outcome:
        return answerer.answer([PushFrames(name, [frame(1)], **options)])[0]  # type: ignore[arg-type]

    answerer = Answerer(Watching(), SessionLimits(9, 3 * 192, 10.0))
    for name in ("a", "a", "b", "b"):
        assert not opened(answerer, name).error and not push(name).error
    assert max(held) == 2 * 192 and answerer.answer([ReadSession("a")])[0].status == 404
    assert not push("b").error
    refused = push("b")
    assert refused.status == 503 and "serve.max_session_bytes" in refused.error and len(held) == 5
    state = answerer.answer([ReadSession("b")])[0].value
    assert isinstance(state, SessionState) and state.pushed == [3]
    assert not push("b", reset=[0]).error and answerer._sessions.size_bytes == 192
    opened(answerer, "c", pushes=1, pushed=[1], frames=[[frame(9)]])
    outcomes = answerer.answer([PushFrames(name, [frame(1)]) for name in ("b", "c")])
    assert not any(outcome.error for outcome in outcomes), "without room for both they are pushed one after the other"
    assert answerer.answer([ReadSession("b")])[0].status == 404 and answerer._sessions.size_bytes == 2 * 192


def test_no_push_counts_twice_where_one_that_was_sent_again_is_in_its_batch() -> None:
    answerer = Answerer(Brightness(), SessionLimits(9, 5 * 192, 10.0))
    for name, pushes in (("again", 2), ("new", 3)):
        opened(answerer, name)
        for number in range(pushes):
            assert not answerer.answer([PushFrames(name, [frame(1)], sent_id=f"{name}{number}")])[0].error
    again, new = answerer.answer([PushFrames("again", [frame(1)], sent_id="again1"), PushFrames("new", [frame(1)])])
    assert isinstance(new.value, SessionAnswer) and new.value.index == [3]
    state = answerer.answer([ReadSession("new")])[0].value
    assert isinstance(state, SessionState) and (state.pushed, state.pushes) == ([4], 4)
    assert isinstance(again.value, SessionAnswer) and again.value.index == [1]


def test_a_token_has_no_more_trajectories_than_its_limit() -> None:
    answerer = Answerer(Brightness(), WIDE)
    assert not opened(answerer, "a", ["t", "t"], owner="few", most=3).error
    refused = opened(answerer, "b", ["t", "t"], owner="few", most=3)
    assert refused.status == 429 and refused.error.startswith("The token few has 2 trajectories in sessions and may")
    assert not opened(answerer, "c", ["t"] * 9, owner="other").error
    assert not opened(answerer, "b", owner="few", most=3).error and not opened(answerer, "b", owner="few", most=3).error
    answerer.answer([ReadSession("a", "few", close=True)])
    assert not opened(answerer, "d", ["t", "t"], owner="few", most=3).error


def test_a_session_is_its_owners() -> None:
    answerer = Answerer(Brightness(), WIDE)
    opened(answerer, owner="alice")
    assert answerer.answer([PushFrames("s", [frame(1)], owner="bob")])[0].status == 404
    assert answerer.answer([ReadSession("s", close=True)])[0].status == 404
    assert not answerer.answer([ReadSession("s", owner="alice", close=True)])[0].error
    assert answerer.answer([ReadSession("s", owner="alice")])[0].status == 404


# --- over HTTP


def test_a_session_over_http(http: httpx.Client) -> None:
    answer = http.post("/v1/sessions", json={"tasks": ["open", "close"]})
    session = answer.json()
    assert answer.status_code == 201 and session["max_frames"] == 4 and session["pushed"] == [0, 0]
    path = f"/v1/sessions/{session['session_id']}"
    pushed = http.post(f"{path}/frames", files={"frames": ("f.npy", npy(np.stack([frame(64), frame(128)])))})
    assert pushed.status_code == 200
    assert {name: pushed.json()[name] for name in ("index", "progress", "success", "preference")} == {
        "index": [0, 0],
        "progress": [0.25, 0.5],
        "success": [0.01, 0.01],
        "preference": None,
    }
    form = {"index": "1", "reset": "[0]"}
    again = http.post(f"{path}/frames", data=form, files={"frames": ("f.npy", npy(np.stack([frame(0)] * 2)))})
    assert again.json()["index"] == [0, 1]
    state = http.get(path).json()
    assert (state["pushes"], state["pushed"], state["last"]["index"]) == (2, [1, 2], [0, 1])
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == http.delete(path).status_code == 404


def test_a_session_with_a_reference_over_http(http: httpx.Client) -> None:
    files = {"frames_reference": ("r.npy", npy(np.zeros((3, 8, 8, 3), np.uint8)))}
    opened = http.post("/v1/sessions", data={"task": "open"}, files=files).json()
    path = f"/v1/sessions/{opened['session_id']}/frames"
    pushed = http.post(path, data={"compare": "true"}, files={"frames": ("f.npy", npy(frame(64)))})
    assert pushed.json()["preference"] == [pytest.approx(0.25)]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "exactly one of the fields 'task'"),
        ({"task": "a", "tasks": ["b"]}, 422, "exactly one of the fields 'task'"),
        ({"task": ""}, 422, "missing or empty"),
        ({"tasks": []}, 422, "list of 1 to 1000"),
        ({"tasks": ["a", 7]}, 422, r"tasks\[1\]"),
        ({"task": "a", "speed": 1}, 422, "Unknown field 'speed'"),
        ({"task": "a", "key": "guess"}, 422, "Field 'key' must be 16 to 64"),
        ({"task": "a", "key": 1}, 422, "Field 'key' must be 16 to 64"),
        ({"task": "a", "pushed": [-1]}, 422, "none below 0"),
        ({"task": "a", "pushed": [True]}, 422, "whole numbers"),
        ({"task": "a", "pushed": [1, 2]}, 422, "each of the 1 trajectories"),
        ({"task": "a", "pushed": [9]}, 422, "needs the 3 frames that it held, in field 'frames', not 0"),
        ({"tasks": ["a"] * 21}, 503, "serve.max_sessions"),
        ([], 422, "must be an object"),
    ],
)
def test_what_cannot_be_opened_is_refused(http: httpx.Client, body: object, status: int, sentence: str) -> None:
    answer = http.post("/v1/sessions", json=body)
    assert answer.status_code == status
    assert re.search(sentence, answer.json()["error"])


def test_an_open_that_is_sent_again_with_its_key_opens_no_second_session(http: httpx.Client) -> None:
    key = "k" * 16

    def opened(files: object = None, **body: object) -> str:
        sent = {"json": body} if files is None else {"data": body, "files": files}
        answer = http.post("/v1/sessions", **sent)  # type: ignore[arg-type]
        assert answer.status_code == 201
        return str(answer.json()["session_id"])

    def reference(level: int) -> object:
        return {"frames_reference": ("r.npy", npy(np.full((3, 8, 8, 3), level, np.uint8)))}

    first = opened(task="open", key=key)
    assert first == opened(tasks=["open"], key=key)
    others = [{}, {"key": "l" * 16}, {"key": key, "files": reference(0)}, {"key": key, "files": reference(1)}]
    ids = {first, *(opened(task="open", **other) for other in others), opened(task="close", key=key)}  # type: ignore[arg-type]
    assert len(ids) == 6
    for session_id in ids:
        assert http.delete(f"/v1/sessions/{session_id}").status_code == 204
    assert http.get(f"/v1/sessions/{first}").status_code == 404


def test_an_open_that_the_proxy_sends_again_opens_no_second_session() -> None:
    async def run() -> set[str]:
        config = load()
        behind = front(LocalBackend(Brightness(), SessionLimits.from_config(config.serve)), config)._app
        async with httpx.AsyncClient(transport=httpx.ASGITransport(behind), base_url="http://x") as http:
            marks = ("a" * 32, "a" * 32, "b" * 32)
            sent = [await http.post("/v1/sessions", json={"task": "t"}, headers={FRONT_HEADER: m}) for m in marks]
        return {answer.json()["session_id"] for answer in sent}

    assert len(asyncio.run(run())) == 2


def test_what_cannot_be_pushed_is_refused(http: httpx.Client) -> None:
    path = f"/v1/sessions/{http.post('/v1/sessions', json={'task': 'a'}).json()['session_id']}/frames"

    def refused(content: bytes, **form: str) -> tuple[int, str]:
        answer = http.post(path, data=form, files={"frames": ("f.npy", content)})
        return answer.status_code, answer.json()["error"]

    assert http.post(path, files={"frames": ("f.npy", npy(frame(1)))}).status_code == 200
    assert refused(npy(frame(1, 9)))[0] == 422 and "9x9 pixels" in refused(npy(frame(1, 9)))[1]
    assert refused(npy(np.stack([frame(1)] * 2))) == (422, "The push has 2 frames, but the session has 1 trajectories.")
    assert refused(npy(frame(1).astype(np.float32)))[0] == 422
    assert refused(b"\x93NUMPY")[0] == refused(b"")[0] == 422
    assert refused(npy(frame(1)), index="5")[0] == 409
    assert refused(npy(frame(1)), index="1.5")[0] == refused(npy(frame(1)), reset="[1]")[0] == 422
    assert refused(npy(frame(1)), compare="yes")[0] == 400
    assert refused(npy(frame(1)), compare="true")[0] == refused(npy(frame(1)), speed="1")[0] == 422
    assert http.post(path, json={"index": 1}).status_code == 422
    for unknown in ("nothing", "a%20b", "x" * 65):
        answer = http.post(f"/v1/sessions/{unknown}/frames", files={"frames": ("f.npy", npy(frame(1)))})
        assert answer.status_code == 404 and "no such session" in answer.json()["error"]
    assert http.post(path, files={"frames": ("f.npy", npy(frame(1)))}, data={"index": "1"}).json()["index"] == [1]


def test_a_clip_is_scored_as_a_session_would_in_one_request(http: httpx.Client) -> None:
    clip = np.stack([frame(20 * t) for t in range(9)])
    form, files = {"task": "open", "mode": "session"}, {"frames": ("f.npy", npy(clip))}
    answer = http.post("/v1/score", data=form, files=files).json()
    session = Brightness().open_session("open")
    assert answer["mode"] == "session"
    assert list(zip(answer["progress"], answer["success"], strict=True)) == [
        pytest.approx(session.push(shown)) for shown in clip
    ]


# --- over WebSocket


def test_a_session_over_a_websocket(url: str) -> None:
    with stream(url) as socket:
        assert socket.subprotocol == "robometer"
        assert "opens the session" in str(ask(socket, npy(frame(1)))["error"])
        assert ask(socket, {"task": ""})["status"] == 422
        opened = ask(socket, {"task": "open"})
        assert (opened["tasks"], opened["max_frames"]) == (["open"], 4)
        assert ask(socket, npy(frame(64)))["progress"] == [0.25]
        assert ask(socket, npy(frame(64, 9)))["status"] == 422  # and the session goes on
        assert ask(socket, b'{"index": 7}\n' + npy(frame(64)))["status"] == 409
        assert ask(socket, b'{"index": 1}\n' + npy(frame(128)))["index"] == [1]
        assert ask(socket, {"task": "another"})["status"] == 422
    with stream(url) as socket:
        assert ask(socket, {"session_id": "unknown"})["status"] == 404
        assert ask(socket, {"session_id": opened["session_id"]})["pushed"] == [2]
        assert ask(socket, npy(frame(0)))["index"] == [2]
        assert ask(socket, {"close": True}) == {"closed": opened["session_id"]}
        with pytest.raises(ConnectionClosedOK):
            socket.recv(10)
    with stream(url) as socket:
        assert ask(socket, {"session_id": opened["session_id"]})["status"] == 404


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        (None, {}, 401),
        ("another", {}, 401),
        (None, {"Authorization": "Bearer another"}, 401),
        (TOKEN, {"Origin": "https://elsewhere.example"}, 403),
        (TOKEN, {"Origin": "http://["}, 403),
    ],
)
def test_a_socket_of_a_stranger_is_told_why_it_is_closed(
    url: str, token: str | None, headers: dict[str, str], status: int
) -> None:
    with stream(url, token, additional_headers=headers) as socket:
        answer = json.loads(socket.recv(10))
        assert answer["status"] == status and answer["error"].endswith(".")
        with pytest.raises(Exception, match="1008"):
            socket.recv(10)


def test_a_page_of_the_endpoint_may_open_a_socket(url: str) -> None:
    with stream(url, additional_headers={"Origin": url}) as socket:
        assert "session_id" in ask(socket, {"task": "open"})


def test_sockets_are_bounded_and_must_open_a_session_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_S", 1.5)
    with endpoint(Brightness(), max_sockets=1) as url, stream(url, None) as first:
        with stream(url, None) as second:
            assert json.loads(second.recv(10))["status"] == 503
        for _ in range(3):
            time.sleep(0.1)
            assert ask(first, {"task": ""})["status"] == 422  # which buys no time
        with pytest.raises(Exception, match="1001"):
            first.recv(10)


def test_the_limits_of_a_token_hold_for_messages_and_a_revoked_one_ends_its_socket(tmp_path: Path) -> None:
    token, entry = "t" * 43, tmp_path / "tokens.yaml"
    digest = hashlib.sha256(token.encode()).hexdigest()
    entry.write_text(f"- {{name: a, sha256: '{digest}', requests_per_minute: 3}}\n")
    with endpoint(Brightness(), token_file=str(entry)) as url, stream(url, token) as socket:
        assert "session_id" in ask(socket, {"task": "open"})
        statuses = [ask(socket, npy(frame(1))).get("status", 200) for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
    with endpoint(Brightness(), token_file=str(entry)) as url, stream(url, token) as socket:
        assert "session_id" in ask(socket, {"task": "open"})
        entry.write_text("[]\n")
        time.sleep(1.1)  # so often it is looked at
        assert ask(socket, npy(frame(1)))["status"] == 401
        with pytest.raises(Exception, match="1000"):
            socket.recv(10)


def test_the_limit_of_a_tokens_trajectories_holds_for_both_interfaces(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    token = add_token(tokens, "few", TokenLimits(session_trajectories=1))
    with endpoint(Brightness(), token_file=str(tokens)) as url, stream(url, token) as first:
        assert "session_id" in ask(first, {"task": "open"})
        with stream(url, token) as second:
            assert ask(second, {"task": "open"})["status"] == 429
        refused = httpx.post(f"{url}/v1/sessions", json={"task": "a"}, headers={"Authorization": f"Bearer {token}"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")


def test_the_next_message_is_read_when_the_last_one_has_its_answer() -> None:
    async def run() -> list[int]:
        held, read, sent = [0], [0], list[object]()

        async def receive() -> dict[str, object]:
            read[0] += 1
            return {"type": "websocket.receive", "bytes": bytes(10)}

        async def send(message: object) -> None:
            sent.append(message)

        def hold(size_bytes: int, messages: int) -> None:
            held[0] += size_bytes

        socket = FrontSocket(receive, send, "id", "robometer", Quotas(), hold, lambda value: Client(), asyncio.Event())
        await socket.receive()
        waiting = asyncio.ensure_future(socket.receive())
        await asyncio.sleep(0.05)
        counts = [read[0], held[0]]
        await socket.send({"type": "websocket.send", "text": "answer"})
        await waiting
        socket.release()
        return [*counts, read[0], held[0]]

    assert asyncio.run(run()) == [1, 10, 2, 0]


def test_an_endpoint_that_ends_closes_its_sockets_and_takes_no_new_ones() -> None:
    with endpoint(Brightness(), drain_key="key", instance="first") as url, stream(url, None) as socket:
        ask(socket, {"task": "open"})
        drained = httpx.post(f"{url}{DRAIN}", headers={"Authorization": "Bearer key"})
        assert drained.json() == {"in_flight": 0}
        with pytest.raises(Exception, match="1012"):
            socket.recv(10)
        with stream(url, None) as late:
            assert json.loads(late.recv(10))["status"] == 503
            with pytest.raises(Exception, match="1012"):
                late.recv(10)


def test_a_malformed_handshake_is_told_what_is_wrong(url: str) -> None:
    def told(path: str, **headers: str) -> tuple[int, str]:
        both = {"Authorization": AUTH["Authorization"].decode("latin-1"), **headers}
        with connect(f"ws{url[4:]}{path}", additional_headers=both) as socket:
            problem = json.loads(socket.recv(10))
            with pytest.raises(ConnectionClosedError, match="1008"):
                socket.recv(10)
        assert problem["request_id"]
        return problem["status"], problem["detail"]

    assert told("/v1/sessions", **{"X-Request-ID": "a b"})[0] == 400
    assert told("/v1/sessions", Host="another") == (400, "Header 'host' is given more than once.")
    for path in ("/v1/score", "/nothing", "/-/admit"):
        assert told(path) == (404, "There is no such route. /docs lists the routes.")


def test_reading_a_session_of_a_model_that_hangs_ends_in_a_503() -> None:
    go = threading.Event()

    class Hanging(Brightness):
        def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
            assert go.wait(30)
            return super().score(clips)

    with endpoint(Hanging(), timeout_s=0.3) as url, httpx.Client(base_url=url) as http:
        path = f"/v1/sessions/{http.post('/v1/sessions', json={'task': 'open'}).json()['session_id']}"
        late = [
            http.post(f"{path}/frames", files={"frames": ("f.npy", npy(frame(1)))}),
            http.get(path),
            http.delete(path),
        ]
        go.set()
    assert [answer.status_code for answer in late] == [503] * 3
    assert all(answer.json()["detail"].startswith("No answer within 0.3 s.") for answer in late)


def test_a_socket_without_a_replica_is_told_to_come_again() -> None:
    async def run() -> list[Any]:
        sent = list[Any]()

        async def send(message: object) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError

        socket = FrontSocket(
            receive, send, "id", "robometer", Quotas(), lambda *_: None, lambda _: Client(), asyncio.Event()
        )
        await socket.send({"type": "websocket.close", "code": 1011})
        await socket.send({"type": "websocket.close", "code": COME_AGAIN})
        return sent

    accepted, told, closed = asyncio.run(run())
    assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "robometer")
    assert json.loads(told["text"])["status"] == 503
    assert closed == {"type": "websocket.close", "code": COME_AGAIN}


def test_a_push_that_takes_too_long_is_told_so() -> None:
    class Slow(Brightness):
        def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
            time.sleep(0.5)
            return super().score(clips)

    with endpoint(Slow(), timeout_s=0.2) as url, stream(url, None) as socket:
        ask(socket, {"task": "open"})
        late = ask(socket, npy(frame(1)))
        assert late["status"] == 503 and "its index" in str(late["error"])


def test_a_silent_session_ends() -> None:
    with endpoint(Brightness(), ["serve.session_idle_s=0.3"], session_idle_s=0.3) as url, stream(url, None) as socket:
        ask(socket, {"task": "open"})
        with pytest.raises(Exception, match="1001"):
            socket.recv(10)


# --- the client


def test_a_remote_session_survives_broken_connections_and_lost_sessions(url: str) -> None:
    """Whatever is lost, answers are those of a session that nothing happened to."""
    remote, plain = RemoteScorer(url, TOKEN), Brightness().open_session("t")
    with remote.open_sessions(["t", "t"]) as session, httpx.Client(base_url=url, headers=AUTH) as http:
        for t in range(12):
            if t % 3 == 1:
                assert session._socket is not None
                session._socket.socket.close()
            if t % 5 == 4:
                http.delete(f"/v1/sessions/{session.session_id}")
            expected = plain.push(frame(20 * t))
            assert session.push_all([frame(20 * t), frame(20 * t)]) == [pytest.approx(expected)] * 2
        session.push_all([frame(0), frame(3)], reset=[1])
        http.delete(f"/v1/sessions/{session.session_id}")
        assert session.push_all([frame(0), frame(3)])[1][1] == pytest.approx(0.02)
        with pytest.raises(InputError, match="push 2 frames"):
            session.push_all([frame(0)])
        with pytest.raises(SessionError, match="9x9 pixels"):
            session.push_all([frame(0, 9)] * 2)


def test_a_remote_session_whose_first_answer_is_lost_takes_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, lost = RemoteSession._ask, list[object]()

    def losing(session: RemoteSession, message: str | bytes) -> dict[str, object]:
        answer = ask(session, message)
        if len(lost) < 2 and "session_id" in answer:  # the first session, and the one that continues it
            lost.append(message)
            raise OSError("lost")
        return answer

    with endpoint(Brightness(), ["serve.max_sessions=1"]) as url, httpx.Client(base_url=url) as http:
        monkeypatch.setattr(RemoteSession, "_ask", losing)
        with RemoteSession(url, ["t"], patience_s=1) as session:
            lost.pop()
            session.push(frame(1))
            http.delete(f"/v1/sessions/{session.session_id}")
            assert session.push(frame(2))[1] == pytest.approx(0.02)
    assert len(lost) == 2


def test_a_remote_session_does_not_go_on_with_another_model() -> None:
    class Other(Brightness):
        name = "brightness@ffff"

    scorer: list[Brightness] = [Brightness()]

    class Swapped(Brightness):
        @property
        def name(self) -> str:  # type: ignore[override]
            return scorer[0].name

    with endpoint(Swapped()) as url, RemoteSession(url, ["t"]) as session, httpx.Client(base_url=url) as http:
        session.push(frame(1))
        scorer[0] = Other()
        http.delete(f"/v1/sessions/{session.session_id}")
        with pytest.raises(SessionError, match=r"was updated from .*12ab.*ffff"):
            session.push(frame(1))


def test_a_remote_session_says_why_it_cannot_be(url: str) -> None:
    with pytest.raises(SessionError, match="answered 401"):
        RemoteSession(url, ["t"], "wrong")
    with pytest.raises(SessionError, match="does not answer"):
        RemoteSession("http://127.0.0.1:9", ["t"], patience_s=0.2)
