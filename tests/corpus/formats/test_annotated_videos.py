"""Your own annotations: tables of every kind, mapped columns, and rows that are refused one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from robometer.corpus.formats import FormatError, Refused, Unit, list_units
from tests.corpus.formats.raw import ingest, nearest, refusals, roll_out, row_of, rows, shows

CSV = b"""id,narration,reward,score,operator,note
a,"Pick up, then
place the cup",1,,yes,first
b,Open the drawer,0,0.25,no,
c,Open the drawer,2,,no,odd reward
d,Open the drawer,1,nan,no,
e,\xff\xfe,1,,no,
f,Open the drawer,1
a,Pick it up again,1,,no,
g,Open the drawer,1,high,no,
none,Open the drawer,1,,no,
"""
COLUMNS = {
    "video": {"column": "id", "format": "clips/{}.mp4"},
    "task": "narration",
    "quality_label": {"column": "reward", "values": {1: "successful", "0": "failure"}},
    "partial_success": "score",
    "is_robot": "operator",
    "source": {"value": "mine"},
}
REFUSED = {
    "line 5 of annotations.csv is malformed: 'quality_label' is '2', which columns.yaml does not map",
    "partial_success nan is not in [0, 1]",
    "line 7 of annotations.csv is malformed: 'task' is not UTF-8",
    "line 8 of annotations.csv is malformed: it has 3 cells, but the header has 6",
    "duplicate: clips/a.mp4, main of source 'mine' came before",
    "line 10 of annotations.csv is malformed: 'partial_success' is 'high', not int or float",
}


def _clips(raw: Path) -> None:
    (raw / "clips").mkdir(parents=True)
    for i, name in enumerate("abcdefgh"):
        (raw / "clips" / f"{name}.mp4").write_bytes(roll_out(i).mp4)


def test_a_csv_of_foreign_columns_needs_no_code(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    _clips(raw)
    (raw / "annotations.csv").write_bytes(CSV)
    (raw / "columns.yaml").write_text(yaml.safe_dump(COLUMNS))
    corpus = ingest(tmp_path, "annotated_videos")
    columns = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot")
    assert rows(corpus, *columns) == [
        ("mine", "clips/a.mp4", "main", "Pick up, then place the cup", "successful", None, True),
        ("mine", "clips/b.mp4", "main", "Open the drawer", "failure", 0.25, False),
    ]
    assert shows(corpus, row_of(corpus, episode_key="clips/b.mp4"), roll_out(1).frames)
    reasons = set(refusals(corpus).values())
    assert reasons >= REFUSED and len(reasons) == len(REFUSED) + 1
    assert any(reason.startswith("there is no file at") for reason in reasons)
    (raw / "annotations.csv").write_bytes(CSV + b"h,One more,1,,no,\n")
    again = ingest(tmp_path, "annotated_videos")
    assert len(again) == 3 and row_of(again, task="One more") >= 0


ROWS = [
    {"video": "a.mp4", "task": "t", "quality_label": "failure", "partial_success": 0.5, "env_reward": [0, 1.5]},
    {"video": "b.mp4", "task": "u", "is_robot": False, "first": 2, "count": 3},
]
TABLES = {
    "annotations.json": json.dumps(ROWS),
    "annotations.jsonl": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    "annotations.yaml": yaml.safe_dump(ROWS),
    "annotations.csv": "video,task,quality_label,partial_success,env_reward,is_robot,first,count\n"
    'a.mp4,t,failure,0.5,"[0, 1.5]",,,\n\nb.mp4,u,,,,false,2,3\n',
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_of_every_kind_say_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("\ufeff" + TABLES[name] if name != "annotations.yaml" else TABLES[name])
    entries = list(list_units("annotated_videos", str(tmp_path)))
    assert [entry.data for entry in entries if isinstance(entry, Unit)] == ROWS
    assert [entry.key for entry in entries if isinstance(entry, Unit)] == ["a.mp4\x1fmain", "b.mp4@2+3\x1fmain"]
    assert entries == list(list_units("annotated_videos", str(tmp_path / name)))


def test_an_object_of_videos_keeps_what_it_names_twice(tmp_path: Path) -> None:
    texts = ('"a.mp4": {"task": "t"}', '"b.mp4": "t"', '"a.mp4": {"task": "u"}', '"c.mp4": {"task": 1, "task": "t"}')
    (tmp_path / "annotations.json").write_text(f"{{{', '.join(texts)}}}")
    entries = list(list_units("annotated_videos", str(tmp_path)))
    assert [(entry.key, entry.data["task"]) for entry in entries if isinstance(entry, Unit)] == [
        ("a.mp4\x1fmain", "t"),
        ("a.mp4\x1fmain", "u"),
    ]
    assert [entry.error for entry in entries if isinstance(entry, Refused)] == [
        "entry 'b.mp4' of annotations.json is malformed: it is not an object",
        "entry 'c.mp4' of annotations.json is malformed: it has a key twice",
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no annotations.csv"),
        ({"annotations.csv": "video,task\n", "annotations.json": "[]"}, "give ingest.input the one to read"),
        ({"annotations.csv": "video,task,quality\n"}, "'quality', which is not a field"),
        ({"annotations.csv": "video,task,task\n"}, "two columns have the same name"),
        ({"annotations.json": '{"a": '}, r"malformed \(Expecting value: line 1"),
        ({"annotations.json": "3"}, "neither a list of objects"),
        ({"annotations.yaml": "a: {task: t}\na: {task: u}\n"}, "a key occurs twice"),
        ({"annotations.yaml": "!!python/object/apply:os.getcwd []"}, "malformed"),
        ({"annotations.csv": "video\n", "columns.yaml": "task: words"}, "no column 'words'"),
        ({"annotations.csv": "video\n", "columns.yaml": "tasks: video"}, "names 'tasks'; the fields are"),
        ({"annotations.csv": "video\n", "columns.yaml": "task: {name: video}"}, "'task' must be a column"),
        ({"annotations.csv": "video\n", "columns.yaml": "[task]"}, "must map fields"),
    ],
)
def test_what_fits_nothing_is_one_sentence(files: dict[str, str], reason: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=reason):
        list(list_units("annotated_videos", str(tmp_path)))


def test_a_cut_is_an_episode_of_its_own(ray_local: None, tmp_path: Path) -> None:
    raw, clip = tmp_path / "raw", roll_out(0)
    raw.mkdir()
    (raw / "long.mp4").write_bytes(clip.mp4)
    cuts = [{"video": "long.mp4", "task": "t", "first": first, "count": 6} for first in (0, 5)]
    (raw / "annotations.json").write_text(json.dumps([*cuts, {"video": "long.mp4", "task": "t", "first": -1}]))
    corpus = ingest(tmp_path, "annotated_videos")
    assert rows(corpus, "episode_key", "source_num_frames") == [("long.mp4@0+6", 6), ("long.mp4@5+6", 6)]
    assert nearest(corpus, row_of(corpus, episode_key="long.mp4@5+6"), clip.frames) == [5, 6, 7, 8, 9, 10]
    assert list(refusals(corpus).values()) == [
        "entry 3 of annotations.json is malformed: 'first' is below 0 or 'count' below 1"
    ]
