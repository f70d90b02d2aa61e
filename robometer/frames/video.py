"""Video in, frames out: open, turn, thin, resize and JPEG, one function each. PyAV decodes, and nothing else.

`robometer.frames.recording` reads frames with them, and `robometer.frames` says which of them a model sees.
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
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image

from robometer.errors import RobometerError

Source = str | Path | bytes
Pick = Callable[[int, float], np.ndarray]
"""From (number of frames, frames per second) of a video to the ascending indices of the frames to keep."""

# Files only: a playlist ("hls", "concat") would make ffmpeg open whatever other file or URL an upload names.
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


class DepthError(VideoError):
    """What sees distances, and no colours."""


DEPTH = "a depth map, which is no picture"


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
    """What the container says of the video stream that is shown, before it is turned; none of it is proven.

    Attributes:
        num_frames: how many frames it names, or has packets for, without those that an edit list hides.
        fps: frames per second, on average; 0 where it does not say.
        usual_fps: of most frames, where some last longer.
        height, width: as coded.
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
        info = describe(container, stream, limits)
        check_count(info.num_frames, limits)
        return info


def describe(container: Any, stream: Any, limits: VideoLimits) -> VideoInfo:
    """`probe` of a video that is open; where the header has no count of frames, this reads all packets to count them.

    Raises:
        VideoError: frames without pixels, or with more than the limit.
    """
    check_size(stream.width, stream.height, limits)
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
    """Whether it is of the MP4 family, whose index names every frame."""
    return "mov" in container.format.name.split(",")


def breaks_off(source: Source) -> bool:
    """Whether an MP4 or Matroska file is shorter than the part that it ends in, which ffmpeg takes for its end."""
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
                return False  # to the end of the file, or no box
            at += length
        return at > size and kind in (b"moov", b"moof", b"mdat")


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def _segment_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends; 0 where it does not say."""
    at = head.find(_SEGMENT) + len(_SEGMENT)  # its length follows, of as many bytes as the first of them says
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
    """PyAV's container of a file and the video stream that is shown, strict about errors, on one thread.

    Raises:
        VideoError: no file, no video stream, or data that cannot be decoded, also while the block runs.
    """
    # "file:" keeps ffmpeg from taking a name such as "a:b.mp4" for a protocol. Bytes need none, and get none.
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    options = {
        "format_whitelist": CONTAINERS,
        "codec_whitelist": _DECODERS,
        "protocol_whitelist": "none" if isinstance(source, bytes) else "file",
        "err_detect": "explode",
    }
    try:
        with av.open(file, options=options, metadata_errors="replace") as container:
            # ffmpeg would look for the start of a stream behind whatever else a file begins with, a playlist for one.
            if container.format.name == "mpegts" and b"G" not in (_head(source, 5)[:1], _head(source, 5)[4:]):
                raise VideoError("the file does not begin as a video does")
            stream = _shown(container)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FileNotFoundError as error:
        raise VideoError(f"there is no file at {source!s}") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"the file is not a video that can be decoded ({error.strerror})") from error


def _shown(container: Any) -> Any:
    """The video stream that a player shows: the container's (first) default, else the best; never a cover picture."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("the file has no video stream")
    best = container.streams.best("video")
    fallback = best if best in streams else streams[0]
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), fallback)
    if stream.codec_context is None:
        raise VideoError("the header of the video is incomplete, or of a codec that cannot be decoded")
    codec = stream.codec_context.codec.canonical_name
    if codec not in CODECS:
        raise VideoError(f"videos of the codec {codec} are not taken: convert it to H.264")
    return stream


def turned(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """The pixels [H, W, 3] of a decoded frame as its display matrix wants them: turned by 90 degrees, or mirrored.

    Raises:
        VideoError: a turn by another angle.
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
        raise VideoError("the video is to be turned by an angle that is no multiple of 90 degrees when it is shown")
    return np.ascontiguousarray(pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded image, from its header.

    Raises:
        DepthError: it has one channel of more bits than a picture has.
        VideoError: the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] in "IF":
                raise DepthError(f"an image of one channel, of 16 bits or more: {DEPTH}")
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise VideoError(f"{len(data)} bytes are not an image that can be read ({first_line(error)})") from error


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raise `VideoError` for more pixels than the limit, or none."""
    if width * height > limits.max_pixels:
        raise VideoTooLargeError(
            f"frames of {width}x{height} pixels are more than the limit of {limits.max_pixels} pixels"
        )
    if width * height == 0:
        raise VideoError("the video has frames without pixels")


class Budget:
    """What is left of a limit on the pixels of all frames."""

    def __init__(self, limits: VideoLimits) -> None:
        self._limits, self._spent = limits, 0

    def spend(self, width: int, height: int) -> None:
        """Raise `VideoError` for a frame that is too large, or one too many."""
        check_size(width, height, self._limits)
        self._spent += width * height
        if self._spent > self._limits.max_total_pixels:
            most = self._limits.max_total_pixels
            raise VideoTooLargeError(f"the video has more than {most} pixels in all its frames")


def check_count(count: int, limits: VideoLimits) -> None:
    """Raise `VideoError` for more frames than the limit, or none."""
    if count > limits.max_frames:
        raise VideoTooLargeError(f"the video has {count} frames, more than the limit of {limits.max_frames}")
    if count <= 0:
        raise VideoError("the video has no frames")


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
