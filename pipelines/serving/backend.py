"""What the HTTP interface asks of the model, and the answers. Knows neither Ray nor FastAPI."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.serving.choice import chosen
from robometer.configs.allow_list import AllowList
from robometer.configs.schema import Config
from robometer.configs.stages import ServeConfig
from robometer.frames import FrameSettings
from robometer.scoring import Clip, ClipScore

MAX_TASK_CHARS = 2000


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
        max_upload_bytes: bytes of a request, and of its decoded frames.
        max_source_frames: frames of a video.
        max_source_pixels: pixels of a frame.
        max_total_pixels: pixels of all frames of a video.
        decode_timeout_s: seconds to decode a video or a list of images.
        frames: how a video becomes the frames that the model sees.
        others: the same for each other model of the endpoint, by name.
    """

    max_upload_bytes: int
    max_source_frames: int
    max_source_pixels: int
    max_total_pixels: int
    decode_timeout_s: float
    frames: FrameSettings
    others: Mapping[str, FrameSettings] = field(default_factory=dict)

    @classmethod
    def from_config(
        cls, config: Config, frames: FrameSettings, others: Mapping[str, FrameSettings] | None = None
    ) -> Limits:
        """Limits of an endpoint whose model sees videos with the settings `frames`."""
        return cls(
            max_upload_bytes=config.serve.max_upload_bytes,
            max_source_frames=config.serve.max_source_frames,
            max_source_pixels=config.serve.max_source_pixels,
            max_total_pixels=config.serve.max_total_pixels,
            decode_timeout_s=config.serve.decode_timeout_s,
            frames=frames,
            others=others or {},
        )

    def frames_tag(self) -> str:
        """Equal for endpoints whose models see videos in the same frames."""
        settings = {"": self.frames.as_dict(), **{name: other.as_dict() for name, other in self.others.items()}}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def frames_now(self) -> FrameSettings:
        """How a video becomes the frames that the model of the current request sees."""
        return self.others.get(chosen(), self.frames)

    def as_dict(self) -> dict[str, float]:
        """Plain form for `/v1/model`, without frames."""
        return {name: value for name, value in asdict(self).items() if name not in ("frames", "others")}


@dataclass(frozen=True)
class Deployed:
    """What runs behind the endpoint.

    Attributes:
        checkpoint: as the user named it.
        num_gpus: GPUs of all replicas of the model.
        replicas: of the model.
        max_samples_at_once: samples of requests with many that one ingress replica sends to the model at a time.
        relabel_image_keys: observations of gRPC clients that hold frames; none where gRPC is off.
        urls: where clips may be fetched from.
    """

    checkpoint: str = ""
    num_gpus: int = 0
    replicas: int = 1
    max_samples_at_once: int = 8
    relabel_image_keys: tuple[str, ...] = ()
    urls: AllowList = field(default_factory=AllowList)

    @classmethod
    def from_config(cls, serve: ServeConfig) -> Deployed:
        """The endpoint that these settings describe."""
        num_gpus = math.ceil(serve.num_gpus * serve.most_replicas)
        image_keys = tuple(serve.relabel_image_keys) if serve.grpc_port else ()
        at_once, urls = math.ceil(serve.max_queued_requests / 2), AllowList.of(serve.url_allow_list)
        return cls(serve.checkpoint, num_gpus, serve.most_replicas, at_once, image_keys, urls)


@dataclass(frozen=True)
class ScoreRequest:
    """Score one clip.

    Attributes:
        mode: `whole`: each frame from all frames; `prefix`: from itself and the frames before it; `session`: as if the
            frames were pushed to a session (see `robometer.sessions`).
        positions: with `prefix`, the frames to answer for, in the order of the answer; none: all.
    """

    clip: Clip
    mode: str = "whole"
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class CompareRequest:
    """Compare two clips of one task."""

    a: Clip
    b: Clip


@dataclass(frozen=True)
class OpenSession:
    """Open a session of one trajectory for each of `tasks`.

    Attributes:
        owner: who may use it: the name of the client's token.
        reference: a clip that pushes can be compared with.
        pushes, pushed, frames: to continue a session: how many pushes it had, how many frames each trajectory, and the
            frames uint8 [H, W, 3] that each trajectory's window held.
        most: trajectories that the owner may have in sessions of a replica; None: as many as there may be.
    """

    session_id: str
    tasks: Sequence[str]
    owner: str = ""
    reference: Clip | None = None
    pushes: int = 0
    pushed: Sequence[int] = ()
    frames: Sequence[Sequence[np.ndarray]] = ()
    most: int | None = None


@dataclass(frozen=True)
class PushFrames:
    """Push one frame uint8 [H, W, 3] to each trajectory of a session.

    Attributes:
        index: the number of the push, so that one that is sent twice counts once; None: the next.
        reset: trajectories that start anew with this frame.
        compare: whether to compare with the session's reference.
        sent_id: equal for the same request, which the proxy or an ingress may send to the model more than once.
    """

    session_id: str
    frames: Sequence[np.ndarray]
    owner: str = ""
    index: int | None = None
    reset: Sequence[int] = ()
    compare: bool = False
    sent_id: str = ""


@dataclass(frozen=True)
class ReadSession:
    """Ask for a session's state; with `close`, end it."""

    session_id: str
    owner: str = ""
    close: bool = False


@dataclass(frozen=True)
class SessionAnswer:
    """The answer to a push, one item for each trajectory.

    Attributes:
        index: number of the frame in its trajectory.
        preference: P(the trajectory so far is better than the reference); None if it was not asked.
    """

    index: list[int]
    progress: list[float]
    success: list[float]
    preference: list[float] | None


@dataclass(frozen=True)
class SessionState:
    """A session: its tasks, the frames pushed to each trajectory, its pushes, and its last answer."""

    tasks: list[str]
    pushed: list[int]
    pushes: int
    answer: SessionAnswer | None


@dataclass(frozen=True)
class SessionLimits:
    """Limits of the sessions of one model replica: trajectories, bytes of their frames and caches, idle seconds."""

    max_sessions: int
    max_bytes: int
    idle_s: float

    @classmethod
    def from_config(cls, serve: ServeConfig) -> SessionLimits:
        """The limits that these settings give."""
        return cls(serve.max_sessions, serve.max_session_bytes, serve.session_idle_s)


SessionRequest = OpenSession | PushFrames | ReadSession
ModelRequest = ScoreRequest | CompareRequest | SessionRequest


Answer = ClipScore | float | list[float] | SessionAnswer | SessionState


@dataclass(frozen=True)
class Outcome:
    """The model's answer to one request.

    Attributes:
        model: the scorer's name.
        value: `ClipScore`, P(A better) of a comparison, or a session's answer or state; None where the request failed.
        error: why the request failed; empty where it did not.
        rejected: whether the input was at fault, not the model.
        status: the HTTP status of an input's fault.
        batch_size: requests that went through the model together.
        first: true for one request of each batch, so that a batch is counted once.
        seconds: from the request's arrival at the model to the answer.
        model_s: seconds that the batch took.
    """

    model: str
    value: Answer | None
    error: str
    rejected: bool
    batch_size: int
    first: bool
    status: int = 422
    seconds: float = 0.0
    model_s: float = 0.0


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers.

    Attributes:
        provenance: what its checkpoint records about its training.
        image_encoder: name of the embeddings that it reads in place of frames; None if it reads frames alone.
        description: what its checkpoint is, see `robometer.models.inventory.describe`; empty for another scorer.
        max_frames: frames that it looks at together; None for any number.
    """

    name: str
    provenance: dict[str, Any]
    image_encoder: str | None = None
    description: dict[str, Any] = field(default_factory=dict)
    max_frames: int | None = None


class Backend(Protocol):
    """Where the HTTP interface sends its work."""

    async def run(self, request: ModelRequest) -> Outcome:
        """Answer one request. Raises `ApiError` while the model is overloaded or not available."""
        ...

    async def info(self) -> ModelInfo:
        """Describe the model. Raises `ApiError` while it is not loaded."""
        ...

    async def ready(self) -> None:
        """Return when the model can answer. Raises `ApiError` otherwise."""
        ...

    async def healthy(self) -> None:
        """Return at once if the model has answered before and has not gone since, however busy it is; else `ready`."""
        ...


def revision(name: str) -> str:
    """The hash in a scorer's name `kind@hash`; empty for a scorer without weights."""
    return name.partition("@")[2]


def size_bytes(value: object) -> int:
    """Bytes of the arrays in a request."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        return sum(size_bytes(getattr(value, item.name)) for item in fields(value))
    if isinstance(value, Mapping):
        return sum(map(size_bytes, value.values()))
    return sum(map(size_bytes, value)) if isinstance(value, list | tuple) else 0
