"""The Scorer: frames and a task in, progress, success and preference out. Everything that predicts is one.

To write one of your own, implement `Scorer`: a `name`, an `info` (`ScorerInfo()` will do), and three methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import wraps
from threading import RLock
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np

from robometer.errors import InputError, RobometerError
from robometer.frames import FrameSettings

_Self = TypeVar("_Self", bound="OneAtATime")
_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")


PREFIXES_AT_A_TIME = 16
"""Prefixes of a clip that a scorer is given together."""


class MissingAnswer(RobometerError):
    """A scorer's model gave no readable answer; the message quotes what it gave."""


class NoProgress(RobometerError):
    """A scorer that only compares clips was asked for progress."""


@dataclass(frozen=True)
class Clip:
    """What a scorer sees of a trajectory.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        task: the instruction text.
        features: per-frame embeddings float [T, D] by image-encoder name, as an embedded corpus holds them. A scorer
            that needs embeddings and finds none encodes `frames` itself.

    Raises:
        InputError: the frames have another type or shape, or there are none.
    """

    frames: np.ndarray
    task: str
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise InputError(
                f"frames must be uint8 [T, H, W, 3] RGB, got {self.frames.dtype} {list(self.frames.shape)}"
            )
        if len(self.frames) == 0:
            raise InputError("a clip needs at least one frame")

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, positions: Sequence[int] | np.ndarray) -> Clip:
        """The clip with the frames at these positions, in this order (to reverse, rewind or thin it)."""
        index = np.asarray(positions, dtype=np.int64)
        return Clip(self.frames[index], self.task, {name: value[index] for name, value in self.features.items()})

    def up_to(self, end: int) -> Clip:
        """The first `end` frames, which share memory with this clip."""
        return Clip(self.frames[:end], self.task, {name: value[:end] for name, value in self.features.items()})

    def with_task(self, task: str) -> Clip:
        """The same frames under another instruction."""
        return Clip(self.frames, task, self.features)

    def followed_by(self, other: Clip) -> Clip:
        """One clip of both, whose task is the two tasks in turn; the frames must have the same size."""
        shared = self.features.keys() & other.features.keys()
        features = {name: np.concatenate([self.features[name], other.features[name]]) for name in shared}
        frames = np.concatenate([self.frames, other.frames])
        return Clip(frames, f"{self.task.rstrip('.')}, then {other.task}", features)

    def reversed(self) -> Clip:
        """The clip played backwards."""
        return self.take(np.arange(len(self))[::-1])


@dataclass(frozen=True)
class ClipScore:
    """Per-frame predictions of one clip, one value per frame of the clip.

    Attributes:
        progress: float32 [T] in [0, 1].
        success: float32 [T], the probability that the task is done at this frame.
        rank: value to rank the clip by, such as a raw log-probability; None to rank it by its last progress.
        coverage: share of the T frames that the scorer answered for; the others are interpolated.
    """

    progress: np.ndarray
    success: np.ndarray
    rank: float | None = None
    coverage: float = 1.0

    @classmethod
    def of_progress(cls, progress: np.ndarray, rank: float | None = None) -> ClipScore:
        """Score of a scorer without a success head: success is progress, and NaN, a missing answer, is interpolated.

        Args:
            progress: float [T]; values outside [0, 1] are clipped.

        Raises:
            MissingAnswer: no frame has an answer.
        """
        answers = np.asarray(progress, dtype=np.float32)
        positions = np.flatnonzero(np.isfinite(answers))
        if not len(positions):
            raise MissingAnswer(f"no answer for any of {len(answers)} frames")
        filled = spread(answers[positions], positions, len(answers)).clip(0, 1)
        return cls(filled, filled, rank, len(positions) / len(answers))

    @property
    def reward(self) -> float:
        """The value of the whole clip: `rank`, or the progress at its last frame."""
        return float(self.progress[-1]) if self.rank is None else self.rank


@dataclass(frozen=True)
class ScorerInfo:
    """What a scorer says about itself. The defaults fit a scorer that reads frames and was not trained here.

    Attributes:
        frames: how a recording becomes the frames that the scorer was trained on; None where the checkpoint does not
            say.
        max_frames: frames that it looks at together, at most; a longer clip is thinned, and a session keeps fewer. None
            for any number.
        image_encoder: name of the corpus embeddings (`embed.image_encoder`) that the scorer reads in place of frames;
            None for a scorer of frames.
        compares_only: the scorer has preferences alone; its `score` and `open_session` raise `NoProgress`.
        revision: hash of its weights; empty without weights.
        provenance: what its checkpoint records about its training; empty where there is no record.
        spent: what it has asked and spent at an API so far, by name (`baselines.api.Usage`); empty where it asks none.
    """

    frames: FrameSettings | None = field(default_factory=FrameSettings)
    max_frames: int | None = None
    image_encoder: str | None = None
    compares_only: bool = False
    revision: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Session(Protocol):
    """Scores one trajectory frame by frame, as a policy produces it (see `robometer.sessions`)."""

    def push(self, frame: np.ndarray) -> tuple[float, float]:
        """Add one frame, uint8 [H, W, 3]; returns (progress, success) at that frame."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Batched scoring. Implementations are deterministic: the same clips give the same numbers in any batch.

    Every scorer may be called from several threads at once: it keeps nothing between calls, or it is a `OneAtATime`.
    """

    name: str

    @property
    def info(self) -> ScorerInfo:
        """What the scorer says about itself, as of now; a plain attribute will do."""
        ...

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """Progress and success per frame, for each clip."""
        ...

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """P(first clip did better), float32 [N], for the task of each pair's first clip."""
        ...

    def open_session(self, task: str) -> Session:
        """Start to score one trajectory frame by frame."""
        ...


@runtime_checkable
class PrefixScorer(Scorer, Protocol):
    """A scorer that shares work between the prefixes of a clip."""

    def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """Equal to `robometer.scoring.score_prefixes`, with less work."""
        ...


class OneAtATime:
    """Base of scorers around a model in this process: methods marked `one_at_a_time` run in one thread at a time.

    Tokenizers, third-party networks and parts that load on first use keep state that two calls would share.
    """

    def __init__(self) -> None:
        self.busy: AbstractContextManager[object] = RLock()  # reentrant: a marked method may call another one


def one_at_a_time(
    method: Callable[Concatenate[_Self, _Args], _Answer],
) -> Callable[Concatenate[_Self, _Args], _Answer]:
    """Mark a method of a `OneAtATime`: while it runs, other threads wait to call a marked method of the same object."""

    @wraps(method)
    def locked(self: _Self, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        with self.busy:
            return method(self, *args, **kwargs)

    return locked


def score_prefixes(scorer: Scorer, clips: Sequence[Clip]) -> list[ClipScore]:
    """Scores of clips as they come in: frame t gets the last score of the clip up to t."""
    if isinstance(scorer, PrefixScorer):
        return scorer.score_prefixes(clips)
    return [each_prefix(scorer, clip) for clip in clips]


def score_positions(scorer: Scorer, clip: Clip, positions: Sequence[int]) -> ClipScore:
    """The values of `score_prefixes` at these positions, in their order, with less work where they are few.

    A scorer that reads embeddings makes those of all frames once, so that its prefixes together cost little more than
    one. Any other looks at a prefix anew, if the prefix has more frames than it looks at together.
    """
    needed, whole = sorted(set(positions)), max(positions) + 1
    if len(needed) <= whole - (scorer.info.max_frames or 0) and scorer.info.image_encoder is None:
        score = _some_prefixes(scorer, clip, needed)
        at = [needed.index(p) for p in positions]
    else:
        [score], at = score_prefixes(scorer, [clip.up_to(whole)]), list(positions)
    return replace(score, progress=score.progress[at], success=score.success[at])


def each_prefix(scorer: Scorer, clip: Clip) -> ClipScore:
    """The score of every prefix of a clip, some at a time."""
    return _some_prefixes(scorer, clip, range(len(clip)))


def _some_prefixes(scorer: Scorer, clip: Clip, needed: Sequence[int]) -> ClipScore:
    prefixes = [clip.up_to(p + 1) for p in needed]
    scores = [
        _last_alone(score)
        for first in range(0, len(needed), PREFIXES_AT_A_TIME)
        for score in scorer.score(prefixes[first : first + PREFIXES_AT_A_TIME])
    ]
    return last_of_each(scores)


def _last_alone(score: ClipScore) -> ClipScore:
    """A score of the last frame alone: of a long clip, all prefixes together have very many frames."""
    return replace(score, progress=score.progress[-1:].copy(), success=score.success[-1:].copy())


def last_of_each(prefixes: Sequence[ClipScore]) -> ClipScore:
    """The score of a clip whose frame t is the last frame of prefix t."""
    progress, success = (
        np.array([getattr(score, name)[-1] for score in prefixes], dtype=np.float32) for name in ("progress", "success")
    )
    return ClipScore(progress, success, prefixes[-1].rank, float(np.mean([score.coverage for score in prefixes])))


def spread(values: np.ndarray, positions: np.ndarray, num_frames: int) -> np.ndarray:
    """Values predicted at ascending `positions`, interpolated linearly to every frame, float32 [num_frames]."""
    at_frames: np.ndarray = np.interp(np.arange(num_frames), positions, values)
    return at_frames.astype(np.float32)
