"""Job: score one video (`robometer score`, `python -m jobs.score`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.common import check_files, write_json
from jobs.grammar import Call, Command, Inputs, json_option, option, scorer_option
from robometer.errors import RobometerError
from robometer.text import table

if TYPE_CHECKING:  # these take half a second, which --help does not need
    from robometer.frames import FrameSettings
    from robometer.frames.video import Video
    from robometer.scoring import ClipScore, Scorer


def score(call: Call) -> None:
    """Score a video, print a table, and write what is asked for."""
    from robometer.client import RemoteScorer
    from robometer.scoring import Clip

    (path,), task = call.inputs, call.options["task"]
    check_files(json=call.options["json"], png=call.options["png"])
    check(call)
    scorer = scorer_of(call)
    settings = frame_settings(scorer, call)
    video = read_video(path, settings, call)
    if isinstance(scorer, RemoteScorer) and settings == scorer.info.frames:
        result = scorer.score_video(path, task)  # whose frames are the endpoint's own
    else:
        result = scorer.score([Clip(video.frames, task)])[0]
    values = _as_dict(path, task, scorer.name, video, result)
    if call.options["json"] != "-":
        _print_table(values)
    write_json(call.options["json"], values)
    if call.options["png"]:
        from robometer.report.png import plot_curve

        plot_curve(video.frames, result, task, call.options["png"], values["time_s"])


def shared_options() -> list[click.Option]:
    """The options that score and compare share."""
    thinning = "Thin a video to so many frames, at least 2 (default: as the model was trained)."
    return [
        option("--task", "The instruction, in words.", required=True, metavar="TEXT"),
        scorer_option(),
        option("--max-frames", thinning, type=int, metavar="N"),
        json_option(),
    ]


INSTEAD = {
    "--checkpoint": "Write --scorer CHECKPOINT.",
    "--url": "Write --scorer URL.",
}
"""What to write instead of options that score and compare do not have."""

SECTIONS = ("baseline", "tracking")


def check(call: Call) -> None:
    """Check options and videos before a model is loaded.

    Raises:
        RobometerError: an option cannot work, or an input is no video.
    """
    from robometer.frames.video import probe

    for path in call.inputs:
        if not Path(path).is_file():
            raise RobometerError(f"There is no video file {path!r}.")
    if not call.options["task"].strip():
        raise RobometerError("--task is empty. Say in words what the robot should do.")
    if call.options["max_frames"] is not None and call.options["max_frames"] < 2:
        raise RobometerError("--max-frames must be at least 2.")
    for path in call.inputs:
        with _naming(path):
            probe(path)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let a fault of a video say which one has it."""
    from robometer.frames.video import VideoError

    try:
        yield
    except VideoError as error:
        raise RobometerError(f"{path}: {error}") from error


def scorer_of(call: Call) -> Scorer:
    """The scorer that `--scorer` names."""
    from robometer.scorers import load_scorer

    return load_scorer(
        call.config.evaluate.scorer, tracking_uri=call.config.tracking.uri, baseline=call.config.baseline
    )


def frame_settings(scorer: Scorer, call: Call) -> FrameSettings:
    """How videos become frames: as the scorer was trained, unless `--max-frames` says otherwise."""
    from robometer.frames import overridden

    max_frames = call.options["max_frames"]
    return overridden(scorer.info.frames, {"max_frames": max_frames} if max_frames else {})


def read_video(path: str, settings: FrameSettings, call: Call) -> Video:
    """The frames of a video, made as ingestion and the endpoint make them, so that all three score the same pixels."""
    from robometer.frames import read_frames
    from robometer.frames.video import VideoLimits

    ingest = call.config.ingest
    with _naming(path):
        return read_frames(path, settings, VideoLimits(ingest.max_source_frames, ingest.max_source_pixels))


def _as_dict(path: str, task: str, model: str, video: Video, score: ClipScore) -> dict[str, Any]:
    times = [round(int(i) / video.fps, 3) for i in video.frame_index] if video.fps > 0 else None
    return {
        "video": path,
        "task": task,
        "model": model,
        "num_frames": len(video.frames),
        "num_source_frames": video.num_source_frames,
        "frame_index": video.frame_index.tolist(),
        "fps": video.fps or None,
        "time_s": times,
        "progress": score.progress.tolist(),
        "success": score.success.tolist(),
        "reward": float(score.progress[-1]),
    }


def _print_table(values: dict[str, Any]) -> None:
    times = values["time_s"] or [None] * values["num_frames"]
    columns = values["frame_index"], times, values["progress"], values["success"]
    rows = [
        (str(frame), "" if time is None else f"{time:.2f} s", f"{progress:.3f}", f"{success:.3f}")
        for frame, time, progress, success in zip(*columns, strict=True)
    ]
    print(table(("frame", "time", "progress", "P(success)"), rows))
    print(
        f"\nreward {values['reward']:.3f} (progress at the last of {values['num_frames']} frames, "
        f"of {values['num_source_frames']} in the video), by {values['model']}, for the task {values['task']!r}"
    )


COMMAND = Command(
    "score",
    score,
    "Score one video: progress and success at every frame, and the reward (the progress at the last frame).",
    inputs=Inputs("VIDEO", "A video file (mp4, mov, mkv, webm, avi).", least=1),
    options=[*shared_options(), option("--png", "Draw the curves over a strip of frames.", metavar="FILE")],
    details={"Writes": "A table to the terminal."},
    examples="""
robometer score drawer.mp4 --task "open the drawer" --scorer outputs/train/best
robometer score drawer.mp4 --task "open the drawer" --scorer http://127.0.0.1:8000 --png drawer.png
robometer score drawer.mp4 --task "open the drawer" --json drawer.json --max-frames 64
""",
    sections=SECTIONS,
    instead={"--video": "Give the video without it: robometer score VIDEO.", **INSTEAD},
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
