"""Counts of a corpus, as numbers and as text tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.corpus import Corpus
from robometer.corpus.manifest import SKIP
from robometer.text import table
from robometer.trajectory import QUALITY_LABELS

MAX_TASKS = 60


@dataclass(frozen=True)
class Summary:
    """Counts of trajectories, except for `frames` and `size_bytes` (JPEG).

    `by_task` maps task -> quality label -> count. `refused` and `left_out` (by design) map (stage, reason) -> count,
    with the numbers in the reason masked.
    """

    path: str
    content_hash: str
    trajectories: int
    frames: int
    size_bytes: int
    by_source: dict[str, int]
    by_split: dict[str, int]
    by_quality: dict[str, int]
    by_agent: dict[str, int]
    by_task: dict[str, dict[str, int]]
    refused: dict[tuple[str, str], int]
    left_out: dict[tuple[str, str], int]


def summarise(corpus: Corpus) -> Summary:
    """Count a corpus from its manifest and quarantine, without frames. Only distinct values pass through Python."""
    manifest = corpus.manifest
    by_task: dict[str, dict[str, int]] = {}
    for (task, quality), count in _counts(manifest, "task", "quality_label").items():
        by_task.setdefault(task, dict.fromkeys(QUALITY_LABELS, 0))[quality] += count
    by_quality = _counts(manifest, "quality_label")
    refused = _reasons(corpus.quarantine())
    return Summary(
        path=corpus.storage.path,
        content_hash=corpus.content_hash,
        trajectories=len(corpus),
        frames=pc.sum(manifest["num_frames"]).as_py() or 0,
        size_bytes=pc.sum(manifest["size_bytes"]).as_py() or 0,
        by_source={name: count for (name,), count in _counts(manifest, "source").items()},
        by_split={name: count for (name,), count in _counts(manifest, "split").items()},
        by_quality={label: by_quality.get((label,), 0) for label in QUALITY_LABELS},
        by_agent={"robot" if robot else "human": n for (robot,), n in _counts(manifest, "is_robot").items()},
        by_task=dict(sorted(by_task.items())),
        refused={(stage, reason): n for (stage, reason), n in refused.items() if stage != SKIP},
        left_out={(stage, reason): n for (stage, reason), n in refused.items() if stage == SKIP},
    )


def render(summary: Summary, max_tasks: int = MAX_TASKS) -> str:
    """The summary as plain text tables; a last line counts the tasks beyond `max_tasks`."""
    tasks = list(summary.by_task.items())[:max_tasks]
    parts = [
        f"corpus {summary.path}: {summary.trajectories} trajectories, {summary.frames} frames, "
        f"{summary.size_bytes / 1e6:.1f} MB of JPEG, content {summary.content_hash[:12]}",
        table(("source", "trajectories"), [(name, str(n)) for name, n in summary.by_source.items()]),
        table(("split", "trajectories"), [(name, str(n)) for name, n in summary.by_split.items()]),
        table(
            ("task", *QUALITY_LABELS),
            [
                *((task, *(str(n) for n in counts.values())) for task, counts in tasks),
                ("all", *(str(n) for n in summary.by_quality.values())),
            ],
        ),
    ]
    if len(summary.by_task) > max_tasks:
        parts.append(f"({len(summary.by_task) - max_tasks} more tasks are included in the last row)")
    if summary.refused:
        rows = [(stage, reason, str(n)) for (stage, reason), n in summary.refused.items()]
        parts.append(table(("refused at", "reason", "episodes"), rows))
    if summary.left_out:
        skipped = [(reason, str(n)) for (_, reason), n in summary.left_out.items()]
        parts.append(table(("left out by design", "episodes"), skipped))
    return "\n\n".join(parts)


def _counts(table: pa.Table, *names: str) -> dict[tuple[Any, ...], int]:
    """Rows per distinct value of some columns, most frequent first; equal counts are sorted by value."""
    groups = table.select(names).group_by(list(names)).aggregate([([], "count_all")])
    groups = groups.sort_by([("count_all", "descending"), *((name, "ascending") for name in names)])
    values = zip(*(groups[name].to_pylist() for name in names), strict=True)
    return dict(zip(values, groups["count_all"].to_pylist(), strict=True))


def _reasons(quarantine: pa.Table) -> dict[tuple[str, str], int]:
    """Counts by (stage, reason); the reason is the error without the parts that differ between episodes."""
    text = pc.replace_substring_regex(pc.fill_null(quarantine["error"], ""), r"(?s)\n.*", "")
    text = pc.if_else(pc.equal(text, ""), "unknown", text)
    masked = pc.utf8_slice_codeunits(pc.replace_substring_regex(text, r"\d+", "#"), 0, 120)
    for start in ("duplicate", "there is no file"):
        masked = pc.if_else(pc.starts_with(text, start), start, masked)
    return _counts(pa.table({"stage": quarantine["stage"], "reason": masked}), "stage", "reason")
