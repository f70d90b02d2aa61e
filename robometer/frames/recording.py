"""An episode's frames before decoding: a video, a cut of a longer one, or single images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from robometer.frames.timeline import packets_from, timeline_of
from robometer.frames.video import (
    DEFAULT_LIMITS,
    DEPTH,
    Budget,
    DepthError,
    OutsideError,
    Pick,
    Source,
    Video,
    VideoError,
    VideoInfo,
    VideoLimits,
    VideoTooLargeError,
    check_count,
    check_size,
    decode_jpeg,
    first_line,
    image_size,
    is_cut_off,
    is_mov,
    opened,
    probe,
    resize_short_edge,
    turned,
)


class Recording(Protocol):
    """Frames that are read once, on one thread, with only a few in memory at a time."""

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """Decode the frames that `pick` names as RGB, scaled to `short_edge` pixels.

        Raises:
            VideoError: the recording is missing, corrupt or beyond the limits.
        """
        ...


@dataclass(frozen=True)
class VideoFile:
    """A video, by its path or its content.

    Decoded frames are counted; counts and times in a header are only hints. Every frame is decoded strictly, also those
    that are not kept, so that corruption is found wherever it is.

    Attributes:
        source: path, or content.
        first, count: a cut of a longer video: `count` frames from frame `first` on; None means to the end.
        fps: frames per second where the data set knows them better than the container, which gives an average.
    """

    source: Source
    first: int = 0
    count: int | None = None
    fps: float = 0.0

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """See `Recording.read`."""
        info = probe(self.source, limits)
        self._check_rate(info)
        count = info.num_frames - self.first if self.count is None else self.count
        if self.first < 0 or (count < 1 and info.num_frames > 0):
            raise self._not_there(info.num_frames)
        fps, to_end = self.fps or info.fps, self.first + count == info.num_frames
        while True:
            check_count(count, limits)
            index = pick(count, fps)
            frames, num_decoded = self._decode(index, short_edge, limits, None if to_end else count)
            if num_decoded < count and self.count is not None:
                raise self._not_there(self.first + num_decoded, at_most=not num_decoded)
            if num_decoded == count or self.count is not None:
                return video_of(frames, index, fps, count)
            count = num_decoded  # the header was wrong: pick again, from the real number of frames

    def _check_rate(self, info: VideoInfo) -> None:
        rates = [info.fps, info.usual_fps]
        differs = self.fps > 0 and all(abs(rate - self.fps) > 0.02 * self.fps for rate in rates)
        if differs and self.count not in (None, info.num_frames):
            raise VideoError(
                f"the video has {info.num_frames} frames at {info.fps:g} per second, but the data set names "
                f"{self.count} at {self.fps:g} per second: it is unclear which frames these are"
            )

    def _not_there(self, total: int, at_most: bool = False) -> OutsideError:
        end = "the end" if self.count is None else self.first + self.count
        frames = f"{'at most ' if at_most else ''}{total} frames"
        return OutsideError(f"the video has {frames}, so it does not hold frames {self.first} to {end}")

    def _decode(
        self, index: np.ndarray, short_edge: int | None, limits: VideoLimits, stop: int | None
    ) -> tuple[list[np.ndarray], int]:
        """The frames of the cut at `index`, as scaled RGB; and how many frames of it were decoded, up to `stop`."""
        key = self._key_before()
        if key is not None:
            try:
                return _pixels(self._from_key(key, limits, stop), index, short_edge)
            except VideoTooLargeError:
                raise
            except VideoError:
                pass  # starting at the key frame failed or is uncertain; decoding from the start is always right
        return _pixels(islice(self._all(limits), self.first, stop and self.first + stop), index, short_edge)

    def _key_before(self) -> int | None:
        timeline = timeline_of(self.source) if self.first else None
        if timeline is None:
            return None
        if self.first + (self.count or 1) > len(timeline.times):
            raise self._not_there(len(timeline.times))
        return timeline.key_before(self.first)

    def _from_key(self, key: int, limits: VideoLimits, stop: int | None) -> Iterator[Any]:
        """Decoded frames of the cut, read from a key frame on; their times must match the timeline."""
        timeline = timeline_of(self.source)
        assert timeline is not None
        at, last = int(np.searchsorted(timeline.times, key)), self.first + stop if stop else len(timeline.times)
        with opened(self.source) as (container, stream):
            for frame in _strictly(stream, packets_from(container, stream, key), limits):
                if (
                    at == len(timeline.times)
                    or frame.pts != timeline.times[at]
                    or (frame.pts == key and not frame.key_frame)
                ):
                    raise VideoError(f"frame {at} of the video does not match its packets")
                if frame.interlaced_frame:
                    raise VideoError("two packets may hold the fields of one frame")
                if at >= self.first:
                    yield frame
                at += 1
                if at == last:
                    return
        raise VideoError(f"the video ends at frame {at}, but its packets say {last}")

    def _all(self, limits: VideoLimits) -> Iterator[Any]:
        """All decoded frames, in display order."""
        with opened(self.source) as (container, stream):
            tally = _Tally(container, stream)
            for frame in _strictly(stream, tally.packets(), limits):
                tally.frames += 1
                tally.interlaced |= frame.interlaced_frame
                yield frame
            tally.check(self.source)


# Packets of these codecs may show nothing.
_MAY_HIDE = frozenset({"vp8", "vp9", "mpeg4", "msmpeg4v2", "msmpeg4v3", "theora"})


class _Tally:
    """Counts packets and frames of a video, so that no frame is lost silently."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._read, self._to_show = 0, 0
        self._key: int | None = None
        self.frames, self.interlaced = 0, False

    def packets(self) -> Iterator[Any]:
        """The packets of the stream."""
        for packet in self._container.demux(self._stream):
            if packet.size:
                self._read += 1
                if self._key is None and packet.is_keyframe:
                    self._key = packet.pts or 0
                # Nothing before the first key frame can be shown, even if it is coded after that frame.
                visible = self._key is not None and (packet.pts is None or packet.pts >= self._key)
                self._to_show += visible and not packet.is_discard
            yield packet

    def check(self, source: Source) -> None:
        """Raise `VideoError` if the file is cut off or a packet gave no frame."""
        mov = is_mov(self._container)
        named = len(self._stream.index_entries) if mov else self._stream.frames
        if self._read < named:
            raise VideoError(f"the video is cut off: it holds {self._read} of the {named} frames in its header")
        if (mov or "matroska" in self._container.format.name) and is_cut_off(source):
            raise VideoError("the video is cut off: the file is shorter than its header says")
        may_hide = self.interlaced or self._stream.codec_context.codec.canonical_name in _MAY_HIDE
        if self.frames < self._to_show and not may_hide:
            raise VideoError(f"the video is corrupt: only {self.frames} of its {self._to_show} frames can be decoded")


def _strictly(stream: Any, packets: Iterator[Any], limits: VideoLimits) -> Iterator[Any]:
    """The frames of the packets; they must be of one size, within the limits and not corrupt."""
    codec, first, budget = stream.codec_context, None, Budget(limits)
    codec.options = {"err_detect": "explode", "max_pixels": str(min(limits.max_pixels, 2**31 - 1))}
    try:
        for number, frame in enumerate(frame for packet in packets for frame in packet.decode()):
            if first is None and len(frame.format.components) == 1 and frame.format.components[0].bits > 8:
                raise DepthError(f"a video of one channel ({frame.format.name}): {DEPTH}")
            first = first or (frame.width, frame.height)
            budget.spend(frame.width, frame.height)
            if frame.is_corrupt:
                raise VideoError(f"the video is corrupt at frame {number}")
            if (frame.width, frame.height) != first:
                sizes = f"{first[0]}x{first[1]} to {frame.width}x{frame.height}"
                raise VideoError(f"the frame size changes from {sizes} pixels at frame {number}")
            yield frame
    except av.error.FFmpegError as error:
        if not codec.width:  # some decoders leave only this of a size that they refuse
            limit = limits.max_pixels
            raise VideoTooLargeError(f"a frame has more pixels than the limit of {limit}, or no size at all") from error
        check_size(codec.width, codec.height, limits)
        raise


def _pixels(decoded: Iterable[Any], index: np.ndarray, short_edge: int | None) -> tuple[list[np.ndarray], int]:
    """The frames at the positions in `index` as RGB, turned and scaled; and how many frames were decoded."""
    positions, num_decoded = {int(i) for i in index}, 0
    frames = []
    rgb = VideoReformatter()  # one for all frames: making one costs more than a conversion
    for frame in decoded:
        if num_decoded in positions:
            pixels = turned(rgb.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame)
            frames.append(pixels if short_edge is None else resize_short_edge(pixels, short_edge))
        num_decoded += 1
    return frames, num_decoded


@dataclass(frozen=True)
class ImageSequence:
    """Frames that can be read one by one: images in a folder or a record, or rows of an array in a file.

    Attributes:
        count: number of frames.
        get: returns frame i as an RGB array uint8 [H, W, 3], an encoded image (bytes), or the path of one.
        fps: frames per second, 0 where unknown.
        change: applied to each RGB array, for example to turn it upside down; None for no change.
    """

    count: int
    get: Callable[[int], np.ndarray | bytes | str | Path]
    fps: float = 0.0
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """See `Recording.read`; reads only the frames that are kept."""
        if self.count == 0:
            raise VideoError("the recording has no frames")
        check_count(self.count, limits)
        index = pick(self.count, self.fps)
        frames, budget = [], Budget(limits)
        for i in index:
            frame = self._frame(int(i), limits)
            budget.spend(frame.shape[1], frame.shape[0])
            frames.append(frame if short_edge is None else resize_short_edge(frame, short_edge))
        return video_of(frames, index, self.fps, self.count)

    def _frame(self, position: int, limits: VideoLimits) -> np.ndarray:
        try:
            frame = self.get(position)
            if isinstance(frame, str | Path):
                frame = Path(frame).read_bytes()
        except Exception as error:  # libraries raise anything on data that they cannot read
            raise VideoError(
                f"frame {position} of {self.count} cannot be read ({type(error).__name__}: {first_line(error)})"
            ) from error
        if isinstance(frame, bytes):
            check_size(*image_size(frame), limits)
            frame = decode_jpeg(frame)
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise VideoError(f"frame {position} is {frame.dtype} {list(frame.shape)}, not uint8 [H, W, 3]")
        check_size(frame.shape[1], frame.shape[0], limits)
        return frame if self.change is None else np.ascontiguousarray(self.change(frame))


def video_of(frames: list[np.ndarray], index: np.ndarray, fps: float, num_source_frames: int) -> Video:
    """The picked frames as one `Video`; raises `VideoError` if one is missing or of another size."""
    if len(frames) != len(index) or not frames:
        raise VideoError(f"only {len(frames)} of the {len(index)} picked frames could be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError("the frames differ in size")
    return Video(np.stack(frames), np.asarray(index, dtype=np.int32), fps, num_source_frames)
