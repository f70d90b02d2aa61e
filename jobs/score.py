"""Job: score one video (`robometer score`, `python -m jobs.score`)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import common
from robometer.client import RemoteScorer
from robometer.configs import Config
from robometer.errors import RobometerError
from robometer.frames import FrameSettings, overridden, read_frames
from robometer.frames.video import Video, VideoLimits, probe
from robometer.runs import paths
from robometer.scoring import Clip, ClipScore, Scorer
from robometer.text import table

HELP = """
robometer score: score one video: progress and success at every frame, and the reward (the progress at the last one).

Reads   a video (mp4, mov, mkv, webm, avi), and a checkpoint folder or an endpoint.
        An endpoint's bearer token comes from the environment's ROBOMETER_TOKEN.
        The video becomes frames as those that the model was trained on; --max-frames overrides that, with a warning.
Writes  a table to the terminal; with --json the numbers, with --png the curves over a strip of frames.

Examples
  robometer score --video drawer.mp4 --task "open the drawer" --checkpoint outputs/train/best
  robometer score --video drawer.mp4 --task "open the drawer" --url http://127.0.0.1:8000 --png drawer.png
  robometer score --video drawer.mp4 --task "open the drawer" --json drawer.json --max-frames 64
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see HELP."""
    parser = parser_for("robometer score", HELP)
    parser.add_argument("--video", required=True, help="the video file")
    parser.add_argument("--png", help="write the curves here")
    parser.add_argument("--json", help="write the numbers here")
    arguments = parser.parse_args(argv)
    return common.guarded(lambda: _score(arguments))


def parser_for(prog: str, text: str) -> argparse.ArgumentParser:
    """The flags that score and compare share."""
    parser = argparse.ArgumentParser(prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    config = Config()
    parser.add_argument("--task", required=True, help="the instruction, in words")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", default=config.evaluate.scorer, help="checkpoint folder (%(default)s)")
    model.add_argument("--url", help="endpoint, instead of a checkpoint")
    parser.add_argument("--max-frames", type=int, help="thin the video to so many (default: as the model was trained)")
    return parser


def scorer_of(arguments: argparse.Namespace) -> Scorer:
    """The scorer that `--url` or `--checkpoint` names."""
    from robometer.scorers import load_scorer  # takes seconds

    return load_scorer(arguments.url or arguments.checkpoint)


def settings_for(scorer: Scorer, arguments: argparse.Namespace) -> FrameSettings:
    """How videos become frames: as the scorer was trained, but for what the flags say otherwise."""
    flags = {"max_frames": arguments.max_frames} if arguments.max_frames else {}
    return overridden(scorer.info.frames, flags)


def read_video(path: str, settings: FrameSettings) -> Video:
    """The frames of a video as ingestion and the endpoint make them, so that all three score the same pixels."""
    config = Config()
    return read_frames(path, settings, VideoLimits(config.ingest.max_source_frames, config.ingest.max_source_pixels))


def check(arguments: argparse.Namespace, *videos: str) -> None:
    """Raise `RobometerError` for flags that cannot work and files that are no videos, before anything is loaded."""
    if not arguments.task.strip():
        raise RobometerError("--task is empty: say in words what the robot should do")
    if arguments.max_frames is not None and arguments.max_frames < 2:
        raise RobometerError("--max-frames must be at least 2")
    for path in videos:
        probe(path)


def _score(arguments: argparse.Namespace) -> None:
    for name, path in (("--json", arguments.json), ("--png", arguments.png)):
        if not path:
            continue
        paths.absolute_path(name, paths.check_local(name, path))
        if not Path(path).absolute().parent.is_dir():
            raise RobometerError(f"{path} cannot be written: its folder does not exist")
    check(arguments, arguments.video)
    scorer = scorer_of(arguments)
    settings = settings_for(scorer, arguments)
    video = read_video(arguments.video, settings)
    if isinstance(scorer, RemoteScorer) and settings == scorer.info.frames:
        score = scorer.score_video(arguments.video, arguments.task)  # whose frames are the endpoint's own
    else:
        score = scorer.score([Clip(video.frames, arguments.task)])[0]
    result = _as_dict(arguments, scorer.name, video, score)
    _print_table(result)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2))
    if arguments.png:
        from robometer.report.plots import plot_curve

        plot_curve(video.frames, score, arguments.task, arguments.png, result["time_s"])


def _as_dict(arguments: argparse.Namespace, model: str, video: Video, score: ClipScore) -> dict[str, Any]:
    times = [round(int(i) / video.fps, 3) for i in video.frame_index] if video.fps > 0 else None
    return {
        "video": arguments.video,
        "task": arguments.task,
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


def _print_table(result: dict[str, Any]) -> None:
    times = result["time_s"] or [None] * result["num_frames"]
    columns = result["frame_index"], times, result["progress"], result["success"]
    rows = [
        (str(frame), "" if time is None else f"{time:.2f} s", f"{progress:.3f}", f"{success:.3f}")
        for frame, time, progress, success in zip(*columns, strict=True)
    ]
    print(table(("frame", "time", "progress", "P(success)"), rows))
    print(
        f"\nreward {result['reward']:.3f} (progress at the last of {result['num_frames']} frames, "
        f"of {result['num_source_frames']} in the video), by {result['model']}, for the task {result['task']!r}"
    )


if __name__ == "__main__":
    sys.exit(main())
