"""`c_metrics`: every record agrees with upstream, and would not if upstream's numbers were others."""

from __future__ import annotations

import json
from pathlib import Path

from parity.groups.metrics import rows
from parity.recorded_set import RecordedSet
from parity.row import Row
from tests.parity.perturbed import shifted

OUTPUTS = {
    "correlations": ("pearson", "spearman", "kendall"),
    "tensor_spearman": ("agg_nomask", "per_nomask", "agg_mask", "per_mask", "one_d"),
    "auc_mse_mae": ("auc", "manual_auc", "accuracy_at_0", "mse", "mae"),
    "trajectory_rewards": ("last", "sum", "average"),
    "policy_ranking": ("output",),
    "confusion_matrix": ("output",),
    "reward_alignment": ("output",),
    "quality_preference": ("output",),
    "preference_accuracy": ("accuracy", "accuracy_from_progress"),
    "roboreward_mae": ("pred_bins", "gt_bins", "mae"),
}
WITHOUT_NUMBER = {"no task can be ranked", "nothing was predicted"}


def _kind(row: Row) -> tuple[str, str]:
    """The file of a row's record, and what was compared."""
    return row.case.removeprefix("c_metrics/").rpartition("_")[0], row.what


def test_every_record_agrees_with_upstream(golden: Path) -> None:
    made = list(rows(RecordedSet(golden)))
    assert [row for row in made if not row.passed] == []
    recorded = sum(len(json.loads(file.read_text())) for file in (golden / "c_metrics").glob("*.json"))
    assert len({row.case for row in made}) == recorded
    assert all(row.ours for row in made if row.reason)


def test_other_numbers_than_upstreams_fail(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "c_metrics").mkdir()
    for name, outputs in OUTPUTS.items():
        records = json.loads((golden / "c_metrics" / f"{name}.json").read_text())
        changed = [record | {key: shifted(record[key]) for key in outputs} for record in records]
        (tmp_path / "c_metrics" / f"{name}.json").write_text(json.dumps(changed))
    made = [row for row in rows(RecordedSet(tmp_path)) if not row.reason and row.what not in WITHOUT_NUMBER]
    assert {name for name, _ in map(_kind, made)} == set(OUTPUTS)
    assert {_kind(row) for row in made if not row.passed} == {_kind(row) for row in made}
