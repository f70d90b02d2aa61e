"""Decoding, verification, thinning and JPEG, on videos that the tests write and on upstream's example clips."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from robometer.frames.recording import VideoFile
from robometer.frames.timeline import frames_at
from robometer.frames.video import (
    VideoError,
    VideoLimits,
    decode_jpeg,
    encode_jpeg,
    probe,
    resize_short_edge,
    thin_positions,
)


def every(num_frames: int, fps: float) -> np.ndarray:
    """Picks all frames."""
    return np.arange(num_frames)


def moving_square(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Frames uint8 [T, H, W, 3]: a bright square crosses a noisy background."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(40, 90, (1, height, width, 3), dtype=np.uint8), num_frames, axis=0)
    for i, frame in enumerate(frames):
        left = round(i * (width - 12) / max(num_frames - 1, 1))
        frame[8:20, left : left + 12] = (250, 60, 20)
    return frames


def video_bytes(frames: np.ndarray, codec: str = "libx264", container: str = "mp4", fps: int = 10) -> bytes:
    """The frames as an encoded file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def corruptions(good: bytes) -> dict[str, bytes]:
    """Five kinds of broken video file."""
    rng = np.random.default_rng(0)
    middle = bytearray(good)
    start = good.index(b"mdat") + 4 + len(good[good.index(b"mdat") :]) // 3
    middle[start : start + 200] = rng.bytes(200)
    return {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "garbage": rng.bytes(5000),
        "text": b"this is not a video\n" * 50,
        "middle": bytes(middle),
    }


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "positions"),
    [
        (3, 5, [0, 1, 2]),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 3, [0, 2, 4]),
        (8, 4, [0, 2, 5, 7]),  # 0, 2 1/3, 4 2/3, 7
        (6, 4, [0, 2, 3, 5]),  # 0, 1 2/3, 3 1/3, 5
        (32, 8, [0, 4, 9, 13, 18, 22, 27, 31]),
        (9, 2, [0, 8]),
        (9, 1, [8]),
    ],
)
def test_frames_are_spread_evenly_with_first_and_last(num_frames: int, max_frames: int, positions: list[int]) -> None:
    assert thin_positions(num_frames, max_frames).tolist() == positions


@pytest.mark.parametrize(("num_frames", "max_frames"), [(33, 32), (100, 32), (1000, 7), (3, 2)])
def test_thinning_keeps_first_and_last_and_order(num_frames: int, max_frames: int) -> None:
    index = thin_positions(num_frames, max_frames)
    assert len(index) == max_frames
    assert (index[0], index[-1]) == (0, num_frames - 1)
    assert (np.diff(index) > 0).all()


def test_thinning_keeps_all_frames_of_a_short_video() -> None:
    assert thin_positions(5, 32).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("size", "short_edge", "expected"),
    [
        ((480, 640), 240, (240, 320)),
        ((640, 480), 240, (320, 240)),
        ((100, 333), 50, (50, 166)),
        ((99, 101), 45, (46, 46)),
    ],
)
def test_resize_truncates_then_makes_sides_even(
    size: tuple[int, int], short_edge: int, expected: tuple[int, int]
) -> None:
    assert resize_short_edge(np.zeros((*size, 3), np.uint8), short_edge).shape == (*expected, 3)


def test_jpeg_keeps_the_order_of_channels() -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[...] = (220, 40, 10)
    decoded = decode_jpeg(encode_jpeg(frame, 95))
    assert np.abs(decoded.astype(int) - frame).max() <= 4


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(VideoError, match="as an image"):
        decode_jpeg(data)


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libx264", "mp4"),
        ("libx265", "mp4"),
        ("mpeg4", "mp4"),
        ("libvpx-vp9", "webm"),
        ("libsvtav1", "mp4"),
    ],
)
def test_every_codec_gives_the_frames_that_went_in(codec: str, container: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    frames = moving_square(20, 96, 128)
    data = video_bytes(frames, codec, container)
    path = tmp_path / f"clip.{container}"
    path.write_bytes(data)
    video = VideoFile(path).read(lambda n, fps: thin_positions(n, 5))
    assert video.num_source_frames == 20 and video.fps == pytest.approx(10)
    assert video.frame_index.tolist() == [0, 5, 10, 14, 19]
    assert np.abs(video.frames.astype(int) - frames[video.frame_index]).mean() < 12
    assert np.array_equal(VideoFile(data).read(lambda n, fps: thin_positions(n, 5)).frames, video.frames)
    cut = VideoFile(path, 7, 9).read(lambda n, fps: np.array([0, 3, 8]))
    assert cut.num_source_frames == 9
    assert np.abs(cut.frames.astype(int) - frames[[7, 10, 15]]).mean() < 12


def numbered_video(codec: str, options: dict[str, str], container: str = "mp4", longer_frame: int = -1) -> bytes:
    """120 frames at 30 per second that show their own number, bit by bit; one may last a second longer."""
    buffer = io.BytesIO()
    mux = {"use_editlist": "0"} if container == "mp4" else {}
    with av.open(buffer, "w", format=container, options=mux) as output:
        stream = output.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 30)
        for i in range(120):
            bits = np.array([235 if i >> bit & 1 else 20 for bit in range(8)], np.uint8)
            pixels = np.broadcast_to(np.repeat(bits, 8)[None, :, None], (48, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = i + 30 * (i > longer_frame >= 0), Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that the frames of a `numbered_video` show."""
    return [sum(int(frame[:, 8 * bit + 2 : 8 * bit + 6].mean() > 128) << bit for bit in range(8)) for frame in frames]


@pytest.mark.parametrize(
    ("codec", "options", "container"),
    [
        ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=3:b-adapt=0"}, "mp4"),
        ("libx264", {"x264-params": "keyint=40:scenecut=0:bframes=16:b-adapt=0"}, "matroska"),
        ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=1"}, "mp4"),
        ("libx265", {"x265-params": "keyint=12:scenecut=0:bframes=3:open-gop=1:log-level=none"}, "mp4"),
        ("libsvtav1", {"g": "2", "preset": "12"}, "mp4"),
        ("libsvtav1", {"g": "30", "preset": "12"}, "mp4"),
    ],
)
def test_a_cut_is_exact_wherever_it_begins(codec: str, options: dict[str, str], container: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    data = numbered_video(codec, options, container)
    for first in range(1, 117, 3):
        cut = VideoFile(data, first, 4).read(every)
        assert numbers(cut.frames) == list(range(first, first + 4))
    assert numbers(VideoFile(data, 100).read(every).frames) == list(range(100, 120))
    for first, count in ((117, 4), (120, 1), (3, 0), (-1, 2)):
        with pytest.raises(VideoError, match="the video has 120 frames, so it does not hold"):
            VideoFile(data, first, count).read(every)


def test_frames_of_an_uneven_video_are_counted_as_they_are_decoded() -> None:
    data = numbered_video("libx264", {}, longer_frame=9)
    assert probe(data).fps != 30
    cut = VideoFile(data, 5, 20, 30.0).read(every)
    assert (numbers(cut.frames), cut.fps) == (list(range(5, 25)), 30.0)
    # By the clock, 2.5 s are 75 frames, and the pause after frame 9 took 30 of them.
    assert frames_at(data, [0.0, 0.19, 0.31, 2.5, 5.0, 99.0], 30.0) == [0, 6, 9, 45, 120, 2940]


@pytest.mark.parametrize("kind", ["truncated", "empty", "garbage", "text", "middle"])
def test_ingest_finds_every_kind_of_corruption(kind: str) -> None:
    good = video_bytes(moving_square(40, 96, 128))
    assert VideoFile(good).read(lambda n, fps: thin_positions(n, 8)).num_source_frames == 40
    with pytest.raises(VideoError):
        VideoFile(corruptions(good)[kind]).read(lambda n, fps: thin_positions(n, 8))


def test_limits_are_checked_from_the_header() -> None:
    data = video_bytes(moving_square(12))
    with pytest.raises(VideoError, match="12 frames, more than the limit of 11"):
        VideoFile(data).read(every, limits=VideoLimits(max_frames=11))
    with pytest.raises(VideoError, match="64x48 pixels"):
        probe(data, VideoLimits(max_pixels=48 * 64 - 1))
    assert len(VideoFile(data).read(every, limits=VideoLimits(12, 48 * 64)).frames) == 12


def test_a_cut_may_come_from_a_video_with_more_frames_than_the_limit() -> None:
    data, limits = numbered_video("libx264", {}), VideoLimits(max_frames=8)
    assert probe(data, limits).num_frames == 120
    assert numbers(VideoFile(data, 60, 8).read(every, limits=limits).frames) == list(range(60, 68))
    with pytest.raises(VideoError, match="9 frames, more than the limit of 8"):
        VideoFile(data, 60, 9).read(every, limits=limits)


def test_cuts_of_a_file_share_its_header_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openings = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *args, **kwargs: openings.append(args) or real(*args, **kwargs))
    path = tmp_path / "shared.mp4"
    path.write_bytes(numbered_video("libx264", {"x264-params": "keyint=12:scenecut=0"}))
    openings.clear()
    cuts = range(0, 120, 10)
    for first in cuts:
        assert numbers(VideoFile(path, first, 10).read(every).frames) == list(range(first, first + 10))
    assert len(openings) == len(cuts) + 2  # each to decode it; the header and the times of all frames once
    path.write_bytes(video_bytes(moving_square(40)))
    assert probe(path).num_frames == 40


def test_a_playlist_is_no_video_even_if_what_it_names_is(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(video_bytes(moving_square(5)))
    for playlist in (f"#EXTM3U\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile {target}\n"):
        with pytest.raises(VideoError):
            VideoFile(playlist.encode()).read(every)


def test_a_missing_file_and_a_file_without_video_say_so(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file at"):
        probe(tmp_path / "none.mp4")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        probe(buffer.getvalue())


def test_decoding_resizes_frame_by_frame() -> None:
    video = VideoFile(video_bytes(moving_square(6, 96, 128))).read(every, short_edge=48)
    assert video.frames.shape == (6, 48, 64, 3)
