"""Video in, frames out: one function each to open, turn, thin, resize and encode as JPEG. Only PyAV decodes videos.

`robometer.frames.recording` reads frames with these functions; `robometer.frames` says which frames a model sees.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError

from robometer.errors import RobometerError

Source = str | Path | bytes
Pick = Callable[[int, float], np.ndarray]
"""From a video's number of frames and frames per second to the ascending indices of the frames to keep."""

# Files only: a playlist ("hls", "concat") would make ffmpeg open any file or URL that an upload names.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,ogg,mpeg,mpegts,flv"
CODECS = frozenset(
    "h264 hevc vp8 vp9 av1 mpeg4 mjpeg mpeg1video mpeg2video gif flv1 h263 theora "
    "msmpeg4v2 msmpeg4v3 ffv1 huffyuv png rawvideo prores".split()
)
_DECODERS = ",".join(sorted(CODECS - {"flv1"} | {"flv", "libdav1d", "msmpeg4"}))  # as ffmpeg names them


class VideoError(RobometerError):
    """A video or image that cannot be used; the message says why in one sentence."""


class VideoTooLargeError(VideoError):
    """A video or image that is beyond `VideoLimits`."""


class OutsideError(VideoError):
    """Frames that the video does not have were asked for."""


class DepthError(VideoError):
    """A recording of distances, not of colours."""


DEPTH = "a depth map, not a colour picture"


@dataclass(frozen=True)
class VideoLimits:
    """Limits on a recording, enforced before memory is spent and whatever the header says.

    Attributes:
        max_frames: frames of a recording.
        max_pixels: pixels of one frame.
        max_total_pixels: pixels of all decoded frames; the default allows two hours of 1080p at 60 frames per second.
    """

    max_frames: int = 100_000
    max_pixels: int = 8192 * 8192
    max_total_pixels: int = 10**12


@dataclass(frozen=True)
class VideoInfo:
    """What the container's header says about the video stream that a player shows; none of it is proven.

    Attributes:
        num_frames: number of frames in the header, or of packets; frames that an edit list hides do not count.
        fps: average frames per second; 0 where unknown.
        usual_fps: frames per second of most frames, where some last longer.
        height, width: as coded, before rotation.
        codec: `h264`, `av1`, ...
    """

    num_frames: int
    fps: float
    usual_fps: float
    height: int
    width: int
    codec: str


@dataclass(frozen=True)
class Video:
    """Decoded frames.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        frame_index: int32 [T], the source frame that each one is.
        fps: frames per second of the source, 0 where unknown.
        num_source_frames: number of frames in the source.
    """

    frames: np.ndarray
    frame_index: np.ndarray
    fps: float
    num_source_frames: int


DEFAULT_LIMITS = VideoLimits()


@lru_cache(maxsize=4096)
def thin_positions(num_frames: int, max_frames: int) -> np.ndarray:
    """At most `max_frames` of `num_frames` positions, evenly spread, always with the first and the last, int64 [T].

    A single position is the last one. Halves round to even (numpy rint). Callers share the array, which is read-only.
    """
    if num_frames <= max_frames:
        positions = np.arange(num_frames)
    elif max_frames == 1:
        positions = np.array([num_frames - 1])
    else:
        positions = np.rint(np.linspace(0, num_frames - 1, max_frames)).astype(np.int64)
    positions.flags.writeable = False
    return positions


def resize_short_edge(frame: np.ndarray, short_edge: int) -> np.ndarray:
    """Scale a frame [H, W, 3] to this short edge in pixels; both sides become even (upstream helpers.py:210-226)."""
    height, width = frame.shape[:2]
    scale = short_edge / min(height, width)
    new_height, new_width = int(height * scale), int(width * scale)
    size = (new_width + new_width % 2, new_height + new_height % 2)
    return frame if size == (width, height) else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """JPEG of an RGB frame uint8 [H, W, 3].

    Raises:
        VideoError: the frame cannot be encoded.
    """
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise VideoError(f"a frame of {frame.shape[1]}x{frame.shape[0]} pixels cannot be encoded as JPEG")
    return data.tobytes()


def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    """RGB frame uint8 [H, W, 3] of an encoded image.

    Raises:
        VideoError: the bytes are not an image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise VideoError(f"OpenCV cannot read these {len(data)} bytes as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def probe(source: Source, limits: VideoLimits = DEFAULT_LIMITS) -> VideoInfo:
    """Read the container's header, once for all cuts of a file, and check the size of a frame; nothing is decoded.

    The number of frames is not checked: a cut of a video may be within a limit that the video is beyond.

    Raises:
        VideoError: there is no file or no video stream, or frames have no pixels or too many.
    """
    info = _header(source) if isinstance(source, bytes) else _header_of_file(*state_of(source))
    check_size(info.width, info.height, limits)
    return info


def state_of(path: str | Path) -> tuple[str, int, int]:
    """A file's path, bytes and time of its last change: while they stay, so does what was read from it.

    Raises:
        VideoError: there is no file.
    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise VideoError(f"there is no file at {path}") from error
    return str(path), stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _header_of_file(path: str, size_bytes: int, mtime_ns: int) -> VideoInfo:  # noqa: ARG001  they are the key
    return _header(path)


def _header(source: Source) -> VideoInfo:
    with opened(source) as (container, stream):
        count = stream.frames  # 0 in a fragmented MP4, whose index is not read yet
        if count and is_mov(container):
            count = sum(not entry.is_discard for entry in stream.index_entries)
        return VideoInfo(
            num_frames=count or sum(1 for packet in container.demux(stream) if packet.size),
            fps=float(stream.average_rate or stream.guessed_rate or 0.0),
            usual_fps=float(stream.guessed_rate or stream.average_rate or 0.0),
            height=stream.height,
            width=stream.width,
            codec=stream.codec_context.codec.canonical_name,
        )


def is_mov(container: Any) -> bool:
    """Whether the container is of the MP4 family, whose index names every frame."""
    return "mov" in container.format.name.split(",")


def is_cut_off(source: Source) -> bool:
    """Whether an MP4 or Matroska file ends within its last part; ffmpeg takes that for the regular end."""
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        head = file.read(4096)
        if head.startswith(_EBML):
            return _segment_end(head) > size
        at, kind = 0, b""
        while at + 16 <= size:
            file.seek(at)
            box = file.read(16)
            length, kind = int.from_bytes(box[:4]), box[4:8]
            length = int.from_bytes(box[8:]) if length == 1 else length
            if length < 8:
                return False  # the box runs to the end of the file, or this is not a box
            at += length
        return at > size and kind in (b"moov", b"moof", b"mdat")


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def _segment_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends; 0 where the file does not say."""
    at = head.find(_SEGMENT) + len(_SEGMENT)  # the length follows; its first byte says how many bytes it has
    width = 9 - head[at].bit_length() if len(_SEGMENT) <= at < len(head) else 9
    length = int.from_bytes(head[at : at + width]) & ((1 << 7 * width) - 1)
    return 0 if width > 8 or length == (1 << 7 * width) - 1 else at + width + length


def _head(source: Source, size_bytes: int) -> bytes:
    if isinstance(source, bytes):
        return source[:size_bytes]
    with open(source, "rb") as file:
        return file.read(size_bytes)


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """PyAV's container of a file and the video stream that a player shows; strict about errors, on one thread.

    Raises:
        VideoError: there is no file or no video stream, or data cannot be decoded, also while the block runs.
    """
    # "file:" keeps ffmpeg from taking a name such as "a:b.mp4" for a protocol. Bytes get no protocol at all.
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    options = {
        "format_whitelist": CONTAINERS,
        "codec_whitelist": _DECODERS,
        "protocol_whitelist": "none" if isinstance(source, bytes) else "file",
        "err_detect": "explode",
    }
    try:
        with av.open(file, options=options, metadata_errors="replace") as container:
            # ffmpeg would skip whatever a file begins with, such as a playlist, and look for a stream behind it.
            if container.format.name == "mpegts" and b"G" not in (_head(source, 5)[:1], _head(source, 5)[4:]):
                raise VideoError("the file does not begin like a video")
            stream = _default_stream(container)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FileNotFoundError as error:
        raise VideoError(f"there is no file at {source!s}") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"the file cannot be decoded as a video ({error.strerror})") from error


def _default_stream(container: Any) -> Any:
    """The video stream that a player shows: the first default one, else the best one; never a cover picture."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("the file has no video stream")
    best = container.streams.best("video")
    fallback = best if best in streams else streams[0]
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), fallback)
    if stream.codec_context is None:
        raise VideoError("the header of the video is incomplete, or its codec cannot be decoded")
    codec = stream.codec_context.codec.canonical_name
    if codec not in CODECS:
        raise VideoError(f"the codec {codec} is not supported: convert the video to H.264")
    return stream


def turned(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """The pixels [H, W, 3] of a decoded frame, turned by 90-degree steps or mirrored as its display matrix says.

    Raises:
        VideoError: the matrix turns by another angle.
    """
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)  # x' = a x + c y, y' = b x + d y
    upright, sideways = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) < 0.001 * upright:
        x, y = a, d
    elif max(abs(a), abs(d)) < 0.001 * sideways:
        pixels, x, y = pixels.swapaxes(0, 1), c, b
    else:
        raise VideoError("the video's display matrix turns it by an angle that is not a multiple of 90 degrees")
    return np.ascontiguousarray(pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded image, from its header.

    Raises:
        DepthError: the image has one channel of 16 bits or more.
        VideoError: the bytes are not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] in "IF":
                raise DepthError(f"an image of one channel with 16 bits or more: {DEPTH}")
            return image.size
    except UnidentifiedImageError as error:  # whose text has the address of an object
        raise VideoError(f"these {len(data)} bytes cannot be read as an image (none of the known kinds)") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise VideoError(f"these {len(data)} bytes cannot be read as an image ({first_line(error)})") from error


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raise `VideoError` for a frame without pixels or with more than the limit."""
    if width * height > limits.max_pixels:
        raise VideoTooLargeError(
            f"frames of {width}x{height} pixels are larger than the limit of {limits.max_pixels} pixels"
        )
    if width * height == 0:
        raise VideoError("the video has frames without pixels")


class Budget:
    """Counts decoded pixels against `VideoLimits.max_total_pixels`."""

    def __init__(self, limits: VideoLimits) -> None:
        self._limits, self._spent = limits, 0

    def spend(self, width: int, height: int) -> None:
        """Raise `VideoError` for a frame that is too large, or that exceeds the total."""
        check_size(width, height, self._limits)
        self._spent += width * height
        if self._spent > self._limits.max_total_pixels:
            limit = self._limits.max_total_pixels
            raise VideoTooLargeError(f"the video has more than {limit} pixels in all its frames together")


def check_count(count: int, limits: VideoLimits) -> None:
    """Raise `VideoError` for no frames or more than the limit."""
    if count > limits.max_frames:
        raise VideoTooLargeError(f"the video has {count} frames, more than the limit of {limits.max_frames}")
    if count <= 0:
        raise VideoError("the video has no frames")


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
