"""Prompts and answers of models that answer in words, in this process or at an endpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robometer.baselines.config import BaselineConfig
from robometer.frames.video import thin_positions
from robometer.scoring import Clip, ClipScore, MissingAnswer, spread
from robometer.settings import ConfigError

_MARK = re.compile("<image>|<video>")


@dataclass(frozen=True)
class PromptVideo:
    """Frames that a prompt shows as a video.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        fps: frames per second that the prompt tells the model.
    """

    frames: np.ndarray
    fps: float


Part = str | np.ndarray | PromptVideo
"""Text, a picture uint8 [H, W, 3] RGB, or a video."""

Prompt = Sequence[Part]

Ask = Callable[[Sequence[Prompt]], list[str]]
"""From prompts to answers, in the same order: `ChatModel.ask`, or a client of an endpoint."""

Judge = Callable[[Clip], tuple[np.ndarray, Sequence[str]]]
"""From a clip to progress float [M - 1] at each frame but the first (NaN for a missing answer), and the answers."""


def read_template(config: BaselineConfig, default: str) -> str:
    """The text of the file `baseline.prompt`, or the default if none is set.

    Raises:
        ConfigError: the file cannot be read, or its marks <image> and <video> differ from the default's.
    """
    if not config.prompt:
        return default
    template = read_prompt(config)
    expected, marks = (_MARK.findall(text) for text in (default, template))
    if expected != marks:
        raise ConfigError(
            f"baseline.prompt={config.prompt!r} has the marks {' '.join(marks) or '(none)'}, but it needs "
            f"{' '.join(expected)} in this order"
        )
    return template


def read_prompt(config: BaselineConfig) -> str:
    """The text of the file `baseline.prompt`.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return Path(config.prompt).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"baseline.prompt={config.prompt!r} cannot be read ({error})") from error


def fill(template: str, task: str, pictures: Sequence[np.ndarray | PromptVideo]) -> Prompt:
    """The prompt with `pictures` and videos in place of the marks; a mark in the task stays text."""
    first, *texts = (text.replace("{task}", task) for text in _MARK.split(template))
    parts: list[Part] = [first]
    for picture, text in zip(pictures, texts, strict=True):
        parts += [picture, text]
    return [part for part in parts if not isinstance(part, str) or part]


def prefix_ends(num_frames: int, count: int) -> np.ndarray:
    """Lengths of at most `count` prefixes of a clip, evenly spread over 1..num_frames and rounded down, int64 [P]."""
    return np.unique(np.linspace(1, num_frames, count).astype(np.int64))


def answered(values: np.ndarray, positions: np.ndarray, num_frames: int, answers: Sequence[str] = ("",)) -> ClipScore:
    """Score of a clip from progress float [P] at `positions` int64 [P], NaN for a missing answer.

    Values are clipped to [0, 1] and interpolated to the other frames; coverage is the share of questions answered.

    Raises:
        MissingAnswer: no answer could be read; the message quotes the last of `answers`.
    """
    readable = np.isfinite(values)
    if not readable.any():
        quote = f"; the last one is {answers[-1][:80]!r}" if answers[-1] else ""
        raise MissingAnswer(f"none of {len(values)} answers could be read{quote}")
    progress = spread(values[readable].clip(0, 1), positions[readable], num_frames)
    return ClipScore(progress, progress, coverage=float(readable.mean()))


def moment_positions(num_frames: int, max_frames: int, interval: int) -> np.ndarray:
    """Every `interval`-th of at most `max_frames` evenly spread frames, and the last one, int64 [M]."""
    positions = thin_positions(num_frames, max_frames)
    return np.unique(np.append(positions[::interval], positions[-1]))


def anchored(progress: np.ndarray, moments: np.ndarray, num_frames: int, answers: Sequence[str] = ("",)) -> ClipScore:
    """Score of a clip from progress [M - 1] at all moments [M] but the first, where it is 0 by definition.

    Raises:
        MissingAnswer: all values are NaN.
    """
    coverage = answered(progress, moments[1:], num_frames, answers).coverage
    whole = answered(np.append(0.0, progress), moments, num_frames)
    return ClipScore(whole.progress, whole.success, coverage=coverage)


def score_moments(clip: Clip, max_frames: int, interval: int, judge: Judge) -> ClipScore:
    """Score of a clip from the judge's progress at its moments (`moment_positions`); a single moment is not judged.

    Raises:
        MissingAnswer: the judge gave no readable answer.
    """
    moments = moment_positions(len(clip), max_frames, interval)
    if len(moments) == 1:
        return ClipScore.of_progress(np.zeros(1))
    progress, answers = judge(clip.take(moments))
    return anchored(progress, moments, len(clip), answers)
