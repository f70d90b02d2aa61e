"""What a corpus holds, as numbers and as text tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from robometer.corpus.corpus import Corpus
from robometer.trajectory import QUALITY_LABELS

MAX_TASKS = 60


@dataclass(frozen=True)
class Summary:
    """Counts of trajectories, but for `frames` and `size_bytes` (JPEG).

    `by_task` is task -> quality label -> count; `refused` is (stage, reason) -> count, numbers in it masked.
    """

    path: str
    content_hash: str
    trajectories: int
    frames: int
    size_bytes: int
    by_source: dict[str, int]
    by_split: dict[str, int]
    by_quality: dict[str, int]
    by_task: dict[str, dict[str, int]]
    refused: dict[tuple[str, str], int]


def summarise(corpus: Corpus) -> Summary:
    """Count a corpus; reads the manifest and the quarantine, no frames."""
    manifest = corpus.manifest
    columns = {name: manifest[name].to_pylist() for name in ("source", "split", "quality_label", "task")}
    by_task: dict[str, dict[str, int]] = {}
    for task, quality in zip(columns["task"], columns["quality_label"], strict=True):
        by_task.setdefault(task, dict.fromkeys(QUALITY_LABELS, 0))[quality] += 1
    refused = Counter((row["stage"], _reason(row["error"])) for row in corpus.quarantine().to_pylist())
    return Summary(
        path=corpus.storage.path,
        content_hash=corpus.content_hash,
        trajectories=len(corpus),
        frames=pc.sum(manifest["num_frames"]).as_py() or 0,
        size_bytes=pc.sum(manifest["size_bytes"]).as_py() or 0,
        by_source=dict(Counter(columns["source"]).most_common()),
        by_split=dict(Counter(columns["split"]).most_common()),
        by_quality={label: columns["quality_label"].count(label) for label in QUALITY_LABELS},
        by_task=dict(sorted(by_task.items())),
        refused=dict(refused.most_common()),
    )


def render(summary: Summary, max_tasks: int = MAX_TASKS) -> str:
    """The summary as plain text tables; tasks beyond `max_tasks` are counted in a last line."""
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
        parts.append(f"({len(summary.by_task) - max_tasks} more tasks are counted in the last row)")
    if summary.refused:
        rows = [(stage, reason, str(n)) for (stage, reason), n in summary.refused.items()]
        parts.append(table(("refused at", "reason", "episodes"), rows))
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns under a ruled header; a column of numbers is set flush right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [bool(rows) and all(row[i].isdigit() for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])


def _reason(error: str) -> str:
    """The reason without what differs from one episode to the next."""
    first = error.splitlines()[0] if error else "unknown"
    if first.startswith("duplicate id"):
        return "duplicate id"
    if first.startswith("there is no file"):
        return "there is no file"
    return re.sub(r"\d+", "#", first)[:120]
