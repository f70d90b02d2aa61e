"""A corpus as a LeRobot dataset, and back again through the real job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from robometer.corpus import export
from robometer.corpus.corpus import Corpus
from robometer.corpus.export import ExportError, export_lerobot
from robometer.frames import FrameSettings, read_frames
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows
from tests.frames.test_video import moving_square, video_bytes

LABELS = ("source", "task", "quality_label", "partial_success", "is_robot", "split", "num_frames")


@pytest.fixture(scope="module")
def corpus(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three clips of three qualities and sources, all of which know their rewards."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "raw").mkdir()
    lines = []
    for n, quality in enumerate(("successful", "suboptimal", "failure")):
        clip = roll_out(n, quality)
        (folder / f"raw/{n}.mp4").write_bytes(clip.mp4)
        count = len(clip.frames)
        line: dict[str, Any] = {"video": f"{n}.mp4", "task": clip.task, "quality_label": quality, "source": f"set_{n}"}
        line |= {"success": [0] * (count - 1) + [int(n == 0)], "env_reward": [i / count for i in range(count)]}
        lines.append({**line, "is_robot": n != 1, "partial_success": n / 2 if n else None, "split": f"split_{n}"})
    (folder / "raw/trajectories.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return ingest(folder, "mp4_jsonl")


@pytest.mark.parametrize("video_mb", [200, 0])  # all in one file, and a file for each
def test_an_export_can_be_ingested_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video_mb: int
) -> None:
    monkeypatch.setattr(export, "VIDEO_MB", video_mb)
    assert export_lerobot(corpus, tmp_path / "raw") == 3
    again = ingest(tmp_path, "lerobot")
    assert rows(again, *LABELS) == rows(corpus, *LABELS)
    assert not refusals(again)
    for row in range(3):
        other = row_of(again, source=corpus.manifest["source"][row].as_py())
        before, after = corpus.frames(row).astype(int), again.frames(other).astype(int)
        assert np.abs(before - after).mean() < 6
        assert np.abs(before[:-1] - after[1:]).mean() > np.abs(before[:-1] - after[:-1]).mean()
        for name in ("env_reward", "success"):
            assert again.record(other)[name] == pytest.approx(corpus.record(row)[name])
    assert len(list((tmp_path / "raw").glob("videos/*/*/*.mp4"))) == (1 if video_mb else 3)


def test_the_dataset_is_what_lerobot_reads(corpus: Corpus, tmp_path: Path) -> None:
    chosen = [2, 0]
    ids = corpus.manifest["id"].to_pylist()
    count = corpus.record(0)["num_frames"]
    scores = {ids[0]: (np.linspace(0, 1, count), np.zeros(count))}
    export_lerobot(corpus, tmp_path / "out", rows=chosen, fps=5, scores=scores)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 5, 2)
    data = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert set(data.column_names) | {export.CAMERA} == set(info["features"])
    assert data["index"].to_pylist() == list(range(info["total_frames"]))
    assert data["timestamp"].to_pylist()[:3] == pytest.approx([0, 0.2, 0.4])
    tasks = pd.read_parquet(tmp_path / "out/meta/tasks.parquet")
    assert tasks.iloc[0].name == corpus.manifest["task"][2].as_py() and tasks["task_index"].tolist() == [0, 1]
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["robometer.id"] for row in episodes] == [ids[2], ids[0]]
    assert episodes[1][f"videos/{export.CAMERA}/from_timestamp"] == episodes[0]["length"] / 5
    first = episodes[1]["dataset_from_index"]
    progress = data["robometer.progress"].to_numpy()
    assert np.isnan(progress[:first]).all() and progress[first:] == pytest.approx(np.linspace(0, 1, count))
    statistics = json.loads((tmp_path / "out/meta/stats.json").read_text())
    pixels = np.concatenate([corpus.frames(row).reshape(-1, 3) for row in chosen]) / 255
    assert np.ravel(statistics[export.CAMERA]["mean"]) == pytest.approx(pixels.mean(axis=0))
    assert np.ravel(statistics[export.CAMERA]["std"]) == pytest.approx(pixels.std(axis=0))
    assert statistics["robometer.progress"]["count"] == [count]


def test_smaller_trajectories_are_padded_and_rewards_that_not_all_know_are_left_out(
    corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    for name, width in (("a", 64), ("b", 96)):
        (tmp_path / f"raw/{name}.mp4").write_bytes(video_bytes(moving_square(6, 48, width)))
    lines = [{"video": "a.mp4", "task": "go"}, {"video": "b.mp4", "task": "go", "success": [0, 0, 0, 0, 0, 1]}]
    (tmp_path / "raw/trajectories.jsonl").write_text("\n".join(map(json.dumps, lines)))
    two = ingest(tmp_path, "mp4_jsonl")
    rows_in_order = [row_of(two, episode_key="a.mp4"), row_of(two, episode_key="b.mp4")]
    export_lerobot(two, tmp_path / "out", rows=rows_in_order)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"][export.CAMERA]["shape"] == [48, 96, 3] and "next.success" not in info["features"]
    frames = read_frames(tmp_path / f"out/videos/{export.CAMERA}/chunk-000/file-000.mp4", FrameSettings(0, 0, 0)).frames
    assert len(frames) == 12
    brightest = frames.max(axis=-1)
    assert brightest[:6, :, 72:].max() < 25 < brightest[:6, :, :60].min()
    assert brightest[6:].min() > 25


def test_what_cannot_be_exported_leaves_nothing_behind(corpus: Corpus, tmp_path: Path) -> None:
    wrong = {corpus.manifest["id"][0].as_py(): ([0.5], [0.5])}
    for arguments, message in (
        ({"rows": []}, "no trajectories"),
        ({"fps": 0}, "must be above 0"),
        ({"scores": wrong}, "shape"),
    ):
        with pytest.raises(ExportError, match=message):
            export_lerobot(corpus, tmp_path / "out", **arguments)
        assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="exists"):
        export_lerobot(corpus, tmp_path / "out")
