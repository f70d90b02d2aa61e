"""Upstream's Meta-World roll-outs: HDF5 demonstrations and labelled videos, through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tests.corpus.formats.hdf5_files import bad_arrays, cut_off, wide, write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

COLUMNS = ("source", "episode_key", "task", "quality_label", "partial_success", "is_robot")


def _gif(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=100)


def _mp4(path: Path, number: int, quality: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(roll_out(number, quality).mp4)


def test_demonstrations_and_labelled_videos(ray_local: None, tmp_path: Path) -> None:
    raw, frames = tmp_path / "raw", roll_out(0).frames
    write(
        raw / "metaworld_video.h5",
        {
            "door-open-v2/0": wide(frames),
            "door-open-v2/10": roll_out(1).frames,
            "door-open-v2/2": frames,
            "window-close-v2/12": roll_out(2).frames,
            "assembly-v2/0": frames,
        },
    )
    _mp4(raw / "window-close-v2" / "success" / "1.mp4", 3, "successful")
    _mp4(raw / "window-close-v2" / "close_succ" / "1.mp4", 3, "suboptimal")
    _gif(raw / "window_close" / "all_fail" / "1.gif", wide(roll_out(3, "failure").frames))
    _mp4(raw / "soccer-v2" / "GT" / "0.mp4", 4, "successful")
    (raw / "tasks.json").write_text(json.dumps({"soccer-v2": "score a goal"}))
    corpus = ingest(tmp_path, "metaworld")

    close = "close the window"
    assert rows(corpus, *COLUMNS) == [
        ("metaworld_eval", "metaworld_video.h5/window-close-v2/12", close, "successful", None, True),
        ("metaworld_eval", "soccer-v2/GT/0.mp4", "score a goal", "successful", None, True),
        ("metaworld_eval", "window-close-v2/close_succ/1.mp4", close, "suboptimal", None, True),
        ("metaworld_eval", "window-close-v2/success/1.mp4", close, "successful", None, True),
        ("metaworld_eval", "window_close/all_fail/1.gif", close, "failure", None, True),
        ("metaworld_train", "metaworld_video.h5/door-open-v2/0", "open the door", "successful", None, True),
        ("metaworld_train", "metaworld_video.h5/door-open-v2/10", "open the door", "successful", None, True),
    ]
    assert set(corpus.manifest["height"].to_pylist()) == set(corpus.manifest["width"].to_pylist()) == {48}
    door = row_of(corpus, episode_key="metaworld_video.h5/door-open-v2/0")
    assert shows(corpus, door, frames)
    assert not shows(corpus, door, frames[:, ::-1])
    assert not shows(corpus, door, frames[..., ::-1])
    gif = row_of(corpus, episode_key="window_close/all_fail/1.gif")
    assert shows(corpus, gif, roll_out(3, "failure").frames)
    assert corpus.manifest["source_num_frames"][gif].as_py() == len(roll_out(3, "failure").frames)
    assert refusals(corpus) == {
        "metaworld_video.h5 metaworld_video.h5/assembly-v2": "upstream uses 'assembly-v2' in neither of its data sets",
        "metaworld_video.h5 metaworld_video.h5/door-open-v2/2 main": (
            "upstream takes only the demonstrations 0, 1, 10, 11, 12 of a task"
        ),
    }
    assert set(corpus.quarantine()["stage"].to_pylist()) == {"skip"}

    _mp4(raw / "soccer-v2" / "all_fail" / "0.mp4", 5, "failure")
    again = ingest(tmp_path, "metaworld")
    assert set(rows(again, *COLUMNS)) - set(rows(corpus, *COLUMNS)) == {
        ("metaworld_eval", "soccer-v2/all_fail/0.mp4", "score a goal", "failure", None, True)
    }
    assert len(again.manifest) == len(corpus.manifest) + 1


def test_what_cannot_be_read_is_refused(ray_local: None, tmp_path: Path) -> None:
    raw, frames = tmp_path / "raw", roll_out(0).frames
    bad = bad_arrays(frames)
    keys = dict(zip(("0", "1", "10", "11"), bad, strict=True))
    write(raw / "a.h5", {f"push-v2/{key}": bad[name][0] for key, name in keys.items()} | {"push-v2/12": frames})
    write(raw / "b.h5", {"reach-v2": frames, "juggle-v2/0": frames, "dial-turn-v2/0/frames": frames})
    cut_off(write(raw / "c.h5", {"push-v2/0": frames}))
    with h5py.File(write(raw / "d.h5", {"push-v2/0": frames}), "a") as file:
        file[b"push-\xff"] = frames
    _mp4(raw / "soccer-v2" / "so_so" / "0.mp4", 0, "suboptimal")
    _mp4(raw / "soccer-v2" / "GT" / "cut.mp4", 0, "successful")
    (raw / "soccer-v2" / "GT" / "cut.mp4").write_bytes(roll_out(0).mp4[:2000])
    corpus = ingest(tmp_path, "metaworld")

    assert rows(corpus, "episode_key") == [("a.h5/push-v2/12",)]
    expected = {f"a.h5 a.h5/push-v2/{key} main": bad[name][1] for key, name in keys.items()}
    expected |= {
        "b.h5 b.h5/reach-v2": "not a group of demonstrations",
        "b.h5 b.h5/juggle-v2": "not a task of Meta-World",
        "b.h5 b.h5/dial-turn-v2/0 main": "not an array of frames",
        "c.h5": "truncated file",
        "d.h5": "the names in / cannot be read (a text is not UTF-8",
        "0.mp4": "'so_so' is none of GT, success, close_succ, all_fail",
        "cut.mp4 soccer-v2/GT/cut.mp4 main": "cannot be decoded as a video",
    }
    reasons = refusals(corpus)
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons
