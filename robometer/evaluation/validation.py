"""A quick evaluation during training: few clips, no intervals, no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robometer.baselines.trivial import Random
from robometer.corpus.corpus import Corpus
from robometer.evaluation.measures import policy_ranking, preference, reward_alignment, success_detection
from robometer.evaluation.plan import Query, plan_split
from robometer.evaluation.predict import ClipSource, predict
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.views import FORWARD, REVERSED
from robometer.scoring import Clip, Scorer
from robometer.trajectory import SUCCESSFUL

BATCH_SIZE = 16


def validate(
    scorer: Scorer, corpus: Corpus, splits: Sequence[str], max_clips: int, seed: int, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """Point estimates of the metrics of `summary`, by `split/metric`.

    Each split gives at most `max_clips` clips, balanced over tasks and qualities, and about as many pairs of different
    quality. Metrics that a split cannot define (because it lacks a quality, or is empty) are left out.
    """
    return _validate(scorer, ClipSource.for_scorer(corpus, scorer), splits, max_clips, seed, batch_size)


def measurable(corpus: Corpus, splits: Sequence[str], max_clips: int, seed: int) -> list[str]:
    """The metrics that `validate` gives, as `split/metric`; these follow from the labels, and no frame is read."""
    return list(_validate(Random(), _Unseen(corpus, None), splits, max_clips, seed, BATCH_SIZE))


class _Unseen(ClipSource):
    """Clips of the right length that show the number of their row."""

    def clip(self, row: int, task: str) -> Clip:
        pixel = np.array([row & 255, row >> 8 & 255, row >> 16 & 255], dtype=np.uint8)
        return Clip(np.broadcast_to(pixel, (self.num_frames(row), 1, 1, 3)), task)


def _validate(
    scorer: Scorer, source: ClipSource, splits: Sequence[str], max_clips: int, seed: int, batch_size: int
) -> dict[str, float]:
    values: dict[str, float] = {}
    corpus = source.corpus
    for split in splits:
        per_task = max(1, max_clips // max(1, len(np.unique(_tasks(corpus, split)))))
        queries = plan_split(corpus, split, max_clips, per_task, seed, ["preference", "reward_alignment"])
        queries = [_quick(query) for query in queries if query.pair_kind in ("", "quality")]
        metrics = summary(Predictions.of(predict(scorer, source, queries, batch_size)))
        values |= {f"{split}/{name}": value for name, value in metrics.items() if math.isfinite(value)}
    return values


def _quick(query: Query) -> Query:
    return replace(query, views=tuple(view for view in query.views if view in (FORWARD, REVERSED)))


def summary(predictions: Predictions) -> dict[str, float]:
    """The headline numbers of one split; NaN if undefined."""
    good = [c for c in predictions.clips if c.quality_label == SUCCESSFUL]
    ranking = policy_ranking.summary(predictions.clips)
    return {
        "voc": reward_alignment.mean_correlation([c for c in good if c.view == FORWARD]),
        "voc_reversed": reward_alignment.mean_correlation([c for c in good if c.view == REVERSED]),
        "kendall": ranking["kendall"],
        "ranking_accuracy": ranking["accuracy"],
        "preference_accuracy": preference.accuracy([p for p in predictions.pairs if p.kind == "quality"]),
        "success_auroc": success_detection.clip_auroc(predictions.clips),
    }


def _tasks(corpus: Corpus, split: str) -> np.ndarray:
    tasks = np.asarray(corpus.manifest["task"].to_pylist(), dtype=str)
    return np.asarray(tasks[corpus.rows(split)])
