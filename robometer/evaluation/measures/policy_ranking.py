"""Policy ranking: within a task, do better clips get more progress? failure < suboptimal < successful."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.metrics import MIN_TASKS_TO_RESAMPLE, Estimate, Ranking, Resampling
from robometer.evaluation.predictions import ClipPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row
from robometer.evaluation.views import FORWARD
from robometer.trajectory import QUALITY_LABELS

NAME = "policy_ranking"

REWARDS: dict[str, Callable[[ClipPrediction], float]] = {
    "last": lambda clip: clip.value,
    "mean": lambda clip: float(clip.progress.mean()),
    "sum": lambda clip: float(clip.progress.sum()),
}
"""The number that a clip is ranked by. `last` is the scorer's own ranking value if it gives one. `sum` is what a policy
that is paid per frame would get: of two similar clips, the longer one gets more."""

_MEANINGS = {
    "kendall": "tau-a over one clip of each quality, by {} progress, mean over tasks",
    "kendall_ceiling": "what kendall would be if all pairs that {} progress does not tie were in order",
    "accuracy": "pairs of different quality in the right order by {} progress; a tie counts 1/2",
    "tau_b": "Kendall tau-b over all clips of a task by {} progress, mean over tasks",
    "tau_b_ceiling": "the largest possible tau_b, since clips of one quality tie",
}


@dataclass(frozen=True)
class _Task:
    """The clips of one task: labels int [N] and rewards float [N]."""

    labels: np.ndarray
    rewards: np.ndarray

    def ranking(self) -> Ranking:
        return metrics.ranking(self.labels, self.rewards)

    def replicates(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Tau, its ceiling, and the pairs in the right order, each [B]; clips count `weights` [B, N] times."""
        counts = metrics.compare_labels(self.labels, self.rewards, weights)
        return {
            "kendall": np.mean([c.tau for c in counts], axis=0),
            "kendall_ceiling": np.mean([c.ceiling for c in counts], axis=0),
            "correct": np.sum([c.correct for c in counts], axis=0),
        }


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Ranking metrics by the last, the mean and the summed progress; tasks with only one quality do not count."""
    clips = [c for c in predictions.clips if c.view == FORWARD]
    by_reward = {name: _tasks(clips, reward) for name, reward in REWARDS.items()}
    if not by_reward["last"]:
        return Result(NAME, split, skipped="no task has clips of two qualities")
    results = [m for name, tasks in by_reward.items() for m in _metrics(name, tasks, settings)]
    strips: list[Row] = [
        {"task": c.task, "quality": c.quality_label, "id": c.id, "progress": float(c.progress[-1])}
        for c in clips
        if c.task in by_reward["last"]
    ]
    return Result(NAME, split, results, _per_task(by_reward["last"]), strips=strips)


def _tasks(clips: Sequence[ClipPrediction], reward: Callable[[ClipPrediction], float]) -> dict[str, _Task]:
    groups: dict[str, list[ClipPrediction]] = defaultdict(list)
    for clip in clips:
        groups[clip.task].append(clip)
    tasks = {
        name: _Task(
            np.array([QUALITY_LABELS.index(c.quality_label) for c in members]), np.array([reward(c) for c in members])
        )
        for name, members in sorted(groups.items())
    }
    return {name: task for name, task in tasks.items() if len(np.unique(task.labels)) > 1}


def summary(clips: Sequence[ClipPrediction]) -> dict[str, float]:
    """Mean tau (`kendall`) and pooled pair `accuracy` by last-frame progress; NaN if no task has two qualities."""
    tasks = _tasks([c for c in clips if c.view == FORWARD], REWARDS["last"])
    values = _statistics({name: task.ranking() for name, task in tasks.items()})
    return {"kendall": values["kendall"], "accuracy": values["accuracy"]}


def _statistics(rankings: Mapping[str, Ranking]) -> dict[str, float]:
    if not rankings:
        return dict.fromkeys(("kendall", "kendall_ceiling", "accuracy"), math.nan)
    values = list(rankings.values())
    return {
        "kendall": float(np.mean([r.tau for r in values])),
        "kendall_ceiling": float(np.mean([r.ceiling for r in values])),
        "accuracy": sum(r.correct for r in values) / sum(r.pairs for r in values),
    }


def _metrics(reward: str, tasks: Mapping[str, _Task], settings: Resampling) -> list[Metric]:
    estimates = _over_tasks(tasks, settings) if len(tasks) >= MIN_TASKS_TO_RESAMPLE else _over_clips(tasks, settings)
    word = {"last": "last-frame", "sum": "summed"}.get(reward, reward)
    kinds = {"accuracy": "pairs"}
    return [
        Metric(f"{name}_{reward}", value, kinds.get(name, "tasks"), _MEANINGS[name].format(word))
        for name, value in estimates.items()
    ]


def _over_tasks(tasks: Mapping[str, _Task], settings: Resampling) -> dict[str, Estimate]:
    rankings = [task.ranking() for task in tasks.values()]
    each = np.arange(len(rankings))

    def mean(values: Sequence[float], base: Sequence[float] | None = None) -> Estimate:
        undefined = int(np.isnan(values).sum())
        return metrics.estimate(metrics.weighted_mean(np.nan_to_num(values), base), each, "task", settings, undefined)

    pairs = [float(r.pairs) for r in rankings]
    accuracy = mean([r.accuracy for r in rankings], pairs)
    return {
        "kendall": mean([r.tau for r in rankings]),
        "kendall_ceiling": mean([r.ceiling for r in rankings]),
        "accuracy": replace(accuracy, n=int(sum(pairs)), effective_n=_effective_pairs(rankings, accuracy.replicates)),
        "tau_b": mean([_tau_b(task) for task in tasks.values()]),
        "tau_b_ceiling": mean([metrics.tau_b_ceiling(task.labels) for task in tasks.values()]),
    }


def _over_clips(tasks: Mapping[str, _Task], settings: Resampling) -> dict[str, Estimate]:
    rankings = {name: task.ranking() for name, task in tasks.items()}
    clips = sum(len(task.labels) for task in tasks.values())
    pairs = sum(r.pairs for r in rankings.values())
    drawn = _over_draws(tasks, settings, pairs)
    estimates = {}
    for name, value in _statistics(rankings).items():
        replicates = drawn[name]
        low, high = metrics.percentile_interval(replicates, settings.confidence)
        n, effective = len(tasks), math.nan  # tasks themselves are not resampled
        if name == "accuracy":
            n, effective = pairs, _effective_pairs(list(rankings.values()), replicates)
        estimates[name] = Estimate(value, low, high, n, "trajectory", clips, 0, replicates, effective)
    return estimates


def _over_draws(tasks: Mapping[str, _Task], settings: Resampling, pairs: int) -> dict[str, np.ndarray]:
    """`_statistics` [resamples] of clips that are resampled within each label of a task: no label disappears."""
    rng = np.random.default_rng(settings.seed)
    replicates = []
    for task in tasks.values():
        weights = np.empty((settings.resamples, len(task.labels)))
        for value in np.unique(task.labels):
            cell = np.flatnonzero(task.labels == value)
            weights[:, cell] = rng.multinomial(len(cell), np.full(len(cell), 1 / len(cell)), size=settings.resamples)
        replicates.append(task.replicates(weights))
    means = {name: np.mean([values[name] for values in replicates], axis=0) for name in ("kendall", "kendall_ceiling")}
    return means | {"accuracy": np.sum([values["correct"] for values in replicates], axis=0) / pairs}


def _effective_pairs(rankings: Sequence[Ranking], replicates: np.ndarray) -> float:
    """Effective n of pairs, which share clips and tasks; a pair is 1, 1/2 (a tie) or 0."""
    pairs, correct, ties = (sum(getattr(r, name) for r in rankings) for name in ("pairs", "correct", "ties"))
    return metrics.effective_n((correct - ties / 4) / pairs - (correct / pairs) ** 2, replicates)


def _tau_b(task: _Task) -> float:
    from scipy.stats import kendalltau  # takes a second, which a worker that trains does without

    return float(kendalltau(task.labels, task.rewards, variant="b").statistic)


def _per_task(tasks: Mapping[str, _Task]) -> list[Row]:
    rows: list[Row] = []
    for name, task in tasks.items():
        ranking = task.ranking()
        means: Row = {
            f"mean_{label}": float(task.rewards[task.labels == i].mean()) if (task.labels == i).any() else math.nan
            for i, label in enumerate(QUALITY_LABELS)
        }
        counts: Row = {"task": name, "clips": len(task.labels), "pairs": ranking.pairs}
        rows.append(counts | {"kendall": ranking.tau, "accuracy": ranking.accuracy} | means)
    return rows
