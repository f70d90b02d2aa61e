"""Galaxea's parts: the English task, and what is skipped, through the real job."""

from __future__ import annotations

from pathlib import Path

from robometer.corpus.formats import Refused, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows
from tests.corpus.formats.tfrecords import IMAGE, TEXT, data_set, example, jpegs

STEPS = {
    "observation/image_camera_head": IMAGE,
    "observation/image_camera_wrist_left": IMAGE,
    "language_instruction": TEXT,
}
NAME = "merge_dataset_large_r1_lite"


def _record(number: int, text: str, count: int = 4) -> bytes:
    images = jpegs(roll_out(number).frames[:4, ::4, ::4])
    images = [images[i % 4] for i in range(count)]
    views = {f"steps/observation/image_camera_{view}": images for view in ("head", "wrist_left")}
    return example({**views, "steps/language_instruction": [text.encode()] * count})


def test_parts_become_sources_with_the_english_task(ray_local: None, tmp_path: Path) -> None:
    records = [
        _record(0, "tidy up@拿起杯子@pick up the cup"),
        _record(1, "open the drawer"),
        _record(2, "go@回@Return the arm to the initial position"),
        _record(3, "long@长@wipe the table", 1001),
        _record(4, "just@够@wave", 1000),
    ]
    data_set(tmp_path / "raw/rlds/part1_r1_lite/1.0.0", NAME, STEPS, {"train": [records]})
    data_set(tmp_path / "raw/rlds/part2_r1_lite/1.0.0", NAME, STEPS, {"train": [records[:1]]})
    corpus = ingest(tmp_path, "galaxea")
    part, view = "galaxea_part1_r1_lite", "image_camera_head"
    assert rows(corpus, "source", "view", "task", "quality_label", "is_robot", "source_num_frames") == [
        (part, view, "pick up the cup", "successful", True, 4),
        (part, view, "open the drawer", "successful", True, 4),
        (part, view, "wave", "successful", True, 1000),
        ("galaxea_part2_r1_lite", view, "pick up the cup", "successful", True, 4),
    ]
    assert shows(corpus, row_of(corpus, task="open the drawer"), roll_out(1).frames[:4, ::4, ::4])
    assert {row["stage"] for row in corpus.quarantine().to_pylist()} == {"skip"}
    assert {uri.split(" ")[0].rpartition("#")[2]: reason for uri, reason in refusals(corpus).items()} == {
        "2": "in this task the robot only returns to its initial position",
        "3": "it has 1001 frames, more than 1000",
    }
    data_set(tmp_path / "raw/rlds/part3_r1_lite/1.0.0", NAME, STEPS, {"train": [records[1:2]]})
    before = set(corpus.manifest["id"].to_pylist())
    again = ingest(tmp_path, "galaxea").manifest.to_pylist()
    assert [row["source"] for row in again if row["id"] not in before] == ["galaxea_part3_r1_lite"]


def test_a_data_set_without_the_head_camera_is_refused(tmp_path: Path) -> None:
    data_set(tmp_path / "toto/1.0.0", "toto", {"observation/image": IMAGE}, {"train": [[b""]]})
    (entry,) = list_units("galaxea", str(tmp_path))
    assert isinstance(entry, Refused) and "it is not part of the Galaxea data set" in entry.error and not entry.skipped
