"""What is asked of a model that answers in words, whoever runs it: in this process, or behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robometer.configs.schema import BaselineConfig, ConfigError
from robometer.frames.video import thin_positions
from robometer.scoring import Clip, ClipScore, MissingAnswer, spread

_MARK = re.compile("<image>|<video>")


@dataclass(frozen=True)
class Video:
    """Frames that a prompt shows as a video.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        fps: frames per second that the model is told.
    """

    frames: np.ndarray
    fps: float


Part = str | np.ndarray | Video
"""Text, a picture uint8 [H, W, 3] RGB, or a video."""

Prompt = Sequence[Part]

Ask = Callable[[Sequence[Prompt]], list[str]]
"""Answers to prompts, in their order. `ChatModel.ask` is one; a client of an endpoint is another."""

Judge = Callable[[Clip], tuple[np.ndarray, Sequence[str]]]
"""Progress float [M - 1] at every frame of a clip but the first, NaN where there is none, and what it was read from."""


def read_template(config: BaselineConfig, default: str) -> str:
    """The text of the file `baseline.prompt`, or the default where there is none.

    Raises:
        ConfigError: it cannot be read, or has other marks <image> and <video> than the default.
    """
    if not config.prompt:
        return default
    template = read_prompt(config)
    wanted, found = (_MARK.findall(text) for text in (default, template))
    if wanted != found:
        raise ConfigError(
            f"baseline.prompt={config.prompt!r} has the marks {' '.join(found) or '(none)'}, where {' '.join(wanted)} "
            "are filled in: put them in this order"
        )
    return template


def read_prompt(config: BaselineConfig) -> str:
    """The text of the file `baseline.prompt`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(config.prompt).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"baseline.prompt={config.prompt!r} cannot be read ({error})") from error


def fill(template: str, task: str, shown: Sequence[np.ndarray | Video]) -> Prompt:
    """The prompt in which `shown` stand in the places of the marks; a task that spells a mark is text all the same."""
    first, *texts = (text.replace("{task}", task) for text in _MARK.split(template))
    parts: list[Part] = [first]
    for picture, text in zip(shown, texts, strict=True):
        parts += [picture, text]
    return [part for part in parts if not isinstance(part, str) or part]


def prefix_ends(num_frames: int, count: int) -> np.ndarray:
    """Lengths of at most `count` prefixes of a clip, evenly spread over 1..num_frames (rounded down); int64 [P]."""
    return np.unique(np.linspace(1, num_frames, count).astype(np.int64))


def answered(values: np.ndarray, positions: np.ndarray, num_frames: int, answers: Sequence[str] = ("",)) -> ClipScore:
    """Score of a clip from answers float [P] about the frames at `positions` int64 [P], NaN where one is missing.

    What is beyond [0, 1] is cut; coverage is the answered share of what was asked; other frames are interpolated.

    Raises:
        MissingAnswer: none could be read; it quotes the last of `answers`.
    """
    known = np.isfinite(values)
    if not known.any():
        quote = f", the last one is {answers[-1][:80]!r}" if answers[-1] else ""
        raise MissingAnswer(f"none of {len(values)} answers could be read{quote}")
    progress = spread(values[known].clip(0, 1), positions[known], num_frames)
    return ClipScore(progress, progress, coverage=float(known.mean()))


def moment_positions(num_frames: int, max_frames: int, interval: int) -> np.ndarray:
    """Of the at most `max_frames` frames that are looked at: number 0, k, 2k, ... and the last; int64 [M]."""
    shown = thin_positions(num_frames, max_frames)
    return np.unique(np.append(shown[::interval], shown[-1]))


def anchored(progress: np.ndarray, moments: np.ndarray, num_frames: int, answers: Sequence[str] = ("",)) -> ClipScore:
    """Score from progress [M - 1] at all moments [M] but the first, which is 0 by definition.

    Raises:
        MissingAnswer: all of it is NaN.
    """
    coverage = answered(progress, moments[1:], num_frames, answers).coverage
    whole = answered(np.append(0.0, progress), moments, num_frames)
    return ClipScore(whole.progress, whole.success, coverage=coverage)


def score_moments(clip: Clip, max_frames: int, interval: int, judge: Judge) -> ClipScore:
    """Score from what is judged of the moments of a clip (`moment_positions`); of one moment nothing is asked.

    Raises:
        MissingAnswer: the judge gave nothing that can be read.
    """
    moments = moment_positions(len(clip), max_frames, interval)
    if len(moments) == 1:
        return ClipScore.of_progress(np.zeros(1))
    progress, answers = judge(clip.take(moments))
    return anchored(progress, moments, len(clip), answers)
