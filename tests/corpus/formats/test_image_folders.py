"""Folders of images of one's own: where task and labels come from, views, odd images and folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np

from tests.corpus.formats.images import write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows


def test_folders_of_images_become_trajectories(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    clips = [roll_out(i).frames[:12] for i in range(4)]
    write(raw / "open/ep2", clips[0])
    write(raw / "open/ep10", clips[1], "frame_{}.jpg", step=3)
    write(raw / "close/a/front", clips[2])
    write(raw / "close/a/side", clips[3])
    (raw / "tasks.json").write_text(json.dumps({"open": "Open it", "close": {"task": "x", "is_robot": False}}))
    fields = {"quality_label": "suboptimal", "partial_success": 0.5, "fps": 5, "source": "theirs", "split": "held_out"}
    (raw / "close/a/episode.json").write_text(json.dumps(fields))
    (raw / "close/a/task.txt").write_text("Close it\n")
    corpus = ingest(tmp_path, "image_folders", "ingest.split=seen")
    columns = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot", "split")
    labels = ("Close it", "suboptimal", 0.5, False, "held_out")
    assert rows(corpus, *columns) == [
        ("raw", "open/ep10", "main", "Open it", "successful", None, True, "seen"),
        ("raw", "open/ep2", "main", "Open it", "successful", None, True, "seen"),
        ("theirs", "close/a", "front", *labels),
        ("theirs", "close/a", "side", *labels),
    ]
    assert set(corpus.manifest["source_fps"].to_pylist()) == {0.0, 5.0}
    for key, view, clip in zip(
        ("open/ep2", "open/ep10", "close/a", "close/a"), ("main", "main", "front", "side"), clips, strict=True
    ):
        row = row_of(corpus, episode_key=key, view=view)
        assert shows(corpus, row, clip)
        assert not shows(corpus, row, clip[:, ::-1]) and not shows(corpus, row, clip[..., ::-1])

    write(raw / "open/ep3", clips[2])
    assert len(ingest(tmp_path, "image_folders", "ingest.split=seen").manifest) == 5
    assert (
        ingest(tmp_path, "image_folders", "ingest.source_name=mine").manifest["source"].to_pylist().count("mine") == 5
    )


def test_images_of_other_kinds_are_converted_and_bad_ones_refused(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    frames = roll_out(0).frames[:5]
    (raw / "tasks.json").parent.mkdir()
    (raw / "tasks.json").write_text(json.dumps({".": "Do it"}))
    grey = [np.repeat(frame.mean(2, keepdims=True).astype(np.uint8), 3, 2) for frame in frames]
    for name in ("deep", "alpha", "grey", "gap", "truncated", "mixed", "text", "unknown", "blank"):
        write(raw / name, frames)
    for i, frame in enumerate(frames):
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(raw / f"deep/{i}.png"), bgr.astype(np.uint16) * 257)
        cv2.imwrite(str(raw / f"alpha/{i}.png"), cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA))
        cv2.imwrite(str(raw / f"grey/{i}.png"), grey[i][..., 0])
    (raw / "gap/2.png").unlink()
    picture = (raw / "truncated/2.png").read_bytes()
    (raw / "truncated/2.png").write_bytes(picture[: len(picture) // 2])
    write(raw / "mixed", [cv2.resize(frames[0], (80, 40))], "3.png")
    (raw / "text/task.txt").write_bytes(b"\xff\xfe open")
    (raw / "unknown/episode.json").write_text('{"qualty_label": "failure"}')
    (raw / "blank/task.txt").write_text(" \n")
    (raw / "empty").mkdir()
    (raw / "no_images").mkdir()
    (raw / "no_images/task.txt").write_text("Do it")
    write(Path(os.fsdecode(os.fsencode(raw) + b"/caf\xe9")), frames)
    write(raw / "odd_view/front", frames)
    (raw / "odd_view/task.txt").write_text("Do it")
    write(Path(os.fsdecode(os.fsencode(raw) + b"/odd_view/c\xf4te")), frames)

    write(raw, frames[:1], "preview.png")
    (raw / "rate").mkdir()
    (raw / "rate/episode.json").write_text('{"fps": 0}')

    corpus = ingest(tmp_path, "image_folders")
    assert corpus.manifest.sort_by("episode_key")["episode_key"].to_pylist() == [
        "alpha", "deep", "gap", "grey", "odd_view",
    ]  # fmt: skip
    for key, expected in (("alpha", frames), ("deep", frames), ("grey", grey), ("gap", np.delete(frames, 2, axis=0))):
        assert shows(corpus, row_of(corpus, episode_key=key), np.asarray(expected)), key
    why = refusals(corpus)
    assert set(why) == {
        "truncated truncated main", "mixed mixed main", "text", "unknown", "blank", "empty", "no_images no_images",
        "caf\\xe9", "c\\xf4te", "raw", "rate",
    }  # fmt: skip
    assert "as an image" in why["truncated truncated main"]
    assert "differ in size" in why["mixed mixed main"]
    assert "UTF-8" in why["text"] and "UTF-8" in why["caf\\xe9"] and "UTF-8" in why["c\\xf4te"]
    assert "beside folders" in why["raw"] and "fps" in why["rate"]
    assert "qualty_label" in why["unknown"] and "no task text" in why["blank"]
    assert "hold images" in why["empty"] and "hold images" in why["no_images no_images"]
