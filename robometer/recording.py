"""Where the frames of an episode lie, none of them decoded yet: a video, a cut of a longer one, or single images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from av.video.reformatter import VideoReformatter

from robometer.video import (
    DEFAULT_LIMITS,
    Pick,
    Source,
    Video,
    VideoError,
    VideoLimits,
    check_size,
    decode_jpeg,
    describe,
    first_line,
    image_size,
    opened,
    resize_short_edge,
)

MAX_REORDER = 16
"""By how many frames a video's order of decoding and its order of showing may differ (H.264, HEVC)."""


class Recording(Protocol):
    """Frames that can be read once, on one thread, a few of them in memory at a time."""

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """Decode the frames that `pick` names, RGB, resized to `short_edge`.

        Raises:
            VideoError: what is there is missing, corrupt, or beyond the limits.
        """
        ...


@dataclass(frozen=True)
class VideoFile:
    """A video by its path, or the bytes of one.

    Every frame is decoded strictly, and those that are wanted are kept: so corruption anywhere is found, at the price
    of one decode (decord returns frames without an error from a stream that is corrupt in its middle).

    Attributes:
        source: path, or content.
        first, count: a cut of a longer video: `count` frames from frame `first` on; None means to its end. A cut
            that was timed by a clock may begin between two frames: the nearest is taken, and those that follow it.
        fps: frames per second by which frames of a cut are counted; 0 for the container's own figure, which is an
            average, and wrong by whole frames late in a long video of which one frame lasts longer.
    """

    source: Source
    first: float = 0
    count: int | None = None
    fps: float = 0.0

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """See `Recording.read`; the container's count of frames must be true."""
        with ExitStack() as stack:
            container, stream = stack.enter_context(opened(self.source))
            info = describe(container, stream, VideoLimits(sys.maxsize, limits.max_pixels))
            first, fps = round(self.first), self.fps or info.fps
            count = info.num_frames - first if self.count is None else self.count
            if first < 0 or not 0 < count <= info.num_frames - first:
                raise VideoError(f"frames {first} to {first + count} are not in a video of {info.num_frames} frames")
            check_count(count, limits)
            index = pick(count, fps)
            if self.first or count != info.num_frames:
                decoded = self._cut(count, fps)
            elif stream.frames:
                decoded = _whole(container, stream, count)
            else:  # its packets were read, to count them
                decoded = _whole(*stack.enter_context(opened(self.source)), count)
            return video_of(_kept(decoded, index, short_edge, limits), index, fps, count)

    def _cut(self, count: int, fps: float) -> Iterator[tuple[int, Any]]:
        """(position in the cut, decoded frame) of its frames, in order; what is decoded on the way is dropped."""
        if fps <= 0:
            raise VideoError("a cut needs to know the video's frames per second")
        seen = 0
        # Containers are sought by time of decoding, which is up to MAX_REORDER frames before that of showing.
        for lead in (self.first - MAX_REORDER - 1, 0.0):
            try:
                for at, frame in self._from(lead / fps, fps):
                    if at != seen or frame.is_corrupt:
                        problem = "corrupt" if frame.is_corrupt else "not evenly timed"
                        raise VideoError(f"the video is {problem} at frame {round(self.first) + seen}")
                    yield at, frame
                    seen += 1
                    if seen == count:
                        return
                raise VideoError(f"the video has {seen} of the {count} frames from frame {round(self.first)} on")
            except VideoError:
                # Some streams (H.264 of open GOPs) cannot be entered at every key frame, but all at their start.
                if seen or lead <= 0:
                    raise

    def _from(self, seconds: float, fps: float) -> Iterator[tuple[int, Any]]:
        """(position in the cut, decoded frame) of the frames that the cut begins with, read from `seconds` on."""
        with opened(self.source) as (container, stream):
            stream.codec_context.options = {"err_detect": "explode"}
            start, unit = stream.start_time or 0, stream.time_base
            if seconds > 0:
                container.seek(start + int(seconds / unit), stream=stream)
            for frame in _from_key_frame(container, stream):
                if frame.pts is None:
                    raise VideoError("the video has frames without a time, so that no part of it can be found")
                at = round(float((frame.pts - start) * unit) * fps - self.first)
                if at >= 0:
                    yield at, frame


def _whole(container: Any, stream: Any, count: int) -> Iterator[tuple[int, Any]]:
    """(position, decoded frame) of all frames, in order."""
    seen = 0
    stream.codec_context.options = {"err_detect": "explode"}
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise VideoError(f"the video is corrupt at frame {seen}")
        if seen == count:
            raise VideoError(f"the video has more than the {count} frames that its container names")
        yield seen, frame
        seen += 1
    if seen != count:
        raise VideoError(f"the video has {seen} of the {count} frames that its container names")


def _kept(
    decoded: Iterator[tuple[int, Any]], index: np.ndarray, short_edge: int | None, limits: VideoLimits
) -> list[np.ndarray]:
    """Those frames whose positions are in `index`, as RGB, resized; all are decoded."""
    wanted = {int(i) for i in index}
    frames = []
    rgb = VideoReformatter()  # one for all frames: making one costs more than a conversion
    for position, frame in decoded:
        check_size(frame.width, frame.height, limits)
        if position in wanted:
            pixels = rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
            frames.append(pixels if short_edge is None else resize_short_edge(pixels, short_edge))
    return frames


def _from_key_frame(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container stands; it stands at a key frame."""
    key: int | None = None
    for packet in container.demux(stream):
        key = packet.pts if key is None else key
        # What is shown before the key frame but coded after it refers to frames that were not read ("open GOP").
        if packet.pts is None or key is None or packet.pts >= key:
            yield from packet.decode()


@dataclass(frozen=True)
class ImageSequence:
    """Frames that can be had one by one: images in a folder or a record, rows of an array in a file.

    Attributes:
        count: how many frames there are.
        get: frame i, as an RGB array uint8 [H, W, 3], as an encoded image (bytes), or as the path of one.
        fps: frames per second, 0 where nobody knows.
        change: applied to each RGB array, e.g. to turn an upside-down picture; None leaves it.
    """

    count: int
    get: Callable[[int], np.ndarray | bytes | str | Path]
    fps: float = 0.0
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """See `Recording.read`; only the frames that are kept are looked at."""
        if self.count == 0:
            raise VideoError("the recording has no frames")
        check_count(self.count, limits)
        index = pick(self.count, self.fps)
        frames = [self._frame(int(i), short_edge, limits) for i in index]
        return video_of(frames, index, self.fps, self.count)

    def _frame(self, position: int, short_edge: int | None, limits: VideoLimits) -> np.ndarray:
        try:
            frame = self.get(position)
            if isinstance(frame, str | Path):
                frame = Path(frame).read_bytes()
        except Exception as error:  # whatever the file's library raises on what it cannot read
            raise VideoError(
                f"frame {position} of {self.count} cannot be read ({type(error).__name__}: {first_line(error)})"
            ) from error
        if isinstance(frame, bytes):
            check_size(*image_size(frame), limits)
            frame = decode_jpeg(frame)
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise VideoError(f"frame {position} is {frame.dtype} {list(frame.shape)}, not uint8 [H, W, 3]")
        check_size(frame.shape[1], frame.shape[0], limits)
        frame = frame if self.change is None else np.ascontiguousarray(self.change(frame))
        return frame if short_edge is None else resize_short_edge(frame, short_edge)


def check_count(count: int, limits: VideoLimits) -> None:
    """Raise `VideoError` for more frames than the limit."""
    if count > limits.max_frames:
        raise VideoError(f"the video has {count} frames, more than the limit of {limits.max_frames}")


def video_of(frames: list[np.ndarray], index: np.ndarray, fps: float, num_source_frames: int) -> Video:
    """The frames that were picked, as one `Video`; they must be of one size."""
    if len(frames) != len(index) or not frames:
        raise VideoError(f"only {len(frames)} of {len(index)} wanted frames could be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError("the frames are not all of one size")
    return Video(np.stack(frames), np.asarray(index, dtype=np.int32), fps, num_source_frames)
