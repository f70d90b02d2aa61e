"""What the HTTP interface asks of the model, and how it is answered; no Ray and no FastAPI in here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from robometer.configs.schema import Config
from robometer.frames import FrameSettings
from robometer.scoring import Clip, ClipScore

MAX_TASK_CHARS = 2000


@dataclass(frozen=True)
class Limits:
    """What one request may hold.

    Attributes:
        max_upload_bytes: of a request, and of its frames when they are decoded.
        max_source_frames, max_source_pixels, max_total_pixels: frames, pixels of one, and pixels of all.
        decode_timeout_s: for each video, or list of images.
        frames: what a video becomes for the model.
    """

    max_upload_bytes: int
    max_source_frames: int
    max_source_pixels: int
    max_total_pixels: int
    decode_timeout_s: float
    frames: FrameSettings

    @classmethod
    def from_config(cls, config: Config, frames: FrameSettings) -> Limits:
        """Of an endpoint whose model is shown a video's frames by the settings `frames`."""
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
        error: one sentence where the job failed, else empty.
        rejected: the input was at fault, not the model.
        batch_size: how many jobs went through the model together.
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
    """Which model answers, and what it was made from."""

    name: str
    provenance: dict[str, Any]


class Backend(Protocol):
    """Where the HTTP interface sends its work."""

    async def run(self, job: Job) -> Outcome:
        """Answer one job. Raises `ApiError` when the model is overloaded or away."""
        ...

    async def info(self) -> ModelInfo:
        """Describe the model. Raises `ApiError` while it is not loaded."""
        ...

    async def ready(self) -> None:
        """Return if the model can answer. Raises `ApiError` otherwise."""
        ...


def revision(name: str) -> str:
    """The hash in a scorer's name `kind@hash`; empty for a scorer without weights."""
    return name.partition("@")[2]
