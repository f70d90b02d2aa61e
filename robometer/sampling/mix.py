"""What a stream of samples looks like on a corpus: the shares of its strategies and sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import SamplePlan

MIX_SAMPLES = 4096
SOURCES_SHOWN = 10

Histograms = dict[str, dict[str, int]]
"""Counts by name, under `strategies` and `sources`."""


def describe_mix(index: ManifestIndex, plans: Iterable[SamplePlan]) -> Histograms:
    """Histograms of plans: samples by `kind/strategy`, and their trajectories by source."""
    strategies, sources = Counter[str](), Counter[str]()
    for sample in plans:
        strategies[f"{sample.kind}/{sample.strategy}"] += 1
        sources.update(index.columns.source_of(clip.row) for clip in (sample.a, sample.b) if clip is not None)
    return {"strategies": dict(sorted(strategies.items())), "sources": dict(sorted(sources.items()))}


def effective_mix(index: ManifestIndex, seed: int) -> Histograms:
    """Histograms of the first 4096 samples of a stream (about 0.2 s), where the ratios meet the corpus."""
    return describe_mix(index, (plan(index, index.config, seed, i) for i in range(MIX_SAMPLES)))


def in_words(histograms: Histograms) -> str:
    """One line: the shares of all strategies and of the most frequent sources."""
    strategies, sources = (_shares(histograms[name]) for name in ("strategies", "sources"))
    more = f", and {len(sources) - SOURCES_SHOWN} more sources" if len(sources) > SOURCES_SHOWN else ""
    return f"{', '.join(strategies)}; trajectories of {', '.join(sources[:SOURCES_SHOWN])}{more}"


def _shares(counts: dict[str, int]) -> list[str]:
    total = sum(counts.values())
    return [f"{name} {100 * count / total:.1f} %" for name, count in Counter(counts).most_common()]
