"""GVL, generative value learning (arXiv 2411.04549): a chat model says how much of a task is done in each frame.

Frames are shuffled, so that the model cannot answer with the time that has passed. Zero-shot only: the authors' variant
with examples in context is not implemented.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from robometer.baselines.api import ApiClient
from robometer.baselines.config import BaselineConfig
from robometer.baselines.progress import ProgressScorer, fingerprint
from robometer.baselines.providers import Question
from robometer.frames.video import thin_positions
from robometer.scoring import Clip, ClipScore, MissingAnswer, ScorerInfo, spread

MODELS = {"gemini": "gemini-2.5-flash-lite", "openai": "gpt-4o-mini"}

MAX_FRAMES = 30
"""Frames that the authors show of a trajectory (their five examples in context make 150 images)."""

_TASK = """You are an expert in watching robots work. A robot was told: {task}
You will see {count} frames of its attempt in random order, each under a number. Judge for every frame, by what can be \
seen in it, how much of the task has been accomplished at that moment, as a percentage from 0 to 100. The numbers say \
nothing about time, and an attempt may stall, lose what it had reached, or never get to 100.
Before it began, the scene looked like this:"""

_REQUEST = """In that picture 0 percent of the task has been accomplished.
Answer with JSON only, a list with one entry for each numbered frame below, like this:
{"frames": [{"frame_number": 1, "frame_description": "what matters for the task in it", \
"task_completion_percentage": 0}]}"""

_ENTRY = {
    "frame_number": {"type": "integer"},
    "frame_description": {"type": "string"},
    "task_completion_percentage": {"type": "number"},
}
_ENTRIES = {"type": "array", "items": {"type": "object", "properties": _ENTRY, "required": list(_ENTRY)}}
_SCHEMA = {"type": "object", "properties": {"frames": _ENTRIES}, "required": ["frames"]}


class Gvl(ProgressScorer):
    """Progress by a chat model. Frames missing from the answer are interpolated, and lower the coverage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._client = ApiClient(config, MODELS)
        self._seed, self._max_frames = config.seed, config.max_frames or MAX_FRAMES
        self.name = f"gvl ({self._client.model})"

    @property
    def info(self) -> ScorerInfo:
        """The defaults, and what was asked and spent so far."""
        return ScorerInfo(spent=asdict(self._client.usage))

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """One request per clip; `coverage` is the share of the frames in the prompt that the model answered for.

        Raises:
            ProviderError, MissingAnswer: a clip has no answer; raised after all clips were asked.
        """
        positions = [thin_positions(len(clip), self._max_frames) for clip in clips]
        thinned = [clip.take(at) for clip, at in zip(clips, positions, strict=True)]
        orders = [shuffled(clip, self._seed) for clip in thinned]
        texts = self._client.texts([question(clip, order) for clip, order in zip(thinned, orders, strict=True)])
        return [
            _whole(read_progress(text, order), at, len(clip))
            for clip, at, order, text in zip(clips, positions, orders, texts, strict=True)
        ]


def shuffled(clip: Clip, seed: int) -> np.ndarray:
    """Order int64 [T] of the frames in the prompt; depends on the seed and the clip's content, not on its batch."""
    return np.random.default_rng([seed, fingerprint(clip)]).permutation(len(clip))


def question(clip: Clip, order: np.ndarray) -> Question:
    """The task, the first frame, the request, and all frames (the first among them) in `order`, numbered from 1."""
    parts: list[str | np.ndarray] = [_TASK.format(task=clip.task, count=len(clip)), clip.frames[0], _REQUEST]
    for number, position in enumerate(order, start=1):
        parts += [f"Frame {number}:", clip.frames[position]]
    return Question(parts, _SCHEMA, detail="low")


def read_progress(text: str, order: np.ndarray) -> np.ndarray:
    """Progress float64 [T] in [0, 1] in temporal order, from an answer about frames in `order`; NaN for a missing one.

    Raises:
        MissingAnswer: no entry of the answer can be read.
    """
    progress = np.full(len(order), np.nan)
    for number, percentage in read_percentages(text, len(order)).items():
        progress[order[number - 1]] = percentage / 100
    if np.isnan(progress).all():
        answer = " ".join(text.split())[:120]
        raise MissingAnswer(f"the answer has no percentage for any of {len(order)} frames: {answer!r}")
    return progress


def read_percentages(text: str, count: int) -> dict[int, float]:
    """Percentage in [0, 100] by frame number in 1..count; entries that are not JSON or lack a number are left out.

    The JSON may stand anywhere in the text, in a code fence or another object, or be cut off. The last entry for a
    frame counts.
    """
    percentages: dict[int, float] = {}
    for entry in _entries_in(text):
        number, percentage = (_number(entry.get(name)) for name in ("frame_number", "task_completion_percentage"))
        if number in range(1, count + 1) and number is not None and percentage is not None:
            percentages[int(number)] = min(max(percentage, 0.0), 100.0)
    return percentages


def _entries_in(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield from _entries(value)
        start = text.find("{", end)


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "frame_number" in value:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _entries(inner)


def _number(value: object) -> float | None:
    """The only number in a value such as 40, "40 %" or "frame 3"; None without one or with several."""
    match = re.fullmatch(r"\D*?(-?\d+(?:\.\d+)?)\D*", str(value))
    return float(match[1]) if match else None


def _whole(progress: np.ndarray, positions: np.ndarray, num_frames: int) -> ClipScore:
    """The score of all frames of a clip, from progress [K] at positions [K]."""
    thinned = ClipScore.of_progress(progress)
    filled = spread(thinned.progress, positions, num_frames)
    return ClipScore(filled, filled, coverage=thinned.coverage)


def make(name: str, config: BaselineConfig, device: str) -> Gvl:
    """See `robometer.baselines.load_baseline`."""
    return Gvl(config)
