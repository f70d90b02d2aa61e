"""Job: which of two videos did better (`robometer compare`, `python -m jobs.compare`)."""

from __future__ import annotations

from jobs.common import check_files, write_json
from jobs.grammar import Call, Command, Inputs
from jobs.score import INSTEAD, SECTIONS, check, frame_settings, read_video, scorer_of, shared_options


def compare(call: Call) -> None:
    """Compare two videos, in both orders."""
    from robometer.client import RemoteScorer
    from robometer.scoring import Clip

    task = call.options["task"]
    check_files(json=call.options["json"])
    check(call)
    scorer = scorer_of(call)
    settings = frame_settings(scorer, call)
    if isinstance(scorer, RemoteScorer) and settings == scorer.info.frames:
        first, second = call.inputs
        forward = scorer.compare_videos(first, second, task)
        swapped = scorer.compare_videos(second, first, task)
    else:
        a, b = (Clip(read_video(path, settings, call).frames, task) for path in call.inputs)
        forward, swapped = (float(p) for p in scorer.compare([(a, b), (b, a)]))
    better = call.inputs[0 if forward >= 0.5 else 1]
    if call.options["json"] != "-":
        print(f"{better} did better: P(A better) = {forward:.3f}, by {scorer.name}, for the task {task!r}")
        print(f"with the videos swapped: P(A better) = {1 - swapped:.3f}")
    values = {"video_a": call.inputs[0], "video_b": call.inputs[1], "task": task, "model": scorer.name}
    write_json(call.options["json"], {**values, "probability_a_better": forward, "swapped": 1 - swapped})


COMMAND = Command(
    "compare",
    compare,
    "Say which of two videos did a task better, and how sure the model is.",
    inputs=Inputs("VIDEO_A VIDEO_B", "Two video files.", least=2, most=2),
    options=shared_options(),
    details={
        "Writes": "Two lines to the terminal: the probability that A did better, and the same with the videos swapped. "
        "A model without position bias gives one number twice."
    },
    examples="""
robometer compare one.mp4 two.mp4 --task "open the drawer"
robometer compare one.mp4 two.mp4 --task "open the drawer" --scorer outputs/train/best
robometer compare one.mp4 two.mp4 --task "open the drawer" --scorer http://127.0.0.1:8000
""",
    sections=SECTIONS,
    instead={
        "--video-a": "Give both videos without it: robometer compare VIDEO_A VIDEO_B.",
        "--video-b": "Give both videos without it: robometer compare VIDEO_A VIDEO_B.",
        **INSTEAD,
    },
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
