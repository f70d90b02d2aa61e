"""One way from a recording to the frames that a model sees: stream, rotation, timing, thinning, size, and codec.

Ingest stores `encode_frames`; whoever scores a recording reads `read_frames`, which are the same JPEGs, decoded. Their
settings are the corpus', then those of the checkpoint that was trained on it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robometer.errors import RobometerError
from robometer.frames.recording import Recording, VideoFile
from robometer.frames.video import DEFAULT_LIMITS, Source, Video, VideoLimits, decode_jpeg, encode_jpeg, thin

if TYPE_CHECKING:  # a child process that decodes uploads has no use for the configuration
    from robometer.configs.schema import IngestConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameSettings:
    """What a model is shown of a recording; 0 where a step is not done.

    Attributes:
        max_frames: frames that are kept, evenly spread, the first and the last always.
        short_edge: pixels of the short edge, up or down.
        jpeg_quality: 1 to 100.
    """

    max_frames: int = 32
    short_edge: int = 240
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        valid = self.max_frames >= 0 and self.short_edge >= 0 and 0 <= self.jpeg_quality <= 100
        if not valid or self.max_frames == 1:
            raise RobometerError(f"{self} are no settings of frames: at least 2 frames, and a quality of 0 to 100")

    @classmethod
    def of(cls, config: IngestConfig) -> FrameSettings:
        """Those of a corpus that is made with `config`."""
        return cls(config.max_frames, config.short_edge, config.jpeg_quality)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrameSettings:
        """What `as_dict` gave; a value that is missing is that of the defaults.

        Raises:
            RobometerError: a value that none of them can have.
        """
        try:
            return cls(**{name: int(values[name]) for name in cls().as_dict() if name in values})
        except (TypeError, ValueError) as error:
            raise RobometerError(f"{values!r} are no settings of frames ({error})") from error

    def __str__(self) -> str:
        size = f"short edge {self.short_edge} px" if self.short_edge else "size as it is"
        codec = f"JPEG of quality {self.jpeg_quality}" if self.jpeg_quality else "no JPEG"
        return f"{f'at most {self.max_frames}' if self.max_frames else 'all'} frames, {size}, {codec}"

    def as_dict(self) -> dict[str, int]:
        """Plain form, for JSON."""
        return asdict(self)

    def hash(self) -> str:
        """16 hex digits over the settings."""
        return hashlib.sha256(json.dumps(self.as_dict()).encode()).hexdigest()[:16]


UPSTREAM = FrameSettings(32, 240, 0)
"""Of the public weights, which say nothing about it: upstream stores raw frames
(robometer/data/scripts/preprocess_datasets.py)."""


def shown_to(scorer: object) -> FrameSettings | None:
    """The settings that a scorer was trained with (its `frames`), None where nobody knows them; the defaults for one
    that was not trained here."""
    found: FrameSettings | None = getattr(scorer, "frames", FrameSettings())
    return found


def overridden(trained: FrameSettings | None, given: Mapping[str, int]) -> FrameSettings:
    """The settings of a model but for what a user gives, who is warned where that is something else.

    Of a model whose settings nobody knows the rest are the defaults, with a warning.
    """
    settings = FrameSettings.from_dict({**(trained or FrameSettings()).as_dict(), **given})
    if trained is None and settings.as_dict() != given:
        logger.warning(
            "the model does not say what frames it was trained on, and is shown %s: if its corpus had others, its "
            "answers are worse; give those (score: --max-frames, serve: ingest.max_frames=... ingest.short_edge=... "
            "ingest.jpeg_quality=...), or train it again",
            settings,
        )
    elif trained is not None and settings != trained:
        logger.warning("the model was trained on %s, and is shown %s: its answers may be worse", trained, settings)
    return settings


@dataclass(frozen=True)
class EncodedFrames:
    """Frames as a corpus stores them.

    Attributes:
        frames: JPEG files.
        frame_index: int32 [T], which source frame each one is.
        fps: frames per second of the source, 0 where nobody knows.
        num_source_frames: how many frames the source has.
        height, width: of all frames.
    """

    frames: list[bytes]
    frame_index: np.ndarray
    fps: float
    num_source_frames: int
    height: int
    width: int


def encode_frames(recording: Recording, settings: FrameSettings, limits: VideoLimits = DEFAULT_LIMITS) -> EncodedFrames:
    """What a corpus stores of a recording.

    Raises:
        VideoError: what is there is missing, corrupt, or beyond the limits.
    """
    video = _thinned(recording, settings, limits)
    return EncodedFrames(
        [encode_jpeg(frame, settings.jpeg_quality) for frame in video.frames],
        video.frame_index,
        video.fps,
        video.num_source_frames,
        *video.frames.shape[1:3],
    )


def read_frames(source: Source | Recording, settings: FrameSettings, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
    """A recording, or a video by its path or content, as a model sees it: what `encode_frames` stores, decoded.

    Raises:
        VideoError: what is there is missing, corrupt, or beyond the limits.
    """
    recording = VideoFile(source) if isinstance(source, str | Path | bytes) else source
    if not settings.jpeg_quality:
        return _thinned(recording, settings, limits)
    stored = encode_frames(recording, settings, limits)
    frames = np.stack([decode_jpeg(frame) for frame in stored.frames])
    return Video(frames, stored.frame_index, stored.fps, stored.num_source_frames)


def _thinned(recording: Recording, settings: FrameSettings, limits: VideoLimits) -> Video:
    return recording.read(
        lambda n, fps: thin(n, settings.max_frames or n), short_edge=settings.short_edge or None, limits=limits
    )
