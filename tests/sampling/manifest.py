"""Small manifests for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from robometer.trajectory import MANIFEST_SCHEMA

DEFAULTS = {"source": "lab", "task": "open the drawer", "quality_label": "successful", "split": "train"}


def manifest(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A manifest of rows that name only the columns that matter; the others are defaults or null."""
    full = [{"id": f"{i:032x}", "num_frames": 32, "is_robot": True} | DEFAULTS | row for i, row in enumerate(rows)]
    return pa.Table.from_pylist(full, schema=MANIFEST_SCHEMA)


def mixed_manifest() -> pa.Table:
    """Tasks 0-3 have all qualities, 4-5 only successes, 6 graded rows; two sources; one task spelled in two ways."""
    rows: list[dict[str, Any]] = []
    for task in range(4):
        for quality in ("failure", "suboptimal", "successful", "successful"):
            rows.append({"task": f"task {task}", "quality_label": quality, "source": "ab"[task % 2]})
    rows += [{"task": f"task {task}", "num_frames": 10 + k, "source": "a"} for task in (4, 5) for k in range(3)]
    rows += [{"task": "Task  4.", "num_frames": 20, "source": "b"}]
    for value in (0.0, 0.25, 0.5, 0.6, 0.8, 1.0):
        quality = "successful" if value == 1.0 else "failure"
        rows.append({"task": "task 6", "partial_success": value, "quality_label": quality, "source": "roboreward_x"})
    return manifest(rows)
