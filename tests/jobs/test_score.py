"""`robometer score`, `robometer compare` and the picture they write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from jobs import compare, score
from jobs.common import frame_overrides
from robometer.baselines.trivial import FrameDifference
from robometer.configs import load
from robometer.frames import FrameSettings, overridden, read_frames
from robometer.report.png import plot_curve
from robometer.scoring import Clip, ClipScore
from tests.local_endpoint import endpoint

TASK = "push the square to the right"


@pytest.fixture
def url() -> Iterator[str]:
    with endpoint(FrameDifference()) as address:
        yield address


def write_video(path: Path, num_frames: int, speed: int) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        for t in range(num_frames):
            frame = np.full((96, 128, 3), 30, np.uint8)
            frame[30:60, 5 + speed * t : 35 + speed * t] = 240
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "push.mp4", 40, speed=2)


def test_score_writes_numbers_and_picture(video: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, picture = video.with_suffix(".json"), video.with_suffix(".png")
    flags = [str(video), "--task", TASK, "--scorer", url, "--json", str(numbers), "--png", str(picture)]
    assert score.main(flags) == 0
    result = json.loads(numbers.read_text())
    frames = read_frames(video, FrameSettings()).frames
    expected = FrameDifference().score([Clip(frames, TASK)])[0]
    assert result["progress"] == expected.progress.tolist()
    assert result["num_source_frames"] == 40 and result["num_frames"] == 32
    assert result["time_s"][-1] == pytest.approx(3.9)
    assert f"reward {expected.progress[-1]:.3f}" in capsys.readouterr().out
    assert cv2.imread(str(picture)) is not None


def test_max_frames_thins(video: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main([str(video), "--task", TASK, "--scorer", url, "--max-frames", "4"]) == 0
    assert "last of 4 frames, of 40" in capsys.readouterr().out


def test_compare_names_the_better_video(video: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    still = write_video(video.with_name("still.mp4"), 40, speed=0)
    flags = [str(still), str(video), "--task", TASK, "--scorer", url]
    assert compare.main(flags) == 0
    assert capsys.readouterr().out.startswith(f"{video} did better")


def test_mistakes_are_one_sentence(video: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = video.with_suffix(".txt")
    text.write_text("hello")
    given = ["--task", TASK, "--scorer", url]
    for flags, sentence in (
        ([str(video.with_name("none.mp4")), *given], f"There is no video file '{video.with_name('none.mp4')}'."),
        (["", *given], "There is no video file ''."),
        ([str(video.parent), *given], f"There is no video file '{video.parent}'."),
        ([str(text), *given], f"{text}: the file cannot be decoded as a video"),
        ([str(video), "--task", " ", "--scorer", url], "--task is empty."),
        ([str(video), "--task", TASK, "--scorer", str(video.parent)], f"{video.parent} is not a checkpoint folder"),
        ([str(video), "--task", TASK, "--scorer", "baseline:clok"], "There is no baseline 'clok': "),
        ([str(video), *given, "--max-frames", "0"], "--max-frames must be at least 2."),
        ([str(video), *given, "--json", str(video.parent / "no" / "such.json")], "its folder does not exist."),
        ([str(video), *given, "--png", str(video.parent)], "is a folder. Give the file to write."),
        ([str(video), "--scorer", url], "--task"),
        (given, "`robometer score` needs VIDEO"),
        ([str(video), str(video), *given], "takes only VIDEO"),
    ):
        assert score.main(flags) == 2, flags
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error and sentence in error, error


def test_picture_shows_both_curves_and_the_frames(tmp_path: Path) -> None:
    frames = np.zeros((20, 60, 80, 3), np.uint8)
    frames[..., 1] = 200  # green, a colour that nothing else in the figure has
    ramp = np.linspace(0, 1, 20, dtype=np.float32)
    plot_curve(frames, ClipScore(ramp, ramp**4), TASK, tmp_path / "curve.png", ramp * 2)
    image = cv2.imread(str(tmp_path / "curve.png"))
    assert image is not None
    green = np.all(np.abs(image.astype(int) - (0, 200, 0)) < 8, axis=-1)
    assert green.mean() > 0.05
    assert not green[: image.shape[0] // 2].any()


def test_picture_of_one_frame(tmp_path: Path) -> None:
    half = np.array([0.5], np.float32)
    plot_curve(np.zeros((1, 8, 8, 3), np.uint8), ClipScore(half, half), TASK, tmp_path / "one.png")
    assert cv2.imread(str(tmp_path / "one.png")) is not None


def test_picture_of_unequal_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        plot_curve(np.zeros((2, 8, 8, 3), np.uint8), ClipScore(np.ones(3), np.ones(3)), TASK, tmp_path / "x.png")


def test_only_what_the_command_line_gives_overrides_a_models_frames(caplog: pytest.LogCaptureFixture) -> None:
    config = load(["recipe=quickstart", "ingest.max_frames=4", "serve.port=8001"])
    overrides = frame_overrides({"recipe", "ingest.max_frames", "serve.port"}, config)
    assert overrides == {"max_frames": 4}  # the user did not ask for the recipe's short edge of 160
    trained = FrameSettings(16, 128, 80)
    assert overridden(trained, {}) == trained and not caplog.records
    assert overridden(trained, overrides) == FrameSettings(4, 128, 80)
    assert "trained on at most 16 frames, short edge 128 px, JPEG quality 80 and gets" in caplog.text
