"""LeRobot v2.1 and v3.0: episodes, cuts, embedded images, labels and what is refused, through the real job."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robometer.corpus.formats import FormatError, Refused, Unit, list_units
from robometer.corpus.writer import Accepted, Quarantined
from robometer.frames.video import decode_jpeg, encode_jpeg
from tests.conftest import SHARED
from tests.corpus.formats.raw import ingest, read, refusals, roll_out, row_of, rows, shows
from tests.frames.test_video import numbered_video, numbers

V21 = {
    "codebase_version": "v2.1",
    "fps": 10,
    "chunks_size": 2,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
V30 = {
    "codebase_version": "v3.0",
    "fps": 30,
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FRONT, TOP = "observation.images.front", "observation.images.top"


def write_info(root: Path, info: dict[str, Any], features: dict[str, Any]) -> None:
    """meta/info.json with features of these dtypes."""
    described = {key: value if isinstance(value, dict) else {"dtype": value} for key, value in features.items()}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps({**info, "features": described}))


def write_rows(path: Path, columns: dict[str, Any], **options: Any) -> None:
    """A parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)


def image_column(frames: np.ndarray) -> list[dict[str, Any]]:
    """Frames as the Hugging Face type of images."""
    return [{"bytes": encode_jpeg(frame, 95), "path": None} for frame in frames]


def write_v21(root: Path, lines: list[dict[str, Any]], **extra: Any) -> None:
    """A v2.1 dataset: episode n is roll-out n, by a video `front` and images `top` that are its mirror."""
    write_info(root, V21, {FRONT: "video", TOP: "image", "next.reward": "float32", "next.success": "bool", **extra})
    for line in lines:
        n = line["episode_index"]
        clip = roll_out(n)
        line.setdefault("tasks", [clip.task])
        line.setdefault("length", len(clip.frames))
        name = f"chunk-{n // 2:03d}"
        count = len(clip.frames)
        columns = {
            "episode_index": [n] * count,
            "frame_index": range(count),
            "next.reward": np.linspace(0, 1, count, dtype=np.float32),
            "next.success": [i == count - 1 for i in range(count)],
            TOP: image_column(clip.frames[:, :, ::-1]),
        }
        write_rows(root / f"data/{name}/episode_{n:06d}.parquet", columns, row_group_size=7)
        video = root / f"videos/{name}/{FRONT}/episode_{n:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(clip.mp4)
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_v21_episodes_with_videos_images_labels_and_rewards(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "my_arm"
    lines: list[dict[str, Any]] = [{"episode_index": 0}, {"episode_index": 1, "success": False, "partial_success": 0.5}]
    depth = {"observation.images.depth": {"dtype": "video", "info": {"video.is_depth_map": True}}}
    write_v21(raw, lines, **depth)
    corpus = ingest(tmp_path, "lerobot", input=raw)
    assert rows(corpus, "source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot") == [
        ("my_arm", "episode_000000", "front", roll_out(0).task, "successful", None, True),
        ("my_arm", "episode_000000", "top", roll_out(0).task, "successful", None, True),
        ("my_arm", "episode_000001", "front", roll_out(1).task, "failure", 0.5, True),
        ("my_arm", "episode_000001", "top", roll_out(1).task, "failure", 0.5, True),
    ]
    front, top = (row_of(corpus, episode_key="episode_000001", view=view) for view in ("front", "top"))
    assert shows(corpus, front, roll_out(1).frames) and not shows(corpus, front, roll_out(1).frames[..., ::-1])
    assert shows(corpus, top, roll_out(1).frames[:, :, ::-1]) and not shows(corpus, top, roll_out(1).frames)
    record = corpus.record(front)
    count = len(roll_out(1).frames)
    assert record["env_reward"] == pytest.approx([i / (count - 1) for i in record["frame_index"]], abs=1e-6)
    assert record["success"] == [0, 0, 0, 0, 0, 1]
    assert refusals(corpus) == {"my_arm depth": "a depth map, not a colour picture"}

    write_v21(raw, [*lines, {"episode_index": 2}], **depth)  # in the second chunk
    more = ingest(tmp_path, "lerobot", input=raw.parent)  # the same dataset, in a folder of datasets
    assert set(more.manifest["id"].to_pylist()) > set(corpus.manifest["id"].to_pylist())
    assert rows(more, "episode_key", "view")[4:] == [("episode_000002", "front"), ("episode_000002", "top")]


def test_v21_refuses_what_is_broken_and_keeps_the_rest(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_v21(raw, [{"episode_index": n} for n in range(6)])
    video, data = raw / f"videos/chunk-000/{FRONT}", raw / "data"
    (video / "episode_000000.mp4").unlink()
    (video / "episode_000001.mp4").write_bytes(roll_out(1).mp4[:4000])
    (data / "chunk-001/episode_000002.parquet").write_bytes(b"PAR1")
    (data / "chunk-001/episode_000003.parquet").unlink()
    lines = (raw / "meta/episodes.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"episode_index": 4, "tasks": [], "length": len(roll_out(4).frames)})
    lines += ["{", json.dumps({"episode_index": 7, "length": 5, "success": 0.7}), json.dumps({"length": 3})]
    lines.append(json.dumps({"episode_index": 5, "length": len(roll_out(5).frames)}))
    (raw / "meta/episodes.jsonl").write_text("\n".join(lines))
    corpus = ingest(tmp_path, "lerobot", "ingest.source_name=given")
    assert rows(corpus, "source", "episode_key", "view") == [
        ("given", "episode_000000", "top"),
        ("given", "episode_000001", "top"),
        ("given", "episode_000005", "front"),
        ("given", "episode_000005", "top"),
    ]
    reasons = refusals(corpus)
    assert "there is no file" in reasons["episode_000000.mp4 episode_000000 front"]
    assert "decoded" in reasons["episode_000001.mp4 episode_000001 front"]
    assert "episode_000002.parquet cannot be read" in reasons["raw episode_000002"]
    assert "there is no such file" in reasons["raw episode_000003"]
    assert reasons["raw episode_000004"].startswith("no task text: it lists 0 tasks and has no column annotation.human")
    assert "line 7 of episodes.jsonl is malformed" in reasons["episodes.jsonl:7"]
    assert "label 0.7 is neither" in reasons["episodes.jsonl:8"]
    assert "KeyError: 'episode_index'" in reasons["episodes.jsonl:9"]
    assert "duplicate: episode_000005" in reasons["raw"]


def test_a_length_that_is_not_the_files_is_refused(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_v21(raw, [{"episode_index": 0}, {"episode_index": 1, "length": 10}])
    corpus = ingest(tmp_path, "lerobot")
    assert rows(corpus, "episode_key") == [("episode_000000",)] * 2
    assert refusals(corpus)["raw episode_000001"].endswith(f"{len(roll_out(1).frames)} rows of episode 1, not 10")


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_v3_gives_exactly_the_frames_of_every_episode_of_a_file(ray_local: None, tmp_path: Path, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    raw, lengths, starts = tmp_path / "raw", (50, 33, 37), (0, 50, 83)
    options = {"g": "2", "preset": "12"} if codec == "libsvtav1" else {"x264-params": "keyint=25:bframes=3:b-adapt=0"}
    for file in (0, 1):
        path = raw / f"videos/{FRONT}/chunk-000/file-{file:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered_video(codec, options))
    clip = roll_out(3).frames
    episodes = []
    for n in range(4):
        file, k = (0, n) if n < 3 else (1, 1)
        place = {"chunk_index": 0, "file_index": file}
        front = {**place, "from_timestamp": starts[k] / 30, "to_timestamp": (starts[k] + lengths[k]) / 30}
        row = {"episode_index": n, "tasks": [f"task {n}"], "length": lengths[k], "stats/action/mean": [0.0]}
        row |= {f"data/{name}": value for name, value in place.items()}
        episodes.append(row | {f"videos/{FRONT}/{name}": value for name, value in front.items()})
    table = {name: [row[name] for row in episodes] for name in episodes[0]}
    write_rows(raw / "meta/episodes/chunk-000/file-000.parquet", table)
    # The rows of a file's episodes: images too, which show a roll-out from its first frame on.
    for file, members in ((0, (0, 1, 2)), (1, (3,))):
        counts = [episodes[n]["length"] for n in members]
        columns = {
            "episode_index": [n for n, count in zip(members, counts, strict=True) for _ in range(count)],
            "frame_index": [i for count in counts for i in range(count)],
            TOP: [image for count in counts for image in image_column(clip[np.arange(count) % len(clip)])],
        }
        write_rows(raw / f"data/chunk-000/file-{file:03d}.parquet", columns, row_group_size=40)
    write_info(raw, V30, {FRONT: "video", TOP: "image"})
    corpus = ingest(tmp_path, "lerobot")
    assert rows(corpus, "episode_key", "view", "task", "source_num_frames")[::2] == [
        (f"episode_{n:06d}", "front", f"task {n}", episodes[n]["length"]) for n in range(4)
    ]
    for n, start in enumerate((0, 50, 83, 50)):
        row = row_of(corpus, episode_key=f"episode_{n:06d}", view="front")
        assert numbers(corpus.frames(row)) == [start + i for i in corpus.record(row)["frame_index"]]
        images = row_of(corpus, episode_key=f"episode_{n:06d}", view="top")
        assert shows(corpus, images, clip[np.arange(episodes[n]["length"]) % len(clip)])
    assert not refusals(corpus)


def test_labels_come_from_the_folders_name_and_datasets_of_one_source_do_not_collide(
    ray_local: None, tmp_path: Path
) -> None:
    for name in ("push_suboptimal", "push_failure", "push_good", "broken", "old"):
        write_v21(tmp_path / "raw" / name, [{"episode_index": 0}])
    (tmp_path / "raw/broken/meta/info.json").write_text("{")
    write_info(tmp_path / "raw/old", {**V21, "codebase_version": "v1.6"}, {FRONT: "video"})
    corpus = ingest(tmp_path, "lerobot", "ingest.source_name=usc_koch_p_ranking_all")
    assert rows(corpus, "source", "episode_key", "quality_label")[::2] == [
        ("usc_koch_p_ranking_all", "push_failure/episode_000000", "failure"),
        ("usc_koch_p_ranking_all", "push_good/episode_000000", "successful"),
        ("usc_koch_p_ranking_all", "push_suboptimal/episode_000000", "suboptimal"),
    ]
    assert "info.json is malformed" in refusals(corpus)["broken"]
    assert "version v1.6: convert it" in refusals(corpus)["old"]


def test_what_is_no_dataset_ends_in_one_sentence(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "meta").mkdir(parents=True)
    for content, message in (
        (None, "no meta/info.json in"),
        ("{", "info.json is malformed"),
        (json.dumps({**V21, "features": {}}), "has no camera"),
        (json.dumps({**V21, "features": {FRONT: {"dtype": "video"}}}), "no file .*episodes.jsonl"),
    ):
        if content is not None:
            (raw / "meta/info.json").write_text(content)
        with pytest.raises(FormatError, match=message):
            ingest(tmp_path, "lerobot")


def test_a_path_template_cannot_leave_the_dataset(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_v21(raw, [{"episode_index": 0}])
    info = json.loads((raw / "meta/info.json").read_text())
    (raw / "meta/info.json").write_text(json.dumps({**info, "video_path": "../{video_key}/{episode_index}.mp4"}))
    corpus = ingest(tmp_path, "lerobot")
    assert "leaves the dataset's folder" in refusals(corpus)["episodes.jsonl:1"]
    assert len(corpus) == 0


def test_real_episodes_of_av1_are_in_and_missing_ones_are_refused(ray_local: None, tmp_path: Path) -> None:
    real = SHARED / "data/lerobot_v21_g1"
    if not real.is_dir():
        pytest.skip("../shared/data is absent: real data are not part of the project")
    corpus = ingest(tmp_path, "lerobot", input=real)
    assert rows(corpus, "source", "episode_key", "view", "task", "source_num_frames", "source_fps") == [
        ("lerobot_v21_g1", f"episode_{n:06d}", "cam_high", "Pick up the yellow bottle on the table.", count, 30.0)
        for n, count in ((2, 343), (4, 357))
    ]
    reasons = refusals(corpus)
    assert len(reasons) == 98 and all("there is no file at" in reason for reason in reasons.values())


LENGTHS = (50, 33, 37)
"""Of the episodes in `numbered_video`, one after the other."""


def write_v3(
    raw: Path, firsts: Sequence[float], lengths: Sequence[int] = LENGTHS, order: Sequence[int] = (0, 1, 2)
) -> Path:
    """A v3 dataset of one video of 120 numbered frames; `firsts` are the episodes' from_timestamps, in frames."""
    video = raw / f"videos/{FRONT}/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(numbered_video("libx264", {"x264-params": "keyint=25:bframes=3:b-adapt=0"}))
    place = {"chunk_index": 0, "file_index": 0}
    rows = [{"episode_index": n, "tasks": [f"task {n}"], "length": lengths[n],
             f"videos/{FRONT}/from_timestamp": firsts[n] / 30, **{f"data/{k}": v for k, v in place.items()},
             **{f"videos/{FRONT}/{k}": v for k, v in place.items()}} for n in order]  # fmt: skip
    write_rows(raw / "meta/episodes/chunk-000/file-000.parquet", {name: [r[name] for r in rows] for name in rows[0]})
    write_info(raw, V30, {FRONT: "video"})
    return raw


def stored_frames(raw: Path) -> dict[str, list[int] | str]:
    """The numbers that the first and the last stored frame of each episode show, or why it is refused."""
    stored: dict[str, list[int] | str] = {}
    for entry in read("lerobot", raw):
        if isinstance(entry, Accepted):
            frames = np.stack([decode_jpeg(entry.record["frames"][at]) for at in (0, -1)])
            stored[entry.record["episode_key"][-1]] = numbers(frames)
        else:
            assert isinstance(entry, Quarantined)
            stored[entry.row["episode_key"][-1]] = entry.row["error"]
    return stored


@pytest.mark.parametrize(
    "firsts", [(0, 50.4, 83.9), (0.3, 51, 84), (0, 49, 82), (0, 40.2, 70), (0, 60, 100), (0, 0, 0)]
)
def test_lengths_are_facts_where_they_add_up_and_timestamps_drift(tmp_path: Path, firsts: tuple[float, ...]) -> None:
    assert stored_frames(write_v3(tmp_path / "raw", firsts)) == {"0": [0, 49], "1": [50, 82], "2": [83, 119]}


def test_the_order_in_the_file_is_that_of_the_timestamps(tmp_path: Path) -> None:
    raw = write_v3(tmp_path / "raw", (70.3, 37.2, 0), order=(0, 2, 1))
    assert stored_frames(raw) == {"2": [0, 36], "1": [37, 69], "0": [70, 119]}


@pytest.mark.parametrize("first", [83, 82.8, 83.2])
def test_episodes_that_were_taken_out_leave_a_gap(tmp_path: Path, first: float) -> None:
    raw = write_v3(tmp_path / "raw", (0, first), lengths=(50, 37), order=(0, 1))
    assert stored_frames(raw) == {"0": [0, 49], "1": [83, 119]}


@pytest.mark.parametrize(
    ("firsts", "lengths"),
    [
        ((0, 50.5, 83), (50, 33, 30)),
        ((0, 51, 84), (50, 33, 30)),
        ((0, 49, 82), (50, 33, 30)),
        ((0, 50, 83), (50, 33, 38)),
    ],
)
def test_frames_that_may_be_a_neighbours_are_refused(
    tmp_path: Path, firsts: tuple[float, ...], lengths: tuple[int, ...]
) -> None:
    frames = stored_frames(write_v3(tmp_path / "raw", firsts, lengths))
    assert len(frames) == 3 and all("do not say which frames belong" in str(reason) for reason in frames.values())


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_timestamp_that_is_no_number_refuses_its_episode_alone(tmp_path: Path, first: float) -> None:
    raw = write_v3(tmp_path / "raw", (0, first, 83), lengths=(50, 33, 37))
    entries = list(list_units("lerobot", str(raw)))
    assert [unit.key[-1] for unit in entries if isinstance(unit, Unit)] == ["0", "2"]
    assert [f"from_timestamp is {first}" in unit.error for unit in entries if isinstance(unit, Refused)] == [True]


def test_a_number_that_is_infinite_refuses_its_row_alone(tmp_path: Path) -> None:
    write_v21(tmp_path / "raw", [{"episode_index": 0}, {"episode_index": 1}])
    listing = tmp_path / "raw/meta/episodes.jsonl"
    listing.write_text(listing.read_text() + '{"episode_index": 1e999, "tasks": ["t"], "length": 5}\n')
    *accepted, refused = list_units("lerobot", str(tmp_path / "raw"))
    assert len(accepted) == 2 and isinstance(refused, Refused) and "cannot be read (OverflowError" in refused.error


def write_tasks(raw: Path, tasks: Sequence[str], indices: Sequence[int], listed: Sequence[str], **columns: Any) -> Path:
    """A v2 dataset of one episode, whose frames have these `task_index`es."""
    clip = roll_out(0).frames
    frames = clip[np.arange(len(indices)) % len(clip)]
    write_info(raw, V21, {FRONT: "image"})
    (raw / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": i, "task": task}) + "\n" for i, task in enumerate(tasks))
    )
    row = {"episode_index": 0, "tasks": listed, "length": len(indices)}
    (raw / "meta/episodes.jsonl").write_text(json.dumps(row))
    table = {"episode_index": [0] * len(indices), "task_index": indices, FRONT: image_column(frames), **columns}
    write_rows(raw / "data/chunk-000/episode_000000.parquet", table)
    return raw


def task_or_error(raw: Path) -> str:
    """The task of the one episode, or why it is refused."""
    (entry,) = read("lerobot", raw)
    return str(entry.record["task"] if isinstance(entry, Accepted) else entry.row["error"])  # type: ignore[union-attr]


def test_of_several_tasks_that_of_most_frames_is_taken_if_it_is_clear(tmp_path: Path) -> None:
    tasks = ["put it in", "close it"]
    for number, (first, listed) in enumerate(((9, tasks), (8, tasks[::-1]), (12, []))):
        raw = write_tasks(tmp_path / str(number), tasks, [0] * first + [1] * (12 - first), listed)
        assert task_or_error(raw) == "put it in"
    assert task_or_error(write_tasks(tmp_path / "late", tasks, [0] * 2 + [1] * 10, tasks)) == "close it"
    unclear = task_or_error(write_tasks(tmp_path / "unclear", tasks, [0] * 7 + [1] * 5, tasks))
    assert (
        unclear == "its 12 frames have several tasks, and none has two thirds of them: 'put it in' (7), 'close it' (5)"
    )
    assert "but it lists" in task_or_error(write_tasks(tmp_path / "odd", tasks, [0] * 12, ["other", "close it"]))
    assert task_or_error(write_tasks(tmp_path / "one", tasks, [0] * 12, ["as listed"])) == "as listed"


def test_gr00t_has_no_frame_index_and_names_the_task_elsewhere(tmp_path: Path) -> None:
    columns = {"index": range(11, -1, -1), "annotation.human.action.task_description": [2] * 12}
    raw = write_tasks(tmp_path / "raw", ["cup", "valid", "pear"], [0] * 12, ["cup", "pear", "valid"], **columns)
    (entry,) = read("lerobot", raw)
    assert isinstance(entry, Accepted) and entry.record["task"] == "pear"
    clip = roll_out(0).frames[np.arange(11, -1, -1) % len(roll_out(0).frames)]  # in the order of index
    first = decode_jpeg(entry.record["frames"][0])
    small = cv2.resize(clip[0], first.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - first).mean() < 12


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("front_depth", {"dtype": "image", "shape": [8, 8, 3]}),
        ("a", {"dtype": "video", "shape": [8, 8, 1]}),
        ("b", {"dtype": "image", "shape": [1, 8, 8]}),
        ("c", {"dtype": "image", "shape": [8, 8]}),
        ("d", {"dtype": "video", "shape": [8, 8, 3], "video_info": {"video.is_depth_map": True}}),
    ],
)
def test_depth_is_left_out_however_it_is_named(tmp_path: Path, name: str, feature: dict[str, Any]) -> None:
    raw = write_tasks(tmp_path / "raw", ["t"], [0] * 6, ["t"])
    colour = {"dtype": "image", "shape": [8, 8, 3]}
    write_info(raw, V21, {FRONT: colour, f"observation.images.{name}": feature, "observation.images.depths": colour})
    listed = list(list_units("lerobot", str(raw)))
    skipped = [entry for entry in listed if isinstance(entry, Refused)]
    assert [(entry.view, entry.skipped) for entry in skipped] == [(name, True)]
    assert isinstance(listed[-1], Unit) and listed[-1].data["images"].keys() == {"front", "depths"}


@pytest.mark.parametrize(
    "template",
    [
        "videos/{video_key}/episode_{episode_index}.mp4",
        "./videos/chunk-{chunk_index:03d}/{video_key}/file-{file_index:03d}.mp4",
        "videos\\{video_key}\\{episode_index:06d}.mp4",
    ],
)
def test_templates_of_any_make_are_filled_in(tmp_path: Path, template: str) -> None:
    raw = tmp_path / "raw"
    write_v21(raw, [{"episode_index": 3}])
    info = json.loads((raw / "meta/info.json").read_text())
    del info["data_path"]  # as v2 has it
    path = template.replace("\\", "/").format(video_key=FRONT, episode_index=3, chunk_index=1, file_index=3)
    (raw / path).parent.mkdir(parents=True, exist_ok=True)
    next(raw.rglob("*.mp4")).rename(raw / path)
    (raw / "meta/info.json").write_text(json.dumps({**info, "video_path": template}))
    assert [entry.record["view"] for entry in read("lerobot", raw) if isinstance(entry, Accepted)] == ["front", "top"]


@pytest.mark.parametrize(("template", "reason"), [("videos/{episode_index}.mp4", "all cameras one video"),
                                                  ("videos/{video_key}.mp4", "all episodes one video")])  # fmt: skip
def test_a_template_that_mixes_videos_up_is_refused(tmp_path: Path, template: str, reason: str) -> None:
    raw = tmp_path / "raw"
    write_v21(raw, [{"episode_index": 0}, {"episode_index": 1}])
    write_info(raw, {**V21, "video_path": template}, {FRONT: "video", TOP: "video"})
    with pytest.raises(FormatError, match=reason):
        list(list_units("lerobot", str(raw)))
