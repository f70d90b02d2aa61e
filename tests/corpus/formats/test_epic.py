"""EPIC-KITCHENS: clips, segments of whole videos by frames and by times, and what is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from robometer.corpus.formats import FormatError, epic, list_units
from tests.corpus.formats.raw import ingest, nearest, refusals, roll_out, row_of, rows, shows

COLUMNS = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame"
HEADER = f"{COLUMNS},stop_frame,narration\n"
ROWS = """P01_01_0,P01,P01_01,x,x,x,3,9,open door
P01_01_1,P01,P01_01,x,00:00:00.20,00:00:01.10,,,"turn on, light"
P01_01_2,P01,P01_01,x,x,x,0,5000,wash everything
P01_01_3,P01,P01_01,x,x,x,9,9,nothing
P01_02_0,P01,P01_02,x,x,x,0,4,no video
P01_01_4,P01,P01_01,x,x,x,0,1000,over the end
P02_01_7,P02,P02_01,x,x,x,700,900,close drawer
P01_01_5,P01,P01_01,x,never,x,,,no time
P02_01_7,P02,P02_01,x,x,x,700,900,close drawer again
"""


def test_clips_and_cuts(ray_local: None, tmp_path: Path) -> None:
    raw, long, clip = tmp_path / "raw", roll_out(0), roll_out(1)
    for name, content in (("P01/videos/P01_01.MP4", long.mp4), ("P02/videos/P02_01_7.mp4", clip.mp4)):
        (raw / name).parent.mkdir(parents=True)
        (raw / name).write_bytes(content)
    (raw / epic.TABLE).write_text(HEADER + ROWS)
    corpus = ingest(tmp_path, "epic")
    columns = ("source", "episode_key", "view", "task", "quality_label", "is_robot", "source_num_frames")
    assert rows(corpus, *columns) == [
        ("epic", "P01_01_0", "ego", "open door", "successful", False, 6),
        ("epic", "P01_01_1", "ego", "turn on, light", "successful", False, 9),
        ("epic", "P02_01_7", "ego", "close drawer", "successful", False, len(clip.frames)),
    ]
    assert nearest(corpus, row_of(corpus, episode_key="P01_01_0"), long.frames) == [3, 4, 5, 6, 7, 8]
    assert nearest(corpus, row_of(corpus, episode_key="P01_01_1"), long.frames) == [2, 4, 5, 7, 8, 10]
    assert shows(corpus, row_of(corpus, episode_key="P02_01_7"), clip.frames)
    stages = {row["error"]: row["stage"] for row in corpus.quarantine().to_pylist()}
    assert stages["the clip has 5000 frames, more than 1000"] == "skip"
    reasons = "\n".join(refusals(corpus).values())
    for reason in (
        "frames 9 to 9 are not a range",
        "neither a clip P01_02_0 nor a video P01_02",
        "does not hold frames",
        "'never'",
    ):
        assert reason in reasons, reason
    assert "duplicate: P02_01_7, ego of source 'epic'" in reasons and len(stages) == 6
    with (raw / epic.TABLE).open("a") as table:
        table.write("P01_01_9,P01,P01_01,x,x,x,0,5,close door\n")
    assert len(ingest(tmp_path, "epic")) == 4


def test_a_long_clip_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epic, "MAX_FRAMES", 5)
    (tmp_path / "P01_01_0.mp4").write_bytes(roll_out(0).mp4)
    (tmp_path / epic.TABLE).write_text(HEADER + ROWS.splitlines()[0] + "\n")
    (unit,) = list_units("epic", str(tmp_path))
    assert isinstance(unit, epic.Unit)
    (refused,) = epic.episodes(unit)
    assert isinstance(refused, epic.Refused) and refused.skipped and "frames, more than 5" in refused.error


def test_no_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no EPIC_100_train.csv: give"):
        list(list_units("epic", str(tmp_path)))
