"""What the clients of the endpoint share: its requests, how the answers are read, and when to try again."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from tenacity import RetryCallState, retry_if_exception_type, stop_before_delay

from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.frames.video import Source, VideoError
from robometer.scoring import Clip, ClipScore, ScorerInfo

START_PATIENCE_S = 5.0
"""How long the first request is retried: a wrong URL is reported soon."""

MAX_WAIT_S = 10.0
"""The longest pause between two tries, whatever Retry-After says."""

CONNECT_TIMEOUT_S = 10.0
"""How long one try waits for a connection."""

CONCURRENCY = 8
"""Requests in flight at a time, which the endpoint joins into batches."""

Result = TypeVar("Result")


class ScoringError(RobometerError):
    """An endpoint cannot be reached, or has refused a request. The message quotes its reason."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request: its form's `fields` and file `parts`, and how the JSON object of its answer is read."""

    route: str
    read: Callable[[dict[str, Any]], Result]
    fields: Mapping[str, float | str] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)
    method: str = "POST"


def score_clip(clip: Clip, **options: float | str) -> Call[ClipScore]:
    """Score a clip; see `RemoteScorer.score_video` for the options."""
    return Call("/v1/score", clip_score, {"task": clip.task, **options}, {"frames": npy(clip.frames)})


def score_video(video: Source, task: str, **options: float | str) -> Call[ClipScore]:
    """Score a video, given as a file, its content or its URL."""
    fields, parts = video_fields(video)
    return Call("/v1/score", clip_score, {"task": task, **options, **fields}, parts)


def compare_clips(pair: tuple[Clip, Clip]) -> Call[float]:
    """P(the first clip did better)."""
    a, b = pair
    return Call("/v1/compare", preference, {"task": a.task}, {"frames_a": npy(a.frames), "frames_b": npy(b.frames)})


def compare_videos(a: Source, b: Source, task: str) -> Call[float]:
    """P(the first video did better)."""
    (fields_a, parts_a), (fields_b, parts_b) = video_fields(a, "_a"), video_fields(b, "_b")
    return Call("/v1/compare", preference, {"task": task, **fields_a, **fields_b}, {**parts_a, **parts_b})


class Client:
    """Base of the clients, without input and output of its own.

    Attributes:
        url: of the endpoint.
        name: of its scorer.
        limits: of one request, see `/v1/model`.
        info: what the scorer says of itself.
    """

    name: str
    limits: dict[str, int]
    info: ScorerInfo

    def __init__(
        self, url: str, token: str | None, timeout_s: float, patience_s: float, ca_file: str | None, model: str
    ) -> None:
        token = (token or "").strip()  # files end with a line break
        if not token.isprintable():
            raise ScoringError("the token has control characters, which a header cannot carry")
        self.url = url.rstrip("/")
        self._token, self._timeout_s, self._patience_s, self._model = token, timeout_s, patience_s, model
        self._tls = _trusting(ca_file) if ca_file else None
        self._connection: dict[str, Any] = {
            "base_url": self.url,
            "headers": {
                b"X-Robometer-Model": quote(model, safe="").encode()
            }  # a scorer is one model: no canary answers it
            | ({b"Authorization": f"Bearer {token}".encode()} if token else {}),
            "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            "verify": self._tls or True,
        }

    @property
    def _description(self) -> Call[None]:
        return Call("/v1/model", self._describe, method="GET")

    def _describe(self, model: dict[str, Any]) -> None:
        self.name, self.limits = model["name"], model["limits"]
        frames = FrameSettings.from_dict(model["frames"])
        self.info = ScorerInfo(frames, revision=model["revision"], provenance=model["provenance"])

    def _retries(self, patience_s: float) -> dict[str, Any]:
        """Arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        return {
            "retry": retry_if_exception_type(_TryAgain),
            "wait": _pause_after,
            "stop": stop_before_delay(patience_s),
            "retry_error_callback": _give_up,
        }

    def _body(self, call: Call[Any]) -> dict[str, Any]:
        """Arguments of httpx's `request`. Raises `ScoringError` where the endpoint would not take them."""
        if not (call.fields or call.parts):
            return {}
        size_bytes = sum(map(len, call.parts.values()))
        if size_bytes > self.limits["max_upload_bytes"]:
            # Checked here, as the endpoint would close the connection while the body is still being sent.
            raise ScoringError(
                f"{size_bytes} bytes are more than {self.url} accepts ({self.limits['max_upload_bytes']}): "
                "send fewer or smaller frames"
            )
        files = {name: (name, content, "application/octet-stream") for name, content in call.parts.items()}
        texts = {name: (None, str(value)) for name, value in call.fields.items()}  # httpx would not make a form of data
        return {"files": {**texts, **files}}

    @contextmanager
    def _failures(self, route: str) -> Iterator[None]:
        """Tell failures that may pass (`_TryAgain`) from those that stay (`ScoringError`)."""
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ScoringError(f"{self.url!r} is not the URL of an endpoint: {error}") from error
        except httpx.TimeoutException as error:
            raise ScoringError(f"{self.url}{route} did not answer in time: {type(error).__name__}") from error
        except httpx.RequestError as error:
            reason = str(error) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                remedy = tls_remedy(reason, self._tls is not None)
                raise ScoringError(f"the certificate of {self.url} is not trusted here: {reason}. {remedy}") from error
            if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER_FAILURE" in reason:  # before and since OpenSSL 3.2
                raise ScoringError(f"{self.url} answers without TLS: begin its URL with http://") from error
            if isinstance(error, httpx.RemoteProtocolError) and self.url.startswith("http://"):
                reason += " If it has TLS, begin its URL with https://"
            raise _TryAgain(f"no endpoint answers at {self.url}: {reason}") from error

    def _read(self, call: Call[Result], response: httpx.Response) -> Result:
        answer = _object(response)
        if _may_pass(response):
            raise _TryAgain(_refusal(response), response.headers.get("retry-after", ""))
        if not response.is_success or answer is None:
            raise ScoringError(_refusal(response))
        try:
            return call.read(answer)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ScoringError(f"{self.url} is not a Robometer endpoint, or has another version: {error!r}") from error


def _trusting(ca_file: str) -> ssl.SSLContext:
    """Trust the certificates of a PEM file, and no others; they need not be signed by themselves."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error
        raise ScoringError(f"the certificates {ca_file} (ROBOMETER_CA) cannot be read as PEM: {reason}") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def tls_remedy(reason: str, has_ca: bool) -> str:
    """What to do about a certificate that was refused for `reason`, where a `ca_file` was given or not."""
    if "mismatch" in reason:
        return "Ask by a name that it holds, or make one whose subjectAltName holds this name."
    if "expired" in reason or "not yet valid" in reason:
        return "Renew it and start the endpoint again, or set the clock of this machine."
    if has_ca:
        return "The PEM file that was given (ROBOMETER_CA or ca_file) holds neither it nor its authority."
    return "If it is your own, give its PEM file as ROBOMETER_CA, or as ca_file=... in Python."


def _may_pass(response: httpx.Response) -> bool:
    """Whether another try may succeed: after overload, a used-up limit, or words of a proxy before the endpoint."""
    return response.status_code in (429, 503) or (response.is_server_error and _object(response) is None)


def _refusal(response: httpx.Response) -> str:
    sentence = str((_object(response) or {}).get("error", ""))
    sentence = sentence or "the answer is not from a Robometer endpoint; check the URL"
    if response.status_code == 401 and "authorization" not in response.request.headers:
        sentence += " Give it as ROBOMETER_TOKEN, or as token=... in Python."
    return f"{response.request.url} answered {response.status_code}: {sentence}"


def _object(response: httpx.Response) -> dict[str, Any] | None:
    """The JSON object in an answer; None if it is something else."""
    try:
        answer = response.json()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def clip_score(answer: dict[str, Any]) -> ClipScore:
    """The score in an answer."""
    return ClipScore(np.array(answer["progress"], dtype=np.float32), np.array(answer["success"], dtype=np.float32))


def preference(answer: dict[str, Any]) -> float:
    """Read the answer of `/v1/compare`."""
    return float(answer["probability_a_better"])


def video_fields(video: Source, suffix: str = "") -> tuple[dict[str, str], dict[str, bytes]]:
    """Text fields and file parts of a video, given as a file, its content or its URL."""
    if isinstance(video, str) and video.startswith(("https://", "http://")):
        return {f"url{suffix}": video}, {}
    return {}, {f"video{suffix}": _content(video)}


def _content(video: Source) -> bytes:
    try:
        return video if isinstance(video, bytes) else Path(video).read_bytes()
    except OSError as error:
        raise VideoError(f"{video!s} cannot be read ({error.strerror})") from error


def npy(frames: np.ndarray) -> bytes:
    """The content of a `.npy` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(frames), allow_pickle=False)
    return stream.getvalue()


class _TryAgain(Exception):
    """A try failed, but the next one may succeed; `retry_after` is the endpoint's header."""

    def __init__(self, reason: str, retry_after: str = "") -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def _give_up(state: RetryCallState) -> NoReturn:
    error = state.outcome.exception() if state.outcome else None
    times = "once" if state.attempt_number == 1 else f"{state.attempt_number} times"
    raise ScoringError(f"{error} (tried {times} in {state.seconds_since_start or 0:.0f} s)") from error


def _pause_after(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return pause_s(error.retry_after if isinstance(error, _TryAgain) else "", state.attempt_number)


def pause_s(retry_after: str, tries: int) -> float:
    """The seconds that the endpoint asks for, else a pause that doubles with each try."""
    seconds = float(retry_after) if retry_after.isdecimal() else 0.25 * 2.0 ** min(tries - 1, 4)
    return min(seconds, MAX_WAIT_S)
