"""RoboFail: one failure per folder, its task from a table or from the folder's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows


def _episode(raw: Path, name: str, number: int) -> None:
    (raw / "real_data" / name / "videos").mkdir(parents=True)
    (raw / "real_data" / name / "videos" / "color.mp4").write_bytes(roll_out(number, "failure").mp4)


def test_folders(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number, name in enumerate(("putAppleBowl1", "putAppleBowl2", "boil_water3")):
        _episode(raw, name, number)
    (raw / "real_data" / "empty1").mkdir()
    (raw / "tasks.json").write_text(json.dumps({"boil_water": "boil water in a pot"}))
    corpus = ingest(tmp_path, "robofail")
    key = "real_data/{}/videos/color.mp4"
    assert rows(corpus, "source", "episode_key", "task", "quality_label", "is_robot") == [
        ("robofail", key.format("boil_water3"), "boil water in a pot", "failure", True),
        ("robofail", key.format("putAppleBowl1"), "put apple bowl", "failure", True),
        ("robofail", key.format("putAppleBowl2"), "put apple bowl", "failure", True),
    ]
    row = row_of(corpus, episode_key=key.format("putAppleBowl2"))
    assert shows(corpus, row, roll_out(1, "failure").frames)
    assert refusals(corpus) == {"empty1 empty1": "the folder has no videos/color.mp4"}
    _episode(raw, "cutCarrot1", 3)
    assert len(ingest(tmp_path, "robofail")) == 4


def test_a_name_that_is_no_text_is_refused(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    _episode(raw, "cutCarrot1", 0)
    _episode(raw, "cut\udcff1", 1)
    corpus = ingest(tmp_path, "robofail")
    assert rows(corpus, "task") == [("cut carrot",)]
    assert refusals(corpus) == {"cut?1 cut?1": "'video' is not UTF-8"}


def test_what_is_no_robofail_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no folders in .*real_data"):
        list(list_units("robofail", str(tmp_path)))
    _episode(tmp_path, "boilWater1", 0)
    (tmp_path / "tasks.json").write_text('{"boilWater": 3}')
    with pytest.raises(FormatError, match=r"tasks.json must be a JSON object"):
        list(list_units("robofail", str(tmp_path)))
