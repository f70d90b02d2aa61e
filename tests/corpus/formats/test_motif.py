"""MotIF: pairs of a human and a Stretch robot; tasks of only one of them are skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows


def _entry(video: str, task: str = "stir", motion: str = "in circles") -> dict[str, str]:
    return {"video_path": f"some/where/{video}", "task_instruction": task, "motion_description": motion}


def _write(raw: Path, **sides: list[Any]) -> None:
    (raw / "annotations").mkdir(parents=True, exist_ok=True)
    for side, entries in sides.items():
        (raw / "annotations" / f"{side}_motion_data_info.json").write_text(json.dumps(entries))


def test_common_instructions_of_both_sides(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    names = ("human_motion/videos_raw/a.mp4", "human_motion/videos_raw/b.mp4", "stretch_motion/videos_raw/a.mp4")
    for i, name in enumerate(names):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(roll_out(i).mp4)
    human = [_entry("a.mp4"), _entry("b.mp4", "wipe"), _entry("gone.mp4"), {"video_path": "a.mp4"}, 3]
    _write(raw, human=human, stretch=[_entry("a.mp4", "Stir ")])
    corpus = ingest(tmp_path, "motif")
    assert rows(corpus, "source", "episode_key", "task", "is_robot", "quality_label") == [
        ("motif_rfm", names[0], "stir: in circles", False, "successful"),
        ("motif_rfm", names[2], "Stir: in circles", True, "successful"),
    ]
    assert shows(corpus, row_of(corpus, episode_key=names[2]), roll_out(2).frames)
    stages = {row["error"]: row["stage"] for row in corpus.quarantine().to_pylist()}
    assert stages["no stretch video shows 'wipe: in circles'"] == "skip"
    assert stages["there is no file human_motion/videos_raw/gone.mp4"] == "list"
    assert sum("is malformed" in reason for reason in stages) == 2 and len(refusals(corpus)) == 4
    (raw / "stretch_motion/videos_raw/w.mp4").write_bytes(roll_out(3).mp4)
    _write(raw, stretch=[_entry("a.mp4", "Stir "), _entry("w.mp4", "wipe")])
    assert len(ingest(tmp_path, "motif")) == 4


def test_both_annotation_files_are_needed(tmp_path: Path) -> None:
    _write(tmp_path, human=[])
    with pytest.raises(FormatError, match=r"no file .*stretch_motion_data_info.json"):
        list(list_units("motif", str(tmp_path)))
