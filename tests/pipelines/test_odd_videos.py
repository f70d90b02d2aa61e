"""Odd and broken videos: each is stored correctly or rejected with a reason, and the job goes on."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from robometer.configs import Config
from robometer.corpus.encode import encode_episode
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode, TrajectoryError
from tests.corpus.formats.raw import ingest, refusals, row_of, rows
from tests.frames.test_video import corruptions, moving_square, video_bytes


def variable_rate(frames: np.ndarray) -> bytes:
    """An mp4 whose frames last 1, 2, 3 ... twentieths of a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 20)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i * (i + 1) // 2, Fraction(1, 20)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_odd_videos_are_stored_and_bad_ones_refused(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    good = video_bytes(moving_square(12, 96, 128))
    videos = {
        "one_frame.mp4": video_bytes(moving_square(1)),
        "odd_size.webm": video_bytes(moving_square(9, 50, 74), "libvpx-vp9", "webm"),
        "wrong_name.txt": good,
        "variable_rate.mp4": variable_rate(moving_square(9)),
        "portrait.avi": video_bytes(moving_square(9, 128, 48), "mpeg4", "avi"),
        "many_frames.mp4": video_bytes(np.zeros((301, 16, 16, 3), np.uint8)),
        "many_pixels.mp4": video_bytes(np.zeros((1, 720, 1280, 3), np.uint8)),
        **{f"{kind}.mp4": content for kind, content in corruptions(good).items()},
    }
    if "libsvtav1" in av.codecs_available:
        videos["av1.mp4"] = video_bytes(moving_square(9, 96, 128), "libsvtav1")
    for name, content in videos.items():
        (raw / name).write_bytes(content)
    lines = [json.dumps({"video": name, "task": "do it"}) for name in videos]
    lines += [
        '{"video": "wrong_name.txt", "task": "t", "view": "nan", "partial_success": NaN}',
        '{"video": "wrong_name.txt", "task": "t", "view": "above", "partial_success": 1.5}',
        '{"video": "wrong_name.txt", "task": "\\n\\t ", "view": "no text"}',
        '{"video": "wrong_name.txt", "task": "twice"}',
        '{"video": "../../../etc/hostname", "task": "t"}',
        '{"video": "wrong_name.txt", "task": "half a letter \\ud800", "view": "surrogate"}',
        '{"video": "wrong_name.txt", "task": "t", "view": "half \\ud800"}',
    ]
    data = "\n".join(lines).encode() + b'\n{"video": "wrong_name.txt", "task": "gr\xfc\xdf", "view": "latin"}\n'
    (raw / "trajectories.jsonl").write_bytes(data)
    corpus = ingest(tmp_path, "mp4_jsonl", "ingest.max_source_frames=300", f"ingest.max_source_pixels={1280 * 720 - 1}")
    counts = {key: frames for key, frames in rows(corpus, "episode_key", "source_num_frames")}
    assert counts == {"one_frame.mp4": 1, "odd_size.webm": 9, "wrong_name.txt": 12, "variable_rate.mp4": 9} | {
        "portrait.avi": 9,
        **({"av1.mp4": 9} if "av1.mp4" in videos else {}),
    }
    square = corpus.frames(row_of(corpus, episode_key="variable_rate.mp4"))[:, 14, :, 0].argmax(axis=1)
    assert (np.diff(square) > 0).all()  # in order, none twice
    assert rows(corpus, "height", "width")[list(counts).index("portrait.avi")] == (128, 48)
    reasons = refusals(corpus)
    assert len(reasons) == corpus.quarantine().num_rows == 15
    assert "301 frames, more than the limit of 300" in reasons["many_frames.mp4 many_frames.mp4 main"]
    assert "1280x720 pixels" in reasons["many_pixels.mp4 many_pixels.mp4 main"]
    assert "nan is not in [0, 1]" in reasons["wrong_name.txt wrong_name.txt nan"]
    assert "1.5 is not in [0, 1]" in reasons["wrong_name.txt wrong_name.txt above"]
    assert reasons["wrong_name.txt wrong_name.txt no text"] == "no task text"
    assert [reason for reason in reasons.values() if "not UTF-8" in reason] and len(reasons) == 15
    assert "came before" in reasons["wrong_name.txt"]
    assert "malformed" in reasons[f"trajectories.jsonl:{len(lines) + 1}"] and "utf-8" in str(reasons)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "half a letter \ud800"}, "not UTF-8"),
        ({"uri": "\udcff.mp4"}, "not UTF-8"),
        ({"is_robot": "no"}, "wrong type"),
        ({"fps": "fast"}, "wrong type"),
        ({"env_success": [0.5, "x", 1]}, "wrong type"),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_is(changes: dict[str, Any], reason: str) -> None:
    frames = ImageSequence(3, lambda i: np.zeros((16, 16, 3), np.uint8))
    good = Episode("s", "k", "main", "t", frames, "uri")
    assert encode_episode(good, Config().ingest)["num_frames"] == 3
    with pytest.raises(TrajectoryError, match=reason):
        encode_episode(replace(good, **changes), Config().ingest)
