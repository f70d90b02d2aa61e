"""Several models behind one endpoint: which one answers, from which frames, and how they share a replica."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from pipelines.serve import build_app
from pipelines.serving.backend import Limits, Outcome, ScoreRequest
from pipelines.serving.choice import CANARY, Choice, chosen
from pipelines.serving.errors import ApiError
from pipelines.serving.model import Model
from pipelines.serving.scaling import LATENCY, QueueAndLatency
from robometer.baselines.trivial import Clock
from robometer.client import RemoteScorer, ScoringError
from robometer.configs import load
from robometer.configs.stages import ServeConfig
from robometer.frames import FrameSettings
from robometer.remote_session import RemoteSession, SessionError
from robometer.scoring import Clip, ClipScore, Scorer, ScorerInfo
from tests.made_scorer import Made
from tests.pipelines.test_serve import mp4

SHARE = 0.3


class Named(Clock):
    """A scorer whose progress is always `value`; it remembers the sizes of its batches."""

    def __init__(self, name: str, value: float, max_frames: int = 8) -> None:
        self.name, self.value, self.sizes = name, value, list[int]()
        self._info = ScorerInfo(frames=FrameSettings(max_frames=max_frames))

    @property
    def info(self) -> ScorerInfo:  # type: ignore[override]
        """See `Scorer.info`."""
        return self._info

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        self.sizes.append(len(clips))
        return [ClipScore(np.full(len(clip), self.value), np.zeros(len(clip))) for clip in clips]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    others = {"small": Named("small@2", 0.2, max_frames=3), CANARY: Named("new@3", 0.3)}
    choice = Choice({"small": "/data/small", CANARY: "models:/robometer@candidate"}, SHARE)
    with endpoint_of(others, choice) as url:
        yield url


def endpoint_of(others: dict[str, Scorer], choice: Choice):  # type: ignore[no-untyped-def]
    from tests.local_endpoint import endpoint

    return endpoint(Named("old@1", 0.1, max_frames=6), others=others, models=choice)


def frames() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 16, 16, 3), np.uint8))
    return stream.getvalue()


def score(url: str, query: str = "", **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        f"{url}/v1/score{query}", data={"task": "x"}, files={"frames": ("f.npy", frames())}, headers=headers
    )


def test_a_request_is_answered_by_the_model_that_it_names(url: str) -> None:
    for query, headers, name, reward in (
        ("?model=small", {}, "small@2", 0.2),
        ("", {"x_robometer_model": "small"}, "small@2", 0.2),
        ("?model=small", {"x_robometer_model": "small"}, "small@2", 0.2),
        ("?model=canary", {}, "new@3", 0.3),
        ("?model=default", {}, "old@1", 0.1),
    ):
        answer = score(url, query, **headers).json()
        assert (answer["model"]["name"], answer["reward"]) == (name, reward)


@pytest.mark.parametrize(
    ("query", "headers", "sentence"),
    [
        ("?model=/etc/passwd", {}, "It has default, small, canary."),
        ("?model=", {}, "It has default, small, canary."),
        ("", {"x_robometer_model": "/data/small"}, "It has default, small, canary."),
        ("?model=small", {"x_robometer_model": "default"}, "names two models"),
        ("?model=small&model=default", {}, "names two models"),
    ],
)
def test_a_name_that_the_settings_do_not_have_is_refused(
    url: str, query: str, headers: dict[str, str], sentence: str
) -> None:
    answer = score(url, query, **headers)
    assert answer.status_code == 422 and sentence in answer.json()["error"]


def test_a_name_is_shown_at_some_length_only(url: str) -> None:
    assert len(score(url, f"?model={'x' * 5000}").json()["error"]) < 200


def test_a_video_is_decoded_as_the_asked_model_was_trained(url: str) -> None:
    video = mp4(np.zeros((20, 32, 32, 3), np.uint8))
    for name, num_frames in (("small", 3), ("default", 6), ("canary", 8)):
        answer = httpx.post(
            f"{url}/v1/score?model={name}", data={"task": "x"}, files={"video": ("v.mp4", video)}, timeout=60
        ).json()
        assert answer["num_frames"] == num_frames
        assert httpx.get(f"{url}/v1/model?model={name}").json()["frames"]["max_frames"] == num_frames


def test_the_models_are_listed_with_their_shares(url: str) -> None:
    listed = httpx.get(f"{url}/v1/models").json()["models"]
    assert [(m["model"], m["checkpoint"], m["share"], m["frames"]["max_frames"]) for m in listed] == [
        ("default", load([]).serve.checkpoint, 0.7, 6),
        ("small", "/data/small", 0.0, 3),
        ("canary", "models:/robometer@candidate", SHARE, 8),
    ]


def test_the_canary_answers_its_share_and_equal_ids_get_equal_models(url: str) -> None:
    ids = [f"request-{i}" for i in range(40)]
    first, second = ([score(url, x_request_id=i).json()["model"]["name"] for i in ids] for _ in range(2))
    assert first == second and set(first) == {"old@1", "new@3"}
    assert httpx.get(f"{url}/v1/model").json()["name"] == "old@1"  # only clips are split
    metrics = httpx.get(f"{url}/metrics").text
    for line in ('model="new@3",', 'model="old@1",'):
        assert f"robometer_model_requests_total{{{line}" in metrics.replace('replica="local",', "")
    assert "robometer_model_progress_sum" in metrics and "robometer_model_seconds_sum" in metrics


def test_a_remote_scorer_is_one_model_and_never_the_canary() -> None:
    clips = [Clip(np.zeros((2, 8, 8, 3), np.uint8), "x")] * 4
    others: dict[str, Scorer] = {"small": Named("small@2", 0.2), CANARY: Named("new@3", 0.3)}
    with endpoint_of(others, Choice({"small": "", CANARY: ""}, 1.0)) as url:
        assert score(url).json()["model"]["name"] == "new@3"
        for model, name, value in (("default", "old@1", 0.1), ("small", "small@2", 0.2)):
            with RemoteScorer(url, model=model) as remote:
                assert remote.name == name
                assert [float(one.progress[-1]) for one in remote.score(clips)] == pytest.approx([value] * 4)
        for model in ("other", "ö\n"):
            with pytest.raises(ScoringError, match="has no model"):
                RemoteScorer(url, model=model)
        with pytest.raises(SessionError, match="has no model 'other'"):
            RemoteSession(url, ["x"], model="other")


def test_the_split_is_even() -> None:
    choice = Choice({CANARY: "x"}, SHARE)

    def is_canary(key: str) -> bool:
        choice.choose(None, b"", key)
        return chosen() == CANARY

    taken = sum(is_canary(f"{i:032x}") for i in range(4000))
    assert abs(taken / 4000 - SHARE) < 0.03  # four standard deviations
    choice.choose(None, b"", "")
    assert chosen() == ""
    Choice({CANARY: "x"}, 1.0).choose(None, b"", "any")
    assert chosen() == CANARY
    Choice({"small": "x"}, 1.0).choose(None, b"", "any")  # there is no canary
    assert chosen() == ""
    with pytest.raises(ApiError, match="It has default, canary"):
        choice.choose("other", b"")


def test_models_load_side_by_side_and_each_answers_its_own() -> None:
    together = threading.Barrier(3, timeout=20)  # breaks unless three loads wait at once

    def load_one(word: str) -> Scorer:
        together.wait()
        return Named(word, 0.5)

    model = Model(Made(load_one, "one"), ServeConfig(), {name: Made(load_one, name) for name in ("two", "three")})
    assert model._first.info.name == "one"
    assert {name: loaded.info.name for name, loaded in model._ready.items()} == {"two": "two", "three": "three"}


def test_only_so_many_models_load_at_the_start() -> None:
    loaded = list[str]()

    def load_one(word: str) -> Scorer:
        loaded.append(word)
        return Named(word, 0.5)

    others = {name: Made(load_one, name) for name in ("two", "three")}
    Model(Made(load_one, "one"), ServeConfig(models_per_replica=1), others)
    assert sorted(loaded) == ["one", "two"]


def test_a_load_is_not_lost_with_the_client_that_asked_for_it() -> None:
    loads, go = list[str](), threading.Event()

    def load_one(word: str) -> Scorer:
        loads.append(word)
        assert word == "one" or go.wait(20)
        return Named(word, 0.5)

    async def ask() -> str:
        model = Model(Made(load_one, "one"), ServeConfig(models_per_replica=1), {"two": Made(load_one, "two")})
        model._ready.clear()
        loads.clear()
        go.clear()
        gone = asyncio.create_task(model._other("two"))
        await asyncio.sleep(0.05)
        gone.cancel()
        waits = asyncio.create_task(model._other("two"))
        await asyncio.sleep(0.05)
        go.set()
        return (await waits).info.name

    go.set()
    assert asyncio.run(ask()) == "two" and loads == ["two"]


@pytest.mark.parametrize(
    ("running", "requests", "latency_s", "wanted"),
    [
        (2, 16, 0.1, 2.0),  # eight each, as wanted, and fast
        (2, 40, 0.1, 5.0),  # by the queue
        (2, 4, 0.1, 0.5),
        (2, 16, 1.5, 3.0),  # by latency: half as much again
        (2, 16, 9.0, 4.0),  # at most twice as many at once
        (2, 2, 9.0, 0.25),  # nobody waits: more replicas would not help
    ],
)
def test_replicas_follow_the_queue_and_the_latency(
    running: int, requests: int, latency_s: float, wanted: float
) -> None:
    context = SimpleNamespace(
        current_num_replicas=running,
        target_num_replicas=running,
        total_num_requests=requests,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 8),
        aggregated_metrics={LATENCY: {"a": latency_s, "b": latency_s, "idle": 0.0}},
    )
    assert QueueAndLatency(target_latency_s=1.0)(context)[0] == wanted
    assert QueueAndLatency()(context)[0] == requests / 8


def test_the_guard_admits_what_all_replicas_can_take() -> None:
    settings = ["serve.replicas=2", "serve.max_replicas=5", "serve.max_batch_size=4", "serve.max_queued_requests=10"]
    ingress = build_app(load(settings), Made(lambda word: Named(word, 0.5)))._bound_deployment
    assert ingress.init_args[2].max_in_flight == 2 * 4 * 5 + 10
    scaling = ingress.init_args[0]._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.get_target_ongoing_requests()) == (2, 5, 4)
    assert scaling.policy.get_policy().__name__ == QueueAndLatency.__name__


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["serve.replicas=3", "serve.max_replicas=2"], "serve.max_replicas=2 is less than serve.replicas=3"),
        (["serve.models={default: x}"], "not 'default' or 'canary'"),
        (["serve.models={_a: x}"], "letters, digits"),
        (["serve.models={a: 'http://host'}"], "serve.models.a"),
        (["serve.canary='ftp://host/x'"], "serve.canary"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(settings: list[str], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence) as caught:
        load(settings)
    assert "\n" not in str(caught.value)


def test_frames_that_were_made_for_another_version_are_not_scored() -> None:
    """In an update, an old ingress replica may reach a new model, whose frames differ."""
    tags = [Limits.from_config(load([]), FrameSettings(max_frames=n)).frames_tag() for n in (4, 4, 8)]
    assert tags[0] == tags[1] != tags[2]
    request = ScoreRequest(Clip(np.zeros((2, 8, 8, 3), np.uint8), "x"))
    model = Model(Made(lambda word: Named("one", 0.5)), ServeConfig(), frames_tag=tags[0])

    async def ask(tag: str) -> Outcome | None:
        return await model.run(request, tag)

    assert asyncio.run(ask(tags[2])) is None
