"""RoboFAC: failures of an SO-100 arm, simulated successes and failures, and questions and answers about them.

    robofac/                                               (or below `main`)
      realworld_data/<so100_task_error>/videos/**/*.mp4    all failures; a folder observation.images.<camera> is a view
      simulation_data/success_data/<Task-variant>/**/<id>.mp4
      simulation_data/failure_data/<Task-variant>/**/<id>.mp4
      training_qa.json                                     [{"id", "video", "conversations": [{"from", "value"}, ...]}]
      test_qa_*/annos_per_video_split*.json                {id: {"video", "annos": {"Task identification": [...]}}}
      tasks.json                                           optional: {"PickCube-apple" or "PickCube": "instruction"}

Each video is an episode of the data set `robofac`, with partial success 1 or 0. The task is the answer to the question
what the robot is doing in this very video; else the folder's entry in `tasks.json`; else the folder's name in words,
without so100_, _error and variant ("pick cube"; upstream has a table of 16 sentences in its code). A video that is in
no folder of successes or failures is refused; upstream labels it a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, read_json, task_texts
from robometer.corpus.readers.annotations import spaced, video_episodes, video_unit

REAL, SIMULATED = "realworld_data", "simulation_data"
QUALITY = {"success_data": "successful", "failure_data": "failure"}
CAMERA = "observation.images."
QUESTION = "identify what task the robot is doing"

_Answers = dict[tuple[str, str], str]
"""Tasks by (a folder of the video, stem of its name): a name such as episode_000000 occurs in many folders."""

episodes = video_episodes


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The videos of both parts.

    Raises:
        FormatError: there are none, or a file of answers is malformed.
    """
    root = folder(input, f"the folder of RoboFAC, which holds {REAL} or {SIMULATED}")
    root = root / "main" if (root / "main").is_dir() and not (root / REAL).is_dir() else root
    videos = [path.relative_to(root) for path in files(root, f"{REAL}/**/*.mp4", f"{SIMULATED}/**/*.mp4")]
    if not videos:
        raise FormatError(f"no mp4 in {REAL} or {SIMULATED} of {root}: give ingest.input a copy of RoboFAC")
    answers, tasks, name = _answers(root), task_texts(root), source or "robofac"
    for video in videos:
        try:
            yield video_unit(_row(video, answers, tasks), root, name)
        except ValueError as error:
            yield Refused(str(root / video), str(error), name, video.as_posix())


def _row(video: Path, answers: _Answers, tasks: dict[str, str]) -> dict[str, Any]:
    part, *folders = video.parts[:-1]
    quality = "failure" if part == REAL else QUALITY.get(folders[0] if folders else "")
    kind = folders[part == SIMULATED :][:1]
    if quality is None or not kind:
        raise ValueError(f"it is not in a task's folder below {REAL} or {' or '.join(QUALITY)}")
    plain = re.sub(r"^so100_|_error$|-\w+$", "", kind[0])
    answer = answers.get((kind[0], video.stem))
    camera = next((name for name in folders if name.startswith(CAMERA)), None)
    return {
        "video": video.as_posix(),
        "task": answer or tasks.get(kind[0]) or tasks.get(plain) or spaced(plain),
        "episode_key": "/".join(name for name in video.with_suffix("").parts if name != camera),
        "view": camera.removeprefix(CAMERA) if camera else "main",
        "quality_label": quality,
        "partial_success": float(quality == "successful"),
    }


def _answers(root: Path) -> _Answers:
    answers: _Answers = {}
    for path in files(root, "training_qa.json", "test_qa_*/annos_per_video_split*.json"):
        content = read_json(path)
        entries = content.values() if isinstance(content, dict) else content
        if not isinstance(content, dict | list) or not all(isinstance(entry, dict) for entry in entries):
            raise FormatError(f"{path} holds no annotations of videos")
        for entry in entries:
            video = PurePosixPath(str(entry.get("video", "")))
            if answer := _answer(entry):
                answers |= {(name, video.stem): answer for name in video.parts[:-1]}
    return answers


def _answer(entry: dict[str, Any]) -> str:
    """The assistant's answer to the question which task this is; empty if nobody asks it."""
    annotations = entry.get("annos")
    identification = annotations.get("Task identification") if isinstance(annotations, dict) else None
    turns = identification if identification is not None else entry.get("conversations")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    for question, reply in pairwise(turns):
        if identification is not None or QUESTION in str(question.get("value")).lower():
            return str(reply.get("value") or "").strip()
    return ""
