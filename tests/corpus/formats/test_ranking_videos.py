"""Policy-ranking sets: each layout's labels, views and tasks from names, and GIFs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

COLUMNS = ("source", "episode_key", "view", "task", "quality_label", "is_robot")


def _mp4(raw: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(roll_out(number).mp4)


def _gif(path: Path, frames: np.ndarray, duration: int | list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)


@pytest.mark.parametrize("name", ["", "rfm_new_mit_franka_rfm_nowrist", "mine"])
def test_mit_franka(name: str, ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    names = ("foldtowel/success/0_ext", "foldtowel/failure/1_ext", "pour_pebble/suboptimal/2_ext")
    _mp4(raw, *(f"{n}.mp4" for n in names), "foldtowel/success/0_wrist.mp4", "foldtowel/odd/0_ext.mp4", "a.mp4")
    (raw / "tasks.json").write_text(json.dumps({"foldtowel": "Fold the towel in half"}))
    corpus = ingest(tmp_path, "ranking_videos", f"ingest.source_name={name}")
    source = name or "rfm_new_mit_franka_rfm"
    wrist = [(source, "foldtowel/success/0", "wrist", "Fold the towel in half", "successful", True)]
    assert rows(corpus, *COLUMNS) == [
        (source, "foldtowel/failure/1", "ext", "Fold the towel in half", "failure", True),
        (source, "foldtowel/success/0", "ext", "Fold the towel in half", "successful", True),
        *([] if name.endswith("nowrist") else wrist),
        (source, "pour_pebble/suboptimal/2", "ext", "pour pebble", "suboptimal", True),
    ]
    assert shows(corpus, row_of(corpus, episode_key="foldtowel/failure/1"), roll_out(1).frames)
    stages = {row["error"]: row["stage"] for row in corpus.quarantine().to_pylist()}
    assert stages.pop("not the ext camera", "") == ("skip" if name.endswith("nowrist") else "")
    assert stages == {
        "'odd' says neither success, suboptimal nor failure": "list",
        f"its name does not fit the layout of {source}": "list",
    }


@pytest.mark.parametrize("view", ["top", "wrist"])
def test_utd_so101_gifs(view: str, ray_local: None, tmp_path: Path) -> None:
    raw, frames = tmp_path / "raw", roll_out(0).frames
    data_set = f"utd_so101_clean_policy_ranking_{view}"
    for folder, quality in (("a_succ", 100), ("b_closs_succ", 40), ("c_fail", [50] * 7 + [300] * 7)):
        _gif(raw / folder / "inner" / f"episode_1_{view}.gif", frames, quality)
        (raw / folder / "inner" / "vla_task.json").write_text(json.dumps(["first", f"do {folder}"]))
    _gif(raw / "a_succ" / "inner" / f"episode_2_{view}.gif", frames, 100)
    _gif(raw / "a_succ" / "inner" / f"episode_1_{'wrist' if view == 'top' else 'top'}.gif", frames, 100)
    _gif(raw / "d_fail" / f"episode_0_{view}.gif", frames, 100)
    corpus = ingest(tmp_path, "ranking_videos", f"ingest.source_name={data_set}")
    assert rows(corpus, *COLUMNS, "source_num_frames") == [
        (data_set, "a_succ/inner/episode_1", view, "do a_succ", "successful", True, len(frames)),
        (data_set, "b_closs_succ/inner/episode_1", view, "do b_closs_succ", "suboptimal", True, len(frames)),
        (data_set, "c_fail/inner/episode_1", view, "do c_fail", "failure", True, len(frames)),
    ]
    assert all(shows(corpus, row, frames) for row in range(3))
    reasons = refusals(corpus).values()
    assert any(reason == "vla_task.json has no instruction for episode 2" for reason in reasons)
    assert any("no file" in reason and "vla_task.json" in reason for reason in reasons) and len(reasons) == 3


def test_names_of_files(ray_local: None, tmp_path: Path) -> None:
    names = ("Press_the_button_success_1.mp4", "Press_the_button_subopt_2.mp4", "Press_the_button_fail_3.mp4")
    _mp4(tmp_path / "raw", *names, "Press_the_button_great_4.mp4")
    corpus = ingest(tmp_path, "ranking_videos")
    keys = [name.removesuffix(".mp4") for name in names]
    assert rows(corpus, *COLUMNS) == [
        ("utd_so101_policy_ranking", keys[2], "main", "press the button", "failure", True),
        ("utd_so101_policy_ranking", keys[1], "main", "press the button", "suboptimal", True),
        ("utd_so101_policy_ranking", keys[0], "main", "press the button", "successful", True),
    ]
    assert len(refusals(corpus)) == 1
    human = ingest(tmp_path / "human", "ranking_videos", "ingest.source_name=utd_so101_human", input=tmp_path / "raw")
    assert {row[-2:] for row in rows(human, *COLUMNS)} == {("successful", False)} and len(human) == 3


def test_koch_demonstrations(ray_local: None, tmp_path: Path) -> None:
    _mp4(tmp_path / "raw", "open_oven/demo-a.mp4", "close_oven_12.mp4")
    corpus = ingest(tmp_path, "ranking_videos", "ingest.source_name=usc_koch_rewind")
    assert rows(corpus, *COLUMNS) == [
        ("usc_koch_rewind", "close_oven_12", "main", "close oven", "successful", True),
        ("usc_koch_rewind", "open_oven/demo-a", "main", "open oven", "successful", True),
    ]
    paired = tmp_path / "paired"
    _mp4(paired / "raw", "human/recordings/a.mp4", "human/recordings/b.mp4", "robot/x/videos/c.mp4")
    (paired / "raw/human/recordings/a.json").write_text('{"notes": "press the button"}')
    (paired / "raw/human/recordings/b.json").write_text('{"notes": ""}')
    human = ingest(paired, "ranking_videos")
    source = "usc_koch_human_robot_paired_human"
    assert rows(human, *COLUMNS) == [(source, "a", "main", "press the button", "successful", False)]
    assert list(refusals(human).values()) == ["no 'task'"]
    _mp4(paired / "raw", "human/recordings/d.mp4")
    (paired / "raw/human/recordings/d.json").write_text('{"notes": "turn it"}')
    assert len(ingest(paired, "ranking_videos")) == 2


def test_mit_franka_metadata(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    _mp4(raw, *(f"20251210/{i}.mp4" for i in range(3)))
    entries: list[object] = [
        {"filename": f"{i}.mp4", "instruction": "Fold it", "success": word, "task_name": "foldtowel"}
        for i, word in enumerate(("success", "suboptimal", "fail", "fail"))
    ]
    entries += [{"filename": "../../x.mp4", "instruction": "t", "success": "fail"}]
    entries += [{"filename": "0.mp4", "success": 1}, 3]
    (raw / "20251210" / "foldtowel_metadata.json").write_text(json.dumps(entries))
    corpus = ingest(tmp_path, "ranking_videos")
    assert rows(corpus, *COLUMNS) == [
        ("mit_franka_p-rank", "20251210/0.mp4", "main", "Fold it", "successful", True),
        ("mit_franka_p-rank", "20251210/1.mp4", "main", "Fold it", "suboptimal", True),
        ("mit_franka_p-rank", "20251210/2.mp4", "main", "Fold it", "failure", True),
    ]
    reasons = "\n".join(refusals(corpus).values())
    for reason in ("there is no file at", "../../x.mp4 lies outside raw", "'1' says neither", "an object with"):
        assert reason in reasons, reason


def test_what_fits_no_layout_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is named as in"):
        list(list_units("ranking_videos", str(tmp_path)))
    with pytest.raises(FormatError, match=r"no \*_metadata\.json in"):
        list(list_units("ranking_videos", str(tmp_path), "mit_franka_p-rank"))
