"""Speed of evaluating, as ratios within one run: `python -m benchmarks.evaluation [--quick]`.

metrics    all evaluations with their intervals, on stored predictions
tau        policy ranking's tau in closed form, against its definition over all triples and over all pairs
prefix     a Robometer's scores of all prefixes of a clip, against one clip per prefix
actors     `pipelines.evaluate` with two actors against one, after their start, and against plain processes: the limit

The last three also check that results are equal. Each process has one torch thread, and contenders take turns. Tables
hold the median (least, most) over rounds, and ratios of medians. Times are CPU time of this process, except in
`actors`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations, product
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from benchmarks import corpora
from benchmarks.predictions import SPLIT, predictions
from benchmarks.training import by_turns, mid_size, model_config, ratio, run_parts, spread
from robometer.configs import load
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.metrics import Resampling, ranking
from robometer.evaluation.plan import plan_split
from robometer.evaluation.predict import ClipSource, predict_each
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.suite import EVALUATIONS
from robometer.models.checkpoint import save_checkpoint
from robometer.models.robometer import build_robometer, load_processor
from robometer.models.robometer_scorer import RobometerScorer
from robometer.scorers import load_scorer
from robometer.scoring import Clip, ClipScore, last_of_each

TARGET_S, TARGET_PREFIX, TARGET_ACTORS = 5, 4, 1.8

_ready: Barrier  # of the processes of `plain_rate`


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models, few clips and rounds, to check that it runs")
    parts: dict[str, Callable[[Path, bool], None]] = {
        "metrics": metrics,
        "tau": tau,
        "prefix": prefix,
        "actors": actors,
    }
    parser.add_argument("--only", choices=parts, help="run only this part")
    options = parser.parse_args()
    run_parts(parts, options)


def must_agree(apart: float, limit: float) -> str:
    """The difference as text.

    Raises:
        SystemExit: it exceeds the limit, so that the times compare different things.
    """
    if not apart <= limit:
        raise SystemExit(f"results differ by {apart:.1e}, more than {limit:.0e}")
    return f"{apart:.0e}"


# Metrics


def metrics(folder: Path, quick: bool) -> None:
    """Seconds of each evaluation by number of predictions."""
    settings, rounds = EvaluateConfig(), 1 if quick else 3
    resampling = Resampling(20 if quick else settings.bootstrap, settings.confidence, settings.seed)
    sizes = (170,) if quick else (3400, 10_200)
    sets = [predictions(size).split(SPLIT) for size in sizes]
    rows = {name: [_seconds(partial(run, p, SPLIT, resampling), rounds) for p in sets]
            for name, run in EVALUATIONS.items()}  # fmt: skip
    print(f"\nmetrics: seconds of each evaluation, {resampling.resamples} resamples, 50 tasks of three qualities")
    print(f"{'predictions of clips':<25}" + "".join(f"{len(p.clips):>26,}" for p in sets))
    print(
        f"{'of instructions, pairs':<25}" + "".join(f"{f'{len(p.instructions):,}, {len(p.pairs):,}':>26}" for p in sets)
    )
    for name, times in rows.items():
        print(f"{name:<25}" + "".join(f"{spread(seconds):>26}" for seconds in times))
    totals = [sum(statistics.median(times[i]) for times in rows.values()) for i in range(len(sets))]
    print(f"{'all':<25}" + "".join(f"{total:>26.2f}" for total in totals) + f"  (target {TARGET_S} s of 10,000)")
    peaks = [_peak_mb(partial(_all, p, resampling)) for p in sets]
    print(f"{'memory they take, MB':<25}" + "".join(f"{peak:>26.0f}" for peak in peaks))


def _all(predictions: Predictions, resampling: Resampling) -> None:
    for run in EVALUATIONS.values():
        run(predictions, SPLIT, resampling)


def _seconds(run: Callable[[], object], rounds: int) -> list[float]:
    """CPU seconds of each round."""
    return by_turns({"": run}, rounds)[""]


def _peak_mb(run: Callable[[], object]) -> float:
    """Peak memory that `run` allocates."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


# Tau


def tau(folder: Path, quick: bool) -> None:
    """Time and memory of a task's tau by trajectories per quality, and how far the three results differ."""
    rounds, most_triples = (1, 6) if quick else (3, 40)
    sizes = (6, 60) if quick else (10, 40, 200, 1000, 10_000, 100_000)
    print("\ntau: a task of three qualities with n trajectories each, by one number per trajectory; ms and peak MB")
    print(
        f"{'n':>8}{'all triples':>24}{'all pairs':>24}{'closed form':>24}{'MB':>7}{'MB of pairs':>13}  taus differ by"
    )
    for n in sizes:
        task = _task(n)
        ways: dict[str, Callable[[], float]] = {"closed": partial(tau_in_closed_form, *task)}
        if n <= most_triples:
            ways["triples"] = partial(tau_of_triples, *task)
        if n <= 1000:
            ways["pairs"] = partial(tau_of_pairs, *task)
        times, values = by_turns(dict(ways), rounds), [way() for way in ways.values()]
        cells = {name: spread([1e3 * s for s in times[name]]) if name in times else "" for name in COLUMNS}
        memory = {name: f"{_peak_mb(ways[name]):.2f}" if name in ways else "" for name in ("closed", "pairs")}
        apart = must_agree(max(values) - min(values), 1e-12) if len(values) > 1 else ""
        print(
            f"{n:>8,}{cells['triples']:>24}{cells['pairs']:>24}{cells['closed']:>24}"
            f"{memory['closed']:>7}{memory['pairs']:>13}  {apart}"
        )


COLUMNS = ("triples", "pairs", "closed")


def _task(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels int [3n] and scores float [3n] in steps of 1/200, so that some tie."""
    labels = np.repeat(np.arange(3), n)
    noise = np.random.default_rng(n).normal(0, 0.4, 3 * n)
    return labels, np.rint(200 * (labels / 3 + noise)) / 200


def _cells(labels: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    return [scores[labels == label] for label in np.unique(labels)]


def tau_in_closed_form(labels: np.ndarray, scores: np.ndarray) -> float:
    """Our implementation."""
    return ranking(labels, scores).tau


def tau_of_triples(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition: the mean of tau-a over all n^3 choices of one trajectory per quality."""
    total, count = 0, 0
    for a, b, c in product(*(cell.tolist() for cell in _cells(labels, scores))):
        total += (b > a) - (b < a) + (c > a) - (c < a) + (c > b) - (c < b)
        count += 3
    return total / count


def tau_of_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """The mean over pairs of qualities of the mean sign over all pairs of trajectories, as n x n matrices."""
    signs = [np.sign(high[None, :] - low[:, None]).mean() for low, high in combinations(_cells(labels, scores), 2)]
    return float(np.mean(signs))


# Prefixes


def prefix(folder: Path, quick: bool) -> None:
    """Times of a clip's prefixes by the most frames that the model was trained on."""
    base, frames, rounds, count = ("tiny", 12, 1, 1) if quick else (str(mid_size(folder / "model")), 32, 3, 2)
    config = model_config(base)
    torch.manual_seed(0)
    model, processor = build_robometer(config)[0], load_processor(config)
    clips = [_clip(frames, seed, 64 if quick else 160) for seed in range(count)]
    size = config.evaluate.batch_size
    print(f"\nprefix: {count} clips of {frames} frames; batches of {size}, which show a frame to the tower once")
    names = f"{'max_frames':>10}{'at once s':>22}{'batched s':>22}{'ratio':>7}{'one by one s':>22}{'ratio':>7}"
    print(f"{names}  scores differ by")
    for max_frames in (frames, frames // 4):
        config.sampling.max_frames = max_frames
        ways = _ways(RobometerScorer(model, processor, config), clips)
        shared, *others = (_values(way()) for way in ways.values())
        apart = must_agree(max(float(np.abs(shared - other).max()) for other in others), 1e-4)
        times = by_turns(dict(ways), rounds)
        naive = "".join(
            f"{spread(times[name]):>22}{ratio(times[name], times['shared']):>7.2f}" for name in ("batched", "single")
        )
        print(f"{max_frames:>10}{spread(times['shared']):>22}{naive}  {apart}")
    print(
        f"(target {TARGET_PREFIX} where max_frames is the clip's length; a shorter one thins each longer prefix anew)"
    )


def _ways(scorer: RobometerScorer, clips: Sequence[Clip]) -> dict[str, Callable[[], list[ClipScore]]]:
    """Our way, each prefix as its own clip, and the same without batches, as in a session."""

    def single() -> list[ClipScore]:
        return [last_of_each([scorer.score([part])[0] for part in _prefixes(clip)]) for clip in clips]

    return {
        "shared": partial(scorer.score_prefixes, clips),
        "batched": lambda: [last_of_each(scorer.score(_prefixes(clip))) for clip in clips],
        "single": single,
    }


def _clip(frames: int, seed: int, edge: int) -> Clip:
    """Frames of noise, all different, so that no frame is shared by chance."""
    shape = (frames, edge, edge, 3)
    return Clip(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), "open the drawer")


def _prefixes(clip: Clip) -> list[Clip]:
    return [clip.take(np.arange(n)) for n in range(1, len(clip) + 1)]


def _values(scores: Sequence[ClipScore]) -> np.ndarray:
    return np.concatenate([[score.progress, score.success] for score in scores], axis=1)


# Actors


def actors(folder: Path, quick: bool) -> None:
    """Clips per second of one and of two actors while all of them work, from the times at which files were written.

    Plain processes that only predict show this machine's limit: actors share the cores with Ray's own processes.
    """
    from pipelines.cluster import connected
    from pipelines.predict import QUERIES_PER_PART

    corpus = corpora.bundled(folder / "corpus", 160 if quick else 800)
    base, rounds = ("tiny", 1) if quick else (str(mid_size(folder / "model")), 3)
    splits = sorted(set(corpus.manifest["split"].to_pylist()))
    checkpoint = _checkpoint(folder / "checkpoint", base)
    settings = [f"corpus.path={folder / 'corpus'}", f"evaluate.scorer={checkpoint}"]
    settings += [f"evaluate.splits=[{','.join(splits)}]", "evaluate.evaluations=[success_detection]"]
    settings += ["evaluate.bootstrap=0", "tracking.uri=none"]
    counts, walls = (1, 2), defaultdict[int, list[float]](list)
    rates, limits = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for number in range(rounds):
        for count in counts[:: 1 if number % 2 else -1]:
            limits[count].append(plain_rate(folder, splits[0], count, 2 if quick else 20))
            with connected(load(settings)):
                output = folder / f"{count}-{number}"
                walls[count].append(_evaluate(settings, output, count))
            rates[count].append(QUERIES_PER_PART * steady_rate(_written_s(output), count))
    one, two = (Predictions.load(Storage(str(folder / f"{count}-0"))) for count in counts)
    print(
        f"\nactors: {len(one.clips)} clips forwards, parts of {QUERIES_PER_PART}; {rounds} fresh runs of each, in turn"
    )
    print(f"{'':>6}{'actors, clips/s':>26}{'ratio':>7}{'plain processes, clips/s':>26}{'ratio':>7}{'whole job s':>26}")
    for count in counts:
        columns = "".join(f"{spread(r[count]):>26}{ratio(r[count], r[1]):>7.2f}" for r in (rates, limits))
        print(f"{count:>6}{columns}{spread(walls[count], 1):>26}")
    print(f"(target {TARGET_ACTORS} on 2 free cores) predictions differ by {must_agree(_difference(one, two), 1e-5)}")


def plain_rate(folder: Path, split: str, count: int, seconds: float) -> float:
    """Clips per second of `count` processes together, without Ray, after all of them are ready."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count)
    with ProcessPoolExecutor(count, context, initializer=_hold, initargs=(ready,)) as pool:
        return sum(pool.map(_predict_for, [str(folder)] * count, [split] * count, [seconds] * count))


def _hold(ready: Barrier) -> None:
    global _ready
    _ready = ready
    torch.set_num_threads(1)


def _predict_for(folder: str, split: str, seconds: float) -> float:
    corpus, scorer = Corpus(f"{folder}/corpus"), load_scorer(f"{folder}/checkpoint", "cpu")
    source, batch = ClipSource.for_scorer(corpus, scorer), EvaluateConfig().batch_size
    units = plan_split(corpus, split, 2 * batch, 0, 0, ["success_detection"])
    predict_each(scorer, source, units, batch)
    _ready.wait()
    started, clips = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        predict_each(scorer, source, units, batch)
        clips += len(units)
    return clips / (time.perf_counter() - started)


def _checkpoint(folder: Path, base: str) -> Path:
    """A Robometer with random weights."""
    config = model_config(base)
    config.sampling.max_frames = 8
    torch.manual_seed(0)
    save_checkpoint(folder, build_robometer(config)[0].state_dict(), config, {})
    return folder


def _evaluate(settings: Sequence[str], output: Path, count: int) -> float:
    """Wall seconds of a whole evaluation, report included."""
    from pipelines.evaluate import run_evaluate

    started = time.perf_counter()
    run_evaluate(load([*settings, f"evaluate.output={output}", f"evaluate.actors={count}"]))
    return time.perf_counter() - started


def _written_s(output: Path) -> list[float]:
    """The times at which the parts of an evaluation were written, in seconds."""
    from pipelines.predict import PARTS

    return [file.stat().st_mtime_ns / 1e9 for file in (output / PARTS).glob("*.parquet")]


def steady_rate(written_s: Sequence[float], count: int) -> float:
    """Parts per second of `count` actors while all of them work, from the times at which parts were written.

    The first parts wait for Ray and the model. At the end some actors are idle, and the last part holds fewer clips. So
    counting starts at the `count`-th part and leaves out the last `count`.
    """
    times = sorted(written_s)
    if len(times) < 2 * count + 1:
        raise SystemExit(f"{len(times)} parts are too few for a rate of {count} actors")
    between = times[count - 1 : len(times) - count]
    return (len(between) - 1) / (between[-1] - between[0])


def _difference(one: Predictions, two: Predictions) -> float:
    """Largest difference in progress or success; both sets must hold the same clips in the same order."""
    if [(c.id, c.view) for c in one.clips] != [(c.id, c.view) for c in two.clips]:
        raise SystemExit("one and two actors did not predict the same clips")
    pairs = zip(one.clips, two.clips, strict=True)
    return max(float(np.abs(getattr(a, n) - getattr(b, n)).max()) for a, b in pairs for n in ("progress", "success"))


if __name__ == "__main__":
    main()
