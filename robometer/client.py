"""A remote Scorer: the typed client of the endpoint (`pipelines.serve`). `robometer.async_client` is its async twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import httpx
import numpy as np
from tenacity import Retrying

from robometer import calls, many_calls
from robometer.calls import Call, Client, ScoringError
from robometer.frames.video import Source
from robometer.many_calls import Failure, Ranking, Standings
from robometer.remote_jobs import RemoteJob, submission
from robometer.remote_session import RemoteSession
from robometer.scoring import Clip, ClipScore

__all__ = ["Failure", "Ranking", "RemoteScorer", "ScoringError", "Standings"]

T = TypeVar("T")
Result = TypeVar("Result")


class RemoteScorer(Client):
    """Scorer over HTTP. Frames travel as npy, so the numbers equal those of the same scorer in this process.

    Args:
        url: of the endpoint, such as `http://127.0.0.1:8000`.
        token: bearer token, if the endpoint requires one.
        timeout_s: seconds for one try of a request.
        patience_s: seconds in which a request is retried, while the endpoint answers 429 or 503, a proxy in front of it
            reports a failure, or connections are refused or break. Scoring changes nothing, so retries do no harm.
        ca_file: PEM file of the certificates to trust instead of the usual ones, for an endpoint with its own.
        model: name of the endpoint's model that answers, see its `/v1/models`; a canary answers nothing else.

    Raises:
        ScoringError: no endpoint answers at `url`, or it refuses the token. All methods raise it if a request fails.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 600.0,
        patience_s: float = 60.0,
        ca_file: str | None = None,
        model: str = "default",
    ) -> None:
        super().__init__(url, token, timeout_s, patience_s, ca_file, model)
        self._http = httpx.Client(**self._connection)
        self._send(self._description, min(calls.START_PATIENCE_S, patience_s))

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`. Sends one request per clip, several at a time."""
        return self._send_all(calls.score_clip, clips)

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `Scorer.compare`. Sends one request per pair, several at a time."""
        return np.array(self._send_all(calls.compare_clips, pairs), dtype=np.float32)

    def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `robometer.scoring.score_prefixes`. Sends one request per clip, several at a time."""
        return self._send_all(partial(calls.score_clip, mode="prefix"), clips)

    def score_video(self, video: Source, task: str, **options: float | str) -> ClipScore:
        """Score a video, given as a file, its content or its URL. The endpoint makes its frames (see `info.frames`).

        Args:
            video: a URL must be on the endpoint's list (`serve.url_allow_list`).
            options: `start_frame` and `end_frame`, or `start_s` and `end_s`: the part to score, without its end;
                `max_frames`: most frames to take of it, or `fps`: how many of each second; `mode="prefix"`: each frame
                from those up to it.
        """
        return self._send(calls.score_video(video, task, **options))

    def compare_videos(self, a: Source, b: Source, task: str) -> float:
        """P(the first video did better), for two files or their contents."""
        return self._send(calls.compare_videos(a, b, task))

    def score_videos(
        self, videos: Sequence[Source], tasks: str | Sequence[str], **options: float | str
    ) -> list[ClipScore | Failure]:
        """Score several videos in one request. One that cannot be scored has a `Failure` in its place.

        Args:
            videos: see `score_video`; 256 at most, and together not larger than one upload may be.
            tasks: one for all, or one for each.
            options: of all, see `score_video`.

        Raises:
            ValueError: there are several tasks, and not one for each video.
        """
        return self._send(many_calls.score_videos(videos, tasks, **options))

    def rank_videos(self, videos: Sequence[Source], task: str, **options: float | str) -> Ranking:
        """Order several videos by a task, in one request; see `score_videos`."""
        return self._send(many_calls.rank_videos(videos, task, **options))

    def compare_many(self, videos: Sequence[Source], task: str) -> Standings:
        """Compare every two of 2 to 16 videos, in one request."""
        return self._send(many_calls.compare_many(videos, task))

    def submit_video(self, video: Source, task: str, **options: float | str) -> RemoteJob:
        """`score_video` as a job, whose `result` is the score. The endpoint keeps it for a while after it has ended."""
        return self.job(self._send(submission(calls.score_video(video, task, **options))).id)

    def submit_comparison(self, a: Source, b: Source, task: str) -> RemoteJob:
        """`compare_videos` as a job, whose `result` is P(the first video did better)."""
        return self.job(self._send(submission(calls.compare_videos(a, b, task))).id)

    def job(self, job_id: str) -> RemoteJob:
        """A job that was submitted before, by the id that it had."""
        return RemoteJob(job_id, self._send)

    def open_session(self, task: str) -> RemoteSession:
        """See `Scorer.open_session`. The session lives on the endpoint; close it, or it ends when it has been idle."""
        return self.open_sessions([task])

    def open_sessions(self, tasks: Sequence[str]) -> RemoteSession:
        """A session of one trajectory for each task, whose pushes share a batch (see `RemoteSession.push_all`)."""
        return RemoteSession(self.url, tasks, self._token, self._timeout_s, self._patience_s, self._tls, self._model)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> RemoteScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[Result], patience_s: float | None = None) -> Result:
        body = self._body(call)

        def attempt() -> Result:
            with self._failures(call.route):
                response = self._http.request(call.method, call.route, **body)
            return self._read(call, response)

        return Retrying(**self._retries(self._patience_s if patience_s is None else patience_s))(attempt)

    def _send_all(self, make: Callable[[T], Call[Result]], items: Sequence[T]) -> list[Result]:
        """The answers to a request for each item, `CONCURRENCY` at a time."""
        if len(items) <= 1:
            return [self._send(make(item)) for item in items]
        with ThreadPoolExecutor(min(calls.CONCURRENCY, len(items))) as pool:
            return list(pool.map(lambda item: self._send(make(item)), items))
