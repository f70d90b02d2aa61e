"""What a client may ask of a score beside the clip and the task: a part of the clip, fewer frames, prefixes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.serving.errors import ApiError

OPTIONS = ("mode", "start_frame", "end_frame", "start_s", "end_s", "max_frames", "fps")

MODES = ("whole", "prefix", "session")

MAX_PREFIX_FRAMES = 1000
"""Frames of a clip of which every prefix is scored, at most: the work grows with their square."""

MAX_FPS = 1000

_MAX_DIGITS = 32


@dataclass(frozen=True)
class Cut:
    """The part of a source to score: from `start` to before `end`, None for the end.

    Attributes:
        in_seconds: whether both are seconds after the first frame; otherwise they are numbers of frames.
        max_frames: most frames to take of it, evenly spread, with the first and the last; 0 for as many as the model's
            settings say.
        fps: frames per second to take of it, in place of `max_frames`; 0 for none.
    """

    start: float = 0
    end: float | None = None
    in_seconds: bool = False
    max_frames: int = 0
    fps: float = 0


@dataclass(frozen=True)
class ScoreOptions:
    """How to score a clip, see `ScoreRequest`."""

    mode: str = MODES[0]
    cut: Cut = Cut()

    @property
    def prefixes(self) -> bool:
        """Whether each frame is scored from itself and frames before it only."""
        return self.mode != MODES[0]


def read_options(values: Mapping[str, Any]) -> ScoreOptions:
    """Options of a request from its fields: text of a form, or values of JSON.

    Raises:
        ApiError: 422, one has no meaning, or two contradict each other.
    """
    mode = values.get("mode", MODES[0])
    if mode not in MODES:
        raise ApiError(422, "Field 'mode' must be 'whole', 'prefix' or 'session'.")
    frames = {name: _frame(values[name], name) for name in ("start_frame", "end_frame") if name in values}
    seconds = {name: _second(values[name], name) for name in ("start_s", "end_s") if name in values}
    if frames and seconds:
        raise ApiError(422, "Give the part to score in frames or in seconds, not both.")
    start, end = (
        (seconds.get("start_s", 0), seconds.get("end_s"))
        if seconds
        else (frames.get("start_frame", 0), frames.get("end_frame"))
    )
    if end is not None and end <= start:
        raise ApiError(422, f"The part to score ends at {end}, before or where it starts ({start}).")
    max_frames = _frame(values["max_frames"], "max_frames") if "max_frames" in values else 0
    if "max_frames" in values and max_frames < 2:
        raise ApiError(422, "Field 'max_frames' must be at least 2: the first frame and the last are always kept.")
    return ScoreOptions(mode, Cut(start, end, bool(seconds), max_frames, _fps(values)))


def check_prefixes(num_frames: int, field: str) -> None:
    """Check the number of frames of a clip of which every prefix is scored.

    Raises:
        ApiError: 413, there are too many.
    """
    if num_frames > MAX_PREFIX_FRAMES:
        sentence = f"Field '{field}' has {num_frames} frames; with prefixes the limit is {MAX_PREFIX_FRAMES}."
        raise ApiError(413, f"{sentence} Send fewer.")


def _frame(value: Any, name: str) -> int:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise ApiError(422, f"Field '{name}' must be a whole number of frames.")
    return int(text)


def _fps(values: Mapping[str, Any]) -> float:
    if "fps" not in values:
        return 0
    if "max_frames" in values:
        raise ApiError(422, "Give fps or max_frames, not both: each says how many frames to take.")
    fps = _number(values["fps"])
    if not 0 < fps <= MAX_FPS:
        raise ApiError(422, f"Field 'fps' must be a number of frames per second, above 0 and at most {MAX_FPS}.")
    return fps


def _second(value: Any, name: str) -> float:
    seconds = _number(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ApiError(422, f"Field '{name}' must be a number of seconds, at least 0.")
    return seconds


def _number(value: Any) -> float:
    """The number that a field holds; NaN where it holds none."""
    text = str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    try:
        return float(text) if len(text) <= _MAX_DIGITS else math.nan
    except ValueError:
        return math.nan
