"""Group c_metrics: correlations, areas, errors and whole evaluations.

Where upstream is wrong, its number is that of `parity.measures.measures`, and a second row gives our value.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch

from parity.groups import evaluations
from parity.recorded import EXACT, FLOAT32, FLOAT64, Record, compared, raised, read, unless_wrong
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.upstream import measures
from robometer.evaluation import metrics
from robometer.evaluation.measures.partial_success import grade
from robometer.evaluation.predictions import PairPrediction
from robometer.training.losses import progress_error


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    for name, compare in _FILES.items():
        for i, record in enumerate(read(recorded_set.folder / "c_metrics" / f"{name}.json")):
            yield from compare(f"c_metrics/{name}_{i:03d}", record)


def _correlations(case: str, record: Record) -> Iterator[Row]:
    x, y = (np.array(record[name], dtype=float) for name in ("y_true", "y_pred"))
    for name, function in (
        ("pearson", metrics.pearson),
        ("spearman", metrics.spearman),
        ("kendall", measures.kendall),
    ):
        if record[name]["ok"]:
            yield compared(case, name, function(x, y), record[name]["value"], FLOAT64)
        else:
            yield raised(case, name, record[name], function(x, y))
    if record["kendall"]["ok"]:
        unknown, reason = bool(np.isnan(np.r_[x, y]).any()), "upstream lets a NaN lose every comparison"
        ours, theirs = metrics.kendall(x, y), record["kendall"]["value"]
        yield unless_wrong(case, "our kendall", ours, theirs, FLOAT64, unknown, reason)


def _tensor_spearman(case: str, record: Record) -> Iterator[Row]:
    prediction, target, mask = (np.array(record[name], dtype=np.float32) for name in ("pred", "target", "mask"))
    for name, used in (("nomask", None), ("mask", mask)):
        each = measures.frame_spearman(prediction, target, used)
        yield compared(case, f"per row, {name}", each.tolist(), record[f"per_{name}"], FLOAT32)
        yield compared(case, f"mean, {name}", float(each.mean()), record[f"agg_{name}"], FLOAT32)
    if record["one_d"]["ok"]:
        first = measures.frame_spearman(prediction[:1], target[:1])
        yield compared(case, "one row alone", float(first[0]), record["one_d"]["value"], FLOAT32)
    else:
        value = metrics.spearman(prediction[0], target[0])
        yield raised(case, "one row alone", record["one_d"], value)


def _auc_mse_mae(case: str, record: Record) -> Iterator[Row]:
    scores, labels = (np.array(record[name], dtype=np.float32) for name in ("scores", "labels"))
    ours = float(metrics.auroc(scores, labels)[0])
    yield compared(case, "auc", measures.auroc(scores, labels), record["auc"], FLOAT32)
    reason = "upstream's area is 1/2 with one class only, where it is undefined"
    one_class = len(np.unique(labels)) < 2
    yield unless_wrong(case, "our auc", ours, record["auc"], FLOAT32, one_class, reason)
    reason = "upstream's own fallback adds trapezoids without width, so it is not the area under the curve"
    yield unless_wrong(case, "manual_auc", ours, record["manual_auc"], FLOAT32, True, reason)
    yield compared(case, "accuracy", measures.accuracy(scores, labels, 0.0), record["accuracy_at_0"], FLOAT32)
    values, truth = torch.from_numpy(scores)[:, None], torch.from_numpy(labels)
    for name, kind in (("mse", "l2"), ("mae", "l1")):
        yield compared(case, name, float(progress_error(values, truth, kind).mean()), record[name], FLOAT32)


def _trajectory_rewards(case: str, record: Record) -> Iterator[Row]:
    progress = np.array(record["progress_pred"], dtype=np.float32)
    for name, aggregate in (("last", "last"), ("sum", "sum"), ("average", "avg")):
        ours = measures.trajectory_reward(progress, aggregate, record["progress_pred_type"] == "relative")
        if record[name]["ok"]:
            yield compared(case, name, ours, record[name]["value"], FLOAT32)
        else:
            yield raised(case, name, record[name], ours)


def _pair(result: Record) -> PairPrediction:
    """A recorded preference as ours: the clip that the label names is the chosen one."""
    task, (prediction,) = result["task"], result["preference_pred"]
    first = prediction if result["preference_labels"] == 1.0 else 1.0 - prediction
    a, b = (result["metadata"][f"{side}_metadata"]["quality_label"] for side in ("chosen", "rejected"))
    return PairPrediction("s", "quality", task, "a", "b", a, b, first, math.nan)


def _answered(result: Record, graded: bool) -> bool:
    """Upstream leaves out a pair of which a clip has no label, or in a graded source no grade."""
    name = "partial_success" if graded else "quality_label"
    sides = (result["metadata"][f"{side}_metadata"][name] for side in ("chosen", "rejected"))
    return result["preference_pred"] is not None and None not in sides


def _quality_preference(case: str, record: Record) -> Iterator[Row]:
    output, graded = record["output"], measures.is_graded(record["data_source"])
    pairs = [_pair(result) for result in record["results"] if _answered(result, graded)]
    if not output["ok"]:
        yield raised(case, "accuracy", output, measures.preference_accuracy(pairs))
        return
    expected = output["value"]
    if not pairs:
        yield compared(case, "no pair was answered", 0.0, float("error" not in expected["metrics"]), EXACT)
        return
    accuracy = {"preference_accuracy": measures.preference_accuracy(pairs)}
    yield compared(case, "accuracy", accuracy, expected["metrics"], FLOAT64)
    tasks: dict[str, list[PairPrediction]] = defaultdict(list)
    for pair in pairs:
        tasks[pair.task].append(pair)
    details = {
        task: {
            "preference_accuracy": measures.preference_accuracy(members),
            "num_correct": sum(pair.chosen_first > 0.5 for pair in members),
            "num_total": len(members),
            "quality_accuracies": None if graded else measures.preference_by_quality(members),
        }
        for task, members in tasks.items()
    }
    yield compared(case, "per task", details, expected["task_details"], FLOAT64)
    sizes = {task: len(members) for task, members in tasks.items()}
    yield compared(case, "sizes", sizes, expected["task_sizes"], EXACT)


def _preference_accuracy(case: str, record: Record) -> Iterator[Row]:
    answers = [(r["predicted_preference"], r["preference_label"]) for r in record["results"]]
    asked = [float(answer == label) for answer, label in answers if answer is not None]
    lasts = [(r["progress_pred_chosen"][-1], r["progress_pred_rejected"][-1]) for r in record["results"]]
    for name, first in (("accuracy", asked), ("accuracy_from_progress", [float(a > b) for a, b in lasts])):
        pairs = [PairPrediction("s", "quality", "t", "a", "b", "", "", value, math.nan) for value in first]
        ours = {"num_correct": int(sum(first)), "num_total": len(first), "num_skipped": len(answers) - len(first)}
        expected = dict(record[name])
        theirs = expected.pop("preference_accuracy")
        yield compared(case, f"{name}, counts", ours, expected, EXACT)
        value = measures.preference_accuracy(pairs)
        reason = "upstream's accuracy of no pair is 0, where it is undefined"
        yield unless_wrong(case, name, value, theirs, FLOAT64, not pairs, reason)


def _roboreward_mae(case: str, record: Record) -> Iterator[Row]:
    for side in ("pred", "gt"):
        bins = grade(np.array(record[side]))
        yield compared(case, f"bins of {side}", bins.tolist(), record[f"{side}_bins"], EXACT)
    yield compared(case, "mae", measures.grade_error(record["pred"], record["gt"]), record["mae"], FLOAT64)


_FILES: dict[str, Callable[[str, Record], Iterator[Row]]] = {
    "correlations": _correlations,
    "tensor_spearman": _tensor_spearman,
    "auc_mse_mae": _auc_mse_mae,
    "trajectory_rewards": _trajectory_rewards,
    "policy_ranking": evaluations.policy_ranking,
    "confusion_matrix": evaluations.confusion_matrix,
    "reward_alignment": evaluations.reward_alignment,
    "quality_preference": _quality_preference,
    "preference_accuracy": _preference_accuracy,
    "roboreward_mae": _roboreward_mae,
}
