"""RoboReward: grades from 1 to 5, data sets by folder, splits by folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

NO_PATH = "must be the path of a file in a folder of its data set"


def _write(part: Path, lines: list[object]) -> None:
    for i, line in enumerate(lines):
        if isinstance(line, dict) and str(line.get("file_name")).startswith(("bridge", "robo_arena")):
            (part / line["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            (part / line["file_name"]).write_bytes(roll_out(i).mp4)
    (part / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _line(name: str, reward: object, task: object = "open it") -> dict[str, object]:
    return {"file_name": name, "task": task, "reward": reward}


def test_grades_and_splits(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    train: list[object] = [_line("bridge/0.mp4", 5), _line("bridge/1.mp4", 4), _line("robo_arena/2.mp4", 1)]
    bad = [_line("bridge/3.mp4", 6), _line("bridge/4.mp4", True), _line("../x/5.mp4", 3), _line("/etc/5.mp4", 3)]
    bad += [_line("bridge/7.mp4", 3, None), _line("away/8.mp4", 3)]
    _write(raw / "train", [*train, *bad, ["bridge/9.mp4"]])
    _write(raw / "val", [_line("bridge/0.mp4", 3)])
    corpus = ingest(tmp_path, "roboreward", "ingest.split=mine")
    assert rows(corpus, "source", "episode_key", "quality_label", "partial_success", "split", "is_robot") == [
        ("roboreward_bridge", "train/bridge/0.mp4", "successful", 1.0, "mine", True),
        ("roboreward_bridge", "train/bridge/1.mp4", "failure", 0.75, "mine", True),
        ("roboreward_bridge", "val/bridge/0.mp4", "failure", 0.5, "val", True),
        ("roboreward_roboarena", "train/robo_arena/2.mp4", "failure", 0.0, "mine", True),
    ]
    assert shows(corpus, row_of(corpus, episode_key="train/bridge/1.mp4"), roll_out(1).frames)
    reasons = sorted(refusals(corpus).values())
    assert reasons[:6] == [
        "line 10 of metadata.jsonl is malformed: it is not an object",
        "line 4 of metadata.jsonl is malformed: reward 6 is none of 1, 2, 3, 4, 5",
        "line 5 of metadata.jsonl is malformed: reward True is none of 1, 2, 3, 4, 5",
        f'line 6 of metadata.jsonl is malformed: file_name "../x/5.mp4" {NO_PATH}',
        f'line 7 of metadata.jsonl is malformed: file_name "/etc/5.mp4" {NO_PATH}',
        "line 8 of metadata.jsonl is malformed: no 'task'",
    ]
    assert reasons[6].startswith("there is no file at") and len(reasons) == 7
    _write(raw / "val", [_line("bridge/0.mp4", 3), _line("bridge/1.mp4", 2)])
    assert len(ingest(tmp_path, "roboreward")) == 5
    # A split given alone has the episode keys that it has within the whole.
    assert len(ingest(tmp_path, "roboreward", input=raw / "val")) == 5


def test_no_metadata_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no metadata.jsonl in"):
        list(list_units("roboreward", str(tmp_path)))
