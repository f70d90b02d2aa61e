"""The pairs that are compared, against those that upstream lists (golden/f_samplers, quality_preference)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robometer.corpus.corpus import Corpus
from robometer.evaluation.plan import plan_split
from robometer.trajectory import SCHEMA_VERSION
from tests.sampling.manifest import manifest


@pytest.mark.parametrize("number", [0, 1])
def test_all_pairs_of_different_quality_are_upstreams(golden: Path, tmp_path: Path, number: int) -> None:
    """Acceptance item 14, where no draw decides; upstream pairs grades instead where it has them (blocks 2 and 3)."""
    block = json.loads((golden / "f_samplers" / "samplers.json").read_text())[number]
    columns = ("task", "quality_label", "num_frames")
    rows = [{name: row[name] for name in columns} | {"split": "seen"} for row in block["rows"]]
    (tmp_path / "corpus.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "state": "complete"}))
    units = plan_split(Corpus(str(tmp_path), manifest(rows)), "seen", 1000, 1000, 42, ["preference"])
    ours = {(unit.row, unit.rejected) for unit in units if unit.pair_kind == "quality"}
    listed = block["eval_samplers"]["quality_preference_all"]["value"]["sample_indices"]
    assert len(listed) == len(ours) == 25
    assert {(entry["chosen_traj_idx"], entry["rejected_traj_idx"]) for entry in listed} == ours
