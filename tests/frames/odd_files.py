"""Video files that readers get wrong: turned, trimmed by an edit list, with several streams, or cut off."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition


def written(frames: np.ndarray, codec: str = "libx264", container: str = "mp4", fps: int = 10, **options: str) -> bytes:
    """The frames uint8 [T, H, W, 3] as an encoded file; an MP4 gets an edit list that shows all frames.

    Args:
        options: of the encoder; `moov_size` leaves so many bytes for an MP4's index at its beginning.
    """
    return joined([(frames, fps, False)], codec, container, **options)


def joined(
    streams: list[tuple[np.ndarray, int, bool]], codec: str = "libx264", container: str = "matroska", **options: str
) -> bytes:
    """A file with several video streams, each given as (frames, frames per second, whether it is the default)."""
    buffer = io.BytesIO()
    index = {"moov_size": options.pop("moov_size")} if "moov_size" in options else {}
    with av.open(buffer, "w", format=container, options=index) as output:
        outputs = []
        for frames, fps, default in streams:
            stream = output.add_stream(codec, rate=fps, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
            stream.disposition = Disposition.default if default else Disposition(0)
            outputs.append(stream)
        for stream, (frames, _, _) in zip(outputs, streams, strict=True):
            for pixels in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        for stream in outputs:
            output.mux(stream.encode(None))
    return buffer.getvalue()


def timed(frames: np.ndarray, at: list[int], codec: str = "libx264", container: str = "mp4", **options: str) -> bytes:
    """The frames, each with its own start time in tenths of a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for pixels, tenth in zip(frames, at, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = tenth, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def repacked(data: bytes, change: Callable[[int, av.Packet], Iterable[av.Packet]]) -> bytes:
    """A Matroska copy of a video whose packet i is replaced by the packets of `change(i, packet)`."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            for changed in change(i, packet):
                changed.stream = stream
                output.mux(changed)
    return buffer.getvalue()


def packet_of(data: bytes, like: av.Packet, later_s: float = 0.0) -> av.Packet:
    """A key-frame packet with these bytes at the time of another packet, or some seconds later."""
    packet = av.Packet(data)
    later = round(later_s / like.time_base)
    packet.time_base, packet.pts, packet.dts = like.time_base, like.pts + later, like.dts + later
    packet.is_keyframe = True
    return packet


def with_hidden(data: bytes, added: Callable[[bytes], bytes], hidden: Callable[[bytes], bytes]) -> bytes:
    """A Matroska copy of a video with one more packet after the first one, which shows nothing.

    Args:
        added: from the first packet to the one that is added.
        hidden: from that to one of equal length that is put into its place when the muxer, which might join it to
            another one, is done.
    """
    first: list[bytes] = []

    def change(i: int, packet: av.Packet) -> list[av.Packet]:
        if i:
            return [packet]
        first.append(added(bytes(packet)))
        return [packet, packet_of(first[0], packet, 0.05)]

    copy = repacked(data, change)
    at = copy.rindex(first[0])
    return copy[:at] + hidden(first[0]) + copy[at + len(first[0]) :]


def shown_as(mp4: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """An MP4 whose display matrix moves the pixel at (x, y) to (a x + c y, b x + d y)."""
    at = mp4.index(b"tkhd") + 44
    matrix = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0, 16384)]
    return mp4[:at] + struct.pack(">9i", *matrix) + mp4[at + 36 :]


def trimmed(mp4: bytes, frames: int, fps: int = 10) -> bytes:
    """An MP4 whose edit list hides this many frames at its start, which stay in the file."""
    at, track, movie = mp4.index(b"elst") + 12, mp4.index(b"mdhd") + 16, mp4.index(b"mvhd") + 16
    duration, first = struct.unpack(">Ii", mp4[at : at + 8])
    per_track, per_movie = (struct.unpack(">I", mp4[i : i + 4])[0] // fps for i in (track, movie))
    edit = struct.pack(">Ii", duration - frames * per_movie, first + frames * per_track)
    return mp4[:at] + edit + mp4[at + 8 :]
