"""Job: which of two videos did better (`robometer compare`, `python -m jobs.compare`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import common
from jobs.score import check, parser_for, read_video, scorer_of, settings_for
from robometer.client import RemoteScorer
from robometer.scoring import Clip

HELP = """
robometer compare: say which of two videos did a task better, and how sure the model is.

Reads   two videos, and a checkpoint folder or an endpoint (its bearer token: ROBOMETER_TOKEN).
Writes  two lines to the terminal: the answer, and the answer with the videos swapped (a model without position bias
        gives probabilities that add up to 1).

Examples
  robometer compare --video-a one.mp4 --video-b two.mp4 --task "open the drawer"
  robometer compare --video-a one.mp4 --video-b two.mp4 --task "open the drawer" --checkpoint outputs/train/best
  robometer compare --video-a one.mp4 --video-b two.mp4 --task "open the drawer" --url http://127.0.0.1:8000
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see HELP."""
    parser = parser_for("robometer compare", HELP)
    parser.add_argument("--video-a", required=True, help="the first video file")
    parser.add_argument("--video-b", required=True, help="the second video file")
    arguments = parser.parse_args(argv)
    return common.guarded(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> None:
    paths = (arguments.video_a, arguments.video_b)
    check(arguments, *paths)
    scorer = scorer_of(arguments)
    settings = settings_for(scorer, arguments)
    if isinstance(scorer, RemoteScorer) and settings == scorer.info.frames:
        forward, swapped = (scorer.compare_videos(*two, arguments.task) for two in (paths, paths[::-1]))
    else:
        a, b = (Clip(read_video(path, settings).frames, arguments.task) for path in paths)
        forward, swapped = (float(p) for p in scorer.compare([(a, b), (b, a)]))
    preferred = arguments.video_a if forward >= 0.5 else arguments.video_b
    print(f"{preferred} did better: P(A better) = {forward:.3f}, by {scorer.name}, for the task {arguments.task!r}")
    print(f"with the videos swapped: P(A better) = {1 - swapped:.3f}")


if __name__ == "__main__":
    sys.exit(main())
