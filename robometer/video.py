"""Video in, frames out: probe, decode, thin, resize and JPEG, one function each, decoders behind them.

decord decodes what it can, with the pixels that upstream's pipeline saw; PyAV decodes the rest (AV1, which LeRobot
writes). Ingest, which must find corruption, reads through `robometer.recording`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image

from robometer.errors import RobometerError

Source = str | Path | bytes
Pick = Callable[[int, float], np.ndarray]
"""From (number of frames, frames per second) of a video to the ascending indices of the frames to keep."""

# Files only: a playlist ("hls", "concat") would make ffmpeg open whatever other file or URL an upload names.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,ogg,mpeg,mpegts,flv"
_DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4"})
_CHUNK_BYTES = 64 * 2**20


class VideoError(RobometerError):
    """A video or image that cannot be used; the message says why in one sentence."""


@dataclass(frozen=True)
class VideoLimits:
    """What is refused before memory is spent, whatever a header says.

    Attributes:
        max_frames: frames of a recording.
        max_pixels: of one frame.
        max_total_pixels: of all frames that are decoded; the default is that of two hours of 1080p at 60 per second.
    """

    max_frames: int = 100_000
    max_pixels: int = 8192 * 8192
    max_total_pixels: int = 10**12


@dataclass(frozen=True)
class VideoInfo:
    """What the container says of its first video stream; `num_frames` is counted where it does not say."""

    num_frames: int
    fps: float
    height: int
    width: int
    codec: str


@dataclass(frozen=True)
class Video:
    """Decoded frames.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        frame_index: int32 [T], which source frame each one is.
        fps: frames per second of the source.
        num_source_frames: how many frames the source has.
    """

    frames: np.ndarray
    frame_index: np.ndarray
    fps: float
    num_source_frames: int


DEFAULT_LIMITS = VideoLimits()


def thin(num_frames: int, max_frames: int) -> np.ndarray:
    """Indices int64 of at most `max_frames` frames, evenly spread; the first and the last are always kept."""
    if num_frames <= max_frames:
        return np.arange(num_frames)
    return np.rint(np.linspace(0, num_frames - 1, max_frames)).astype(np.int64)


def at_fps(num_frames: int, native_fps: float, fps: float) -> np.ndarray:
    """Indices of a video's frames at `fps`, as upstream's example client picks them; 0 or less keeps all."""
    rate = fps if fps > 0 else native_fps
    wanted = num_frames if native_fps <= 0 else round(num_frames * rate / native_fps)
    return np.linspace(0, num_frames - 1, min(max(wanted, 1), num_frames)).astype(np.int64)


def resize_short_edge(frame: np.ndarray, short_edge: int) -> np.ndarray:
    """Scale a frame [H, W, 3] so that its short edge is `short_edge`; sides are even (upstream helpers.py:210-226)."""
    height, width = frame.shape[:2]
    scale = short_edge / min(height, width)
    new_height, new_width = int(height * scale), int(width * scale)
    size = (new_width + new_width % 2, new_height + new_height % 2)
    return frame if size == (width, height) else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """JPEG of an RGB frame uint8 [H, W, 3]."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise VideoError(f"a frame of {frame.shape[1]}x{frame.shape[0]} pixels cannot be written as JPEG")
    return data.tobytes()


def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    """RGB frame uint8 [H, W, 3] of an encoded image.

    Raises:
        VideoError: the bytes are no image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise VideoError(f"{len(data)} bytes are not an image that OpenCV reads")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def probe(source: Source, limits: VideoLimits = DEFAULT_LIMITS) -> VideoInfo:
    """Read the container's header, and check it against `limits`, without decoding a frame.

    Raises:
        VideoError: no file, no video stream, or a video beyond the limits.
    """
    with opened(source) as (container, stream):
        return describe(container, stream, limits)


def describe(container: Any, stream: Any, limits: VideoLimits) -> VideoInfo:
    """`probe` of a video that is open; where the header has no count of frames, this reads all packets to count them.

    Raises:
        VideoError: a video without frames, or beyond the limits.
    """
    check_size(stream.width, stream.height, limits)
    count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if count == 0:
        raise VideoError("the video has no frames")
    if count > limits.max_frames:
        raise VideoError(f"the video has {count} frames, more than the limit of {limits.max_frames}")
    return VideoInfo(
        num_frames=count,
        fps=float(stream.average_rate or stream.guessed_rate or 0.0),
        height=stream.height,
        width=stream.width,
        codec=stream.codec_context.name,
    )


def decode_video(
    source: Source,
    pick: Pick | None = None,
    *,
    short_edge: int | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
) -> Video:
    """Decode a file, or the bytes of one, on one thread; source frames are held a few at a time.

    Args:
        source: path or content of the video.
        pick: which frames to keep (all without one), e.g. `lambda n, fps: thin(n, 32)`.
        short_edge: resize each frame to this short edge; None keeps the size.
        limits: what is refused before anything is decoded.

    Raises:
        VideoError: the video cannot be read or is beyond the limits.
    """
    info = probe(source, limits)
    read = _read_decord if info.codec in _DECORD_CODECS else _read_pyav
    num_frames, index, chunks = read(source, info, pick or (lambda n, fps: np.arange(n)), limits)
    frames: list[np.ndarray] = []
    for chunk in chunks:
        frames += chunk if short_edge is None else [resize_short_edge(frame, short_edge) for frame in chunk]
    if len(frames) != len(index) or not frames:
        raise VideoError(f"only {len(frames)} of {len(index)} wanted frames could be decoded")
    return Video(np.stack(frames), np.asarray(index, dtype=np.int32), info.fps, num_frames)


_Read = tuple[int, np.ndarray, Iterator[list[np.ndarray]]]


def _read_decord(source: Source, info: VideoInfo, pick: Pick, limits: VideoLimits) -> _Read:
    import decord

    errors = (RuntimeError, decord.DECORDError)
    try:
        reader = decord.VideoReader(_file(source), ctx=decord.cpu(0), num_threads=1)
    except errors:
        return _read_pyav(source, info, pick, limits)
    index = pick(len(reader), info.fps)

    def chunks() -> Iterator[list[np.ndarray]]:
        step = max(1, _CHUNK_BYTES // (info.height * info.width * 3))
        for start in range(0, len(index), step):
            try:
                yield list(reader.get_batch(index[start : start + step]).asnumpy())
            except errors as error:
                raise VideoError(f"the video cannot be decoded ({first_line(error)})") from error

    return len(reader), index, chunks()


def _read_pyav(source: Source, info: VideoInfo, pick: Pick, limits: VideoLimits) -> _Read:
    index = pick(info.num_frames, info.fps)
    wanted = {int(i) for i in index}

    def chunks() -> Iterator[list[np.ndarray]]:
        with opened(source) as (container, stream):
            for position, frame in enumerate(container.decode(stream)):
                if position in wanted:
                    check_size(frame.width, frame.height, limits)
                    yield [frame.to_ndarray(format="rgb24")]
                if position == index[-1]:
                    return

    return info.num_frames, index, chunks()


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and first video stream of a file, strict about errors, on one thread.

    Raises:
        VideoError: no file, no video stream, or data that cannot be decoded, also while the block runs.
    """
    try:
        with av.open(_file(source), options={"format_whitelist": _CONTAINERS, "err_detect": "explode"}) as container:
            if not container.streams.video:
                raise VideoError("the file has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("the header of the video is incomplete, or of a codec that cannot be decoded")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FileNotFoundError as error:
        raise VideoError(f"there is no file at {source!s}") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"the file is not a video that can be decoded ({error.strerror})") from error


def _file(source: Source) -> str | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded image, from its header.

    Raises:
        VideoError: the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise VideoError(f"{len(data)} bytes are not an image that can be read ({first_line(error)})") from error


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raise `VideoError` for more pixels than the limit, or none."""
    if width * height > limits.max_pixels:
        raise VideoError(f"frames of {width}x{height} pixels are more than the limit of {limits.max_pixels} pixels")
    if width * height == 0:
        raise VideoError("the video has frames without pixels")


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
