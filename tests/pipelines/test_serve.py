"""The endpoint on a real Ray Serve over HTTP: answers, batches, refusals, and replicas that die."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import grpc
import httpx
import numpy as np
import pytest
import ray
from ray import serve

from benchmarks.rollout import make_checkpoint
from benchmarks.serving import measure
from pipelines.serve import _warn_of_lost_jobs, start, stop, token_of
from pipelines.serving.calls import SHARED_BYTES
from robometer.baselines.trivial import FrameDifference
from robometer.client import RemoteScorer, ScoringError
from robometer.configs import Config, ConfigError, load
from robometer.errors import InputError
from robometer.frames import FrameSettings
from robometer.scorers import load_scorer
from robometer.scoring import Clip, ClipScore, Scorer, ScorerInfo, score_prefixes
from robometer.sessions import score_as_session
from tests.made_scorer import Made
from tests.relabel_client import request as relabel_request
from tests.relabel_client import stub, values
from tests.test_scoring_threads import ensemble

TOKEN = "a token of this test"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
MAX_BYTES = 12_000_000
TASK = "open the drawer"


class Fussy(FrameDifference):
    """A slow scorer that refuses some tasks and fails on others."""

    name = "frame_difference@abc123"
    info = ScorerInfo(provenance={"corpus": "none"})

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.pause_s = pause_s

    def score(self, clips: list[Clip]) -> list[ClipScore]:  # type: ignore[override]
        time.sleep(2.0 if any(clip.task == "long" for clip in clips) else self.pause_s)
        if any(clip.task == "refuse" for clip in clips):
            raise InputError("this task is refused")
        if any(clip.task == "stumble" for clip in clips):
            raise ValueError("secret detail of the model")
        if any(clip.task == "no number" for clip in clips):
            return [ClipScore(np.full(len(clip), np.nan), np.zeros(len(clip))) for clip in clips]
        if any(clip.task == "fail" for clip in clips):
            raise RuntimeError("secret detail of the model")
        return super().score(clips)


def load_fussy(word: str) -> Scorer:
    return Fussy(0.05)


def load_named(word: str) -> Scorer:
    scorer = Fussy(0.05)
    scorer.name = word
    return scorer


def load_slow(word: str) -> Scorer:
    return Fussy(1.0)


def load_ensemble(word: str) -> Scorer:
    """A real model, which fails on one task."""
    scorer: Any = ensemble()
    score = scorer.score

    def fails(clips: list[Clip]) -> list[ClipScore]:
        if any(clip.task == "fail" for clip in clips):
            raise RuntimeError
        return list(score(clips))

    scorer.score = fails
    return scorer  # type: ignore[no-any-return]


def load_late(word: str) -> Scorer:
    """A model that takes its time to load, and says in the file `word` when it has."""
    time.sleep(4)
    Path(word).write_text(str(time.time()))
    return Fussy(0.05)


def load_broken(word: str) -> Scorer:
    raise ConfigError(f"{word} is not a checkpoint folder")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config_with(*overrides: str) -> Config:
    defaults = ("serve.max_jobs=0", f"serve.token='{TOKEN}'", f"serve.max_upload_bytes={MAX_BYTES}")
    return load([*defaults, *overrides])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def url(ray_local: None, port: int, grpc_port: int) -> Iterator[str]:
    config = config_with(
        f"serve.port={port}",
        f"serve.grpc_port={grpc_port}",
        "serve.max_source_frames=200",
        "serve.max_source_pixels=90000",
        "serve.max_jobs=10",
    )
    yield start(config, Made(load_fussy))
    stop()


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=AUTH, timeout=60) as client:
        yield client


def frames_of(num_frames: int, seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright square that moves over noise."""
    frames = np.random.default_rng(seed).integers(0, 40, (num_frames, height, width, 3), dtype=np.uint8)
    for t in range(num_frames):
        frames[t, 10:20, 2 + t : 12 + t] = 250
    return frames


def npy(frames: np.ndarray, **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, frames, **kwargs)
    return stream.getvalue()


def mp4(frames: np.ndarray, fps: int = 10) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
    return stream.getvalue()


def png64(frame: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", frame[..., ::-1])[1].tobytes()).decode()


def post_frames(http: httpx.Client, body: bytes, task: str | None = TASK, **headers: str) -> httpx.Response:
    data = {} if task is None else {"task": task}
    return http.post("/v1/score", data=data, files={"frames": ("frames.npy", body)}, headers=headers)


def post_video(http: httpx.Client, body: bytes) -> httpx.Response:
    return http.post("/v1/score", data={"task": TASK}, files={"video": ("clip.mp4", body)})


def refusal(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal, after checking its form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "error", "request_id"}
    assert response.headers["content-type"] == "application/problem+json" and body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    error = body["error"]
    assert error == body["detail"] and error and "\n" not in error and "Traceback" not in error
    return str(error)


def test_the_page_and_the_frames_come_through_the_proxy(http: httpx.Client, url: str) -> None:
    page = httpx.get(url)
    assert page.status_code == 200 and "<title>Robometer</title>" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    frames = frames_of(40)  # more than one chunk of an answer
    answer = http.post("/v1/frames", files={"frames": ("frames.npy", npy(frames))})
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), frames)
    assert json.loads(answer.headers["x-robometer-frames"]) == {"frame_index": list(range(40)), "fps": None}


def test_an_answer_larger_than_rays_grpc_takes_comes_whole(http: httpx.Client) -> None:
    """The state of a session with 7 MB of tasks, which a request without a body asks for."""
    tasks = [2000 * "\N{ROBOT FACE}"] * 900
    opened = http.post("/v1/sessions", json={"tasks": tasks}).json()
    answer = http.get(f"/v1/sessions/{opened['session_id']}")
    assert answer.status_code == 200 and answer.json()["tasks"] == tasks and len(answer.content) > 2**22
    assert http.delete(f"/v1/sessions/{opened['session_id']}").status_code == 204


def test_video_is_thinned_and_scored_per_frame(http: httpx.Client) -> None:
    response = post_video(http, mp4(frames_of(40)))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["num_frames"] == len(answer["progress"]) == len(answer["success"]) == 32
    assert answer["frame_index"][0] == 0 and answer["frame_index"][-1] == 39
    assert answer["fps"] == 10.0
    assert answer["reward"] == answer["progress"][-1]
    assert answer["model"] == {"name": "frame_difference@abc123", "revision": "abc123"}
    assert answer["task"] == TASK


def test_many_clips_in_one_request_get_their_own_answers(http: httpx.Client) -> None:
    clips = {f"frames_{i}": frames_of(2 + i, seed=i) for i in range(10)}
    files = {name: npy(frames) for name, frames in clips.items()} | {"frames_10": b"no array"}
    texts = {"task": TASK, "task_3": "stumble"}
    answers = http.post("/v1/scores", data=texts, files=files).json()["clips"]
    assert [number for number, answer in enumerate(answers) if "error" in answer] == [3, 10]
    assert [answers[number]["error"]["status"] for number in (3, 10)] == [500, 422]
    scored = [answer["progress"] for answer in answers if "error" not in answer]
    expected = FrameDifference().score([Clip(clips[f"frames_{i}"], TASK) for i in range(10) if i != 3])
    for progress, score in zip(scored, expected, strict=True):
        np.testing.assert_array_equal(np.float32(progress), score.progress)
    some = {name: files[name] for name in ("frames_0", "frames_1", "frames_2")}
    ranking, standings = (
        http.post(f"/v1/{route}", data={"task": TASK}, files=some).json() for route in ("rank", "compare")
    )
    assert sorted(ranking["order"]) == sorted(standings["order"]) == [0, 1, 2]


def test_frames_give_the_numbers_of_the_scorer_in_this_process(http: httpx.Client) -> None:
    frames = frames_of(9)
    expected = FrameDifference().score([Clip(frames, TASK)])[0]
    answer = post_frames(http, npy(frames)).json()
    assert answer["progress"] == expected.progress.tolist()
    assert answer["frame_index"] == list(range(9)) and answer["fps"] is None


@pytest.mark.parametrize("height", [145, 147])
def test_requests_on_both_sides_of_the_size_that_goes_through_shared_memory_get_their_answers(
    http: httpx.Client, height: int
) -> None:
    with ThreadPoolExecutor(4) as pool:
        clips = [frames_of(8, seed, height, 300) for seed in range(8)]
        answers = list(pool.map(lambda frames: post_frames(http, npy(frames)).json(), clips))
    for frames, answer in zip(clips, answers, strict=True):
        assert (frames.nbytes > SHARED_BYTES) == (height == 147)
        assert answer["progress"] == FrameDifference().score([Clip(frames, TASK)])[0].progress.tolist()


@pytest.mark.parametrize("num_frames", [2, 200])
def test_what_works_for_a_client_that_leaves_stops(http: httpx.Client, num_frames: int) -> None:
    """Whether its request went through shared memory or not. The model takes two seconds for this task."""
    frames = frames_of(num_frames, 0, 48, 64)
    assert (frames.nbytes > SHARED_BYTES) == (num_frames > 2)
    with pytest.raises(httpx.ReadTimeout):  # else nothing was under way
        form = {"data": {"task": "long"}, "files": {"frames": ("frames.npy", npy(frames))}}
        httpx.post(http.base_url.join("/v1/score"), headers=AUTH, timeout=httpx.Timeout(30, read=0.5), **form)  # type: ignore[arg-type]
    assert nothing_is_in_flight(http, 1.0)


def nothing_is_in_flight(http: httpx.Client, within_s: float) -> bool:
    """Whether no upload is being served at some time in these seconds."""
    ends_s = time.monotonic() + within_s
    while metric_samples(http)["robometer_in_flight"] > 0:
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.02)
    return True


def test_json_images_give_the_same_numbers_as_npy(http: httpx.Client) -> None:
    frames = frames_of(5)
    answer = http.post("/v1/score", json={"task": TASK, "frames_base64": [png64(frame) for frame in frames]}).json()
    assert answer["progress"] == post_frames(http, npy(frames)).json()["progress"]


def test_compare_prefers_the_clip_that_moved_and_its_mirror_agrees(http: httpx.Client) -> None:
    moving, still = mp4(frames_of(30)), mp4(np.repeat(frames_of(1), 30, axis=0))
    one = http.post("/v1/compare", data={"task": TASK}, files={"video_a": moving, "video_b": still}).json()
    two = http.post("/v1/compare", data={"task": TASK}, files={"video_a": still, "video_b": moving}).json()
    assert one["preferred"] == "a" and two["preferred"] == "b"
    assert one["probability_a_better"] == pytest.approx(1 - two["probability_a_better"], abs=1e-6)
    images = [png64(frame) for frame in frames_of(3)]
    tied = http.post("/v1/compare", json={"task": TASK, "frames_base64_a": images, "frames_base64_b": images}).json()
    assert tied["probability_a_better"] == 0.5


def test_remote_scorer_equals_the_scorer_in_this_process(url: str) -> None:
    clips = [Clip(frames_of(4 + i, seed=i), f"task {i}") for i in range(6)]
    pairs = list(zip(clips[:3], clips[3:], strict=True))
    local = FrameDifference()
    with RemoteScorer(url, TOKEN) as remote:
        assert isinstance(remote, Scorer) and remote.name == "frame_difference@abc123"
        assert (remote.info.revision, remote.info.provenance) == ("abc123", {"corpus": "none"})
        for got, expected in zip(remote.score(clips), local.score(clips), strict=True):
            np.testing.assert_array_equal(got.progress, expected.progress)
            np.testing.assert_array_equal(got.success, expected.success)
        np.testing.assert_array_equal(remote.compare(pairs), local.compare(pairs))
        session, reference = remote.open_session(TASK), local.open_session(TASK)
        for frame in clips[0].frames:
            assert session.push(frame) == reference.push(frame)


def test_grpc_gives_the_numbers_of_the_remote_scorer_and_has_the_limits_of_http(
    url: str, grpc_port: int, http: httpx.Client
) -> None:
    client, auth = stub(f"127.0.0.1:{grpc_port}"), (("authorization", f"Bearer {TOKEN}"),)
    frames = frames_of(6)
    with RemoteScorer(url, TOKEN) as remote:
        [expected] = remote.score_prefixes([Clip(frames, TASK)])
    message = relabel_request({"observation/image": frames}, TASK, batch_start_idx=2)
    response = client.RelabelRewards(message, metadata=auth, timeout=60)
    np.testing.assert_allclose(values(response, "observation/image")[0], expected.progress[2:], atol=1e-5)
    np.testing.assert_allclose(values(response, "observation/image")[1], expected.success[2:], atol=1e-5)
    assert list(client.StreamRelabelRewards(iter([message] * 2), metadata=auth, timeout=60)) == [response] * 2
    for refused, metadata, code in (
        (message, (), grpc.StatusCode.UNAUTHENTICATED),
        (relabel_request({"image": frames_of(4, 0, 1000, 1000)}), auth, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (relabel_request({"image": frames}, "fail"), auth, grpc.StatusCode.INTERNAL),
    ):
        with pytest.raises(grpc.RpcError) as error:
            client.RelabelRewards(refused, metadata=metadata, timeout=60)
        assert error.value.code() == code and "secret" not in error.value.details()
    given_up = client.StreamRelabelRewards(iter([message] * 100), metadata=auth, timeout=60)
    next(given_up)
    given_up.cancel()
    assert nothing_is_in_flight(http, 1.0)
    with pytest.raises(ConnectionRefusedError):  # Ray's own server would listen at every address
        socket.create_connection(("127.0.0.2", grpc_port), timeout=5)


def test_many_samples_of_a_public_client_get_their_own_rows(http: httpx.Client) -> None:
    """64 clips of unequal length, three such requests at a time, and a client of /v1 beside them."""
    clips = [Clip(frames_of(1 + i % 5, seed=i), f"task {i}") for i in range(64)]
    expected = [score.progress.tolist() for score in FrameDifference().score(clips)]
    form, files = {"use_frame_steps": "false"}, {}
    for i, clip in enumerate(clips):
        trajectory = {"frames": {"__numpy_file__": f"frames_{i}"}, "task": clip.task, "id": "0"}
        form[f"sample_{i}"] = json.dumps({"sample_type": "progress", "trajectory": trajectory})
        files[f"frames_{i}"] = ("frames.npy", npy(clip.frames))
    before = metric_samples(http)
    with ThreadPoolExecutor(4) as pool:
        whole = [pool.submit(http.post, "/evaluate_batch_npy", data=form, files=files) for _ in range(3)]
        alone = [pool.submit(post_frames, http, npy(clips[4].frames)) for _ in range(8)]
        assert [request.result().status_code for request in alone] == [200] * 8
        for request in whole:
            assert request.result().json()["outputs_progress"]["progress_pred"] == expected
    after = metric_samples(http)
    assert after["robometer_batch_size_sum"] - before["robometer_batch_size_sum"] == 3 * 64 + 8
    assert after["robometer_batch_size_count"] - before["robometer_batch_size_count"] < 100
    info = http.get("/model_info").json()
    assert info["model_path"] == "outputs/train/best" and info["name"] == "frame_difference@abc123"


def test_concurrent_requests_share_forward_passes(http: httpx.Client) -> None:
    before = metric_samples(http)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: post_frames(http, npy(frames_of(4 + i % 5, seed=i))), range(64)))
    assert [answer.status_code for answer in answers] == [200] * 64
    for i, answer in enumerate(answers):
        expected = FrameDifference().score([Clip(frames_of(4 + i % 5, seed=i), TASK)])[0]
        assert answer.json()["progress"] == expected.progress.tolist()
    after = metric_samples(http)
    batches = after["robometer_batch_size_count"] - before["robometer_batch_size_count"]
    requests = after["robometer_batch_size_sum"] - before["robometer_batch_size_sum"]
    assert requests == 64
    assert batches < 48


def metric_samples(http: httpx.Client) -> dict[str, float]:
    """Values of the metrics that have no label but the replica's."""
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if line.count('="') == 1}


def test_metrics_count_routes_and_statuses(http: httpx.Client) -> None:
    http.get("/no/such/route")
    post_frames(http, b"junk")
    text = http.get("/metrics").text
    assert 'route="other",status="404"' in text
    assert 'route="/v1/score",status="422"' in text
    assert 'robometer_request_seconds_bucket{le="+Inf"' in text
    assert metric_samples(http)["robometer_in_flight"] == 0


def test_health_is_open_and_everything_else_wants_the_token(url: str) -> None:
    with httpx.Client(base_url=url) as anonymous:
        assert anonymous.get("/health").json() == {"status": "healthy", "available_gpus": 0, "total_gpus": 0}
        for route in ("/ready", "/metrics", "/v1/model", "/model_info", "/gpu_status"):
            assert "bearer token is required" in refusal(anonymous.get(route), 401)
        wrong = post_frames(anonymous, npy(frames_of(2)), Authorization="Bearer guess")
        assert "not the one" in refusal(wrong, 401)
        assert wrong.headers["www-authenticate"] == "Bearer"
    with pytest.raises(ScoringError, match="answered 401: A bearer token is required"):
        RemoteScorer(url)


def test_ready_and_model_describe_the_model(http: httpx.Client) -> None:
    assert http.get("/ready").json() == {"status": "ready"}
    model = http.get("/v1/model").json()
    assert model["name"] == "frame_difference@abc123" and model["provenance"] == {"corpus": "none"}
    assert model["limits"]["max_upload_bytes"] == MAX_BYTES and model["frames"] == FrameSettings().as_dict()


def test_request_id_is_echoed_or_made(http: httpx.Client) -> None:
    answer = http.get("/health", headers={"x-request-id": "trace-42"})
    assert answer.headers.get_list("x-request-id") == ["trace-42"]
    assert len(http.get("/health").headers["x-request-id"]) >= 32
    scored = post_frames(http, npy(frames_of(2)), **{"x-request-id": "trace-43"})
    assert scored.json()["request_id"] == scored.headers["x-request-id"] == "trace-43"


def test_openapi_describes_bodies_and_refusals(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    route = schema["paths"]["/v1/score"]["post"]
    assert set(route["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"400", "401", "413", "415", "422", "503"} <= set(route["responses"])
    compare = schema["paths"]["/v1/compare"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"task", "video_a", "video_b", "frames_a", "frames_b", "url_a", "url_b"} == set(compare["properties"])
    assert "swagger" in http.get("/docs").text


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "is empty"),
        (b"not an array", "not a .npy file"),
        (npy(np.zeros((2, 8, 8, 3), np.float32)), r"must hold uint8 .* not float32"),
        (npy(np.zeros((8, 8, 3), np.uint8)), "must hold uint8"),
        (npy(np.zeros((2, 8, 8, 4), np.uint8)), "must hold uint8"),
        (npy(np.zeros((0, 8, 8, 3), np.uint8)), "holds no frames"),
        (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "must hold an array of numbers, not object"),
        (npy(np.zeros((2, 8, 8, 3), np.uint8))[:-5], "cut short"),
    ],
    ids=["empty", "text", "float", "3d", "rgba", "no frames", "pickle", "truncated"],
)
def test_malformed_frames_are_refused(http: httpx.Client, body: bytes, sentence: str) -> None:
    assert re.search(sentence, refusal(post_frames(http, body), 422))


def test_header_that_announces_a_huge_array_is_refused_before_it_is_allocated(http: httpx.Client) -> None:
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (100, 300, 300, 3)}
    np.lib.format.write_array_header_1_0(stream, header)
    assert "cut short" in refusal(post_frames(http, stream.getvalue()), 422)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header | {"shape": (2, 10**6, 10**6, 3)})
    assert "pixels" in refusal(post_frames(http, stream.getvalue()), 413)


def test_malformed_requests_are_refused(http: httpx.Client) -> None:
    good = npy(frames_of(2))
    for task in (None, "", "   "):
        assert "'task' is missing" in refusal(post_frames(http, good, task), 422)
    assert "characters" in refusal(post_frames(http, good, "x" * 3000), 422)
    assert "exactly one" in refusal(http.post("/v1/score", files={"task": (None, TASK)}), 422)
    both = {"frames": ("f.npy", good), "video": ("v.mp4", good)}
    assert "exactly one" in refusal(http.post("/v1/score", data={"task": TASK}, files=both), 422)
    assert "Unknown field 'film'" in refusal(
        http.post("/v1/score", data={"task": TASK}, files={"film": ("f", good)}), 422
    )
    text = {"task": (None, TASK), "frames": (None, "no file")}
    assert "must be a file part" in refusal(http.post("/v1/score", files=text), 422)
    plain = http.post("/v1/score", content=b"hello", headers={"content-type": "text/plain"})
    assert "not supported" in refusal(plain, 415)
    broken = http.post("/v1/score", content=b"hello", headers={"content-type": "multipart/form-data; boundary=x"})
    assert refusal(broken, 400 if broken.status_code == 400 else 422)
    assert refusal(http.get("/v1/score"), 405) and refusal(http.get("/nothing"), 404)


def test_malformed_json_is_refused(http: httpx.Client) -> None:
    def post(content: bytes) -> httpx.Response:
        return http.post("/v1/score", content=content, headers={"content-type": "application/json"})

    for body in (b"{", b"\xff\xfe", b"[" * 1000):
        assert "not JSON" in refusal(post(body), 400)
    image = png64(frames_of(1)[0])
    other = png64(frames_of(1, height=32)[0])
    for value, sentence in (
        ([], "must be an object"),
        ({"task": TASK}, "must be a list"),
        ({"task": TASK, "frames_base64": []}, "must be a list"),
        ({"task": TASK, "frames_base64": [1]}, "must be a list"),
        ({"task": TASK, "frames_base64": ["!!"]}, "not a base64 JPEG or PNG"),
        ({"task": TASK, "frames_base64": [base64.b64encode(b"GIF89a").decode()]}, "not a base64 JPEG or PNG"),
        ({"task": TASK, "frames_base64": [image, image[: len(image) // 2 // 4 * 4]]}, "damaged"),
        ({"task": TASK, "frames_base64": [image, other]}, "different sizes"),
        ({"task": 5, "frames_base64": [image]}, "'task' is missing"),
    ):
        assert sentence in refusal(post(json.dumps(value).encode()), 422)


def test_malformed_videos_are_refused(http: httpx.Client) -> None:
    good = mp4(frames_of(30))
    assert "is empty" in refusal(post_video(http, b""), 422)
    assert "not a video" in refusal(post_video(http, b"hello"), 415)
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"
    assert "not a video" in refusal(post_video(http, playlist), 415)
    assert "cannot be decoded as a video" in refusal(post_video(http, good[: len(good) // 2]), 415)


def test_large_requests_are_refused(http: httpx.Client) -> None:
    assert "max_upload_bytes" in refusal(post_frames(http, b"x" * (MAX_BYTES + 1)), 413)

    def endless() -> Iterator[bytes]:
        for _ in range(140):
            yield b"x" * 100_000

    chunked = http.post("/v1/score", content=endless(), headers={"content-type": "application/json"})
    assert "max_upload_bytes" in refusal(chunked, 413)
    assert "201 frames; the limit is 200" in refusal(post_frames(http, npy(np.zeros((201, 8, 8, 3), np.uint8))), 413)
    assert "pixels" in refusal(post_frames(http, npy(np.zeros((1, 301, 300, 3), np.uint8))), 413)
    assert "201 frames, more than" in refusal(post_video(http, mp4(np.zeros((201, 32, 32, 3), np.uint8))), 413)
    assert "pixels" in refusal(post_video(http, mp4(np.zeros((2, 302, 300, 3), np.uint8))), 413)
    wide = mp4(np.zeros((30, 16, 5000, 3), np.uint8))
    assert "decodes to" in refusal(post_video(http, wide), 413)
    bomb = {"task": TASK, "frames_base64": [png64(np.zeros((300, 300, 3), np.uint8))] * 60}
    assert "decode to" in refusal(http.post("/v1/score", json=bomb), 413)


def test_client_refuses_to_send_what_the_endpoint_will_not_take(url: str) -> None:
    with RemoteScorer(url, TOKEN) as remote, pytest.raises(ScoringError, match="are more than"):
        remote.score([Clip(np.zeros((200, 150, 150, 3), np.uint8), TASK)])


def test_one_bad_job_fails_alone_in_its_batch(http: httpx.Client) -> None:
    faults = {3: "refuse", 5: "fail", 7: "stumble", 9: "no number"}
    tasks = [faults.get(i, TASK) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda task: post_frames(http, npy(frames_of(3)), task), tasks))
    assert refusal(answers[3], 422) == "This task is refused."
    for i, error in (
        (5, "RuntimeError"),
        (7, "ValueError"),
        (9, "ArithmeticError"),
    ):  # the model's own: its input is fine
        assert refusal(answers[i], 500) == f"The model failed on this input ({error})."
    assert [a.status_code for i, a in enumerate(answers) if i not in faults] == [200] * 8


def test_requests_outlive_the_replica_that_held_them(http: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        pending = [pool.submit(post_frames, http, npy(frames_of(4, seed=i))) for i in range(96)]
        time.sleep(0.15)
        kill("#Model#")
        statuses = [answer.result().status_code for answer in pending]
    assert statuses == [200] * 96


def test_requests_outlive_the_ingress_that_held_them(http: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        pending = [pool.submit(post_frames, http, npy(frames_of(4, seed=i))) for i in range(48)]
        time.sleep(0.15)
        kill("#Ingress#")
        answers = [answer.result() for answer in pending]
    assert [answer.status_code for answer in answers] == [200] * 48
    for i, answer in enumerate(answers):
        expected = FrameDifference().score([Clip(frames_of(4, seed=i), TASK)])[0]
        assert answer.json()["progress"] == expected.progress.tolist()


@pytest.mark.slow
def test_jobs_outlive_every_replica(url: str) -> None:
    """Of the model, of the ingress and of the jobs themselves, all of which end while a job runs and another waits."""
    first, second = (mp4(frames_of(30, seed=i)) for i in range(2))
    with RemoteScorer(url, TOKEN) as remote:
        running, waiting = remote.submit_video(first, "long"), remote.submit_video(second, TASK)
        while running.state().state == "queued":
            time.sleep(0.05)
        assert waiting.state().state == "queued"
        for deployment in ("#Model#", "#Ingress#", "#Jobs#"):
            kill(deployment)
        for job, video in ((running, first), (waiting, second)):
            score = remote.score_video(video, TASK)
            np.testing.assert_array_equal(job.result(timeout_s=120).progress, score.progress)
        assert (running.state().starts, waiting.state().starts) == (2, 1)


@pytest.mark.slow
def test_kills_and_an_end_under_load_lose_nothing() -> None:
    for outcomes, _ in measure(phase_s=8).values():
        assert outcomes["200"] > 0 and not [outcome for outcome in outcomes if "LOST" in outcome]


def test_a_taken_port_is_told_before_ray_starts() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        command = [sys.executable, "-m", "jobs.serve", f"serve.port={listener.getsockname()[1]}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    first, *others = ended.stderr.splitlines()
    assert "Starting an endpoint at 127.0.0.1" in first
    assert others[-1].startswith("error: cannot listen at 127.0.0.1") and "Starting Ray" not in ended.stderr


def kill(deployment: str) -> None:
    """Kill one replica."""
    first = replicas_of(deployment)[0]
    ray.kill(ray.get_actor(first["name"], namespace=first["namespace"]))


def replicas_of(deployment: str) -> list[dict[str, str]]:
    """Names of the actors of a deployment, with those that end."""
    return [entry for entry in ray.util.list_named_actors(all_namespaces=True) if deployment in entry["name"]]


def test_a_serve_that_listens_elsewhere_or_is_taken_is_one_sentence(
    http: httpx.Client, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"does not answer at http://127.0.0.1:.* set serve.host, serve.port and"):
        start(config_with(f"serve.port={free_port()}"), Made(load_fussy))
    monkeypatch.setattr("pipelines.serve.APP_NAME", "another")
    with pytest.raises(ConfigError, match=r"did not start: .*is being used by application .robometer."):
        start(config_with(f"serve.port={port}"), Made(load_fussy))
    assert http.get("/ready").status_code == 200  # who was there is left alone


def test_the_proxy_bounds_heads(url: str) -> None:
    with socket.create_connection(url.removeprefix("http://").split(":"), timeout=30) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000)
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_overload_is_refused_with_a_time_to_come_back(url: str, port: int, http: httpx.Client) -> None:
    overrides = ("serve.max_batch_size=1", "serve.max_queued_requests=1", f"serve.port={port}")
    start(config_with(*overrides), Made(load_slow))
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: post_frames(http, npy(frames_of(2))), range(10)))
        statuses = sorted(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "Try again later" in refusal(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert http.get("/health").status_code == 200
        # The client waits and tries again, so that a burst of it comes through.
        with RemoteScorer(url, TOKEN) as remote:
            assert len(remote.score([Clip(frames_of(2, seed=i), TASK) for i in range(5)])) == 5


@pytest.mark.slow
def test_another_model_takes_over_under_load_without_a_lost_request(http: httpx.Client, port: int) -> None:
    start(config_with(f"serve.port={port}"), Made(load_named, "old@1"))
    taken_over = threading.Event()

    def ask(i: int) -> list[httpx.Response]:
        answers = []
        while not taken_over.is_set():
            answers.append(post_frames(http, npy(frames_of(4, seed=i))))
        return answers

    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(ask, i) for i in range(4)]
        time.sleep(0.3)
        start(config_with(f"serve.port={port}"), Made(load_named, "new@2"))
        taken_over.set()
        answers = [answer for asked in pending for answer in asked.result()]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"]["revision"] for answer in answers} == {"1", "2"}
    assert http.get("/v1/model").json()["revision"] == "2"


@pytest.mark.slow
def test_models_by_name_share_a_replica_and_a_canary_takes_its_part(
    http: httpx.Client, port: int, tmp_path: Path
) -> None:
    folders = [make_checkpoint(tmp_path / name, seed) for seed, name in enumerate(("small", "candidate"))]
    models = (f"serve.models={{small:{folders[0]}}}", f"serve.canary={folders[1]}", "serve.canary_share=0.5")
    start(config_with(f"serve.port={port}", *models), Made(load_named, "first@1"))
    local = {"small": load_scorer(folders[0]), "canary": load_scorer(folders[1])}

    def ask(i: int) -> tuple[str, httpx.Response]:
        name, body = ("small", "canary", "default")[i % 3], npy(frames_of(3 + i % 4, seed=i))
        return name, http.post(f"/v1/score?model={name}", data={"task": TASK}, files={"frames": ("f.npy", body)})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(24)))
        unnamed = list(pool.map(lambda i: post_frames(http, npy(frames_of(3))), range(16)))
    for i, (name, answer) in enumerate(answers):
        assert answer.status_code == 200, answer.text
        scorer = local.get(name, FrameDifference())
        assert answer.json()["model"]["name"] == (scorer.name if name in local else "first@1")
        expected = scorer.score([Clip(frames_of(3 + i % 4, seed=i), TASK)])[0].progress
        np.testing.assert_allclose(answer.json()["progress"], expected, atol=1e-5)
    assert {answer.json()["model"]["name"] for answer in unnamed} == {"first@1", local["canary"].name}
    assert "It has default, small, canary." in refusal(http.get("/v1/model?model=large"), 422)
    assert http.get("/v1/model?model=small").json()["name"] == local["small"].name


def test_answers_to_requests_of_unequal_length_never_mix_while_the_health_check_scores(url: str, port: int) -> None:
    start(config_with(f"serve.port={port}"), Made(load_ensemble))
    clips = [Clip(frames_of(1 + 5 * i % 11, seed=i), "fail" if i % 4 == 3 else f"task {i % 3}") for i in range(24)]
    with httpx.Client(base_url=url, headers=AUTH, timeout=120) as http, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda clip: post_frames(http, npy(clip.frames), clip.task), clips))
    local = ensemble()
    for clip, answer in zip(clips, answers, strict=True):
        if clip.task == "fail":  # each makes the model score a clip that must work
            assert answer.status_code == 500
        else:
            np.testing.assert_allclose(answer.json()["progress"], local.score([clip])[0].progress, atol=1e-5)


@pytest.mark.slow
def test_prefixes_and_pairs_of_a_public_client_on_a_real_model(url: str, port: int) -> None:
    """A ReWiND ensemble behind the endpoint, and in this process."""
    clips = [Clip(frames_of(n, seed=n), TASK) for n in (1, 4, 7)]
    scorer = ensemble()
    start(config_with(f"serve.port={port}"), Made(load_ensemble))
    form, files = {"use_frame_steps": "true"}, {}
    for i, clip in enumerate(clips):
        files[f"frames_{i}"] = ("frames.npy", npy(clip.frames))
        trajectory = {"frames": {"__numpy_file__": f"frames_{i}"}, "task": TASK}
        form[f"sample_{i}"] = json.dumps({"sample_type": "progress", "trajectory": trajectory})
    pair = {
        name: {"frames": {"__numpy_file__": f"frames_{i}"}, "task": TASK}
        for i, name in ((1, "chosen_trajectory"), (2, "rejected_trajectory"))
    }
    form["sample_3"] = json.dumps({"sample_type": "preference", **pair})
    answer = httpx.post(f"{url}/evaluate_batch_npy", data=form, files=files, headers=AUTH, timeout=120).json()
    for i, score in enumerate(score_prefixes(scorer, clips)):
        np.testing.assert_allclose(answer["outputs_progress"]["progress_pred"][i], score.progress, atol=1e-6)
        np.testing.assert_allclose(answer["outputs_success"]["success_probs"][i], score.success, atol=1e-6)
    probability = float(scorer.compare([(clips[1], clips[2])])[0])
    assert answer["outputs_preference"]["prediction_probs"] == [pytest.approx(probability, abs=1e-6)]


@pytest.mark.slow
def test_sessions_stay_on_their_replica_and_outlive_it(url: str, port: int) -> None:
    """Two replicas of a real model: frames are pushed one by one while each kind of replica is killed."""
    start(config_with(f"serve.port={port}", "serve.replicas=2"), Made(load_ensemble))
    while len(replicas_of("#Model#")) > 2:  # one of the endpoint before answers its last requests
        time.sleep(0.1)
    scorer, clips = ensemble(), [Clip(frames_of(24, seed=i), TASK) for i in range(12)]
    expected = [score_as_session(scorer, clip).progress for clip in clips]
    with RemoteScorer(url, TOKEN) as remote, ThreadPoolExecutor(6) as pool:
        sessions = [remote.open_session(clip.task) for clip in clips]

        def push(part: range) -> list[str]:
            def pushed(i: int) -> str:
                answers = [sessions[i].push(clips[i].frames[t])[0] for t in part]
                np.testing.assert_allclose(answers, expected[i][part.start : part.stop], atol=1e-5)
                return sessions[i].session_id

            return list(pool.map(pushed, range(12)))

        before = [session.session_id for session in sessions]
        assert push(range(8)) == before  # always the replica that knows the session
        for deployment, part in (("#Model#", range(8, 16)), ("#Ingress#", range(16, 24))):
            kill(deployment)
            after = push(part)
            # Sessions of the other replica of the model go on, and no session is lost with an ingress.
            moved = sum(a != b for a, b in zip(before, after, strict=True))
            assert moved in (range(1, 12) if part.start == 8 else [0])
            before = after
        for session in sessions:
            session.close()


def test_the_token_is_in_no_log(http: httpx.Client) -> None:
    assert http.get("/v1/model").status_code == 200
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [path for path in session.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 10 and not [path for path in logs if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in str(serve.status())


def test_a_model_that_cannot_be_loaded_is_one_sentence(url: str, port: int) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a checkpoint folder") as caught:
        start(config_with(f"serve.port={port}"), Made(load_broken, "nowhere"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_endpoint_is_healthy_only_when_it_can_score_and_then_however_busy_it_is(
    url: str, port: int, tmp_path: Path
) -> None:
    """Until then /health and /docs are no 2xx and no 4xx: public clients wait for one or the other."""
    stop()
    loaded = tmp_path / "loaded"
    probes: dict[str, list[tuple[float, int]]] = {"/health": [], "/docs": []}
    with ThreadPoolExecutor(24) as pool:
        started = pool.submit(start, config_with(f"serve.port={port}"), Made(load_late, str(loaded)))
        while not started.done():
            for route, answers in probes.items():
                with suppress(httpx.TransportError):
                    status = httpx.get(url + route, timeout=10).status_code
                    answers.append((time.time(), status))
            time.sleep(0.1)
        started.result()
        with httpx.Client(base_url=url, headers=AUTH, timeout=60) as http:
            busy = [pool.submit(post_frames, http, npy(frames_of(3))) for _ in range(64)]
            slowest_s = max(_seconds_of_health(url) for _ in range(10))
            assert {request.result().status_code for request in busy} == {200}
        after = [httpx.get(url + route).status_code for route in probes]
    stop()
    loaded_at = float(loaded.read_text())
    early = {route: [status for at, status in answers if at < loaded_at] for route, answers in probes.items()}
    assert {status for statuses in early.values() for status in statuses} == {503}, early
    assert after == [200, 200]
    assert slowest_s < 5  # 2 s is what one client waits, on a machine that runs nothing else


def _seconds_of_health(url: str) -> float:
    started_s = time.monotonic()
    assert httpx.get(f"{url}/health", timeout=30).json()["status"] == "healthy"
    return time.monotonic() - started_s


def test_a_taken_port_is_one_sentence(ray_local: None) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConfigError, match=r"cannot listen at 127.0.0.1"):
            start(config_with(f"serve.port={listener.getsockname()[1]}"), Made(load_fussy))


def test_an_endpoint_that_drops_the_jobs_of_another_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(*deployments: str, folder: str = "") -> bool:
        running = SimpleNamespace(applications={"robometer": SimpleNamespace(deployments=dict.fromkeys(deployments))})
        monkeypatch.setattr(serve, "status", lambda: running)
        caplog.clear()
        _warn_of_lost_jobs(load([f"serve.jobs_folder='{folder}'"]))
        return "whose jobs are lost" in caplog.text

    assert warned("Ingress", "Model", "Jobs")
    assert not warned("Ingress", "Model") and not warned("Ingress", "Model", "Jobs", folder="jobs")


def test_token_comes_from_the_configuration_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOMETER_TOKEN", "of the environment")
    assert token_of(load([])) == "of the environment"
    assert token_of(config_with()) == TOKEN
    monkeypatch.setenv("ROBOMETER_TOKEN", "of a file\n")
    assert token_of(load([])) == "of a file"
    monkeypatch.setenv("ROBOMETER_TOKEN", "two\nlines")
    with pytest.raises(ConfigError, match="control characters"):
        token_of(load([]))
