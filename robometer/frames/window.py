"""Which of a growing trajectory's frames are kept, so that a model sees no more than it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from robometer.errors import InputError

T = TypeVar("T")


def stride_of(num_frames: int, max_frames: int | None) -> int:
    """The smallest power of two at which every so many frames, and the last one, are at most `max_frames`."""
    stride = 1
    while max_frames is not None and _held(num_frames - 1, stride) + 1 > max(max_frames, 2):
        stride *= 2
    return stride


def kept_positions(num_frames: int, max_frames: int | None) -> np.ndarray:
    """Positions int64 [T] of the frames that score the last of `num_frames` frames in a session.

    These are all frames while there are at most `max_frames` of them, then every second one and the last, every fourth
    one and the last, and so on: evenly spread, and nearly always those of the frame before and one more. Two frames are
    always allowed.
    """
    return np.append(np.arange(0, num_frames - 1, stride_of(num_frames, max_frames)), num_frames - 1)


def num_held(pushed: int, max_frames: int | None) -> int:
    """How many frames a window holds after `pushed` frames."""
    return _held(pushed, stride_of(max(pushed, 1), max_frames))


class Window(Generic[T]):
    """What a session keeps of the frames that were pushed (see `kept_positions`): `items`, every `stride`-th.

    For each frame, call `make_room`, score the frame with `items`, then call `add`.
    """

    def __init__(self, max_frames: int | None) -> None:
        self.max_frames = max_frames
        self.pushed, self.stride, self.items = 0, 1, list[T]()

    @property
    def keeps_next(self) -> bool:
        """Whether the next frame stays in the window once it is pushed."""
        return self.pushed % self.stride == 0

    @property
    def grows(self) -> bool:
        """Whether it will hold one item more once the next frame is pushed."""
        return self.keeps_next and stride_of(self.pushed + 1, self.max_frames) == self.stride

    def make_room(self) -> bool:
        """Drop what the next frame leaves no room for; returns whether something was dropped."""
        stride = stride_of(self.pushed + 1, self.max_frames)
        dropped = stride > self.stride and len(self.items) > 1
        self.items, self.stride = self.items[:: stride // self.stride], stride
        return dropped

    def add(self, item: T) -> None:
        """Count one more frame, and keep it if it is one to keep."""
        if self.keeps_next:
            self.items.append(item)
        self.pushed += 1

    def restore(self, pushed: int, items: Sequence[T]) -> None:
        """Become the window of a session after `pushed` frames, of which it had kept these.

        Raises:
            InputError: it would have kept another number of frames.
        """
        stride = stride_of(max(pushed, 1), self.max_frames)
        if pushed < 0 or len(items) != _held(pushed, stride):
            raise InputError(
                f"after {pushed} frames a session holds {_held(max(pushed, 0), stride)} of them (every {stride}. one, "
                f"from the first on), not {len(items)}"
            )
        self.pushed, self.stride, self.items = pushed, stride, list(items)


def _held(num_frames: int, stride: int) -> int:
    """How many of `num_frames` frames are at multiples of `stride`."""
    return -(-num_frames // stride)
