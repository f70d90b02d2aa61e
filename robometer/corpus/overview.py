"""The head of the corpus page: counts of the whole corpus, from its manifest in a few vectorised passes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robometer.corpus.corpus import Corpus
from robometer.corpus.summary import Summary, summarise
from robometer.sampling.columns import Columns
from robometer.trajectory import QUALITY_LABELS

MAX_SOURCES, MAX_TASKS, MAX_REASONS = 100, 100, 100
MAX_BINS, MAX_TICKS = 24, 6


@dataclass(frozen=True)
class SourceRow:
    """One line of the table of sources; medians are of frames per trajectory."""

    name: str
    trajectories: int
    by_quality: dict[str, int]
    tasks: int
    stored_median: float
    source_median: float
    cutoff: float
    preference_only: bool
    supervised: int


@dataclass(frozen=True)
class TaskRow:
    """One line of the table of tasks."""

    name: str
    trajectories: int
    by_quality: dict[str, int]


@dataclass(frozen=True)
class Bar:
    """One bin: its count, its height in percent of the highest, its range in words, and its tick label or nothing."""

    count: int
    height: float
    span: str
    tick: str


@dataclass(frozen=True)
class Histogram:
    """Bins drawn with equal widths. If lengths differ by more than a decade, longer ones have wider ranges."""

    title: str
    bars: list[Bar]
    highest: int
    caption: str


@dataclass(frozen=True)
class Overview:
    """All numbers of the head. Tables hold the most frequent entries; the summary has the totals."""

    summary: Summary
    sources: list[SourceRow]
    tasks: list[TaskRow]
    histograms: list[Histogram]


def overview(corpus: Corpus, columns: Columns) -> Overview:
    """Count the whole corpus, without reading frames."""
    summary = summarise(corpus)
    source_frames = corpus.manifest["source_num_frames"].to_numpy()
    tasks = heapq.nlargest(MAX_TASKS, summary.by_task.items(), key=lambda item: sum(item[1].values()))
    return Overview(
        summary=summary,
        sources=_sources(columns, source_frames)[:MAX_SOURCES],
        tasks=[TaskRow(name, sum(counts.values()), counts) for name, counts in tasks],
        histograms=[
            histogram("Frames of the source video", source_frames),
            histogram("Frames stored", columns.num_frames),
        ],
    )


def _sources(columns: Columns, source_frames: np.ndarray) -> list[SourceRow]:
    """The sources, largest first."""
    count, labels = len(columns.sources), len(QUALITY_LABELS)
    cells = columns.source.astype(np.int64) * labels + columns.quality
    by_quality = np.bincount(cells, minlength=count * labels).reshape(count, labels)
    pairs = np.unique(columns.source.astype(np.int64) * len(columns.task_texts) + columns.task_text)
    tasks = np.bincount(pairs // max(1, len(columns.task_texts)), minlength=count)
    supervised = np.bincount(columns.source[columns.supervised], minlength=count)
    stored, source = (_medians(columns.source, values, count) for values in (columns.num_frames, source_frames))
    order = np.argsort(-by_quality.sum(axis=1), kind="stable").tolist()
    return [
        SourceRow(
            name=columns.sources[i],
            trajectories=int(by_quality[i].sum()),
            by_quality=dict(zip(QUALITY_LABELS, by_quality[i].tolist(), strict=True)),
            tasks=int(tasks[i]),
            stored_median=float(stored[i]),
            source_median=float(source[i]),
            cutoff=columns.facts[i].cutoff,
            preference_only=columns.facts[i].preference_only,
            supervised=int(supervised[i]),
        )
        for i in order
    ]


def _medians(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Median of `values` in each of `count` groups, none of which is empty; float64 [count]."""
    ordered = values[np.lexsort((values, groups))]
    sizes = np.bincount(groups, minlength=count)
    starts = np.cumsum(sizes) - sizes
    return np.asarray((ordered[starts + (sizes - 1) // 2] + ordered[starts + sizes // 2]) / 2)


def histogram(title: str, lengths: np.ndarray) -> Histogram:
    """Count lengths (whole numbers) in at most `MAX_BINS` bins, one per length if there are few."""
    if len(lengths) == 0:
        return Histogram(title, [], 0, "no trajectories")
    edges = bin_edges(int(lengths.min()), int(lengths.max()))
    counts = np.histogram(lengths, edges)[0].tolist()
    highest = max(counts)
    every = -(-len(counts) // MAX_TICKS)
    bars = [
        Bar(
            count=count,
            height=round(100 * count / highest, 2),
            span=f"{low}" if high - low == 1 else f"{low} to {high - 1}",
            tick=f"{low:,}" if i % every == 0 else "",
        )
        for i, ((low, high), count) in enumerate(zip(pairwise(edges), counts, strict=True))
    ]
    return Histogram(title, bars, highest, f"median {np.median(lengths):.0f}, {lengths.min():,} to {lengths.max():,}")


def bin_edges(low: int, high: int) -> Sequence[int]:
    """Ascending whole edges that span `low` to `high`: in equal steps, or in equal ratios over more than a decade."""
    bins = min(MAX_BINS, high - low + 1)
    if high < 10 * max(1, low):
        step = -(-(high - low + 1) // bins)
        return list(range(low, high + step + 1, step))
    edges = np.unique(np.rint(np.geomspace(max(1, low), high + 1, bins + 1)).astype(int)).tolist()
    return edges if low >= 1 else [low, *edges]
