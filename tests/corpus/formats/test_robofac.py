"""RoboFAC: real failures by camera, simulated ones by folder, tasks from answers, a table, or names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

REAL = "realworld_data/so100_insert_cylinder_error/videos/chunk-000/observation.images.{}/episode_000000.mp4"
VIDEOS = (
    REAL.format("front"),
    REAL.format("side"),
    "realworld_data/so100_pull_cube_error/videos/episode_000000.mp4",
    "simulation_data/success_data/MicrowaveTask-fork/stack_error/0993-abc.mp4",
    "simulation_data/failure_data/MicrowaveTask-fork/stack_error/0994-abc.mp4",
    "simulation_data/failure_data/PickCube-apple/1.mp4",
    "simulation_data/PickCube-apple/view0/2.mp4",
    "simulation_data/3.mp4",
)
TRAINING = [
    {
        "id": "0993-abc",
        "video": "dataset_success_cleaned/MicrowaveTask-fork/stack_error/0993-abc.mp4",
        "conversations": [
            {"from": "human", "value": "<video>\nHow high is the table?"},
            {"from": "assistant", "value": "One metre."},
            {"from": "human", "value": "Can you identify what task the robot is doing in the provided video?"},
            {"from": "assistant", "value": "Put the fork in the microwave"},
        ],
    },
    {"id": "0994-abc", "video": "x/MicrowaveTask-fork/0994-abc.mp4", "conversations": None},
]
TEST = {
    "7": {
        "video": "so100_insert_cylinder_error/episode_000000.mp4",
        "annos": {"Task identification": [{"from": "human"}, {"from": "assistant", "value": "Insert it."}]},
    }
}


def test_both_parts(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "main"
    for number, name in enumerate(VIDEOS):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(roll_out(number).mp4)
    (raw / "training_qa.json").write_text(json.dumps(TRAINING))
    (raw / "test_qa_realworld").mkdir()
    (raw / "test_qa_realworld" / "annos_per_video_split0.json").write_text(json.dumps(TEST))
    (raw / "tasks.json").write_text(json.dumps({"PickCube": "Pick the cube to the target position."}))
    corpus = ingest(tmp_path, "robofac")
    insert = "realworld_data/so100_insert_cylinder_error/videos/chunk-000/episode_000000"
    pull = "realworld_data/so100_pull_cube_error/videos/episode_000000"
    fork = "simulation_data/{}_data/MicrowaveTask-fork/stack_error/{}"
    pick = "simulation_data/failure_data/PickCube-apple/1"
    assert rows(corpus, "source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot") == [
        ("robofac", insert, "front", "Insert it.", "failure", 0.0, True),
        ("robofac", insert, "side", "Insert it.", "failure", 0.0, True),
        ("robofac", pull, "main", "pull cube", "failure", 0.0, True),
        ("robofac", fork.format("failure", "0994-abc"), "main", "microwave task", "failure", 0.0, True),
        ("robofac", pick, "main", "Pick the cube to the target position.", "failure", 0.0, True),
        (
            "robofac",
            fork.format("success", "0993-abc"),
            "main",
            "Put the fork in the microwave",
            "successful",
            1.0,
            True,
        ),
    ]
    assert shows(corpus, row_of(corpus, episode_key=insert, view="side"), roll_out(1).frames)
    reasons = refusals(corpus)
    assert len(reasons) == 2 and all("not in a task's folder below" in reason for reason in reasons.values())
    more = raw / "simulation_data/success_data/PickCube-apple/9.mp4"
    more.parent.mkdir(parents=True)
    more.write_bytes(roll_out(9).mp4)
    assert len(ingest(tmp_path, "robofac")) == 7


def test_what_is_no_robofac_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no mp4 in realworld_data or simulation_data"):
        list(list_units("robofac", str(tmp_path)))
    video = tmp_path / VIDEOS[0]
    video.parent.mkdir(parents=True)
    video.write_bytes(b"")
    for content in ('{"a": ', "[3]", "3"):
        (tmp_path / "training_qa.json").write_text(content)
        with pytest.raises(FormatError, match=r"training_qa.json (is malformed|holds no annotations)"):
            list(list_units("robofac", str(tmp_path)))
