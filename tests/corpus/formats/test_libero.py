"""LIBERO: suites, tasks, orientation and rewards, through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from tests.corpus.formats.hdf5_files import bad_arrays, cut_off, write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

STOVE = "KITCHEN_SCENE3_turn_on_the_stove_demo"
BOWL = "pick_up_the_black_bowl_and_demolish_it_demo"


def _demo(number: int, name: str = "demo_0", **extra: np.ndarray) -> dict[str, np.ndarray]:
    frames = roll_out(number).frames[:, ::-1]
    return {f"data/{name}/obs/agentview_rgb": frames, **{f"data/{name}/{key}": value for key, value in extra.items()}}


def _end(number: int) -> np.ndarray:
    done = np.zeros(len(roll_out(number).frames), np.uint8)
    done[-1] = 1
    return done


def test_suites_become_upstreams_data_sets(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    both = {
        **_demo(0, rewards=_end(0), dones=_end(0)),
        **_demo(1, "demo_10", rewards=_end(0)[:3]),
        **_demo(2, "demo_2"),
    }
    both["data/demo_0/obs/eye_in_hand_rgb"] = roll_out(3).frames
    write(raw / "libero_90" / f"{STOVE}.hdf5", both)
    write(raw / "libero_goal_failure" / f"{BOWL}.hdf5", _demo(4, rewards=_end(4), dones=_end(4)))
    with h5py.File(write(raw / "libero256_10_no_noops" / "task_7.hdf5", _demo(5)), "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": list("close the box")})
    corpus = ingest(tmp_path, "libero")

    assert rows(corpus, "source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot") == [
        (
            "libero256_10",
            "libero256_10_no_noops/task_7/demo_0",
            *("agentview", "close the box", "successful", None, True),
        ),
        ("libero256_90", f"libero_90/{STOVE}/demo_0", "agentview", "turn on the stove", "successful", None, True),
        ("libero256_90", f"libero_90/{STOVE}/demo_10", "agentview", "turn on the stove", "successful", None, True),
        ("libero256_90", f"libero_90/{STOVE}/demo_2", "agentview", "turn on the stove", "successful", None, True),
        (
            *("libero_goal_failure", f"libero_goal_failure/{BOWL}/demo_0", "agentview"),
            *("pick up the black bowl and demolish it", "failure", None, True),
        ),
    ]
    done = row_of(corpus, episode_key=f"libero_90/{STOVE}/demo_0")
    assert shows(corpus, done, roll_out(0).frames)
    assert not shows(corpus, done, roll_out(0).frames[:, ::-1])
    assert not shows(corpus, done, roll_out(0).frames[:, :, ::-1])
    assert corpus.record(done)["success"] == [0, 0, 0, 0, 0, 1]
    assert corpus.record(done)["env_reward"] == [0, 0, 0, 0, 0, 1]
    for key in (f"libero_90/{STOVE}/demo_10", f"libero_goal_failure/{BOWL}/demo_0"):
        record = corpus.record(row_of(corpus, episode_key=key))
        assert record["success"] is None and record["env_reward"] is None, key
    assert refusals(corpus) == {
        f"{STOVE}.hdf5 libero_90/{STOVE}/demo_0 eye_in_hand": "a wrist camera: upstream leaves it out"
    }

    # The folder of one suite gives the same keys: only what is new is added.
    write(raw / "libero_90" / "STUDY_SCENE1_open_the_drawer.hdf5", _demo(6))
    again = ingest(tmp_path, "libero", input=raw / "libero_90")
    added = set(rows(again, "episode_key", "task")) - set(rows(corpus, "episode_key", "task"))
    assert added == {("libero_90/STUDY_SCENE1_open_the_drawer/demo_0", "open the drawer")}
    assert len(again.manifest) == len(corpus.manifest) + 1


def test_what_cannot_be_read_is_refused(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    suite, frames = raw / "libero_10", roll_out(0).frames
    bad = {f"data/{name}/obs/agentview_rgb": array for name, (array, _) in bad_arrays(frames).items()}
    write(suite / "all_demo.hdf5", {**_demo(1), **bad, "data/blind/actions": frames[:, 0, 0], "data/stray": frames})
    with h5py.File(suite / "all_demo.hdf5", "a") as file:
        secret = tmp_path / "secret"
        secret.write_bytes(frames.tobytes())
        file.create_dataset("data/outside/obs/agentview_rgb", frames.shape, "u1", external=[(secret, 0, frames.nbytes)])
        write(tmp_path / "other.hdf5", {"frames": frames})
        file["data/linked/obs/agentview_rgb"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "frames")
        file.create_dataset("data/huge/obs/agentview_rgb", (4, 100_000, 100_000, 3), "u1", chunks=(1, 64, 64, 3))
    cut_off(write(suite / "cut_demo.hdf5", _demo(2)))
    (suite / "text_demo.hdf5").write_text("no HDF5")
    write(suite / "empty_demo.hdf5", {"frames": frames})
    write(suite / "demo.hdf5", _demo(2))
    with h5py.File(write(suite / "info_demo.hdf5", _demo(3)), "a") as file:
        file["data"].attrs["problem_info"] = "{"
    with h5py.File(write(suite / "bytes_demo.hdf5", _demo(3)), "a") as file:
        file["data"].attrs["problem_info"] = np.bytes_(b"\xff\xfe")
    write(raw / "mine" / "push_the_box.hdf5", _demo(4))
    corpus = ingest(tmp_path, "libero")

    assert rows(corpus, "source", "episode_key") == [("libero256_10", "libero_10/all_demo/demo_0")]
    reasons = refusals(corpus)
    expected = {name: reason for name, (_, reason) in bad_arrays(frames).items()}
    expected |= {"blind": "no camera obs/agentview_rgb", "stray": "no camera", "huge": "larger than the limit of"}
    expected |= {"outside": "stored in another file", "linked": "stored in another file"}
    expected = {f"all_demo.hdf5 libero_10/all_demo/{name} agentview": reason for name, reason in expected.items()}
    expected |= {
        "cut_demo.hdf5 libero_10/cut_demo": "truncated file",
        "text_demo.hdf5 libero_10/text_demo": "cannot be read as HDF5",
        "empty_demo.hdf5 libero_10/empty_demo": "no group `data`",
        "demo.hdf5 libero_10/demo/demo_0 agentview": "no task text",
        "info_demo.hdf5 libero_10/info_demo": "must be JSON with",
        "bytes_demo.hdf5 libero_10/bytes_demo": "not UTF-8",
        "push_the_box.hdf5": "'mine' is not named after a LIBERO suite",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons

    named = ingest(tmp_path, "libero", "ingest.source_name=mine_failure", input=raw / "mine")
    assert rows(named, "source", "task", "quality_label")[-1] == ("mine_failure", "push the box", "failure")
