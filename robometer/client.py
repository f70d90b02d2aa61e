"""A remote Scorer: the typed client of the endpoint (`pipelines.serve`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_before_delay

from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.frames.video import Source, VideoError
from robometer.scoring import Clip, ClipScore, ScorerInfo, Session
from robometer.sessions import WindowSession

START_PATIENCE_S = 5.0
"""How long the first request is retried: a wrong URL is reported soon."""

MAX_WAIT_S = 10.0
"""The longest pause between two tries, whatever Retry-After says."""

CONNECT_TIMEOUT_S = 10.0
"""How long one try waits for a connection."""

CONCURRENCY = 8
"""Requests in flight at a time, which the endpoint joins into batches."""

T = TypeVar("T")
Result = TypeVar("Result")


class ScoringError(RobometerError):
    """An endpoint cannot be reached, or has refused a request. The message quotes its reason."""


class RemoteScorer:
    """Scorer over HTTP. Frames travel as npy, so the numbers equal those of the same scorer in this process.

    Args:
        url: of the endpoint, such as `http://127.0.0.1:8000`.
        token: bearer token, if the endpoint requires one.
        timeout_s: seconds for one try of a request.
        patience_s: seconds in which a request is retried, while the endpoint answers 503, a proxy in front of it
            reports a failure, or connections are refused or break. Scoring changes nothing, so retries do no harm.

    Raises:
        ScoringError: no endpoint answers at `url`, or it refuses the token. All methods raise it if a request fails.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 600.0, patience_s: float = 60.0) -> None:
        token = (token or "").strip()  # files end with a line break
        if not token.isprintable():
            raise ScoringError("the token has control characters, which a header cannot carry")
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        )
        self._patience_s = min(START_PATIENCE_S, patience_s)
        model = self._request("GET", "/v1/model")
        self._patience_s = patience_s
        try:
            self.name: str = model["name"]
            self.limits: dict[str, int] = model["limits"]
            frames = FrameSettings.from_dict(model["frames"])
            self.info = ScorerInfo(frames, revision=model["revision"], provenance=model["provenance"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ScoringError(f"{self.url} is not a Robometer endpoint, or has another version: {error!r}") from error

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`. Sends one request per clip, several at a time."""
        return _concurrently(self._score, clips)

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `Scorer.compare`. Sends one request per pair, several at a time."""
        return np.array(_concurrently(self._compare, pairs), dtype=np.float32)

    def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `robometer.scoring.score_prefixes`. Sends one request per clip, several at a time."""
        return _concurrently(lambda clip: self._score(clip, mode="prefix"), clips)

    def score_video(self, video: Source, task: str, **options: float | str) -> ClipScore:
        """Score a video, given as a file or its content. The endpoint makes its frames (see `info.frames`).

        Args:
            options: `start_frame` and `end_frame`, or `start_s` and `end_s`: the part to score, without its end;
                `max_frames`: most frames to take of it; `mode="prefix"`: each frame from those up to it.
        """
        return _clip_score(self._post("/v1/score", task, {"video": _content(video)}, options))

    def compare_videos(self, a: Source, b: Source, task: str) -> float:
        """P(the first video did better), for two files or their contents."""
        answer = self._post("/v1/compare", task, {"video_a": _content(a), "video_b": _content(b)})
        return float(answer["probability_a_better"])

    def open_session(self, task: str) -> Session:
        """See `Scorer.open_session`. Each frame is scored with all frames before it."""
        return WindowSession(self, task)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> RemoteScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(self, clip: Clip, **options: float | str) -> ClipScore:
        return _clip_score(self._post("/v1/score", clip.task, {"frames": _npy(clip.frames)}, options))

    def _compare(self, pair: tuple[Clip, Clip]) -> float:
        a, b = pair
        answer = self._post("/v1/compare", a.task, {"frames_a": _npy(a.frames), "frames_b": _npy(b.frames)})
        return float(answer["probability_a_better"])

    def _post(
        self, route: str, task: str, parts: dict[str, bytes], options: Mapping[str, float | str] | None = None
    ) -> dict[str, Any]:
        size_bytes = sum(map(len, parts.values()))
        if size_bytes > self.limits["max_upload_bytes"]:
            # Checked here, as the endpoint would close the connection while the body is still being sent.
            raise ScoringError(
                f"{size_bytes} bytes are more than {self.url} accepts ({self.limits['max_upload_bytes']}): "
                "send fewer or smaller frames"
            )
        files = {name: (name, content, "application/octet-stream") for name, content in parts.items()}
        return self._request("POST", route, data={"task": task, **(options or {})}, files=files)

    def _request(self, method: str, route: str, **body: Any) -> dict[str, Any]:
        retrying = Retrying(
            retry=retry_if_exception_type(_TryAgain), wait=_pause_after, stop=stop_before_delay(self._patience_s)
        )
        try:
            return retrying(self._try, method, route, **body)
        except RetryError as error:
            tries, seconds = error.last_attempt.attempt_number, retrying.statistics["delay_since_first_attempt"]
            times = "once" if tries == 1 else f"{tries} times"
            raise ScoringError(f"{error.last_attempt.exception()} (tried {times} in {seconds:.0f} s)") from error

    def _try(self, method: str, route: str, **body: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, route, **body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ScoringError(f"{self.url!r} is not the URL of an endpoint: {error}") from error
        except httpx.TimeoutException as error:
            raise ScoringError(f"{self.url}{route} did not answer in time: {type(error).__name__}") from error
        except httpx.RequestError as error:
            raise _TryAgain(f"no endpoint answers at {self.url}: {error or type(error).__name__}") from error
        if _may_pass(response):
            raise _TryAgain(self._refusal(response), response.headers.get("retry-after", ""))
        return self._answer(response)

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        answer = _object(response)
        if response.is_success and answer is not None:
            return answer
        raise ScoringError(self._refusal(response))

    def _refusal(self, response: httpx.Response) -> str:
        sentence = str((_object(response) or {}).get("error", ""))
        sentence = sentence or "the answer is not from a Robometer endpoint; check the URL"
        return f"{response.request.url} answered {response.status_code}: {sentence}"


def _may_pass(response: httpx.Response) -> bool:
    """Whether another try may succeed: after overload, or an answer from a proxy in front of the endpoint."""
    return response.status_code == 503 or (response.is_server_error and _object(response) is None)


def _object(response: httpx.Response) -> dict[str, Any] | None:
    """The JSON object in an answer; None if it is something else."""
    try:
        answer = response.json()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _concurrently(function: Callable[[T], Result], items: Sequence[T]) -> list[Result]:
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(CONCURRENCY, len(items))) as pool:
        return list(pool.map(function, items))


def _clip_score(answer: dict[str, Any]) -> ClipScore:
    return ClipScore(np.array(answer["progress"], dtype=np.float32), np.array(answer["success"], dtype=np.float32))


def _content(video: Source) -> bytes:
    try:
        return video if isinstance(video, bytes) else Path(video).read_bytes()
    except OSError as error:
        raise VideoError(f"{video!s} cannot be read ({error.strerror})") from error


def _npy(frames: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(frames), allow_pickle=False)
    return stream.getvalue()


class _TryAgain(Exception):
    """A try failed, but the next one may succeed; `retry_after` is the endpoint's header."""

    def __init__(self, reason: str, retry_after: str = "") -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def _pause_after(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return _pause_s(error.retry_after if isinstance(error, _TryAgain) else "", state.attempt_number)


def _pause_s(retry_after: str, tries: int) -> float:
    """The seconds that the endpoint asks for, else a pause that doubles with each try."""
    seconds = float(retry_after) if retry_after.isdecimal() else 0.25 * 2.0 ** min(tries - 1, 4)
    return min(seconds, MAX_WAIT_S)
