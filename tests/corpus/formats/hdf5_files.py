"""Shared by the fixtures in HDF5: pictures that are not square, truncated files, and a bad array of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write(path: Path, content: dict[str, Any], **attributes: Any) -> Path:
    """An HDF5 file of some arrays, with attributes of its root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            file.create_dataset(name, data=value)
        file.attrs.update(attributes)
    return path


def cut_off(path: Path) -> Path:
    """Truncate the file, as a broken download does."""
    path.write_bytes(path.read_bytes()[:-100])
    return path


def bad_arrays(frames: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
    """Arrays that are not frames uint8 [T, H, W, 3], each with the error expected of it."""
    return {
        "float": (frames / np.float32(255), "is float32 ["),
        "wide": (frames.astype(np.uint16), "is uint16 ["),
        "grey": (frames[..., 0], "not uint8 [T, H, W, 3]"),
        "none": (frames[:0], "no frames"),
    }


def wide(frames: np.ndarray) -> np.ndarray:
    """The frames [T, H, H, 3] between two black bars: [T, H, 2 H, 3]."""
    size = frames.shape[2]
    return np.pad(frames, ((0, 0), (0, 0), (size // 2, size - size // 2), (0, 0)))
