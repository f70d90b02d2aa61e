"""Videos with a `trajectories.jsonl`: labels, views and pixels, through the real job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robometer.corpus.writer import Accepted
from tests.corpus.formats.raw import ingest, read, roll_out, row_of, rows, shows
from tests.pipelines.test_ingest import write_data


def test_lines_become_trajectories(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = []
    for i, quality in enumerate(("successful", "suboptimal", "failure")):
        clip = roll_out(i, quality)
        (raw / f"{i}.mp4").write_bytes(clip.mp4)
        lines.append({"video": f"{i}.mp4", "task": clip.task, "quality_label": quality, "source": "mine"})
    lines[2]["split"] = "held_out"
    (raw / "trajectories.jsonl").write_text("\n".join(map(json.dumps, lines)))
    corpus = ingest(tmp_path, "mp4_jsonl", "ingest.split=seen")
    assert rows(corpus, "source", "episode_key", "quality_label", "split") == [
        ("mine", "0.mp4", "successful", "seen"),
        ("mine", "1.mp4", "suboptimal", "seen"),
        ("mine", "2.mp4", "failure", "held_out"),
    ]
    assert shows(corpus, row_of(corpus, episode_key="1.mp4"), roll_out(1, "suboptimal").frames)
    assert not shows(corpus, row_of(corpus, episode_key="1.mp4"), roll_out(1, "suboptimal").frames[:, ::-1])
    assert not shows(corpus, row_of(corpus, episode_key="1.mp4"), roll_out(1, "suboptimal").frames[..., ::-1])
    renamed = ingest(tmp_path, "mp4_jsonl", "ingest.source_name=other")
    assert renamed.manifest["source"].to_pylist().count("other") == 3


def test_the_simulators_truth_is_that_of_the_frames_kept(tmp_path: Path) -> None:
    """Of twelve frames six are kept: 0, 2.2, 4.4, 6.6, 8.8, 11, rounded."""
    (entry,) = read("mp4_jsonl", write_data(tmp_path / "raw", 1))
    assert isinstance(entry, Accepted)
    positions = [0, 2, 4, 7, 9, 11]
    assert list(entry.record["frame_index"]) == positions
    assert entry.record["env_reward"] == pytest.approx([i / 12 for i in positions])
    assert entry.record["success"] == [0, 0, 0, 0, 0, 1]
