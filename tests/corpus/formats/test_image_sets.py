"""Known data sets of image folders: FinoNet, FailSafe, RACER, HAND paired, USC Franka."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.images import write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

LABELS = ("source", "episode_key", "view", "task", "quality_label")


def clip(number: int, count: int = 8) -> np.ndarray:
    return roll_out(number).frames[:count]


def test_fino_net(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    pictures = raw / "failure/failnet_dataset/rgb_imgs"
    for name in ("put_on/9", "put_on/10", "pour/1", "stir_it/2"):
        write(pictures / name, clip(0, 14), "frame{:07d}.png", step=24)
    write(pictures / "put_on/11", clip(0, 10), "frame{:07d}.png")
    write(pictures / "put_on/12", clip(0, 12), "frame{:07d}.png")
    write(pictures / "push/1", clip(0, 12), "frame{:07d}.png")
    (raw / "put_on_annotation.txt").write_text("name,label\n9,0\n10, 1\n11,0\n77,1\nx,0\n\n")
    (raw / "pour_annotation.txt").write_text("name,label\r\n1,1\r\n")
    (raw / "stir_it_annotation.txt").write_text("name,label\n2,0\n")
    (raw / "place_annotation.txt").write_bytes(b"name,label\n\xff,0\n")
    corpus = ingest(tmp_path, "fino_net")
    on = "put the single block on the table onto the stack"
    pour = "pour the contents of the cup into the receptacle on the table without spilling"
    assert rows(corpus, *LABELS, "raw_quality_label", "source_num_frames", "is_robot") == [
        ("fino_net", "pour/1", "main", pour, "failure", "failed", 4, True),
        ("fino_net", "put_on/10", "main", on, "failure", "failed", 4, True),
        ("fino_net", "put_on/9", "main", on, "successful", "successful", 4, True),
        ("fino_net", "stir_it/2", "main", "stir it", "successful", "successful", 4, True),
    ]
    assert shows(corpus, row_of(corpus, episode_key="put_on/9"), clip(0, 14)[10:])
    why = refusals(corpus)
    assert set(why) == {"11 put_on/11 main", "77", "12", "put_on_annotation.txt:6", "push", "place_annotation.txt"}
    assert "10 images, and the first 10" in why["11 put_on/11 main"]
    assert "no such folder" in why["77"] and "no label" in why["12"] and "'x,0'" in why["put_on_annotation.txt:6"]
    assert "push_annotation.txt" in why["push"] and "UTF-8" in why["place_annotation.txt"]

    (raw / "pour_annotation.txt").write_text("name,label\n1,1\n3,0\n")
    write(pictures / "pour/3", clip(1, 12), "frame{:07d}.png")
    again = ingest(tmp_path, "fino_net")
    assert set(again.manifest["episode_key"].to_pylist()) - set(corpus.manifest["episode_key"].to_pylist()) == {
        "pour/3"
    }


def cut(attempt: str, views: tuple[str, ...], frames: range, **more: Any) -> dict[str, Any]:
    images = [f"{attempt}/{view}/{i}.png" for view in views for i in frames]
    return {"task": attempt.split("/")[0], "image": images, **more}


def test_failsafe(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    good, bad = "FailPickCube-v1/0/Ground_Truth", "FailPickCube-v1/0/1_trans_x_2"
    for n, view in enumerate(("front", "side", "wrist")):
        write(raw / good / view, clip(n))
        write(raw / bad / view, clip(n + 3))
    write(raw / "FailPickCube-v1/1/2_rot_y_1/front", clip(6))  # a seed without Ground_Truth
    write(raw / "FailPushCube-v1/0/Ground_Truth/front", clip(7))  # a task without failures
    (raw / "FailPickCube-v1/2/Ground_Truth/front").mkdir(parents=True)
    (raw / "json_files").mkdir()
    cuts = [
        cut(good, ("front", "side"), range(2, 6), sub_task="grasp it", failure_type="None"),
        cut(bad, ("front",), range(1, 4), sub_task="Grasp it.", failure_type="trans_x"),
        cut(bad, ("side",), range(1, 4), sub_task="Grasp it.", failure_type="trans_x"),
        cut(bad, ("side",), range(1, 4), sub_task="lift it", failure_type="trans_x"),
        cut(bad, ("side",), range(1, 99), instruction="pick up the red cube", failure_type="trans_x"),
        {"image": ["../../etc/front/0.png"], "sub_task": "grasp it"},
        {"image": ["a/top/0.png"], "sub_task": "grasp it"},
        {"image": [], "sub_task": "grasp it"},
    ]
    (raw / "json_files/vla_data_FailPickCube-v1.json").write_text(json.dumps(cuts))
    (raw / "json_files/vla_data_GT_PickCube-v1.json").write_text("[{")
    corpus = ingest(tmp_path, "failsafe")
    trajectories = rows(corpus, *LABELS, "source_num_frames")
    whole = "Pick up the red cube"
    assert [row[1:] for row in trajectories if "_" in row[1].split("/")[-1]] == [
        (bad, "front", whole, "failure", 8),
        (bad, "side", whole, "failure", 8),
        (bad, "wrist", whole, "failure", 8),
        (good, "front", whole, "successful", 8),
        (good, "side", whole, "successful", 8),
        (good, "wrist", whole, "successful", 8),
        ("FailPickCube-v1/1/2_rot_y_1", "front", whole, "failure", 8),
    ]
    assert [row[2:] for row in trajectories if "_" not in row[1].split("/")[-1]] == [
        ("front", "Grasp it.", "failure", 3),
        ("side", "Grasp it.", "failure", 3),
        ("front", "grasp it", "successful", 4),
        ("side", "grasp it", "successful", 4),
    ]
    assert {row[0] for row in trajectories} == {"failsafe"}
    assert len({row[1] for row in trajectories if row[3] == "Grasp it."}) == 1  # two entries, two views of one episode
    assert shows(corpus, row_of(corpus, episode_key=bad, view="side"), clip(4))
    assert shows(corpus, row_of(corpus, task="grasp it", view="side"), clip(1)[2:6])
    why = refusals(corpus)
    of_json = {key.split("#")[1]: error for key, error in why.items() if ".json#" in key}
    assert "outside" in of_json["5"] and "none of its images" in of_json["6"] and "no list" in of_json["7"]
    assert "malformed" in why["vla_data_GT_PickCube-v1.json"]
    assert sum("nothing to compare" in error for error in why.values()) == 2  # lift it; push
    assert sum("FileNotFoundError" in error for error in why.values()) == 1
    assert sum("this camera was not recorded" in error for error in why.values()) == 4
    assert "has no images" in why["front FailPickCube-v1/2/Ground_Truth front"]

    cuts.insert(0, cut(good, ("wrist",), range(3), sub_task="grasp it"))
    (raw / "json_files/vla_data_FailPickCube-v1.json").write_text(json.dumps(cuts))
    assert len(ingest(tmp_path, "failsafe").manifest) == len(trajectories) + 1


def test_racer(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    episode = raw / "train/samples/open_drawer/0"
    for n, camera in enumerate(("front_rgb", "left_shoulder_rgb")):
        write(episode / camera, clip(n, 4), "{}_expert.png", step=24)
        write(episode / camera, clip(n + 4, 1), "48_perturb_1.png")
    write(episode / "wrist_rgb", clip(3), "{}_expert.png")
    subgoal = {
        "0_expert": {"augmentation": {}},
        "24_expert": {"augmentation": {"24_perturb_0": {"label": "recoverable_failure"}}},
        "48_expert": {
            "augmentation": {
                "48_perturb_0": {"label": "intermediate"},
                "48_perturb_1": {"label": "recoverable_failure"},
                "48_perturb_2": {"label": "recoverable_failure"},
            }
        },
    }
    (episode / "language_description.json").write_text(json.dumps({"task_goal": "open it", "subgoal": subgoal}))
    shutil.copytree(episode, raw / "val/close_jar/7")
    (raw / "val/close_jar/7/language_description.json").write_text("{}")
    shutil.copytree(episode, raw / "val/close_jar/8")
    (raw / "val/close_jar/8/language_description.json").write_text("[]")
    write(raw / "val/close_jar/9/front_rgb", clip(0))
    corpus = ingest(tmp_path, "racer")
    key = "train/samples/open_drawer/0"
    assert rows(corpus, *LABELS, "source_num_frames") == [
        ("racer_train", key, "front", "open it", "successful", 4),
        ("racer_train", key, "left_sh", "open it", "successful", 4),
        ("racer_train", f"{key}/failure@48", "front", "open it", "failure", 3),
        ("racer_train", f"{key}/failure@48", "left_sh", "open it", "failure", 3),
        ("racer_val", "val/close_jar/7", "front", "close_jar", "successful", 4),
        ("racer_val", "val/close_jar/7", "left_sh", "close_jar", "successful", 4),
    ]
    assert shows(corpus, row_of(corpus, episode_key=key, view="left_sh"), clip(1, 4))
    failing = np.concatenate([clip(1, 2), clip(5, 1)])
    assert shows(corpus, row_of(corpus, episode_key=f"{key}/failure@48", view="left_sh"), failing)
    why = refusals(corpus)
    assert "24_perturb_0.png" in why[f"front_rgb {key}/failure@24 front"]
    assert "not recorded" in why[f"right_shoulder_rgb {key} right_sh"]
    assert "must be an object" in why["8 val/close_jar/8"] and "language_description.json" in why["9"]
    assert {unit.source for unit in list_units("racer", str(raw), "racer_val")} == {"racer_val", ""}


def test_hand_paired(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for n, name in enumerate(("blend_carrot/traj0", "blend_carrot_hand/traj0", "blend_carrot_hand/traj10")):
        write(raw / name / "external_imgs", clip(n), "im_{}.jpg")
        write(raw / name / "over_shoulder_imgs", clip(n + 3), "im_{}.jpg")
    shutil.rmtree(raw / "blend_carrot_hand/traj10/over_shoulder_imgs")
    corpus = ingest(tmp_path, "hand_paired")
    assert rows(corpus, *LABELS, "is_robot") == [
        ("hand_paired_human", "blend_carrot_hand/traj0", "external", "blend carrot", "successful", False),
        ("hand_paired_human", "blend_carrot_hand/traj0", "over_shoulder", "blend carrot", "successful", False),
        ("hand_paired_human", "blend_carrot_hand/traj10", "external", "blend carrot", "successful", False),
        ("hand_paired_robot", "blend_carrot/traj0", "external", "blend carrot", "successful", True),
        ("hand_paired_robot", "blend_carrot/traj0", "over_shoulder", "blend carrot", "successful", True),
    ]
    assert shows(corpus, row_of(corpus, is_robot=True, view="over_shoulder"), clip(3))
    assert list(refusals(corpus)) == ["over_shoulder_imgs blend_carrot_hand/traj10 over_shoulder"]
    assert len(list(list_units("hand_paired", str(raw), "hand_paired_human"))) == 2


def test_usc_franka(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    names = ("fold_towel_success_3", "fold_towel_subopt_4", "open_box_Fail_1", "fold_towel_odd_1", "towel")
    for n, name in enumerate(names):
        write(raw / name / "images", [np.rot90(frame) for frame in clip(n)], "camera_south_color_{}.png")
        write(raw / name / "images", clip(5), "camera_north_color_{}.png")
    (raw / "fold_towel_fail_9").mkdir()
    corpus = ingest(tmp_path, "usc_franka")
    name = "usc_franka_policy_ranking"
    assert rows(corpus, *LABELS) == [
        (name, "fold_towel_subopt_4", "south", "Fold the towel in half", "suboptimal"),
        (name, "fold_towel_success_3", "south", "Fold the towel in half", "successful"),
        (name, "open_box_Fail_1", "south", "Open box", "failure"),
    ]
    assert shows(corpus, row_of(corpus, quality_label="successful"), clip(0))
    why = refusals(corpus)
    assert "'odd'" in why["fold_towel_odd_1"] and "<quality>" in why["towel"]
    assert set(why) == {"fold_towel_odd_1", "towel", "images fold_towel_fail_9 south"}


@pytest.mark.parametrize("name", ["image_folders", "fino_net", "failsafe", "racer", "hand_paired", "usc_franka"])
def test_what_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="no folder"):
        list(list_units(name, str(tmp_path / "nowhere")))
    if name == "image_folders":
        assert not list(list_units(name, str(tmp_path)))
    else:
        with pytest.raises(FormatError, match="no folder"):
            list(list_units(name, str(tmp_path)))
