"""Images in HDF5 files, read row by row, from the file itself and never from another that it points to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from robometer.corpus.formats import FormatError
from robometer.corpus.formats.common import natural, text
from robometer.frames.recording import ImageSequence
from robometer.frames.video import DEFAULT_LIMITS, Pick, Video, VideoError, VideoLimits, check_size, first_line
from robometer.trajectory import TrajectoryError


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file to read.

    Raises:
        FormatError: it is missing, truncated, or not HDF5.
    """
    try:
        # No lock: the file is only read, and some network file systems have no locks.
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise FormatError(f"no file {path}") from error
    except OSError as error:
        raise FormatError(f"{Path(path).name} cannot be read as HDF5 ({first_line(error)})") from error
    with file:
        yield file


def members(group: h5py.Group) -> list[str]:
    """Names in a group, demo_2 before demo_10.

    Raises:
        FormatError: the list is damaged.
    """
    try:
        return natural(text(name) for name in group)
    except (RuntimeError, TrajectoryError) as error:  # h5py raises RuntimeError, or returns bytes that are not UTF-8
        raise FormatError(f"the names in {group.name} cannot be read ({first_line(error)})") from error


def dataset(parent: h5py.Group, name: str) -> h5py.Dataset | None:
    """The array of this name below `parent`; None if there is none.

    Raises:
        TrajectoryError: it is stored in another file, which might be any file of this machine.
    """
    node = parent.get(name)
    if not isinstance(node, h5py.Dataset):
        return None
    if node.external or node.is_virtual or node.file.filename != parent.file.filename:
        raise TrajectoryError(f"{name} is stored in another file: copy it into this one, with h5repack or h5py")
    return node


def attribute(node: h5py.HLObject, name: str) -> str:
    """Text of an attribute, empty if there is none.

    Raises:
        TrajectoryError: it is not UTF-8.
    """
    value = node.attrs.get(name, "")
    value = "" if isinstance(value, h5py.Empty) else value
    # h5py returns bytes that are not UTF-8 as a string of surrogates.
    return text(value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value)


@dataclass(frozen=True)
class Frames:
    """The recording in an array uint8 [T, H, W, 3]; for `change` see `ImageSequence`."""

    array: h5py.Dataset
    fps: float = 0.0
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """See `Recording.read`; only the frames that are kept are read."""
        shape: tuple[int, ...] = self.array.shape or ()
        if len(shape) != 4 or shape[3] != 3 or self.array.dtype != np.uint8:
            raise VideoError(f"{self.array.name} is {self.array.dtype} {list(shape)}, not uint8 [T, H, W, 3]")
        check_size(shape[2], shape[1], limits)  # before a row is read: a small file may declare rows of any size
        frames = ImageSequence(shape[0], self.array.__getitem__, self.fps, self.change)
        return frames.read(pick, short_edge=short_edge, limits=limits)


def encoded_frames(array: h5py.Dataset, fps: float = 0.0) -> ImageSequence:
    """The recording in an array [T] of encoded images: byte strings, or rows of bytes with zeros after the image."""
    return ImageSequence(len(array), lambda i: np.asarray(array[i]).tobytes(), fps)
