"""Jobs: answered like the request that they hold, once, whatever process ends, and seen by their owner only."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request

from pipelines.serving import job_runner
from pipelines.serving.choice import Choice
from pipelines.serving.job_routes import _job
from pipelines.serving.job_runner import MAX_STARTS, JobRunner
from pipelines.serving.job_store import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, Job, JobStore, NoRoom
from pipelines.serving.tokens import Client, TokenLimits, add_token
from robometer.async_client import AsyncRemoteScorer
from robometer.baselines.trivial import FrameDifference, Random
from robometer.client import RemoteScorer, ScoringError
from robometer.scoring import Clip, ClipScore
from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_options import video

MIB = 1 << 20


class Gated(FrameDifference):
    """Answers the task 'wait' when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Semaphore(0), threading.Event()

    def score(self, clips: list[Clip]) -> list[ClipScore]:  # type: ignore[override]
        if clips[0].task == "wait":
            self.asked.release()
            assert self.go.wait(30)
        return super().score(clips)


@pytest.fixture
def scorer() -> Gated:
    return Gated()


@pytest.fixture
def url(scorer: Gated, tmp_path: Path) -> Iterator[str]:
    with endpoint(scorer, ["serve.max_jobs=3"], jobs=tmp_path / "jobs") as url:
        yield url
        scorer.go.set()


def post(url: str, route: str, task: str = "task", **headers: str) -> httpx.Response:
    files = {"video": ("v.mp4", video() if task != "bad" else b"no video")}
    return httpx.post(url + route, data={"task": task, "max_frames": "5"}, files=files, headers=headers)


def ended(url: str, job: str) -> httpx.Response:
    """The result of a job that is about to end."""
    for _ in range(200):
        answer = httpx.get(f"{url}{job}/result")
        if answer.status_code != 409:
            return answer
        threading.Event().wait(0.05)
    raise AssertionError("it did not end")


def test_a_job_is_answered_as_its_request(url: str, tmp_path: Path) -> None:
    accepted = post(url, "/v1/jobs/score", **{"x-request-id": "mine"})
    job = accepted.headers["location"]
    assert accepted.status_code == 202 and job == f"/v1/jobs/{accepted.json()['id']}"
    assert accepted.json()["kind"] == "score" and accepted.json()["request_id"] == "mine"
    answer, direct = ended(url, job), post(url, "/v1/score").json()
    assert answer.json() == direct | {"request_id": "mine"} and len(direct["progress"]) == 5
    state = httpx.get(url + job).json()
    assert (state["state"], state["starts"], state["jobs_ahead"]) == ("succeeded", 1, None)
    assert state["submitted_at"] <= state["started_at"] <= state["ended_at"]
    assert not list(tmp_path.rglob("request")), "an upload is kept no longer than it is needed"


def test_every_kind_is_described_and_answered(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    for kind in ("score", "scores", "rank", "compare"):
        assert paths[f"/v1/jobs/{kind}"]["post"]["requestBody"] == paths[f"/v1/{kind}"]["post"]["requestBody"]
        assert "202" in paths[f"/v1/jobs/{kind}"]["post"]["responses"]
    form = {"data": {"task": "task"}, "files": {f"video_{i}": ("v.mp4", video()) for i in range(2)}}
    for kind in ("scores", "rank"):
        submitted = httpx.post(f"{url}/v1/jobs/{kind}", **form).json()
        assert submitted["kind"] == kind
        answer = ended(url, f"/v1/jobs/{submitted['id']}").json()
        assert answer == httpx.post(f"{url}/v1/{kind}", **form).json() | {"request_id": answer["request_id"]}
    assert httpx.post(f"{url}/v1/jobs/frames", **form).status_code == 405


def test_a_job_is_for_the_model_that_it_names(tmp_path: Path) -> None:
    models = Choice({"other": "outputs/other"})
    with endpoint(FrameDifference(), others={"other": Random()}, models=models, jobs=tmp_path / "jobs") as url:
        for query, headers in (("?model=other", {}), ("", {"x-robometer-model": "other"})):
            job = post(url, f"/v1/jobs/score{query}", **headers).headers["location"]
            assert ended(url, job).json()["model"]["name"] == "random"
        assert ended(url, post(url, "/v1/jobs/score").headers["location"]).json()["model"]["name"] != "random"


def test_bad_input_is_the_result_of_its_job(url: str) -> None:
    refused = ended(url, post(url, "/v1/jobs/score", "bad").headers["location"])
    direct = post(url, "/v1/score", "bad")
    assert refused.status_code == direct.status_code == 415
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == direct.json()["detail"]
    with RemoteScorer(url) as remote:
        with pytest.raises(ScoringError, match=r"answered 415: .*not a video"):
            remote.submit_video(b"no video", "task").result()
        with pytest.raises(ScoringError, match="answered 404: There is no such job"):
            remote.job("0" * 32).state()
        with pytest.raises(ScoringError, match="answered 404: There is no such job"):
            remote.job("score").state()


def test_jobs_wait_for_each_other_are_cancelled_and_make_room(url: str, scorer: Gated) -> None:
    with RemoteScorer(url) as remote:
        first, second = remote.submit_video(video(), "wait"), remote.submit_video(video(), "task")
        assert scorer.asked.acquire(timeout=30)
        assert (first.state().state, first.state().jobs_ahead) == ("running", None)
        assert (second.state().state, second.state().jobs_ahead) == ("queued", 0)
        third = remote.submit_video(video(), "task")
        assert third.state().jobs_ahead == 1
        full = post(url, "/v1/jobs/score")
        assert full.status_code == 503 and full.headers["retry-after"] == "10" and "max_jobs" in full.json()["error"]
        with pytest.raises(ScoringError, match=r"has not ended after 0.1 s"):
            first.result(timeout_s=0.1)
        assert third.cancel().state == "cancelled" == third.state().state
        with pytest.raises(ScoringError, match="answered 410: The job was cancelled"):
            third.result()
        third.cancel()
        with pytest.raises(ScoringError, match="answered 404"):
            third.state()
        assert post(url, "/v1/jobs/score").status_code == 202
        assert first.cancel().state == "cancelled"
        scorer.go.set()
        assert second.result(30).progress.tolist() == remote.score_video(video(), "task").progress.tolist()
        assert first.state().state == "cancelled", "its answer comes too late"


def test_both_clients_read_both_kinds(url: str) -> None:
    async def ask() -> tuple[Any, Any]:
        async with AsyncRemoteScorer(url) as remote:
            scored = await remote.submit_video(video(), "task", mode="prefix")
            compared = await remote.submit_comparison(video(), video(), "task")
            results = await scored.result(30), await compared.result(30)
            assert (await scored.cancel()).state == "succeeded"
            return results

    score, preference = asyncio.run(ask())
    with RemoteScorer(url) as remote:
        np.testing.assert_array_equal(score.progress, remote.score_video(video(), "task", mode="prefix").progress)
        assert preference == remote.submit_comparison(video(), video(), "task").result(30) == 0.5


def test_a_job_is_seen_by_its_owner_only_and_jobs_can_be_off(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    hashes = {name: sha256(name.encode()).hexdigest() for name in ("alice", "bob")}
    tokens.write_text(json.dumps([{"name": name, "sha256": digest} for name, digest in hashes.items()]))
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs", token_file=str(tokens)) as url:
        with RemoteScorer(url, "alice") as alice, RemoteScorer(url, "bob") as bob:
            job = alice.submit_video(video(), "task")
            for ask in (bob.job(job.id).state, bob.job(job.id).cancel):
                with pytest.raises(ScoringError, match=r"answered 404: .*another token"):
                    ask()
            assert len(job.result(30).progress) == 20
        assert httpx.get(f"{url}/v1/jobs/{job.id}/result", headers={"authorization": "Bearer bob"}).status_code == 404
    with endpoint(FrameDifference()) as url:
        off = post(url, "/v1/jobs/score")
        assert off.status_code == 404 and "takes no jobs" in off.json()["detail"]


def job(number: int, **changes: Any) -> Job:
    return replace(Job(f"{number:032x}", "/v1/score", "", {}, "id", "me", float(number)), **changes)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def until_ended(store: JobStore, *numbers: int) -> list[Job]:
    while True:
        found = [store.find(job(number).job_id) for number in numbers]
        if all(one is not None and one.ended for one in found):
            return [one for one in found if one is not None]
        await asyncio.sleep(0.01)


def test_a_runner_goes_on_where_a_killed_one_was(tmp_path: Path) -> None:
    """What is on disk is what a killed process leaves: each step was committed, or did not happen."""
    store, sent = JobStore(tmp_path, 10, MIB, 60), list[bytes]()
    store.add(job(2), b"waited")
    store.add(job(1), b"ran")
    store.save(job(1, state=RUNNING, started_s=1.5, starts=1))
    store.add(job(3), b"kills")
    store.save(job(3, state=RUNNING, starts=MAX_STARTS))
    store.add(job(4), b"done")
    store.end(job(4, starts=1), SUCCEEDED, 200, b"answer")
    half = tmp_path / ".new-0123abcd-x"
    half.mkdir()

    async def send(one: Job, body: bytes) -> tuple[int, bytes]:
        sent.append(body)
        return 200, b"now"

    async def test() -> None:
        runner = JobRunner(JobStore(tmp_path, 10, MIB, 60), send, 1)
        runner.start()
        first, second, deadly, done = await until_ended(store, 1, 2, 3, 4)
        assert sent == [b"ran", b"waited"] and not half.exists()
        assert (first.state, first.starts, first.started_s) == (SUCCEEDED, 2, 1.5)
        assert (second.state, second.starts, store.answer(second)) == (SUCCEEDED, 1, b"now")
        assert deadly.state == FAILED and b"ended 4 times" in store.answer(deadly)
        assert store.answer(done) == b"answer"
        await runner.submit(job(1), b"a second try of the same submission")
        await asyncio.sleep(0.05)
        assert len(sent) == 2
        await runner.close(remove=True)
        assert not tmp_path.exists()

    run(test)


def test_a_successor_waits_and_jobs_put_back_are_not_counted(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def hang(one: Job, body: bytes) -> tuple[int, bytes]:
        started.set()
        await asyncio.Future()
        raise AssertionError

    async def send(one: Job, body: bytes) -> tuple[int, bytes]:
        return 200, b""

    async def test() -> None:
        store = JobStore(tmp_path, 10, MIB, 60)
        old, new = JobRunner(store, hang, 1), JobRunner(store, send, 1)
        await old.submit(job(1), b"")
        await started.wait()
        await new.submit(job(2), b"")
        await asyncio.sleep(0.3)
        assert [one.state for one in store.unfinished()] == [RUNNING, QUEUED]
        await old.close()
        assert [one.starts for one in await until_ended(store, 1, 2)] == [1, 1]
        new.check()
        await new.close()
        with pytest.raises(RuntimeError, match="has ended"):
            new.check()

    run(test)


def test_so_many_run_at_a_time_and_a_503_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = most = tries = 0

    async def send(one: Job, body: bytes) -> tuple[int, bytes]:
        nonlocal now, most, tries
        now, tries = now + 1, tries + 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1
        if body == b"bug":
            raise ZeroDivisionError
        late = body == b"never" or (body == b"busy" and tries < 8)
        return (503, b'{"detail": "Busy."}') if late else (200, b"")

    async def test() -> None:
        store = JobStore(tmp_path, 10, MIB, 60)
        runner = JobRunner(store, send, 2)
        for number in range(4):
            store.add(job(number), b"")
        runner.start()
        await until_ended(store, 0, 1, 2, 3)
        assert most == 2
        for number, body in ((4, b"bug"), (5, b"busy")):
            await runner.submit(job(number), body)
        bug, busy = await until_ended(store, 4, 5)
        assert (bug.state, bug.status, busy.state) == (FAILED, 500, SUCCEEDED)
        monkeypatch.setattr(job_runner, "PATIENCE_S", 0.0)
        await runner.submit(job(6), b"never")
        [never] = await until_ended(store, 6)
        assert (never.state, never.status) == (FAILED, 500) and b"Busy." in store.answer(never)
        await runner.close()

    run(test)


CLIP = ["iVBORw0KGgo="]
MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("score", {}),
    ("score", {"json": {}}),
    ("score", {"json": []}),
    ("score", {"json": {"frames_base64": CLIP}}),
    ("score", {"json": {"task": "task"}}),
    ("score", {"json": {"task": "task", "frames_base64": []}}),
    ("score", {"json": {"task": "task", "frames_base64": [1]}}),
    ("score", {"json": {"task": "task", "url": "https://example.com/a.mp4"}}),
    ("score", {"json": {"task": "task", "frames_base64": CLIP, "mode": "half"}}),
    ("score", {"json": {"task": "task", "frames_base64": CLIP, "more": 1}}),
    ("score", {"data": {"task": "task", "video": "text"}, "files": {"more": ("v.mp4", b"")}}),
    ("score", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("score", {"content": b"{}", "headers": {"content-type": "application/json", "content-encoding": "gzip"}}),
    ("compare", {"json": {"task": "task", "frames_base64_a": CLIP}}),
    ("compare", {"json": {"task": "task", "frames_base64_0": CLIP}}),
    ("compare", {"json": {"task": 1, "frames_base64_0": CLIP, "frames_base64_1": CLIP}}),
    ("compare", {"json": {"task": "task", "frames_base64_0": CLIP, "frames_base64_1": "no list"}}),
    ("scores", {"json": {"task": "task"}}),
    ("scores", {"json": {"task": "task", "frames_base64_1": CLIP}}),
    ("scores", {"json": {"task": "task", "frames_base64_0": CLIP, "fps": -1}}),
    ("rank", {"json": {"frames_base64_0": CLIP}}),
    ("rank", {"json": {"task": "task", "task_0": "own", "frames_base64_0": CLIP}}),
]


@pytest.mark.parametrize(("kind", "body"), MALFORMED)
def test_a_malformed_body_is_refused_and_becomes_no_job(kind: str, body: dict[str, Any], tmp_path: Path) -> None:
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs") as url, httpx.Client(base_url=url) as http:
        at_once, as_job = http.post(f"/v1/{kind}", **body), http.post(f"/v1/jobs/{kind}", **body)
        assert as_job.status_code in (400, 415, 422)
        assert (as_job.status_code, as_job.json()["detail"]) == (at_once.status_code, at_once.json()["detail"])
        responses = http.get("/openapi.json").json()["paths"][f"/v1/jobs/{kind}"]["post"]["responses"]
        assert str(as_job.status_code) in responses
    assert not list((tmp_path / "jobs").glob("*/request"))


def test_a_wrong_method_is_told_the_right_ones(tmp_path: Path) -> None:
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs") as url, httpx.Client(base_url=url) as http:
        for path in ("/v1/jobs/" + "a" * 32, "/v1/sessions/abc"):
            wrong = http.put(path)
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET")
        assert http.put("/v1/score").headers["allow"] == "POST"


def test_bodies_and_answers_of_all_jobs_are_bounded(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 10, 3000, 60)
    assert store.add(job(1), bytes(1000)) == job(1) and store.add(job(2), bytes(1000)) == job(2)
    assert store.add(job(3), bytes(1000)) is NoRoom.FULL  # what is known of the jobs takes some bytes too
    store.end(job(1), "succeeded", 200, b"short")  # and gives its body back
    assert store.add(job(3), bytes(1000)) == job(3) and store.add(job(4), bytes(1000)) is NoRoom.FULL


def test_the_job_that_ended_first_makes_room_and_one_that_has_not_ended_never(tmp_path: Path) -> None:
    now = 0.0
    store = JobStore(tmp_path, 3, 4000, 3600, clock=lambda: now)
    for number in (1, 2, 3):
        store.add(job(number), b"")
    for number in (2, 1):
        now += 10
        store.end(job(number), SUCCEEDED, 200, bytes(1000))
    now = 69.9
    assert store.add(job(4), b"") is NoRoom.FULL, "2 ended less than a minute ago"
    now = 80.0
    assert store.add(job(4), bytes(4000)) is NoRoom.FULL and store.find(job(2).job_id), (
        "nothing goes for what fits never"
    )
    assert store.add(job(4), b"") == job(4) and store.find(job(1).job_id) and store.find(job(2).job_id) is None
    now = 1000.0
    assert store.add(job(5), bytes(2600)) == job(5) and store.find(job(1).job_id) is None
    assert store.add(job(6), b"") is NoRoom.FULL and [one.job_id[-1] for one in store.unfinished()] == ["3", "4", "5"]


def test_a_token_keeps_no_more_jobs_than_its_limit(tmp_path: Path) -> None:
    now = 0.0
    store = JobStore(tmp_path / "store", 4, MIB, 3600, clock=lambda: now)
    assert store.add(job(1), b"", 2) == job(1) and store.add(job(2), b"", 2) == job(2)
    assert store.add(job(3), b"", 2) is NoRoom.LIMIT and store.add(job(2), b"", 2) == job(2)
    other = job(4, owner="you")
    assert store.add(other, b"", 1) == other
    store.end(other, SUCCEEDED)
    now = 60.0
    assert store.add(job(3), b"", 2) is NoRoom.LIMIT and store.find(other.job_id), "others make no room for it"
    store.end(job(2), SUCCEEDED)
    assert store.add(job(3), b"", 2) is NoRoom.LIMIT
    now = 120.0
    assert store.add(job(3), b"", 2) == job(3) and store.find(job(2).job_id) is None
    tokens = tmp_path / "tokens.yaml"
    few = {"Authorization": f"Bearer {add_token(tokens, 'few', TokenLimits(kept_jobs=1))}"}
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs", token_file=str(tokens)) as url:
        first, refused = post(url, "/v1/jobs/score", **few), post(url, "/v1/jobs/score", **few)
        assert (first.status_code, refused.status_code, refused.headers["retry-after"]) == (202, 429, "10")
        assert refused.json()["error"] == "The token few has 1 jobs, which is its limit. Delete one."


def test_a_tokens_limit_holds_for_jobs_that_come_at_once(tmp_path: Path) -> None:
    store = JobStore(tmp_path, 100, 100 * MIB, 3600)
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda number: store.add(job(number), bytes(MIB), 1), range(1, 9)))
    assert sorted(str(one) for one in added if isinstance(one, NoRoom)) == [str(NoRoom.LIMIT)] * 7


def test_an_upload_that_the_proxy_sends_again_is_one_job(tmp_path: Path) -> None:
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs") as url:
        kept = JobStore(tmp_path / "jobs", 9, MIB, 60)
        ids = {post(url, "/v1/jobs/score").json()["id"] for _ in range(2)}
        assert len(ids) == 2 and kept.count() == 2
    request = Request({"type": "http", "path": "/v1/jobs/score", "query_string": b"", "state": {}, "server": ("x", 1)})
    request.scope["headers"] = [(b"x-robometer-front", b"a" * 32)]
    request.scope["state"] |= {"request_id": "r", "client": Client("me")}
    assert _job(request).job_id == _job(request).job_id == "a" * 32


def test_jobs_are_not_lost_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def end(folder: Path, *jobs: Job) -> str:
        store = JobStore(folder, 3, MIB, 60)
        for one in jobs:
            store.add(one, b"")
        caplog.clear()
        await JobRunner(store, lambda one, body: asyncio.Future(), 1).close(remove=True)
        assert not folder.exists()
        return caplog.text

    assert asyncio.run(end(tmp_path / "empty")) == ""
    told = asyncio.run(end(tmp_path / "full", job(1), job(2)))
    assert "2 jobs, with those that have ended, are lost" in told and "serve.jobs_folder" in told


def test_a_result_that_makes_room_is_missing_and_no_failure(tmp_path: Path) -> None:
    async def test() -> None:
        store = JobStore(tmp_path, 3, MIB, 60)
        store.add(job(1), b"")
        store.end(job(1), SUCCEEDED, 200, b"answer")
        (tmp_path / job(1).job_id / "answer").unlink()  # its folder is being removed
        assert await JobRunner(store, lambda one, body: asyncio.Future(), 1).answer(job(1).job_id, "me") is None

    run(test)


def test_ended_jobs_expire_and_make_room(tmp_path: Path) -> None:
    now = 0.0
    store = JobStore(tmp_path, 2, MIB, 60, clock=lambda: now)
    store.add(job(1), b"")
    store.add(job(2), b"")
    store.end(job(1), CANCELLED)
    now = 59.0
    assert store.add(job(3), b"") is NoRoom.FULL and store.find(job(1).job_id) is not None
    now = 60.0
    assert store.find(job(1).job_id) is None
    assert store.add(job(3), b"") == job(3)
    assert {path.name for path in tmp_path.iterdir()} == {job(2).job_id, job(3).job_id}
    (tmp_path / job(2).job_id / "job.json").write_text("[]")
    assert store.find(job(2).job_id) is None and store.unfinished() == [job(3)]
