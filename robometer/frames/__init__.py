"""One way from a recording to the frames that a corpus stores and a scorer gets: stream, rotation, timing, size, codec.

Of these frames, `sampling.max_frames` are shown to a model.

Ingest stores what `encode_frames` returns. Scoring calls `read_frames`, which decodes the same JPEGs. The settings are
those of the corpus, and then of the checkpoint that was trained on it.
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
from robometer.frames.video import (
    DEFAULT_LIMITS,
    Pick,
    Source,
    Video,
    VideoLimits,
    decode_jpeg,
    encode_jpeg,
    thin_positions,
)

if TYPE_CHECKING:  # the child process that decodes uploads does not need the configuration
    from robometer.corpus.config import IngestConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameSettings:
    """How a recording becomes the frames that a model sees; 0 skips a step.

    Attributes:
        max_frames: most frames to keep, evenly spread; the first and the last are always kept.
        short_edge: length in pixels to which the short edge is scaled, up or down.
        jpeg_quality: 1 to 100.

    Raises:
        RobometerError: a value is out of range; one frame is too few.
    """

    max_frames: int = 32
    short_edge: int = 240
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        valid = self.max_frames >= 0 and self.short_edge >= 0 and 0 <= self.jpeg_quality <= 100
        if not valid or self.max_frames == 1:
            raise RobometerError(
                f"frame settings ({self}) are invalid: max_frames must be 0 or at least 2, short_edge at least 0, and "
                "jpeg_quality 0 to 100"
            )

    @classmethod
    def of(cls, config: IngestConfig) -> FrameSettings:
        """The settings of a corpus that is ingested with `config`."""
        return cls(config.max_frames, config.short_edge, config.jpeg_quality)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrameSettings:
        """Inverse of `as_dict`; missing values take their defaults.

        Raises:
            RobometerError: a value has the wrong type or is out of range.
        """
        try:
            return cls(**{name: int(values[name]) for name in cls().as_dict() if name in values})
        except (TypeError, ValueError) as error:
            raise RobometerError(f"{values!r} are not valid frame settings ({error})") from error

    def __str__(self) -> str:
        size = f"short edge {self.short_edge} px" if self.short_edge else "original size"
        codec = f"JPEG quality {self.jpeg_quality}" if self.jpeg_quality else "no JPEG"
        return f"{f'at most {self.max_frames}' if self.max_frames else 'all'} frames, {size}, {codec}"

    def as_dict(self) -> dict[str, int]:
        """Plain form, for JSON."""
        return asdict(self)

    def hash(self) -> str:
        """16 hex digits of a hash of the settings."""
        return hashlib.sha256(json.dumps(self.as_dict()).encode()).hexdigest()[:16]


UPSTREAM = FrameSettings(32, 240, 0)
"""Settings of the public weights, which do not record any: upstream stores raw frames
(robometer/data/scripts/preprocess_datasets.py)."""


def overridden(trained: FrameSettings | None, overrides: Mapping[str, int]) -> FrameSettings:
    """The settings that a model was trained on, with a user's `overrides`; a difference is logged as a warning.

    Args:
        trained: None where the model does not record them: the defaults stand in, with a warning.
    """
    settings = FrameSettings.from_dict({**(trained or FrameSettings()).as_dict(), **overrides})
    if trained is None and settings.as_dict() != overrides:
        logger.warning(
            "The checkpoint does not record which frames it was trained on. It gets %s; if its corpus had others, its "
            "answers are worse. Set them (score: --max-frames; serve: ingest.max_frames=... ingest.short_edge=... "
            "ingest.jpeg_quality=...), or train again.",
            settings,
        )
    elif trained is not None and settings != trained:
        logger.warning("The model was trained on %s and gets %s: its answers may be worse.", trained, settings)
    return settings


@dataclass(frozen=True)
class EncodedFrames:
    """Frames as a corpus stores them.

    Attributes:
        frames: JPEG files.
        frame_index: int32 [T], the source frame that each one is.
        fps: frames per second of the source, 0 where unknown.
        num_source_frames: number of frames in the source.
        height, width: of every frame, in pixels.
    """

    frames: list[bytes]
    frame_index: np.ndarray
    fps: float
    num_source_frames: int
    height: int
    width: int


def encode_frames(
    recording: Recording, settings: FrameSettings, limits: VideoLimits = DEFAULT_LIMITS, pick: Pick | None = None
) -> EncodedFrames:
    """The frames of a recording as a corpus stores them.

    Args:
        pick: names the frames to keep, instead of `settings.max_frames`.

    Raises:
        VideoError: the recording is missing, corrupt or beyond the limits.
    """
    video = _thinned(recording, settings, limits, pick)
    return EncodedFrames(
        [encode_jpeg(frame, settings.jpeg_quality) for frame in video.frames],
        video.frame_index,
        video.fps,
        video.num_source_frames,
        *video.frames.shape[1:3],
    )


def read_frames(
    source: Source | Recording,
    settings: FrameSettings,
    limits: VideoLimits = DEFAULT_LIMITS,
    pick: Pick | None = None,
) -> Video:
    """A recording, or a video by its path or content, as a model sees it: what `encode_frames` stores, decoded.

    Args:
        pick: names the frames to keep, instead of `settings.max_frames`.

    Raises:
        VideoError: the recording is missing, corrupt or beyond the limits.
    """
    recording = VideoFile(source) if isinstance(source, str | Path | bytes) else source
    if not settings.jpeg_quality:
        return _thinned(recording, settings, limits, pick)
    stored = encode_frames(recording, settings, limits, pick)
    frames = np.stack([decode_jpeg(frame) for frame in stored.frames])
    return Video(frames, stored.frame_index, stored.fps, stored.num_source_frames)


def _thinned(recording: Recording, settings: FrameSettings, limits: VideoLimits, pick: Pick | None) -> Video:
    return recording.read(
        pick or (lambda n, fps: thin_positions(n, settings.max_frames or n)),
        short_edge=settings.short_edge or None,
        limits=limits,
    )
