"""We read what a player shows: its stream, rotation and edit list, and the frames that are really decoded."""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from robometer.frames import FrameSettings, encode_frames, read_frames
from robometer.frames.recording import ImageSequence, VideoFile
from robometer.frames.timeline import timeline_of
from robometer.frames.video import VideoError, VideoLimits, VideoTooLargeError, decode_jpeg, encode_jpeg, thin_positions
from tests.conftest import SHARED
from tests.frames.odd_files import joined, packet_of, repacked, shown_as, timed, trimmed, with_hidden, written
from tests.frames.test_video import every, moving_square, video_bytes

SIZE = (48, 64)


def numbered(count: int) -> np.ndarray:
    """Frames that show their own number in eight vertical bars."""
    levels = [[235 if i >> bit & 1 else 20 for bit in range(8)] for i in range(count)]
    bars = np.repeat(np.array(levels, np.uint8), SIZE[1] // 8, axis=1)
    return np.ascontiguousarray(np.broadcast_to(bars[:, None, :, None], (count, *SIZE, 3)))


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that `numbered` frames show."""
    bars = frames[..., 0].mean(axis=1).reshape(len(frames), 8, -1)[:, :, 2:-2].mean(axis=2) > 128
    return [int(np.sum(bar << np.arange(8))) for bar in bars]


def corners() -> np.ndarray:
    """A frame whose quarters differ: red, green / blue, white."""
    frame = np.zeros((*SIZE, 3), np.uint8)
    half, middle = SIZE[0] // 2, SIZE[1] // 2
    frame[:half, :middle], frame[:half, middle:] = (220, 30, 30), (30, 200, 30)
    frame[half:, :middle], frame[half:, middle:] = (30, 30, 220), (230, 230, 230)
    return frame


def quarters(frame: np.ndarray) -> str:
    """Initials of the colours of a frame's quarters, row by row."""
    height, width = frame.shape[:2]
    named = {"R": (220, 30, 30), "G": (30, 200, 30), "B": (30, 30, 220), "W": (230, 230, 230)}
    seen = [frame[y * height // 4, x * width // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    return "".join(min(named, key=lambda name: int(np.abs(pixel - named[name]).sum())) for pixel in seen)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), "RGBW"),
        ((0, 1, -1, 0), "BRWG"),  # a quarter clockwise, as from a phone held upright
        ((-1, 0, 0, -1), "WBGR"),
        ((0, -1, 1, 0), "GWRB"),
        ((-1, 0, 0, 1), "GRWB"),  # mirrored
        ((1, 0, 0, -1), "BWRG"),
        ((0, 1, 1, 0), "RBGW"),
        ((0, -1, -1, 0), "WGBR"),
        ((0, 2, -2, 0), "BRWG"),  # scaling only concerns the player's window
    ],
)
def test_a_video_is_turned_as_its_matrix_says(matrix: tuple[float, float, float, float], expected: str) -> None:
    mp4 = shown_as(written(np.stack([corners()] * 3)), *matrix)
    frames = VideoFile(mp4).read(every).frames
    assert quarters(frames[0]) == expected
    assert frames.shape[1:3] == (SIZE if matrix[0] else SIZE[::-1])
    assert VideoFile(mp4).read(every, short_edge=24).frames.shape[1:3] == ((24, 32) if matrix[0] else (32, 24))


@pytest.mark.parametrize("matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.2, 0, 1), (0, 0, 0, 0)])
def test_a_turn_by_another_angle_is_refused(matrix: tuple[float, float, float, float]) -> None:
    with pytest.raises(VideoError, match="not a multiple of 90 degrees"):
        VideoFile(shown_as(written(np.stack([corners()] * 3)), *matrix)).read(every)


def test_a_phone_of_a_public_repository_is_upright() -> None:
    folder = SHARED / "data/ingest_faults/rotated_video"
    if not folder.is_dir():
        pytest.skip("../shared/data/ingest_faults is absent")
    lying = VideoFile(folder / "video_0.mov").read(every).frames
    upright = VideoFile(folder / "video_90.mov").read(every).frames
    assert (lying.shape[1:3], upright.shape[1:3]) == ((320, 568), (568, 320))


@pytest.mark.parametrize("skip", [1, 5, 13])
def test_what_an_edit_list_hides_is_not_read(skip: int) -> None:
    mp4 = trimmed(written(numbered(30), **{"x264-params": "keyint=12:scenecut=0:bframes=2"}), skip)
    video = VideoFile(mp4).read(every)
    assert (video.num_source_frames, numbers(video.frames)) == (30 - skip, list(range(skip, 30)))
    assert numbers(VideoFile(mp4, 3, 4).read(every).frames) == list(range(skip + 3, skip + 7))
    with pytest.raises(VideoError, match=f"has {30 - skip} frames, so it does not hold"):
        VideoFile(mp4, 30 - skip - 2, 4).read(every)
    assert VideoFile(mp4).read(every, limits=VideoLimits(max_frames=30 - skip)).num_source_frames == 30 - skip


def test_of_several_streams_the_default_is_shown_at_its_own_rate() -> None:
    small, large = moving_square(20, 48, 64), moving_square(30, 96, 128)
    for streams, shape, fps in (
        ([(large, 20, False), (small, 10, True)], (20, 48, 64, 3), 10),
        ([(small, 10, False), (large, 20, True)], (30, 96, 128, 3), 20),
        ([(small, 10, True), (large, 20, True)], (20, 48, 64, 3), 10),  # both are default: the first one
    ):
        video = VideoFile(joined(streams)).read(every)
        assert (video.frames.shape, video.fps) == (shape, fps)


def test_of_several_streams_without_a_default_the_best_is_shown() -> None:
    """MPEG-TS has no default stream."""
    small, large = moving_square(20, 48, 64), moving_square(30, 96, 128)
    for streams in ([(small, 10, False), (large, 20, False)], [(large, 20, False), (small, 10, False)]):
        video = VideoFile(joined(streams, container="mpegts")).read(every)
        assert (video.frames.shape, video.fps) == ((30, 96, 128, 3), 20)


def test_the_first_default_is_shown_where_ffmpeg_thinks_another_better() -> None:
    path = SHARED / "data/ingest_faults/two_video_streams/nasa_13013.mp4"
    if not path.is_file():
        pytest.skip("../shared/data/ingest_faults is absent")
    video = VideoFile(path).read(lambda n, fps: np.array([0, n - 1]))
    assert (video.num_source_frames, video.fps, video.frames.shape) == (325, 25, (2, 180, 320, 3))


@pytest.mark.parametrize("told", [1, 7])
def test_a_header_that_counts_too_few_frames_is_a_hint(told: int) -> None:
    avi = written(numbered(10), "mpeg4", "avi")
    at = avi.index(b"strh") + 8 + 32  # the stream's length in frames
    assert avi[at : at + 4] == b"\x0a\0\0\0"
    lying = avi[:at] + bytes([told, 0, 0, 0]) + avi[at + 4 :]
    video = VideoFile(lying).read(lambda n, fps: np.array([0, n - 1]))
    assert (video.num_source_frames, numbers(video.frames), video.frame_index.tolist()) == (10, [0, 9], [0, 9])


def test_a_song_with_a_cover_is_no_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        cover, song = output.add_stream("mjpeg", rate=1), output.add_stream("aac", rate=8000)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        output.mux([*cover.encode(None), *song.encode(sound), *song.encode(None)])
    with pytest.raises(VideoError, match="the file has no video stream"):
        VideoFile(buffer.getvalue()).read(every)


def test_a_cover_picture_is_no_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 200, 200, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        output.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((200, 200, 3), np.uint8), format="rgb24")))
        output.mux(cover.encode(None))
        for pixels in moving_square(9):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    assert VideoFile(buffer.getvalue()).read(every).frames.shape == (9, 48, 64, 3)


GAP = [i + 7 * (i >= 40) for i in range(120)]
UNEVEN = [i * (i + 1) // 2 for i in range(120)]


@pytest.mark.parametrize("at", [GAP, UNEVEN], ids=["gap", "uneven"])
@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", {"x264-params": "keyint=12:scenecut=0:bframes=3"}),
        ("libx264", "matroska", {"x264-params": "keyint=12:scenecut=0:bframes=3:open-gop=1"}),
        ("libx264", "matroska", {"x264-params": "keyint=12:scenecut=0:intra-refresh=1"}),
        ("libx265", "mp4", {"x265-params": "keyint=12:scenecut=0:bframes=3:open-gop=1:log-level=none"}),
        ("libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24"}),  # packets that show nothing
        ("libvpx-vp9", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24", "cpu-used": "8"}),
        ("mpeg4", "mp4", {"g": "12", "bf": "2"}),
        ("libx264", "mpegts", {"x264-params": "keyint=12:scenecut=0:bframes=2"}),
    ],
)
def test_a_cut_counts_decoded_frames(codec: str, container: str, options: dict[str, str], at: list[int]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    data = timed(numbered(120), at, codec, container, **options)
    assert numbers(VideoFile(data).read(every).frames) == list(range(120))
    for first in (1, 39, 40, 41, 97):
        assert numbers(VideoFile(data, first, 6).read(every).frames) == list(range(first, first + 6))
    assert numbers(VideoFile(data, 111).read(every).frames) == list(range(111, 120))


@pytest.mark.parametrize(
    ("codec", "added", "hidden"),
    [
        ("libvpx", lambda key: key, lambda key: bytes([key[0] & ~16]) + key[1:]),  # show_frame of its header
        ("libvpx-vp9", lambda key: key, lambda key: bytes([key[0] & ~2]) + key[1:]),
        ("mpeg4", lambda key: b"\0\0\1\xb6\x51\x9f", lambda vop: vop),  # vop_coded is 0
    ],
)
def test_a_packet_that_shows_nothing_is_no_frame(
    codec: str, added: Callable[[bytes], bytes], hidden: Callable[[bytes], bytes]
) -> None:
    data = with_hidden(written(numbered(24), codec, "matroska", g="6"), added, hidden)
    assert numbers(VideoFile(data).read(every).frames) == list(range(24))
    assert numbers(VideoFile(data, 13, 4).read(every).frames) == [13, 14, 15, 16]


@pytest.mark.parametrize(
    ("codec", "params", "message"),
    [
        ("libx264", "keyint=6:scenecut=0:bframes=0", b"\0\0\0\5\x06\x06\x01\xc4\x80"),  # a message
        ("libx265", "keyint=6:scenecut=0:bframes=0:log-level=none", b"\0\0\0\3\x46\x01\x50"),  # a delimiter
    ],
)
def test_a_packet_without_a_picture_moves_no_frame(codec: str, params: str, message: bytes) -> None:
    """ffmpeg cannot decode the message alone, and skips the delimiter."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    whole = written(numbered(24), codec, **{f"{codec[3:]}-params": params})
    data = repacked(whole, lambda i, packet: [packet] if i else [packet, packet_of(message, packet, 0.05)])
    with pytest.raises(VideoError, match="decoded"):
        VideoFile(data).read(every)
    if codec == "libx264":
        with pytest.raises(VideoError, match="decoded"):
            VideoFile(data, 13, 4).read(every)
    else:
        assert numbers(VideoFile(data, 13, 4).read(every).frames) == [13, 14, 15, 16]


def test_a_frame_that_only_says_that_decoding_may_begin_at_it_is_none_to_begin_at() -> None:
    """H.264 that starts at a P frame with a recovery point: ffmpeg decodes it against any frame that it has."""
    recovery = b"\0\0\0\5\x06\x06\x01\xc4\x80"  # in no frames, exactly

    def change(i: int, packet: av.Packet) -> list[av.Packet]:
        return [packet_of(recovery + bytes(packet), packet) if i == 20 else packet]

    data = repacked(written(numbered(30), **{"x264-params": "keyint=60:scenecut=0:bframes=0"}), change)
    timeline = timeline_of(data)
    assert timeline is not None and len(timeline.keys) == 2
    assert numbers(VideoFile(data).read(every).frames) == list(range(30))
    whole = VideoFile(data).read(every).frames
    assert np.array_equal(VideoFile(data, 22, 4).read(every).frames, whole[22:26])


@pytest.mark.parametrize(
    ("codec", "options", "start"),
    [
        ("mpeg2video", {"g": "12"}, 7),
        ("libx265", {"x265-params": "keyint=12:scenecut=0:bframes=3:open-gop=1:log-level=none"}, 9),
    ],
)
def test_what_needs_frames_that_a_cut_file_lacks_is_not_shown(codec: str, options: dict[str, str], start: int) -> None:
    """A file that starts within a group of pictures or at an open one shows nothing before its key frame."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    whole = written(numbered(36), codec, "matroska", **options)
    data = repacked(whole, lambda i, packet: [packet] if i >= start else [])
    assert numbers(VideoFile(data).read(every).frames) == list(range(12, 36))
    assert numbers(VideoFile(data, 13, 4).read(every).frames) == [25, 26, 27, 28]


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "keyint=12:scenecut=0"}),
        ("libx265", {"x265-params": "keyint=12:scenecut=0:bframes=3:open-gop=1:log-level=none"}),
        (
            "libx265",
            {"x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=0:radl=2:log-level=none"},
        ),
    ],
    ids=["closed", "open", "leading"],  # leading: coded after a key frame, shown before it, and depending on it alone
)
def test_a_cut_is_decoded_from_a_key_frame_near_to_it(codec: str, options: dict[str, str]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    data = written(numbered(120), codec, **options)
    # Frames 96 to 104, because 96 is the last key frame before the cut; the whole video has 120.
    limits = VideoLimits(max_total_pixels=9 * SIZE[0] * SIZE[1])
    assert numbers(VideoFile(data, 101, 4).read(every, limits=limits).frames) == [101, 102, 103, 104]
    with pytest.raises(VideoTooLargeError, match="pixels in all its frames"):
        VideoFile(data, 102, 4).read(every, limits=limits)


def test_cuts_of_a_file_on_disk_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a:b 100%.mp4"
    path.write_bytes(written(numbered(60), **{"x264-params": "keyint=6:scenecut=0"}))
    assert numbers(VideoFile(path, 50, 3).read(every).frames) == [50, 51, 52]
    path.write_bytes(written(numbered(60)[::-1], **{"x264-params": "keyint=7:scenecut=0"}))
    assert numbers(VideoFile(path, 50, 3).read(every).frames) == [9, 8, 7]
    longer = written(numbered(90), **{"x264-params": "keyint=7:scenecut=0"})
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    path.write_bytes(longer)
    os.utime(path, ns=(time, time))
    assert numbers(VideoFile(path, 80, 3).read(every).frames) == [80, 81, 82]
    shorter = written(numbered(60))
    padding = len(longer) - len(shorter)
    path.write_bytes(shorter + padding.to_bytes(4) + b"free" + bytes(padding - 8))
    assert path.stat().st_size == len(longer) > size
    with pytest.raises(VideoError, match="has 60 frames, so it does not hold"):
        VideoFile(path, 80, 3).read(every)


def test_a_rate_that_is_not_the_videos_is_told() -> None:
    """Ten frames at 10 per second, where the data set names six at 20 per second, or ten at another rate."""
    data = written(numbered(10))
    with pytest.raises(VideoError, match="10 frames at 10 per second, but the data set names 6 at 20 per second"):
        VideoFile(data, 0, 6, 20.0).read(every)
    same = VideoFile(data, 0, 10, 20.0).read(every)
    assert (numbers(same.frames), same.fps) == (list(range(10)), 20.0)
    assert numbers(VideoFile(data, 0, 6, 10.05).read(every).frames) == list(range(6))


@pytest.mark.parametrize("size", [(2, 2), (2, 6), (8, 8), (16, 16), (24, 24), (48, 48), (72, 72), (34, 62)])
def test_small_and_odd_sizes_are_read(size: tuple[int, int]) -> None:
    frames = np.full((5, *size, 3), 200, np.uint8)
    read = VideoFile(written(frames)).read(every, short_edge=240).frames
    assert read.shape[0] == 5 and min(read.shape[1:3]) == 240
    assert np.abs(read.astype(int) - 200).max() < 12


@pytest.mark.parametrize(
    ("codec", "container"),
    [("mjpeg", "avi"), ("gif", "gif"), ("mpeg4", "avi"), ("flv", "flv"), ("ffv1", "matroska"), ("libx264", "mov")],
)
def test_other_containers_and_codecs_are_read(codec: str, container: str) -> None:
    frames = moving_square(12)
    video = VideoFile(written(frames, codec, container)).read(every)
    assert video.num_source_frames == 12
    assert np.abs(video.frames.astype(int) - frames).mean() < 30


def test_a_codec_that_nobody_needs_is_refused() -> None:
    with pytest.raises(VideoError, match="the codec asv1 is not supported"):
        VideoFile(written(moving_square(5), "asv1", "avi")).read(every)


@pytest.mark.parametrize(
    ("codec", "container", "flags"),
    [
        ("libx264", "mp4", "faststart"),
        ("libx264", "mp4", "frag_keyframe+empty_moov"),
        ("libx264", "matroska", ""),
        ("libvpx", "webm", ""),
        ("mpeg4", "avi", ""),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_file_that_breaks_off_is_refused(
    codec: str, container: str, flags: str, share: float, tmp_path: Path
) -> None:
    options = {"movflags": flags} if flags else {}
    path = tmp_path / "whole"
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=10, options={"g": "6"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    assert VideoFile(path).read(every).num_source_frames == 40
    with pytest.raises(VideoError):
        VideoFile(data[: int(share * len(data))]).read(every)


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("mpeg4", "avi")])
def test_a_file_that_ends_between_two_frames_is_refused(codec: str, container: str) -> None:
    """Only the number of frames in the header shows it: an MP4's data may run to the end of the file."""
    data = written(numbered(20), codec, container, **({"moov_size": "9000"} if container == "mp4" else {}))
    if container == "mp4":
        at = data.index(b"mdat") - 4
        data = data[:at] + bytes(4) + data[at + 4 :]
    assert VideoFile(data).read(every).num_source_frames == 20
    with av.open(io.BytesIO(data)) as opened:
        ends = [packet.pos for packet in opened.demux(video=0) if packet.size]
    for count in (10, 19):
        with pytest.raises(VideoError, match=f"cut off: it holds {count} of the 20 frames"):
            VideoFile(data[: ends[count]]).read(every)


def two_sizes(codec: str = "mjpeg") -> bytes:
    """An AVI whose header says 64 x 48 and whose frames are 256 x 256 from the sixth on."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as output:
        small = output.add_stream(codec, rate=10)
        small.height, small.width, small.pix_fmt = 48, 64, "yuvj420p"
        for i in range(12):
            encoder = av.CodecContext.create(codec, "w")
            size = (48, 64) if i < 6 else (256, 256)
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.pts, packet.dts = small, i, i
                output.mux(packet)
    return buffer.getvalue()


def test_frames_that_change_their_size_are_refused_and_the_limit_holds_for_them() -> None:
    with pytest.raises(VideoError, match="frame size changes from 64x48 to 256x256 pixels at frame 6"):
        VideoFile(two_sizes()).read(every)
    with pytest.raises(VideoTooLargeError, match="more pixels than the limit of 10000"):
        VideoFile(two_sizes()).read(every, limits=VideoLimits(max_pixels=100 * 100))


@pytest.mark.parametrize("read", [lambda data, limits: VideoFile(data).read(every, limits=limits)])
def test_the_pixels_of_all_frames_are_limited(read: Callable[[bytes, VideoLimits], object]) -> None:
    data = video_bytes(moving_square(12))
    read(data, VideoLimits(max_total_pixels=12 * 48 * 64))
    with pytest.raises(VideoTooLargeError, match="more than 36863 pixels in all its frames"):
        read(data, VideoLimits(max_total_pixels=12 * 48 * 64 - 1))
    images = ImageSequence(12, lambda i: np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(VideoTooLargeError, match="more than 36863 pixels in all its frames"):
        images.read(every, limits=VideoLimits(max_total_pixels=12 * 48 * 64 - 1))


def test_metadata_that_are_not_utf_8_are_no_error() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        output.metadata["title"] = "XXXXXXXX"
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in moving_square(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    data = buffer.getvalue().replace(b"XXXXXXXX", b"gr\xfc\xdf\xff\xfe\x80X")
    assert VideoFile(data).read(every).num_source_frames == 5


@pytest.mark.parametrize("path", [False, True])
def test_a_name_is_a_file_and_no_address(path: bool, tmp_path: Path) -> None:
    for name in ("http://127.0.0.1:9/clip.mp4", "concat:a.mp4|b.mp4", "pipe:0", "-"):
        with pytest.raises(VideoError, match="there is no file at"):
            VideoFile(Path(name) if path else name).read(every)


def test_decords_pixels_are_ours() -> None:
    """An independent decoder (its wheel is for x86_64 only) reads the same pixels from an ordinary file."""
    decord = pytest.importorskip("decord")
    for codec in ("libx264", "libx265", "mpeg4"):
        data = video_bytes(moving_square(12, 96, 128), codec)
        theirs = decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(range(12)).asnumpy()
        assert np.array_equal(VideoFile(data).read(every).frames, theirs)


def test_a_model_sees_the_jpegs_that_a_corpus_stores() -> None:
    """Thinned, resized, compressed and decoded again; a setting of 0 skips its step."""
    data, settings = video_bytes(moving_square(9)), FrameSettings(4, 24, 50)
    stored, seen, raw = (
        encode_frames(VideoFile(data), settings),
        read_frames(data, settings),
        VideoFile(data).read(every),
    )
    assert seen.frame_index.tolist() == stored.frame_index.tolist() == [0, 3, 5, 8]
    assert (seen.fps, seen.num_source_frames) == (stored.fps, stored.num_source_frames) == (10.0, 9)
    assert seen.frames.shape == (4, stored.height, stored.width, 3) == (4, 24, 32, 3)
    assert all(np.array_equal(frame, decode_jpeg(jpeg)) for frame, jpeg in zip(seen.frames, stored.frames, strict=True))
    plain = read_frames(data, FrameSettings(0, 0, 0))
    assert np.array_equal(plain.frames, raw.frames)
    assert not np.array_equal(read_frames(data, FrameSettings(0, 0, 50)).frames, raw.frames)


def test_limits_hold_before_memory_is_spent() -> None:
    """The headers alone refuse a PNG of 400 megapixels (in a kilobyte) and an 8K video."""
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x4e\x20\x00\x00\x4e\x20\x08\x02\x00\x00\x00"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VideoError):
        ImageSequence(1, lambda i: header + bytes(1000)).read(lambda n, fps: np.arange(n))
    big = video_bytes(np.zeros((1, 4320, 7680, 3), np.uint8), "mpeg4")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VideoError, match="7680x4320 pixels"):
        VideoFile(big).read(lambda n, fps: np.arange(n), limits=VideoLimits(max_pixels=4096 * 4096))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - used < 50_000 and used - before < 1_000_000  # KB
    assert VideoFile(big).read(lambda n, fps: np.arange(n), short_edge=240).frames.shape == (1, 240, 426, 3)


def test_an_image_sequence_reads_what_it_keeps_and_names_what_it_cannot() -> None:
    frames = moving_square(50)
    positions: list[int] = []

    def get(i: int) -> bytes:
        positions.append(i)
        return encode_jpeg(frames[i], 95)

    video = ImageSequence(50, get, 5.0).read(lambda n, fps: thin_positions(n, 4), short_edge=48)
    assert positions == video.frame_index.tolist() == [0, 16, 33, 49]
    assert (video.num_source_frames, video.fps) == (50, 5.0)
    flipped = ImageSequence(50, get, change=lambda frame: frame[::-1]).read(lambda n, fps: np.array([3]))
    assert np.abs(flipped.frames[0].astype(int) - frames[3][::-1]).mean() < 12
    for bad, reason in (
        (lambda i: b"no image", "as an image"),
        (lambda i: {}[i], "frame 0 of 3 cannot be read .KeyError: 0"),
        (lambda i: np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\], not uint8 \[H, W, 3\]"),
        (lambda i: np.zeros((4 + i, 4, 3), np.uint8), "frames differ in size"),
        (lambda i: "/nowhere/0.png", "cannot be read"),
    ):
        with pytest.raises(VideoError, match=reason):
            ImageSequence(3, bad).read(lambda n, fps: np.arange(n))
