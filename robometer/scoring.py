"""The Scorer: frames and a task in, progress, success and preference out. Everything that predicts is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import wraps
from threading import RLock
from typing import Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np

from robometer.errors import InputError, RobometerError

_Self = TypeVar("_Self", bound="OneAtATime")
_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")


class MissingAnswer(RobometerError):
    """A scorer was asked and gave nothing that can be read; the message says what came instead."""


class NoProgress(RobometerError):
    """A scorer that only compares was asked for progress."""


@dataclass(frozen=True)
class Clip:
    """What a scorer sees of a trajectory.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        task: the instruction text.
        features: per-frame embeddings float [T, D] by image-encoder name, where they are known already
            (a corpus that was embedded); a scorer that needs them and finds none encodes `frames` itself.

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
        """The clip that shows these frames in this order (for reversed, rewound or thinned clips)."""
        index = np.asarray(positions, dtype=np.int64)
        return Clip(self.frames[index], self.task, {name: value[index] for name, value in self.features.items()})

    def with_task(self, task: str) -> Clip:
        """The same frames under another instruction."""
        return Clip(self.frames, task, self.features)

    def followed_by(self, other: Clip) -> Clip:
        """Both clips as one that does their two tasks, one after the other; their frames must be of one size."""
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
        rank: what to rank the clip by where that is not the last progress (a raw log-probability, say); else None.
        coverage: share of the T frames that the scorer gave an answer for; the others are interpolated.
    """

    progress: np.ndarray
    success: np.ndarray
    rank: float | None = None
    coverage: float = 1.0

    @classmethod
    def of_progress(cls, progress: np.ndarray, rank: float | None = None) -> ClipScore:
        """Of a scorer without a success head: success is progress. NaN is a missing answer, and is interpolated.

        Raises:
            MissingAnswer: no frame has one.
        """
        given = np.asarray(progress, dtype=np.float32)
        known = np.flatnonzero(np.isfinite(given))
        if not len(known):
            raise MissingAnswer(f"no answer for any of {len(given)} frames")
        filled = spread(given[known], known, len(given)).clip(0, 1)
        return cls(filled, filled, rank, len(known) / len(given))

    @property
    def reward(self) -> float:
        """What the whole clip is worth: `rank`, or the progress at its last frame."""
        return float(self.progress[-1]) if self.rank is None else self.rank


@runtime_checkable
class Session(Protocol):
    """Scores one trajectory frame by frame, as a policy produces it."""

    def push(self, frame: np.ndarray) -> tuple[float, float]:
        """Add one frame, uint8 [H, W, 3]; returns (progress, success) at that frame."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Batched scoring. Implementations are deterministic: the same clips give the same numbers in any batch.

    Every one may be called from several threads at once: it keeps nothing between calls, or it is `OneAtATime`.

    One that was trained says by an attribute `frames` (`FrameSettings`) how a recording becomes the frames it is shown.
    One that has preferences alone says so by an attribute `compares_only = True`; it raises `NoProgress` elsewhere.
    """

    name: str

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """Progress and success per frame, for each clip."""
        ...

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """P(first clip did better), float32 [N], for the task of each pair's first clip."""
        ...

    def open_session(self, task: str) -> Session:
        """Start scoring one trajectory frame by frame."""
        ...


class OneAtATime:
    """What a model in this process is behind: methods marked `one_at_a_time` run in one thread at a time.

    Networks of others, tokenizers and what is loaded on first use keep state that two calls would share.
    """

    def __init__(self) -> None:
        self.busy: AbstractContextManager[object] = RLock()  # a marked method may call another


def one_at_a_time(
    method: Callable[Concatenate[_Self, _Args], _Answer],
) -> Callable[Concatenate[_Self, _Args], _Answer]:
    """Mark a method of a `OneAtATime`: while it runs, calls of marked methods of the same object wait."""

    @wraps(method)
    def alone(self: _Self, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        with self.busy:
            return method(self, *args, **kwargs)

    return alone


class PrefixSession:
    """Session of any scorer: scores the frames seen so far at each push (a scorer with a cache overrides this)."""

    def __init__(self, scorer: Scorer, task: str) -> None:
        self._scorer, self._task, self._frames = scorer, task, list[np.ndarray]()

    def push(self, frame: np.ndarray) -> tuple[float, float]:
        self._frames.append(frame)
        score = self._scorer.score([Clip(np.stack(self._frames), self._task)])[0]
        return float(score.progress[-1]), float(score.success[-1])


def score_prefixes(scorer: Scorer, clips: Sequence[Clip]) -> list[ClipScore]:
    """Scores of clips as they come in: frame t's are the last ones of the clip up to t, as a `Session` gives them.

    A scorer that can share work between prefixes has a method `score_prefixes(clips)`.
    """
    own = getattr(scorer, "score_prefixes", None)
    if own is not None:
        return list(own(clips))
    of_clips = [scorer.score([clip.take(np.arange(n)) for n in range(1, len(clip) + 1)]) for clip in clips]
    return [last_of_each(scores) for scores in of_clips]


def last_of_each(prefixes: Sequence[ClipScore]) -> ClipScore:
    """The score whose frame t is the last frame of prefix t."""
    progress, success = (
        np.array([getattr(score, name)[-1] for score in prefixes], dtype=np.float32) for name in ("progress", "success")
    )
    return ClipScore(progress, success, prefixes[-1].rank, float(np.mean([score.coverage for score in prefixes])))


def thin_positions(num_frames: int, max_frames: int) -> np.ndarray:
    """At most `max_frames` positions of `num_frames`, evenly spread, first and last kept; int64 [T]."""
    if num_frames <= max_frames:
        return np.arange(num_frames)
    return np.rint(np.linspace(0, num_frames - 1, max_frames)).astype(np.int64)


def spread(values: np.ndarray, positions: np.ndarray, num_frames: int) -> np.ndarray:
    """Values that were predicted at `positions`, interpolated linearly to every frame; float32 [num_frames]."""
    at_frames: np.ndarray = np.interp(np.arange(num_frames), positions, values)
    return at_frames.astype(np.float32)
