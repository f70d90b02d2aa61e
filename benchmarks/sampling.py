"""The cost of a training sample: `python -m benchmarks.sampling` prints two tables in about a minute.

The first shows building an index and drawing plans, by size of the manifest; the sizes take turns, so that a busy
machine slows all of them alike. The second shows the way from plan to batch, on a corpus with frames. All rates are per
second of CPU time of this process, which has one busy thread.
"""

from __future__ import annotations

import gc
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch

from benchmarks import corpora
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.models.checkpoint import build_collator
from robometer.models.collate import collate_targets
from robometer.models.config import ModelConfig
from robometer.sampling.config import Mode, SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import SamplePlan

SIZES = (10**4, 10**5, 10**6)
MODES = ("trajectory_first", "strategy_first")
ROUNDS, ROUND_SAMPLES, WARM_UP = 7, 4000, 20_000
TRAJECTORIES, BATCHES, BATCH_SIZE = 200, 5, 16


@dataclass(frozen=True)
class Memory:
    """An index's build time, its size in the object store, and the growth of the process."""

    build_s: float
    size_mb: float
    rss_mb: float


def settings(mode: str, max_frames: int = 8) -> SamplingConfig:
    """Settings with both kinds of sample and all strategies."""
    config = SamplingConfig(mode=cast(Mode, mode), max_frames=max_frames)
    config.preference_strategies.paired = 1.0
    return config


def memory(mode: str, size: int) -> Memory:
    """Build one index in this process, which must do nothing else."""
    table = corpora.manifest(size)
    ManifestIndex.from_table(table.slice(0, 1000), settings(mode))  # imports and caches
    gc.collect()
    before, started = _rss_mb(), time.process_time()
    index = ManifestIndex.from_table(table, settings(mode))
    seconds = time.process_time() - started
    gc.collect()
    return Memory(seconds, len(pickle.dumps(index, protocol=5)) / 1e6, _rss_mb() - before)


def _rss_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


def plan_rates(mode: str) -> dict[int, list[float]]:
    """Samples per CPU second in each round, by size of the manifest."""
    indices = {size: ManifestIndex.from_table(corpora.manifest(size), settings(mode)) for size in SIZES}
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for index in indices.values():
        _draw(index, 0, WARM_UP)
    for number in range(ROUNDS):
        for size, index in indices.items():
            started = time.process_time()
            _draw(index, WARM_UP + number * ROUND_SAMPLES, ROUND_SAMPLES)
            rates[size].append(ROUND_SAMPLES / (time.process_time() - started))
    return rates


def _draw(index: ManifestIndex, first: int, count: int) -> list[SamplePlan]:
    return [plan(index, index.config, 1, i) for i in range(first, first + count)]


def print_plans() -> None:
    """Print the first table."""
    print("Sampling: plans of 8 frames, all strategies; median (least, most) of 7 rounds of 4,000")
    print(f"{'mode':<17}{'rows':>9}{'build s':>9}{'index MB':>10}{'RSS MB':>8}{'plans/s/core':>28}")
    for mode in MODES:
        rates = plan_rates(mode)
        for size in SIZES:
            with get_context("spawn").Pool(1) as pool:  # a separate process, so that RSS covers only this index
                cost = pool.apply(memory, (mode, size))
            spread = f"{statistics.median(rates[size]):,.0f} ({min(rates[size]):,.0f}, {max(rates[size]):,.0f})"
            print(f"{mode:<17}{size:>9}{cost.build_s:>9.2f}{cost.size_mb:>10.1f}{cost.rss_mb:>8.1f}{spread:>28}")
        ratio = statistics.median(large / small for small, large in zip(rates[SIZES[0]], rates[SIZES[-1]], strict=True))
        print(f"{mode:<17}rate at 10^6 : rate at 10^4 = {ratio:.2f}")


def print_input() -> None:
    """Print the second table."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpora.corpus(Path(folder), TRAJECTORIES)
        config = Config(sampling=settings("trajectory_first"), model=ModelConfig(kind="robometer", base_model="tiny"))
        config.sampling.progress = 0.0  # pairs only
        index = ManifestIndex.from_table(corpus.manifest, config.sampling)
        size_kb = sum(corpus.manifest["size_bytes"].to_pylist()) / TRAJECTORIES / corpora.NUM_FRAMES / 1e3
        shape = f"2 x 8 frames of 240 x 320 px, {size_kb:.1f} kB of JPEG each"
        print(f"\nTraining input: pairs of {shape}; batches of {BATCH_SIZE}")
        print(f"{'up to':<44}{'samples/s/core':>16}{'ms/sample':>11}")
        collate = build_collator(config, corpus)
        stages: dict[str, Callable[[Sequence[SamplePlan]], object]] = {
            "plan": lambda plans: plans,
            "plan, fetch, decode": lambda plans: [_frames(corpus, sample) for sample in plans],
            "plan, fetch, decode, batch of frames": lambda plans: _batch(corpus, plans),
            "plan, fetch, decode, batch of Robometer": collate,
        }
        for name, stage in stages.items():
            seconds = statistics.median(_cost(index, stage, number) for number in range(-1, BATCHES))
            print(f"{name:<44}{BATCH_SIZE / seconds:>16,.1f}{1e3 * seconds / BATCH_SIZE:>11.2f}")


def _cost(index: ManifestIndex, stage: Callable[[Sequence[SamplePlan]], object], number: int) -> float:
    """CPU seconds of a batch."""
    started = time.process_time()
    stage(_draw(index, (number + 1) * BATCH_SIZE, BATCH_SIZE))
    return time.process_time() - started


def _frames(corpus: Corpus, sample: SamplePlan) -> list[np.ndarray]:
    return [corpus.frames(clip.row, clip.positions) for clip in (sample.a, sample.b) if clip is not None]


def _batch(corpus: Corpus, plans: Sequence[SamplePlan]) -> object:
    """Frames uint8 [frames of the batch, H, W, 3], and the targets."""
    frames = [clip for sample in plans for clip in _frames(corpus, sample)]
    return collate_targets(plans, {"frames": torch.from_numpy(np.concatenate(frames))})


def main() -> None:
    """Print both tables."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print_plans()
    print_input()


if __name__ == "__main__":
    main()
