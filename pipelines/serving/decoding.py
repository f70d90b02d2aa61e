"""Decode what was uploaded: a video, an npy array, or images. Bounds are checked before pixels are decoded."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipelines.serving.errors import ApiError
from pipelines.serving.jobs import Limits
from robometer.frames import FrameSettings, read_frames
from robometer.video import VideoError, VideoInfo, VideoLimits, probe


@dataclass(frozen=True)
class Decoded:
    """frames uint8 [T, H, W, 3], the source frame that each one is, and the source's frames per second if known."""

    frames: np.ndarray
    frame_index: list[int]
    fps: float | None = None


def decode_npy(data: bytes, field: str, limits: Limits) -> Decoded:
    """Frames of a `.npy` file. The header is checked first: it could announce more than memory holds.

    Raises:
        ApiError: 422 for another format, dtype or shape, 413 for too many frames or pixels.
    """
    _not_empty(data, field)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except ValueError as error:
        raise ApiError(422, f"field '{field}' is not a .npy file: write it with numpy.save") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ApiError(422, f"field '{field}' must hold uint8 [T, H, W, 3] RGB frames, got {dtype} {list(shape)}")
    _check_source(shape[0], shape[1] * shape[2], field, limits)
    if len(data) - stream.tell() != int(np.prod(shape, dtype=object)):
        raise ApiError(422, f"field '{field}' is cut short or has bytes after its array: send it again")
    frames = np.load(io.BytesIO(data), allow_pickle=False)
    return Decoded(np.ascontiguousarray(frames), list(range(len(frames))))


def decode_images(items: Any, field: str, limits: Limits) -> Decoded:
    """Frames of a list of base64 JPEG or PNG images, all of one size.

    Raises:
        ApiError: 422 for anything else, 413 for too many frames or pixels.
    """
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise ApiError(422, f"field '{field}' must be a list of at least one base64 JPEG or PNG image")
    _check_source(len(items), 1, field, limits)
    images = [_open(item, f"{field}[{i}]") for i, item in enumerate(items)]
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ApiError(422, f"field '{field}' holds images of different sizes: {sizes[0]} and {sizes[1]}")
    pixels = sizes[0][0] * sizes[0][1]
    _check_source(len(images), pixels, field, limits)
    _check_decoded(len(images), pixels, field, limits)
    frames = np.stack([_pixels(image, f"{field}[{i}]") for i, image in enumerate(images)])
    return Decoded(frames, list(range(len(frames))))


def _check_source(num_frames: int, pixels: int, field: str, limits: Limits) -> None:
    if num_frames < 1 or pixels < 1:
        raise ApiError(422, f"field '{field}' holds no frames")
    if num_frames > limits.max_source_frames:
        raise ApiError(413, f"field '{field}' has {num_frames} frames, more than {limits.max_source_frames}")
    if pixels > limits.max_source_pixels:
        raise ApiError(413, f"field '{field}' has frames of {pixels} pixels, more than {limits.max_source_pixels}")


def _check_decoded(num_frames: int, pixels: int, field: str, limits: Limits) -> None:
    # Decoded frames may hold as much as a client could have sent undecoded.
    size_bytes = num_frames * pixels * 3
    if size_bytes > limits.max_upload_bytes:
        raise ApiError(413, f"field '{field}' decodes to {size_bytes} bytes, more than {limits.max_upload_bytes}")


def _open(item: str, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(item, validate=True)), formats=("JPEG", "PNG"))
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise ApiError(422, f"{where} is not a base64 JPEG or PNG image") from error
    except Image.DecompressionBombError as error:
        raise ApiError(413, f"{where} has too many pixels") from error


def _pixels(image: Image.Image, where: str) -> np.ndarray:
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ApiError(422, f"{where} is damaged and cannot be decoded") from error


def _not_empty(data: bytes, field: str) -> None:
    if not data:
        raise ApiError(422, f"field '{field}' is empty")


def decode_upload(data: bytes, field: str, limits: Limits) -> Decoded:
    """Frames of an uploaded video, thinned and resized as ingestion would.

    Raises:
        ApiError: 415 for what is no video, 413 for too many frames or pixels, 422 for a video that cannot be decoded.
    """
    _not_empty(data, field)
    try:
        info = probe(data, _NO_LIMITS)
    except VideoError as error:
        raise ApiError(415, f"field '{field}' is not a video: {error}") from error
    _check_video(info, field, limits)
    try:
        settings = FrameSettings(limits.num_frames, limits.short_edge)
        video = read_frames(data, settings, VideoLimits(limits.max_source_frames, limits.max_source_pixels))
    except VideoError as error:
        raise ApiError(422, f"field '{field}' cannot be decoded: {error}") from error
    return Decoded(video.frames, [int(i) for i in video.frame_index], video.fps or None)


def _check_video(info: VideoInfo, field: str, limits: Limits) -> None:
    _check_source(info.num_frames, info.height * info.width, field, limits)
    # Two rows of a million pixels become a thousand times as many when their short edge is scaled up.
    scale = limits.short_edge / min(info.height, info.width)
    pixels = int(info.height * info.width * scale**2)
    _check_decoded(min(info.num_frames, limits.num_frames), pixels, field, limits)


_NO_LIMITS = VideoLimits(2**62, 2**62)
