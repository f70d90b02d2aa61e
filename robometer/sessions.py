"""Sessions: a trajectory is scored frame by frame. A frame costs as much at the end as at the start, where the scorer
looks at a bounded number of frames (`info.max_frames`).

A session scores its newest frame from the frames of its `Window`: the answer at frame t is the last one of `score` for
the frames at `kept_positions(t + 1, max_frames)`. For clips that the model sees whole, that is their prefix score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robometer.errors import InputError
from robometer.frames.window import Window
from robometer.scoring import Clip, ClipScore, Scorer, score_prefixes

Answer = tuple[float, float]
"""Progress and success at one frame."""


NOT_FINITE = "the model answered with a number that is not finite"


class WindowSession:
    """A `Session` of any scorer; `pushed` in its window counts the frames.

    Attributes:
        window: one-frame clips, with frames or embeddings, as the scorer needs them.
        last: the newest of them, which the window may not keep.
        shape: that of all frames; None before the first.
    """

    def __init__(self, scorer: Scorer, task: str) -> None:
        self.scorer, self.task = scorer, task
        self.window = Window[Clip](scorer.info.max_frames)
        self.last: Clip | None = None
        self.shape: tuple[int, ...] | None = None

    def push(self, frame: np.ndarray) -> Answer:
        """See `Session.push`.

        Raises:
            InputError: the frame has another type or size than the first one.
        """
        return push_all([self], [frame])[0]

    def restore(self, pushed: int, frames: Sequence[np.ndarray]) -> None:
        """Continue a session that ended after `pushed` frames, from those that its window held.

        Raises:
            InputError: the window held another number of frames.
        """
        shape, self.shape = self.shape, None
        try:
            for frame in frames:
                self.check(frame)
                self.shape = frame.shape
            self.window.restore(pushed, self.look(frames) if frames else [])
        except InputError:
            self.shape = shape
            raise
        self.last = None

    def clip(self) -> Clip:
        """The frames that scored the last one, as one clip.

        Raises:
            InputError: there is no frame yet.
        """
        if self.last is None:
            raise InputError("the session has no frames yet: push one first")
        kept = self.window.items
        return joined(kept if kept and kept[-1] is self.last else [*kept, self.last])

    def look(self, frames: Sequence[np.ndarray]) -> list[Clip]:
        """One-frame clips of some frames, as the window keeps them: copies, since a caller may use its buffer again."""
        return [Clip(frame[None].copy(), self.task) for frame in frames]

    def push_look(self, look: Clip) -> Answer:
        """Push a frame as `look` has made it."""
        return push_clips(self.scorer, [self], [look])[0]

    def check(self, frame: np.ndarray) -> None:
        """Raise `InputError` unless the frame is uint8 [H, W, 3], of the size of the first one."""
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or not frame.size:
            raise InputError(f"a frame must be uint8 [H, W, 3] RGB, got {frame.dtype} {list(frame.shape)}")
        if self.shape is not None and frame.shape != self.shape:
            raise InputError(
                f"the frame has {frame.shape[1]}x{frame.shape[0]} pixels, but the session's first one had "
                f"{self.shape[1]}x{self.shape[0]}: send frames of one size"
            )

    def size_bytes(self) -> int:
        """Bytes of the frames that the session holds."""
        return sum(map(clip_bytes, self.window.items))

    def added_bytes(self, frame: np.ndarray) -> int:
        """What a push of this frame adds to `size_bytes`, as far as that is known before."""
        if not self.window.grows:
            return 0
        return clip_bytes(self.window.items[0]) if self.window.items else self.first_bytes(frame)

    def first_bytes(self, frame: np.ndarray) -> int:
        """What the first frame adds, as far as that is known before."""
        return frame.nbytes

    def forget(self) -> None:
        """Drop what can be computed again, to free memory: of a plain session, nothing."""


@runtime_checkable
class SessionScorer(Scorer, Protocol):
    """A scorer with a way of its own to push a frame to each of several sessions."""

    def push_all(self, sessions: Sequence[Any], frames: Sequence[np.ndarray]) -> list[Answer]:
        """Equal to pushing each frame to its session, with less work; where it raises, no frame counts."""
        ...


def push_all(sessions: Sequence[WindowSession], frames: Sequence[np.ndarray]) -> list[Answer]:
    """Push one frame to each of several sessions of one scorer, in one batch.

    Raises:
        InputError: a frame is not fit for its session.
        ArithmeticError: the model answered with a number that is not finite. Where anything is raised, no frame counts.
    """
    if not sessions:
        return []
    if len({id(session) for session in sessions}) < len(sessions) or len({id(s.scorer) for s in sessions}) > 1:
        raise InputError("push to different sessions of one scorer: each session takes one frame at a time")
    for session, frame in zip(sessions, frames, strict=True):
        session.check(frame)
    scorer = sessions[0].scorer
    if isinstance(scorer, SessionScorer):
        answers = scorer.push_all(sessions, frames)
    else:
        new = [session.look([frame])[0] for session, frame in zip(sessions, frames, strict=True)]
        answers = push_clips(scorer, sessions, new)
    for session, frame in zip(sessions, frames, strict=True):
        session.shape = frame.shape
    return answers


def push_clips(
    scorer: Scorer,
    sessions: Sequence[WindowSession],
    new: Sequence[Clip],
    last: Callable[[Sequence[Clip]], list[Answer]] | None = None,
) -> list[Answer]:
    """Push a one-frame clip to each session.

    Args:
        last: answers at the last frames of clips; by default those of `score`, which is called once.
    """
    for session in sessions:
        session.window.make_room()
    clips = [joined([*session.window.items, clip]) for session, clip in zip(sessions, new, strict=True)]
    answers = finite(last_answers(scorer, clips) if last is None else last(clips))
    for session, clip in zip(sessions, new, strict=True):
        session.window.add(clip)
        session.last = clip
    return answers


def last_answers(scorer: Scorer, clips: Sequence[Clip]) -> list[Answer]:
    """Progress and success at the last frame of each clip."""
    return [(float(score.progress[-1]), float(score.success[-1])) for score in scorer.score(clips)]


def finite(answers: list[Answer]) -> list[Answer]:
    """The answers, checked before a frame counts.

    Raises:
        ArithmeticError: one is not a finite number.
    """
    if not np.isfinite(answers).all():
        raise ArithmeticError(NOT_FINITE)
    return answers


def clip_bytes(clip: Clip | None) -> int:
    """Bytes of a clip's frames and embeddings."""
    return 0 if clip is None else clip.frames.nbytes + sum(values.nbytes for values in clip.features.values())


def joined(clips: Sequence[Clip]) -> Clip:
    """One clip of the frames of several, under the task of the first."""
    first = clips[0]
    features = {name: np.concatenate([clip.features[name] for clip in clips]) for name in first.features}
    return Clip(np.concatenate([clip.frames for clip in clips]), first.task, features)


def score_as_session(scorer: Scorer, clip: Clip) -> ClipScore:
    """The score of a clip whose frames are pushed one after another, with less work than that.

    The first frames, which the window holds all, are scored at once: there, a session gives the prefix scores.
    """
    session = session_of(scorer, clip.task)
    if scorer.info.image_encoder in clip.features:
        looks = [clip.take([i]) for i in range(len(clip))]
    else:
        looks = session.look(list(clip.frames))
    whole = min(len(clip), scorer.info.max_frames or len(clip))
    [start] = score_prefixes(scorer, [joined(looks[:whole])])
    session.window.restore(whole, looks[:whole])
    rest = [session.push_look(look) for look in looks[whole:]]
    progress, success = (np.append(getattr(start, name), [a[i] for a in rest]) for i, name in enumerate(_NAMES))
    return ClipScore(progress.astype(np.float32), success.astype(np.float32))


_NAMES = ("progress", "success")


def session_of(scorer: Scorer, task: str) -> WindowSession:
    """A session of the scorer with a window; a session of another kind is not used."""
    session = scorer.open_session(task)
    return session if isinstance(session, WindowSession) else WindowSession(scorer, task)
