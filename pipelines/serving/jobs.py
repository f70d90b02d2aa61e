"""The jobs that the HTTP interface sends to the model, and their answers. Knows neither Ray nor FastAPI."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from robometer.configs.schema import Config
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
    """

    max_upload_bytes: int
    max_source_frames: int
    max_source_pixels: int
    max_total_pixels: int
    decode_timeout_s: float
    frames: FrameSettings

    @classmethod
    def from_config(cls, config: Config, frames: FrameSettings) -> Limits:
        """Limits of an endpoint whose model sees videos with the settings `frames`."""
        return cls(
            max_upload_bytes=config.serve.max_upload_bytes,
            max_source_frames=config.serve.max_source_frames,
            max_source_pixels=config.serve.max_source_pixels,
            max_total_pixels=config.serve.max_total_pixels,
            decode_timeout_s=config.serve.decode_timeout_s,
            frames=frames,
        )

    def as_dict(self) -> dict[str, float]:
        """Plain form for `/v1/model`."""
        return {name: value for name, value in asdict(self).items() if name != "frames"}


@dataclass(frozen=True)
class ScoreJob:
    """Score one clip."""

    clip: Clip


@dataclass(frozen=True)
class CompareJob:
    """Compare two clips of one task."""

    a: Clip
    b: Clip


Job = ScoreJob | CompareJob


@dataclass(frozen=True)
class Outcome:
    """The model's answer to one job.

    Attributes:
        model: the scorer's name.
        value: `ClipScore` of a score job, P(A better) of a compare job, None where it failed.
        error: why the job failed; empty where it did not.
        rejected: whether the input was at fault, not the model.
        batch_size: jobs that went through the model together.
        first: true for one job of each batch, so that a batch is counted once.
    """

    model: str
    value: ClipScore | float | None
    error: str
    rejected: bool
    batch_size: int
    first: bool


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers, and its provenance."""

    name: str
    provenance: dict[str, Any]


class Backend(Protocol):
    """Where the HTTP interface sends its work."""

    async def run(self, job: Job) -> Outcome:
        """Answer one job. Raises `ApiError` while the model is overloaded or not available."""
        ...

    async def info(self) -> ModelInfo:
        """Describe the model. Raises `ApiError` while it is not loaded."""
        ...

    async def ready(self) -> None:
        """Return when the model can answer. Raises `ApiError` otherwise."""
        ...


def revision(name: str) -> str:
    """The hash in a scorer's name `kind@hash`; empty for a scorer without weights."""
    return name.partition("@")[2]
