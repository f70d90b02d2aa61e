"""EgoDex: pairs of an mp4 and an HDF5 file, through the real job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus.formats.hdf5_files import cut_off, write
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

COLUMNS = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot")


def _egodex(stem: Path, number: int, **attributes: Any) -> None:
    write(stem.with_suffix(".hdf5"), {"transforms/leftHand": np.zeros((3, 4, 4))}, **attributes)
    stem.with_suffix(".mp4").write_bytes(roll_out(number).mp4)


def test_egodex(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    lids = {"llm_description": "add the lid", "llm_description2": "remove the lid"}
    _egodex(raw / "part1" / "lid" / "0", 0, **lids, which_llm_description="1")
    _egodex(raw / "part1" / "lid" / "1", 1, **lids, which_llm_description=np.bytes_("2"))
    _egodex(raw / "test" / "lid" / "0", 2, llm_description="add the lid")
    _egodex(raw / "part2" / "lid" / "0", 3, llm_description="Description unavailable.")
    _egodex(raw / "part2" / "lid" / "1", 3)
    _egodex(raw / "part2" / "lid" / "2", 3, llm_description=np.bytes_(b"\xff"))
    _egodex(raw / "part2" / "lid" / "3", 3, **lids)
    cut_off(raw / "part2" / "lid" / "3.hdf5")
    _egodex(raw / "part2" / "lid" / "4", 3, **lids)
    (raw / "part2" / "lid" / "4.mp4").unlink()
    (raw / "part2" / "lid" / "5.mp4").write_bytes(roll_out(3).mp4)
    _egodex(raw / "mine" / "0", 3, **lids)
    corpus = ingest(tmp_path, "egodex")

    assert rows(corpus, *COLUMNS) == [
        ("egodex_part1", "part1/lid/0", "ego", "add the lid", "successful", None, False),
        ("egodex_part1", "part1/lid/1", "ego", "remove the lid", "successful", None, False),
        ("egodex_test", "test/lid/0", "ego", "add the lid", "successful", None, False),
    ]
    assert shows(corpus, row_of(corpus, episode_key="part1/lid/1"), roll_out(1).frames)
    expected = {
        "0.mp4 part2/lid/0 ego": "its description is unavailable",
        "1.mp4 part2/lid/1 ego": "no task text",
        "2.hdf5 part2/lid/2": "not UTF-8",
        "3.hdf5 part2/lid/3": "truncated file",
        "4.hdf5 part2/lid/4 ego": "there is no 4.mp4 beside it",
        "5.mp4 part2/lid/5 ego": "there is no 5.hdf5 beside it",
        "0.hdf5": "in none of the folders part1",
    }
    reasons = refusals(corpus)
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons

    _egodex(raw / "part1" / "lid" / "2", 4, llm_description="add the lid")
    again = ingest(tmp_path, "egodex", input=raw / "part1")
    assert set(rows(again, "episode_key")) - set(rows(corpus, "episode_key")) == {("part1/lid/2",)}
    assert len(again.manifest) == len(corpus.manifest) + 1
