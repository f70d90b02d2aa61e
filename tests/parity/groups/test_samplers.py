"""`f_samplers`: which of upstream's pairs our plan must draw too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parity.groups.samplers import rows
from parity.recorded_set import RecordedSet

BLOCK: dict[str, Any] = {
    "max_frames": 8,
    "progress_loss_type": "l2",
    "progress_pred_type": "absolute_first_frame",
    "max_success": 1.0,
    "success_cutoff_map": {},
    "predict_last_frame_partial_progress": False,
    "traj_same_source_prob": 0.5,
    "partial_success_threshold": 0.2,
    "eval_samplers": {"quality_preference_all": {"ok": True, "value": {"sample_indices": [], "first_samples": []}}},
}


def pair(chosen: str, rejected: str) -> dict[str, Any]:
    """A recorded pair of quality; what it shows does not matter here."""
    shown = {"frame_ids": [], "target_progress": [], "success_label": [], "predict_last_frame_mask": []}
    sides = {
        side: {"id": id, "partial_success": None} | shown
        for side, id in zip(("chosen", "rejected"), (chosen, rejected), strict=True)
    }
    sample = {"data_gen_strategy": "suboptimal", **sides}
    return {
        "ok": True,
        "sampler": "preference",
        "item": chosen,
        "preferred_strategy": None,
        "subsample_log": [],
        "sample": sample,
    }


def recorded(folder: Path, *samples: dict[str, Any]) -> RecordedSet:
    """One task with a success and a failure, and one with two failures."""
    labels = {"good": "successful", "bad": "failure", "worse": "failure", "worst": "failure"}
    listed = [
        {"id": id, "task": "hopeless" if id.startswith("wors") else "done", "quality_label": label,
         "partial_success": None, "num_frames": 9, "is_robot": True, "data_source": "lab"}
        for id, label in labels.items()
    ]  # fmt: skip
    (folder / "f_samplers").mkdir()
    block = BLOCK | {"rows": listed, "train_samples": list(samples)}
    (folder / "f_samplers" / "samplers.json").write_text(json.dumps([block]))
    return RecordedSet(folder)


@pytest.mark.parametrize(
    ("chosen", "rejected", "drawn"), [("good", "bad", True), ("bad", "good", False), ("worse", "bad", False)]
)
def test_a_pair_that_our_plan_never_draws_fails(tmp_path: Path, chosen: str, rejected: str, drawn: bool) -> None:
    (row,) = [row for row in rows(recorded(tmp_path, pair(chosen, rejected))) if "plan draws" in row.what]
    assert row.passed == drawn and not row.reason


def test_upstreams_pair_of_two_ungraded_failures_is_its_mistake(tmp_path: Path) -> None:
    compared = list(rows(recorded(tmp_path, pair("worse", "worst"))))
    (row,) = [row for row in compared if row.what == "pair"]
    assert row.passed and "two ungraded failures" in row.reason and "worse > worst" in row.ours
    assert not [row for row in compared if "plan draws" in row.what]
