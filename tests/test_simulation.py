"""The bundled Meta-World corpus is as documented, and any of its clips can be simulated again."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jobs import simulate as simulate_job
from pipelines.simulate import ROWS_FILE, SETTINGS_FILE, simulate
from robometer import simulation
from robometer.simulation import (
    HELD_OUT_TASKS,
    INSTRUCTIONS,
    OPPOSITE_TASKS,
    QUALITIES,
    SimulationError,
    SimulationSettings,
)

CORPUS = Path(simulation.__file__).parent / "data" / "metaworld"
MAX_CORPUS_BYTES = 12_000_000


@lru_cache(maxsize=1)
def bundled_rows() -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (CORPUS / ROWS_FILE).read_text().splitlines()]
    assert len({row["episode_key"] for row in rows}) == len(rows)
    return {row["episode_key"]: row for row in rows}


def bundled_settings(**extent: Any) -> SimulationSettings:
    return SimulationSettings(**json.loads((CORPUS / SETTINGS_FILE).read_text()), **extent)


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def by_task_split() -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for key, row in bundled_rows().items():
        counts.setdefault(key.split("/")[0], Counter())[row["split"]] += 1
    return counts


# --- the bundled corpus; no simulator, no GL ---


def test_every_row_has_its_video_and_one_reward_and_success_per_frame() -> None:
    size = json.loads((CORPUS / SETTINGS_FILE).read_text())["image_size"]
    for key, row in bundled_rows().items():
        with av.open(str(CORPUS / row["video"])) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == (size, size), key
            # a packet is a frame here, and needs no decoding
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
        assert num_frames == len(row["env_reward"]) == len(row["success"]), key
        assert 12 <= num_frames <= 16, key


def test_every_bundled_video_has_a_row() -> None:
    videos = {path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("videos/**/*") if path.is_file()}
    assert videos == {row["video"] for row in bundled_rows().values()}


def test_rows_name_the_task_that_was_acted_out() -> None:
    for key, row in bundled_rows().items():
        task, quality, _ = key.split("/")
        assert row["task"] == INSTRUCTIONS[task]
        assert row["quality_label"] == quality
        assert (row["source"], row["view"], row["is_robot"]) == ("metaworld", "corner2", True)


def test_labels_agree_with_the_simulators_success_flag() -> None:
    for key, row in bundled_rows().items():
        if row["quality_label"] == "successful":
            assert row["success"][-1] == 1, f"{key} does not end in success"
            assert row["success"][0] == 0, f"{key} is solved from the start"
            assert sum(row["success"]) <= 10, f"{key} goes on long after success"
        else:
            assert not any(row["success"]), f"{key} succeeds"


def test_suboptimal_clips_end_with_more_reward_than_failures_and_less_than_successes() -> None:
    last: dict[str, dict[str, list[float]]] = {}
    for key, row in bundled_rows().items():
        task, quality, _ = key.split("/")
        last.setdefault(task, {name: [] for name in QUALITIES})[quality].append(row["env_reward"][-1])
    for better, worse in (("suboptimal", "failure"), ("successful", "suboptimal")):
        won = [np.mean(np.greater.outer(rewards[better], rewards[worse])) for rewards in last.values()]
        assert np.mean(won) >= 0.95, f"{better} over {worse}"


def test_clip_length_does_not_tell_the_label() -> None:
    lengths: dict[str, list[int]] = {quality: [] for quality in QUALITIES}
    for row in bundled_rows().values():
        lengths[row["quality_label"]].append(len(row["success"]))
    means = [np.mean(values) for values in lengths.values()]
    assert max(means) - min(means) < 1.0


def test_held_out_tasks_are_never_trained_on() -> None:
    counts = by_task_split()
    assert len(HELD_OUT_TASKS) >= 6
    for task, splits in counts.items():
        if task in HELD_OUT_TASKS:
            assert set(splits) == {"held_out"}, task
        else:
            assert set(splits) == {"train", "seen"}, task
    held_out_texts = {INSTRUCTIONS[task] for task in HELD_OUT_TASKS}
    assert held_out_texts.isdisjoint(INSTRUCTIONS[task] for task in counts if task not in HELD_OUT_TASKS)


def test_every_task_has_every_quality_in_each_of_its_splits() -> None:
    seen: dict[tuple[str, str], set[str]] = {}
    for key, row in bundled_rows().items():
        seen.setdefault((key.split("/")[0], row["split"]), set()).add(row["quality_label"])
    assert all(qualities == set(QUALITIES) for qualities in seen.values())
    assert len({task for task, _ in seen}) >= 40


def test_opposites_that_share_a_scene_are_on_the_same_side_of_the_split() -> None:
    bundled = by_task_split()
    sides = Counter()
    for pair in OPPOSITE_TASKS:
        if all(task in bundled for task in pair):
            held_out = {task in HELD_OUT_TASKS for task in pair}
            sides["mixed" if len(held_out) == 2 else "held_out" if held_out.pop() else "train"] += 1
    assert sides["held_out"] >= 1 and sides["train"] >= 4 and sides["mixed"] == 0


def test_the_corpus_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= MAX_CORPUS_BYTES


# --- what to simulate ---


def test_instructions_are_distinct() -> None:
    assert len(INSTRUCTIONS) == 50 == len(set(INSTRUCTIONS.values()))
    assert set(HELD_OUT_TASKS) <= set(INSTRUCTIONS)


def test_a_spec_does_not_depend_on_what_else_is_simulated() -> None:
    everything = {spec.key: spec for spec in simulation.episodes(SimulationSettings(seed=3))}
    some = simulation.episodes(SimulationSettings(tasks=("window-open-v3",), qualities=("failure",), seed=3))
    assert some == [everything[spec.key] for spec in some]
    assert len({spec.seed for spec in everything.values()}) == len(everything)
    other = simulation.episodes(SimulationSettings(tasks=("window-open-v3",), qualities=("failure",), seed=4))
    assert all(a.seed != b.seed for a, b in zip(some, other, strict=True))


def trace(rewards: list[float], way: list[float], solved: bool = False) -> simulation._Trace:
    objects = [np.array([x, 0, 0, 0, 0, 0], dtype=float) for x in way]
    success = [False] * (len(rewards) - 1) + [solved]
    return simulation._Trace(rewards=rewards, success=success, objects=objects)


def test_how_far_an_episode_got_is_told_in_the_experts_time() -> None:
    expert = trace([0, 1, 2, 3, 9], [0, 0, 0, 0.2, 0.4], solved=True)
    idle = trace([0, 0], [0, 0])
    assert trace([0, 0.5], [0, 0]).reached(expert, idle) == 0.25  # as after the first of the expert policy's four steps
    assert trace([0, 2.5, 0], [0, 0, 0]).reached(expert, idle) == 0.0  # only the end counts
    assert trace([0, 0], [0, 0.15]).reached(expert, idle) == 0.75  # the object is half way, though the arm let go
    swings = trace([0, 0], [0, 0.15])
    assert trace([0, 0], [0, 0.15]).reached(expert, swings) == 0.0  # it moves that far by itself


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("simulate.tasks=[fold-shirt-v3]", "simulate.tasks='fold-shirt-v3' is none of assembly-v3, "),
        ("simulate.image_size=161", "image_size must be an even number from 32 to 480, not 161"),
        ("simulate.image_size=16", "simulate.image_size=16 must be from 32 to 480"),
        ("simulate.max_frames=1", "simulate.max_frames=1 must be from 4 to 1000"),
        ("simulate.clips_per_quality=-1", "simulate.clips_per_quality=-1 must be from 0 to 999"),
        ("simulate.crf=52", "simulate.crf=52 must be from 0 to 51"),
        ("simulate.seed=-1", "simulate.seed=-1 must be at least 0"),
    ],
)
def test_settings_that_make_no_corpus_end_in_one_sentence(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate_job.main([override, f"simulate.output={tmp_path / 'out'}"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_quality_is_refused() -> None:
    with pytest.raises(SimulationError, match="qualities='perfect' is none of "):
        SimulationSettings(qualities=("perfect",))


def test_encoded_frames_come_back_in_order_and_upright() -> None:
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    for t in range(8):
        frames[t, :32] = 30 * t  # only the upper half brightens
    with av.open(io.BytesIO(simulation.encode_mp4(frames, fps=10, crf=18))) as container:
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 4


# --- the pipeline, without Ray ---


def test_a_finished_folder_is_left_as_it_is(ray_local: None, tmp_path: Path) -> None:
    task = "drawer-open-v3"
    rows = [row for key, row in bundled_rows().items() if key.startswith(f"{task}/")]
    shutil.copytree(CORPUS / "videos" / task, tmp_path / "videos" / task)
    shutil.copy(CORPUS / SETTINGS_FILE, tmp_path)
    (tmp_path / ROWS_FILE).write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    before = (tmp_path / ROWS_FILE).read_bytes()
    summary = simulate(bundled_settings(tasks=(task,)), tmp_path)
    assert (summary.made, summary.skipped, summary.unlabelled) == (0, len(rows), [])
    assert (tmp_path / ROWS_FILE).read_bytes() == before


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    shutil.copy(CORPUS / SETTINGS_FILE, tmp_path)
    with pytest.raises(SimulationError, match="another seed: choose another folder"):
        simulate(SimulationSettings(seed=99), tmp_path)


# --- with the simulator ---


def require_gl() -> None:
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        mujoco = simulation.require_simulator()  # not importorskip: MUJOCO_GL must be set before mujoco's first import
        mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 32, 32).close()
    except Exception as error:  # noqa: BLE001  not installed, or no GL: each GL library fails in its own way
        pytest.skip(str(error))


def test_a_bundled_episode_can_be_made_again_whatever_ran_before() -> None:
    require_gl()
    specs = {spec.key: spec for spec in simulation.episodes(bundled_settings(tasks=("drawer-open-v3",)))}
    key = "drawer-open-v3/successful/000"
    first = simulation.roll_out(specs[key])
    simulation.roll_out(specs["drawer-open-v3/failure/001"])
    again = simulation.roll_out(specs[key])
    assert first is not None and again is not None
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.env_reward, again.env_reward)

    row = bundled_rows()[key]
    assert again.success.tolist() == [bool(flag) for flag in row["success"]]
    np.testing.assert_allclose(again.env_reward, row["env_reward"], atol=1e-3)
    bundled = decode(CORPUS / row["video"])
    assert np.abs(bundled.astype(int) - again.frames).mean() < 8  # H.264 is lossy
