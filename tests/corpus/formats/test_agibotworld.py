"""AgiBot World: archives and unpacked folders, whole episodes and their actions, through the real job."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows


def _info(episode: int, task: str, *actions: tuple[int, int, str]) -> dict[str, Any]:
    config = [{"start_frame": a, "end_frame": b, "action_text": text, "skill": "x"} for a, b, text in actions]
    return {"episode_id": episode, "task_id": 327, "task_name": task, "label_info": {"action_config": config}}


def _archive(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _tasks(raw: Path, task: int, *infos: Any) -> None:
    (raw / "task_info").mkdir(parents=True, exist_ok=True)
    (raw / "task_info" / f"task_{task}.json").write_text(json.dumps(infos))


def test_an_archive_becomes_episodes_and_actions(ray_local: None, tmp_path: Path) -> None:
    raw, clip, other = tmp_path / "raw", roll_out(0), roll_out(1)
    count = len(clip.frames)
    late, bad = {"start_frame": 5, "end_frame": 5, "action_text": "none"}, {"start_frame": 0}
    info = _info(1, "make tea", (0, 6, "reach"), (6, count + 3, "pour"))
    info["label_info"]["action_config"] += [late, bad]
    _tasks(raw, 327, info, _info(3, "broken"), _info(4, "never read", (0, 4, "at all")))
    members = {
        "1/videos/head_color.mp4": clip.mp4,
        "1/videos/hand_left_color.mp4": b"another camera",
        "1/depth/head_depth_000000.png": b"depth",
        "2/videos/head_color.mp4": other.mp4,
        "3/videos/head_color.mp4": other.mp4[: len(other.mp4) // 2],
        "../../5/videos/head_color.json": json.dumps(_info(5, "beside")).encode(),
        "../../5/videos/head_color.mp4": other.mp4,
    }
    _archive(raw / "observations/327/1-5.tar", members)
    _archive(raw / "observations/327/4-6.tar", {"1/x.png": bytes(20_000), "4/videos/head_color.mp4": other.mp4})
    broken = raw / "observations/327/4-6.tar"
    broken.write_bytes(broken.read_bytes()[: 20_000 + 3000])
    (raw / "observations/327/7-9.tar").write_bytes(b"")
    corpus = ingest(tmp_path, "agibotworld")
    labels = ("agibotworld", "head_color", "successful", True)
    assert rows(corpus, "episode_key", "task", "source_num_frames", "source", "view", "quality_label", "is_robot") == [
        ("1", "make tea", count, *labels),
        ("1#1", "reach", 6, *labels),
        ("1#2", "pour", count - 6, *labels),
        ("5", "beside", len(other.frames), *labels),
    ]
    assert shows(corpus, row_of(corpus, task="pour"), clip.frames[6:])
    assert not shows(corpus, row_of(corpus, task="pour"), clip.frames[:-6])
    reasons = refusals(corpus)
    assert reasons.pop("1-5.tar#3 3 head_color").startswith("the file cannot be decoded as a video")
    assert reasons.pop("4-6.tar observations/327/4-6.tar").startswith("the archive breaks off after 0 videos")
    assert reasons.pop("7-9.tar observations/327/7-9.tar").startswith("the archive breaks off after 0 videos")
    assert reasons == {
        "1-5.tar#1 1#3 head_color": f"an action cannot be cut out (ValueError: frames 5 to 5 of {count})",
        "1-5.tar#1 1#4 head_color": "an action cannot be cut out (KeyError: 'end_frame')",
        "1-5.tar#2 2 head_color": "it has no task_name in task_info/task_327.json, nor beside its video",
    }


def test_unpacked_episodes_and_named_cameras(ray_local: None, tmp_path: Path) -> None:
    raw, clip, other = tmp_path / "raw", roll_out(2), roll_out(3)
    _tasks(raw, 400, _info(10, "fold a shirt", (0, 4, "grasp")), _info(11, "fold a towel"))
    for episode, camera in ((10, "head_color"), (10, "head_center_fisheye_color"), (11, "hand_left_color")):
        path = raw / f"observations/400/{episode}/videos/{camera}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip.mp4 if camera == "head_color" else other.mp4)
    corpus = ingest(tmp_path, "agibotworld")
    assert rows(corpus, "episode_key", "view", "task") == [
        ("10", "head_color", "fold a shirt"),
        ("10#1", "head_color", "grasp"),
    ]
    assert refusals(corpus) == {"11#11 11 head_color": "it has no video of the camera head_color"}
    before = set(corpus.manifest["id"].to_pylist())
    (raw / "cameras.txt").write_text("head_center_fisheye_color\n")
    again = ingest(tmp_path, "agibotworld")
    new = [(row["view"], row["task"]) for row in again.manifest.to_pylist() if row["id"] not in before]
    assert sorted(new) == [("head_center_fisheye_color", "fold a shirt"), ("head_center_fisheye_color", "grasp")]
    assert shows(again, row_of(again, view="head_center_fisheye_color", task="fold a shirt"), other.frames)


def test_a_folder_without_videos_says_what_to_give(tmp_path: Path) -> None:
    _tasks(tmp_path, 1, _info(1, "a"))
    with pytest.raises(FormatError, match=r"has neither archives .* nor videos.*task_info/ and observations/"):
        list(list_units("agibotworld", str(tmp_path)))
