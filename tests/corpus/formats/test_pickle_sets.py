"""Data sets of pickles: AutoEval and USC xArm; hostile ones are rejected and run no code."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

LABELS = ("source", "episode_key", "view", "task", "quality_label", "partial_success")


class Touch:
    def __init__(self, path: Path) -> None:
        self.code = f"open({str(path)!r}, 'w')"

    def __reduce__(self) -> Any:
        return eval, (self.code,)


def write(path: Path, value: Any, protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))


@pytest.fixture
def traj_data(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of robot_eval_logger as pickles refer to it; workers cannot import it."""
    module = types.ModuleType("robot_eval_logger")
    module.TrajData = type("TrajData", (), {"__module__": "robot_eval_logger"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robot_eval_logger", module)
    return module.TrajData


def test_autoeval(ray_local: None, tmp_path: Path, traj_data: type) -> None:
    raw = tmp_path / "raw"
    clips = [roll_out(n).frames[:8] for n in range(4)]
    logged = traj_data()
    logged.__dict__ |= {
        "language_command": "open the drawer", "success": np.bool_(True), "obs": {"image_primary": list(clips[0])}
    }  # fmt: skip
    write(raw / "eval_data/1/traj_0.pkl", logged, 3)
    episode = {"language_command": "close it", "obs": {"image_primary": clips[1]}, "success": 0}
    write(raw / "eval_data/1/traj_1.pkl", episode, 5)
    write(raw / "eval_data/2/a_success.pkl", {**episode, "success": None, "obs": {"image_primary": clips[2]}})
    steps = [{"obs": {"image_primary": frame}, "language_command": "stepwise"} for frame in clips[3]]
    write(raw / "eval_data/2/steps.pkl", [*steps[:-1], {**steps[-1], "success": True}], 2)
    write(raw / "eval_data/3/short.pkl", {**episode, "obs": {"image_primary": clips[0][:5]}})
    write(raw / "eval_data/3/no_flag.pkl", {**episode, "success": None})
    write(raw / "eval_data/3/odd_flag.pkl", {**episode, "success": "False"})
    write(raw / "eval_data/3/no_task.pkl", {**episode, "language_command": None})
    write(raw / "eval_data/3/no_frames.pkl", {**episode, "obs": {}})
    write(raw / "eval_data/3/hostile.pkl", {**episode, "policy": Touch(tmp_path / "ran")})
    (raw / "eval_data/3/cut.pkl").write_bytes((raw / "eval_data/1/traj_1.pkl").read_bytes()[:5000])
    corpus = ingest(tmp_path, "autoeval")
    assert rows(corpus, *LABELS) == [
        ("auto_eval_rfm", "1/traj_0.pkl", "image_primary", "open the drawer", "successful", 1.0),
        ("auto_eval_rfm", "1/traj_1.pkl", "image_primary", "close it", "failure", 0.0),
        ("auto_eval_rfm", "2/a_success.pkl", "image_primary", "close it", "successful", 1.0),
        ("auto_eval_rfm", "2/steps.pkl", "image_primary", "stepwise", "successful", 1.0),
    ]
    for key, frames in zip(("1/traj_0.pkl", "1/traj_1.pkl", "2/a_success.pkl", "2/steps.pkl"), clips, strict=True):
        assert shows(corpus, row_of(corpus, episode_key=key), frames)
    assert not (tmp_path / "ran").exists()
    why = {key.split()[0]: error for key, error in refusals(corpus).items()}
    assert "fewer than 6" in why["short.pkl"] and "no flag" in why["no_flag.pkl"]
    assert "'False'" in why["odd_flag.pkl"] and "no task text" in why["no_task.pkl"]
    assert "no obs.image_primary" in why["no_frames.pkl"]
    assert "builtins.eval" in why["hostile.pkl"] and "cannot be read as a pickle" in why["cut.pkl"] and len(why) == 7
    stages = {Path(row["uri"]).name: row["stage"] for row in corpus.quarantine().to_pylist()}
    assert stages["short.pkl"] == "skip" and stages["no_flag.pkl"] == "list"

    write(raw / "eval_data/1/traj_2.pkl", {**episode, "success": True})
    assert len(ingest(tmp_path, "autoeval").manifest) == 5


def test_usc_xarm(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw/xarm_policy_ranking"
    names = ("fold_towel_success_3", "pick_blue_cup_subopt_4", "open_box_failure_1", "gap_fail_1", "none_fail_2")
    clips = [roll_out(n).frames[:11] for n in range(len(names))]
    for name, clip in zip(names, clips, strict=True):
        for i, frame in enumerate(clip):
            write(raw / name / f"{i}.pkl", {"front_rgb": frame[..., ::-1], "joints": np.zeros(7)}, 4)
    for i, frame in enumerate(clips[1]):  # planes first
        write(raw / names[1] / f"{i}.pkl", {"front_rgb": frame[..., ::-1].transpose(2, 0, 1), "hand_rgb": frame})
    write(raw / "gap_fail_1/10.pkl", {"joints": np.zeros(7)})
    write(raw / "none_fail_2/0.pkl", {"joints": np.zeros(7)})
    write(raw / "hostile_fail_3/0.pkl", {"front_rgb": clips[0][0], "x": Touch(tmp_path / "ran")})
    (raw / "empty_fail_1").mkdir()
    (raw / "odd").mkdir()
    corpus = ingest(tmp_path, "usc_xarm")
    name = "usc_xarm_policy_ranking"
    assert rows(corpus, *LABELS) == [
        (name, "fold_towel_success_3", "front_rgb", "Fold the towel in half", "successful", None),
        (name, "open_box_failure_1", "front_rgb", "Open box", "failure", None),
        (name, "pick_blue_cup_subopt_4", "front_rgb", "Put blue cup in sink", "suboptimal", None),
    ]
    assert shows(corpus, row_of(corpus, quality_label="successful"), clips[0])
    assert shows(corpus, row_of(corpus, quality_label="suboptimal"), clips[1])
    assert not (tmp_path / "ran").exists()
    why = {key.split()[0]: error for key, error in refusals(corpus).items()}
    assert "10.pkl has no front_rgb" in why["gap_fail_1"] and "no frame of" in why["none_fail_2"]
    assert "builtins.eval" in why["hostile_fail_3"] and "no .pkl" in why["empty_fail_1"] and "<quality>" in why["odd"]


@pytest.mark.parametrize("name", ["autoeval", "usc_xarm"])
def test_what_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FormatError):
            list(list_units(name, str(place)))
