"""Where the frames of a video lie in its file: how a cut of a long one is read without decoding all before it.

In an MP4 or Matroska file of these codecs a packet is a frame. So the times of all packets, in order, are those of
frames 0, 1, 2, ..., whatever the rate says and however uneven they are. What is then decoded must have these very
times, from a key frame that nothing after it looks behind; where that fails, only decoding from the start is sure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from robometer.video import Source, VideoError, is_mov, opened

_ONE_PACKET_A_FRAME = frozenset({"h264", "hevc", "av1"})
_IDR = 5


@dataclass(frozen=True)
class Timeline:
    """Times of a video, in units of its stream.

    Attributes:
        times: int64 [N] of all frames, ascending.
        keys: int64 [K] of those that decoding may begin at, ascending.
    """

    times: np.ndarray
    keys: np.ndarray

    def key_before(self, frame: int) -> int | None:
        """Time of the last key frame up to `frame`; None if that is the first."""
        at = int(np.searchsorted(self.keys, self.times[frame], side="right")) - 1
        return int(self.keys[at]) if at > 0 else None


def timeline_of(source: Source) -> Timeline | None:
    """The timeline of a video, read from its packets; None where they do not prove it.

    Raises:
        VideoError: no file, or one that cannot be read.
    """
    if isinstance(source, bytes):
        return _read(source)
    try:
        stat = Path(source).stat()
    except OSError as error:
        raise VideoError(f"there is no file at {source}") from error
    return _remembered(str(source), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _remembered(path: str, size_bytes: int, mtime_ns: int) -> Timeline | None:
    return _read(path)  # once for all cuts of a file, which come one after another


def _read(source: Source) -> Timeline | None:
    with opened(source) as (container, stream):
        if not (is_mov(container) or "matroska" in container.format.name):
            return None
        if stream.codec_context.codec.canonical_name not in _ONE_PACKET_A_FRAME:
            return None
        packets = [
            (packet.pts, packet.is_keyframe, packet.is_discard) for packet in container.demux(stream) if packet.size
        ]
    if not packets or any(pts is None or hidden for pts, _, hidden in packets):
        return None
    times = np.unique([pts for pts, _, _ in packets])
    if len(times) != len(packets) or not packets[0][1] or packets[0][0] != times[0]:
        return None
    return Timeline(times, np.unique([pts for pts, key, _ in packets if key]))


def packets_from(container: Any, stream: Any, key: int) -> Iterator[Any]:
    """The packets of a video from the key frame at a time on.

    Raises:
        VideoError: there is none that decoding can begin at.
    """
    container.seek(key, stream=stream)
    entered = False
    for packet in container.demux(stream):
        if not entered and packet.is_keyframe and packet.pts == key:
            codec = stream.codec_context
            if codec.name == "h264" and not _is_idr(bytes(packet), codec.extradata or b""):
                raise VideoError("what comes after this key frame may look behind it")
            entered = True
        if entered:
            yield packet


def _is_idr(data: bytes, extradata: bytes) -> bool:
    """Whether an H.264 packet holds a slice of an IDR picture, at which all that was decoded before is forgotten."""
    if extradata[:1] != b"\x01":
        return any(unit and unit[0] & 31 == _IDR for unit in data.split(b"\0\0\1")[1:])
    width, at = (extradata[4] & 3) + 1, 0
    while at + width < len(data):
        size = int.from_bytes(data[at : at + width])
        if data[at + width] & 31 == _IDR:
            return True
        at += width + size
    return False


def frames_at(source: Source, seconds: Sequence[float], fps: float) -> list[int]:
    """The numbers of the frames that begin nearest to these seconds from the first one on.

    Args:
        fps: by which they are counted where the file does not prove its frames' times.
    """
    timeline = timeline_of(source)
    if timeline is None:
        return [round(second * fps) for second in seconds]
    with opened(source) as (_, stream):
        times = (timeline.times - timeline.times[0]) * float(stream.time_base)
    middles = (times[1:] + times[:-1]) / 2
    return [int(np.searchsorted(middles, second)) for second in seconds]
