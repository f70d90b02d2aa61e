"""H2R: a human and a robot in one HDF5 file, through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.corpus.formats.hdf5_files import bad_arrays, cut_off, write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

COLUMNS = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot")


def _pair(number: int) -> dict[str, np.ndarray]:
    human, robot = roll_out(number, "suboptimal").frames, roll_out(number).frames
    return {"cam_data/human_camera": human[..., ::-1], "cam_data/robot_camera": robot[..., ::-1]}


def test_h2r(ray_local: None, tmp_path: Path) -> None:
    raw, bad = tmp_path / "raw", bad_arrays(roll_out(0).frames)
    write(raw / "v1" / "grab_to_plate2_v1" / "episode_0.hdf5", _pair(0))
    write(raw / "v1" / "pull_plate_v1" / "episode_0.hdf5", _pair(1))
    (raw / "tasks.json").write_text(json.dumps({"pull_plate_v1": "pull the plate towards you", "7": "push the box"}))
    write(raw / "7" / "a.hdf5", {"cam_data/human_camera": bad["none"][0], "cam_data/robot_camera": bad["float"][0]})
    write(raw / "8" / "a.hdf5", _pair(2))
    write(raw / "writing_circle" / "a.hdf5", _pair(2))
    write(raw / "push_box" / "a.hdf5", {"cam_data/robot_camera": _pair(2)["cam_data/robot_camera"]})
    cut_off(write(raw / "push_box" / "b.hdf5", _pair(2)))
    corpus = ingest(tmp_path, "h2r")

    grab, pull = "v1/grab_to_plate2_v1/episode_0", "v1/pull_plate_v1/episode_0"
    assert rows(corpus, *COLUMNS) == [
        ("h2r", "push_box/a", "robot", "push box", "successful", None, True),
        ("h2r", grab, "human", "grab to plate 2", "successful", None, False),
        ("h2r", grab, "robot", "grab to plate 2", "successful", None, True),
        ("h2r", pull, "human", "pull the plate towards you", "successful", None, False),
        ("h2r", pull, "robot", "pull the plate towards you", "successful", None, True),
    ]
    for view, frames in (("human", roll_out(0, "suboptimal").frames), ("robot", roll_out(0).frames)):
        row = row_of(corpus, episode_key=grab, view=view)
        assert shows(corpus, row, frames)
        assert not shows(corpus, row, frames[..., ::-1])
        assert not shows(corpus, row, frames[:, ::-1])
    expected = {
        "a.hdf5 7/a human": "no frames",
        "a.hdf5 7/a robot": "is float32",
        "a.hdf5 8/a": "the folder's name '8' has no words",
        "a.hdf5 writing_circle/a": "has no goal",
        "a.hdf5 push_box/a human": "no cam_data/human_camera",
        "b.hdf5 push_box/b": "truncated file",
    }
    reasons = refusals(corpus)
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons

    write(raw / "v1" / "pull_plate_v1" / "episode_1.hdf5", _pair(3))
    again = ingest(tmp_path, "h2r")
    added = set(rows(again, "episode_key", "view")) - set(rows(corpus, "episode_key", "view"))
    assert added == {("v1/pull_plate_v1/episode_1", "human"), ("v1/pull_plate_v1/episode_1", "robot")}
    assert len(again.manifest) == len(corpus.manifest) + 2
