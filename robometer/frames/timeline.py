"""Where the frames of a video lie in its file, so that a cut of a long video is read without decoding all before it.

In an MP4 or Matroska file of the codecs below, a packet with a picture is one frame. So if every packet has one, their
sorted times are those of frames 0, 1, 2, ..., whatever the frame rate says and however uneven they are. Decoding then
starts at a key frame that no later frame looks behind, and the decoded frames must have exactly these times. Where that
fails, only decoding from the start is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from robometer.frames.video import OutsideError, Source, VideoError, is_mov, opened, state_of

_ONE_PACKET_A_FRAME = frozenset({"h264", "hevc", "av1"})
_IDR = 5


@dataclass(frozen=True)
class Timeline:
    """Times of a video, in units of its stream.

    Attributes:
        times: int64 [N] of all frames, ascending.
        keys: int64 [K] of the frames at which decoding may begin, ascending.
    """

    times: np.ndarray
    keys: np.ndarray

    def key_before(self, frame: int) -> int | None:
        """Time of the last key frame up to frame number `frame`; None if that is the first key frame."""
        at = int(np.searchsorted(self.keys, self.times[frame], side="right")) - 1
        return int(self.keys[at]) if at > 0 else None


def timeline_of(source: Source) -> Timeline | None:
    """The timeline of a video, read from its packets; None where they do not prove one.

    Raises:
        VideoError: there is no file, or it cannot be read.
    """
    return _read(source) if isinstance(source, bytes) else _read_file(*state_of(source))


@lru_cache(maxsize=4)
def _read_file(path: str, size_bytes: int, mtime_ns: int) -> Timeline | None:  # noqa: ARG001  they are the key
    return _read(path)  # once for all cuts of a file, which are read one after another


def _read(source: Source) -> Timeline | None:
    with opened(source) as (container, stream):
        if not (is_mov(container) or "matroska" in container.format.name):
            return None
        if stream.codec_context.codec.canonical_name not in _ONE_PACKET_A_FRAME:
            return None
        packets = []
        for packet in container.demux(stream):
            if packet.size:
                if packet.pts is None or packet.is_discard or not _has_picture(packet, stream.codec_context):
                    return None
                packets.append((packet.pts, packet.is_keyframe))
    times = np.unique([pts for pts, _ in packets])
    if not packets or len(times) != len(packets) or not packets[0][1] or packets[0][0] != times[0]:
        return None
    return Timeline(times, np.unique([pts for pts, key in packets if key]))


def packets_from(container: Any, stream: Any, key: int) -> Iterator[Any]:
    """The packets of a video from the key frame at time `key` on, without those that are shown before it.

    Raises:
        VideoError: decoding cannot begin at that key frame.
    """
    container.seek(key, stream=stream)
    entered = False
    for packet in container.demux(stream):
        if not entered and packet.is_keyframe and packet.pts == key:
            codec = stream.codec_context
            # Only at an IDR picture does the decoder forget everything before.
            if codec.name == "h264" and _IDR not in _unit_types(packet, codec):
                raise VideoError("frames after this key frame may depend on frames before it")
            entered = True
        if entered and (packet.pts is None or packet.pts >= key):
            yield packet


def _unit_types(packet: Any, codec: Any) -> Iterator[int]:
    """Types of the NAL units in a packet of H.264 or HEVC."""
    data, header, h264 = bytes(packet), codec.extradata or b"", codec.name == "h264"
    if header[:1] == b"\x01":  # each unit follows its length, which has this many bytes
        at, width = 0, (int.from_bytes(header[4:5] if h264 else header[21:22]) & 3) + 1
        first = []
        while at + width < len(data):
            first.append(data[at + width])
            at += width + int.from_bytes(data[at : at + width])
    else:
        first = [unit[0] for unit in data.split(b"\0\0\1")[1:] if unit]
    return (byte & 31 if h264 else byte >> 1 & 63 for byte in first)


def _has_picture(packet: Any, codec: Any) -> bool:
    """Whether a packet holds part of a picture, and not only metadata."""
    if codec.name not in ("h264", "hevc"):
        return True
    return any(1 <= kind <= _IDR if codec.name == "h264" else kind < 32 for kind in _unit_types(packet, codec))


def frames_at(source: Source, seconds: Sequence[float], fps: float) -> list[int]:
    """Numbers of the frames that begin nearest to these times, in seconds after the first frame.

    The frames are counted on at `fps` after the last one, so that the end of a video is the number of its frames.

    Args:
        fps: frames per second, used where the file does not prove its frames' times, and after the last one.
    """
    timeline = timeline_of(source)
    if timeline is None:
        return [round(second * fps) for second in seconds]
    with opened(source) as (_, stream):
        times = (timeline.times - timeline.times[0]) * float(stream.time_base)
    middles = (times[1:] + times[:-1]) / 2
    return [int(np.searchsorted(middles, s) + max(0, round((s - times[-1]) * fps))) for s in seconds]


def positions_at_rate(source: Source, first: int, count: int, fps: float, rate: float) -> np.ndarray:
    """Positions among `count` frames from frame number `first` on at `rate` frames per second, int64 [T], ascending.

    They are spread evenly in time, always with the first and the last, as near to the rate as that allows.

    Args:
        fps: frames per second, used where the file does not prove its frames' times; 0: unknown.

    Raises:
        OutsideError: there are fewer frames per second than `rate`, or their times are not known.
    """
    times = _seconds(source, first, count)
    if times is None and not fps:
        raise OutsideError("the video does not say how many frames a second has: say how many to take with max_frames")
    times = np.arange(count) / fps if times is None else times
    length_s = float(times[-1] - times[0])
    wanted = max(min(2, count), 1 + round(length_s * rate))
    if wanted > 1.02 * count:  # a rate of 30 is meant for a video of 29.97 too
        raise OutsideError(f"the video has {(count - 1) / length_s:.4g} frames per second, fewer than {rate:g}")
    middles = (times[1:] + times[:-1]) / 2
    return np.unique(np.searchsorted(middles, np.linspace(times[0], times[-1], min(wanted, count))))


def _seconds(source: Source, first: int, count: int) -> np.ndarray | None:
    """Times in seconds of `count` frames from frame number `first` on, [T]; None where the file does not prove them."""
    timeline = timeline_of(source)
    if timeline is None or first + count > len(timeline.times):
        return None
    with opened(source) as (_, stream):
        return timeline.times[first : first + count] * float(stream.time_base)
