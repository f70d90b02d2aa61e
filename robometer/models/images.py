"""From frames to the input of a vision tower: resize, cut into patches, and scale on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robometer.errors import InputError

_MIN_TOKENS, _MAX_TOKENS = 4, 16384
_MAX_ASPECT_RATIO = 200


class Cutter(Protocol):
    """Turns frames into the input of a family's vision tower.

    Attributes:
        temporal: number of frames that one feature can cover.
    """

    @property
    def temporal(self) -> int: ...

    def cut(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches uint8 of frames uint8 [T, H, W, 3], and the grid (frames, rows, columns) of each frame, int64 [T, 3].

        Patches stay uint8 and are not repeated, which is an eighth of the size of the tower's input: see `pixels`.
        """

    def cut_moment(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `cut`, for one picture of up to `temporal` frames uint8 [t, H, W, 3] of a video."""

    def pixels(self, patches: Tensor) -> Tensor:
        """The vision tower's input, float32, from patches."""

    def features(self, grid: np.ndarray) -> np.ndarray:
        """Rows and columns int64 [T, 2] of the features that the language model gets for frames with this grid."""


@dataclass(frozen=True)
class QwenCutter:
    """Qwen's vision towers, which take any size in multiples of `patch * merge` px.

    Attributes:
        patch: edge of a patch in px.
        merge: patches per feature along an edge.
        temporal: frames per patch (a single image is repeated).
        mean, std: of the three channels, for pixels scaled to [0, 1].
        bounds: fewest and most px of a frame; None for 4 and 16384 features.
    """

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bounds: tuple[int, int] | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Size in px that the model sees, within the bounds and with nearly the same aspect ratio.

        Follows qwen_vl_utils 0.0.14, including Python's rounding of halves to even.

        Raises:
            InputError: one edge is more than 200 times the other.
        """
        if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
            raise InputError(
                f"a frame of {height}x{width} px (height x width) is too long: one edge may be at most "
                f"{_MAX_ASPECT_RATIO} times the other"
            )
        factor = self.patch * self.merge
        least, most = self.bounds or (_MIN_TOKENS * factor**2, _MAX_TOKENS * factor**2)
        edges = [max(factor, round(edge / factor) * factor) for edge in (height, width)]
        if math.prod(edges) > most:
            scale = math.sqrt(height * width / most)
            edges = [max(factor, math.floor(edge / scale / factor) * factor) for edge in (height, width)]
        elif math.prod(edges) < least:
            scale = math.sqrt(least / (height * width))
            edges = [math.ceil(edge * scale / factor) * factor for edge in (height, width)]
        return edges[0], edges[1]

    def cut(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches [N, 3 * patch * patch] (channel, row, column), grouped by feature; see `Cutter.cut`."""
        patch, merge = self.patch, self.merge
        frames = resize(frames, *self.size(*frames.shape[1:3]), Image.Resampling.BICUBIC)
        rows, columns = (edge // (patch * merge) for edge in frames.shape[1:3])
        blocks = frames.reshape(len(frames), rows, merge, patch, columns, merge, patch, 3)
        patches = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * patch**2)
        grid = np.tile(np.array([1, rows * merge, columns * merge], dtype=np.int64), (len(frames), 1))
        return np.ascontiguousarray(patches), grid

    def cut_moment(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches [N, 3 * temporal * patch * patch]; the last frame is repeated up to `temporal` frames."""
        patches, grid = self.cut(frames[np.minimum(np.arange(self.temporal), len(frames) - 1)])
        by_frame = patches.reshape(self.temporal, -1, 3, self.patch**2)
        return by_frame.transpose(1, 2, 0, 3).reshape(by_frame.shape[1], -1), grid[:1]

    def pixels(self, patches: Tensor) -> Tensor:
        """float32 [N, 3 * temporal * patch * patch] from patches uint8 of this size, or of one frame to be repeated."""
        mean, std = (torch.tensor(values, device=patches.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        scaled = (patches.float().view(len(patches), 3, -1, self.patch**2) / 255.0 - mean) / std
        return scaled.expand(-1, -1, self.temporal, -1).reshape(len(patches), -1)

    def features(self, grid: np.ndarray) -> np.ndarray:
        """See `Cutter.features`."""
        return grid[:, 1:] // self.merge


@dataclass(frozen=True)
class SquareCutter:
    """SmolVLM's vision tower: every frame becomes a square of `size` px, with the same number of features.

    Follows SmolVLM's image processor with `longest_edge` set to the tower's size, as upstream sets it: frames are not
    split; the first resize keeps the aspect ratio and the second does not.
    """

    size: int
    patch: int
    merge: int
    temporal: int = 1

    def cut(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames [T, 3, size, size]; see `Cutter.cut`."""
        height, width = frames.shape[1:3]
        ratio = width / height
        fitted_size = (_even(self.size / ratio), self.size) if ratio >= 1 else (self.size, _even(self.size * ratio))
        fitted = resize(frames, *fitted_size, Image.Resampling.LANCZOS)
        squares = resize(fitted, self.size, self.size, Image.Resampling.LANCZOS)
        side = self.size // self.patch
        grid = np.tile(np.array([1, side, side], dtype=np.int64), (len(frames), 1))
        return np.ascontiguousarray(squares.transpose(0, 3, 1, 2)), grid

    def cut_moment(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Cutter.cut_moment`."""
        return self.cut(frames[:1])

    def pixels(self, patches: Tensor) -> Tensor:
        """float32 [T, 3, size, size] in [-1, 1]."""
        return (patches.float() / 255.0 - 0.5) / 0.5

    def features(self, grid: np.ndarray) -> np.ndarray:
        """See `Cutter.features`."""
        return grid[:, 1:] // self.merge


def _even(edge: float) -> int:
    """The short edge as the image processor rounds it: even, and at least 1 px."""
    whole = int(edge)
    return max(1, whole + whole % 2)


def resize(frames: np.ndarray, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] at another size; unchanged if they have it already."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), method)) for frame in frames])
