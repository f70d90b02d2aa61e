"""MolmoAct: scattered rows of an episode, the two parts, what is skipped and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows
from tests.corpus.formats.test_lerobot import image_column, write_rows

FRAMES = 8


def clip(n: int) -> np.ndarray:
    """Frames of roll-out n that differ from each other."""
    frames = roll_out(n).frames
    return frames[np.linspace(0, len(frames) - 1, FRAMES).astype(int)]


def write_part(root: Path, tasks: list[str], files: dict[str, list[tuple[int, int]]]) -> None:
    """Episode n of `tasks` shows roll-out n; each file holds (episode, frame) rows in the order given."""
    for name, frames in files.items():
        images = {n: clip(n) for n, _ in frames}
        first = image_column(np.stack([images[n][i] for n, i in frames]))
        second = image_column(np.stack([images[n][i][:, ::-1] for n, i in frames]))
        columns = {
            "episode_index": [n for n, _ in frames],
            "frame_index": [i for _, i in frames],
            "first_view": first,
            "second_view": second,
            "wrist_image": second,
            "task_index": [n for n, _ in frames],
        }
        write_rows(root / name, columns, row_group_size=5)
    (root / "meta").mkdir(parents=True, exist_ok=True)
    lines = [{"episode_index": n, "tasks": [task], "length": FRAMES} for n, task in enumerate(tasks)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_rows_are_grouped_by_episode_wherever_they_lie(ray_local: None, tmp_path: Path) -> None:
    # Episode 1 lies on both sides of episode 0, in another order, and in a second file.
    mixed = [(1, 1), (1, 0), *((0, i) for i in range(FRAMES)), (1, 3), (1, 2)]
    rest = [(1, i) for i in range(4, FRAMES)]
    home = tmp_path / "raw/MolmoAct_Household"
    write_part(home, ["close the lid", "fold it"], {"data/b.parquet": mixed, "data/a.parquet": rest})
    corpus = ingest(tmp_path, "molmoact")
    assert rows(corpus, "source", "episode_key", "view", "task", "quality_label", "is_robot", "source_num_frames") == [
        ("molmoact_dataset_household", f"MolmoAct_Household/episode_{n:06d}", view, task, "successful", True, FRAMES)
        for n, task in enumerate(("close the lid", "fold it"))
        for view in ("first_view", "second_view")
    ]
    for n in (0, 1):
        row = row_of(corpus, episode_key=f"MolmoAct_Household/episode_{n:06d}", view="first_view")
        assert shows(corpus, row, clip(n), tolerance=1.5)
        swapped = clip(n)[[1, 0, *range(2, FRAMES)]]
        assert not shows(corpus, row, swapped, tolerance=1.5)
        row = row_of(corpus, episode_key=f"MolmoAct_Household/episode_{n:06d}", view="second_view")
        assert shows(corpus, row, clip(n)[:, :, ::-1], tolerance=1.5)
    assert not refusals(corpus)

    more = {"data/b.parquet": mixed, "data/a.parquet": rest, "data/c.parquet": [(2, i) for i in range(FRAMES)]}
    write_part(home, ["close the lid", "fold it", "wipe"], more)
    lines = (home / "meta/episodes.jsonl").read_text().replace('["wipe"]', '["fold it", "wipe"]')
    (home / "meta/episodes.jsonl").write_text(lines)
    texts = ["close the lid", "fold it", "wipe"]
    (home / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": n, "task": text}) + "\n" for n, text in enumerate(texts))
    )
    again = ingest(tmp_path, "molmoact")
    assert [row[0] for row in rows(again, "task")] == [text for text in texts for _ in range(2)]
    assert set(again.manifest["id"].to_pylist()) > set(corpus.manifest["id"].to_pylist())
    assert len(again) == len(corpus) + 2


def test_what_upstream_leaves_out_is_skipped_and_what_is_broken_is_refused(ray_local: None, tmp_path: Path) -> None:
    rows_of = {n: [(n, i) for i in range(FRAMES)] for n in range(5)}
    tasks = ["Load the bowl.", "stack the cups", "no rows", "short", "", "cut off"]
    files = {"data/0.parquet": rows_of[0] + rows_of[1] + rows_of[3][:5], "data/1.parquet": rows_of[4]}
    write_part(tmp_path / "raw/tabletop", tasks, {**files, "data/2.parquet": [(9, 0)]})
    (tmp_path / "raw/tabletop/data/3.parquet").write_bytes(
        (tmp_path / "raw/tabletop/data/0.parquet").read_bytes()[:900]
    )
    write_part(tmp_path / "raw/kitchen", ["wipe"], {"data/0.parquet": rows_of[0]})
    corpus = ingest(tmp_path, "molmoact")
    assert rows(corpus, "source", "episode_key")[::2] == [("molmoact_dataset_tabletop", "tabletop/episode_000001")]
    reasons = refusals(corpus)
    assert reasons["tabletop tabletop/episode_000000"] == "tasks with 'load the bowl' are left out, as upstream"
    assert reasons["tabletop tabletop/episode_000002"] == "no parquet file holds rows of episode 2"
    assert reasons["tabletop tabletop/episode_000003"] == "episode 3 has 5 rows, not 8"
    assert "no task text: its frames have the tasks '' (8)" in reasons["tabletop tabletop/episode_000004"]
    assert reasons["tabletop tabletop/episode_000009"] == "episode 9 is not in meta/episodes.jsonl"
    assert "3.parquet cannot be read" in reasons["3.parquet"]
    assert "has neither household nor tabletop" in reasons["kitchen"]
    stages = {row["error"][:5]: row["stage"] for row in corpus.quarantine().to_pylist()}
    assert stages["tasks"] == "skip"
