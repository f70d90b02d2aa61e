"""Parity of the metrics: every record of `c_metrics` by `robometer.evaluation.upstream`, and by our own definitions.

Where both agree, our own function is what is compared. Where upstream is wrong, a second row gives our value.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robometer import metrics
from robometer.batch import progress_from_logits
from robometer.evaluation import policy_ranking, upstream
from robometer.evaluation.confusion_matrix import diagonal_gap, matrix_of
from robometer.evaluation.predictions import FORWARD, ClipPrediction, InstructionPrediction, PairPrediction
from robometer.evaluation.upstream import Judged, Values
from robometer.losses import progress_error
from robometer.parity.recorded import brief, gap, read
from robometer.parity.table import Row
from robometer.sampling.targets import decode_bins, nearest_bin

EXACT, FLOAT64, FLOAT32 = 0.0, 1e-9, 1e-5

Record = dict[str, Any]
GRADED = ("roboreward", "roboarena")
"""A source whose name contains one of these is ranked by partial success."""


def rows(folder: Path) -> Iterator[Row]:
    """One row or more for each record of `folder`/c_metrics."""
    for name, compare in _FILES.items():
        for i, record in enumerate(read(folder / "c_metrics" / f"{name}.json")):
            yield from compare(f"c_metrics/{name}_{i:03d}", record)


def _row(case: str, what: str, ours: Any, theirs: Any, tolerance: float) -> Row:
    return Row(case, what, gap(ours, theirs), tolerance)


def _where_wrong(case: str, what: str, ours: Any, theirs: Any, tolerance: float, reason: str) -> Iterator[Row]:
    """A row only where upstream's mistake makes another value than ours."""
    if (error := gap(ours, theirs)) > tolerance:
        yield Row(case, what, error, tolerance, reason, brief(ours))


def _correlations(case: str, record: Record) -> Iterator[Row]:
    x, y = (np.array(record[name], dtype=float) for name in ("y_true", "y_pred"))
    for name, ours, compat in (
        ("pearson", metrics.pearson, metrics.pearson),
        ("spearman", metrics.spearman, metrics.spearman),
        ("kendall", metrics.kendall, upstream.kendall),
    ):
        if not record[name]["ok"]:
            reason = f"upstream raises {record[name]['error']} where it is undefined"
            yield Row(case, name, math.nan, FLOAT64, reason, brief(ours(x, y)))
            continue
        expected = record[name]["value"]
        yield _row(case, name, compat(x, y), expected, FLOAT64)
        reason = "upstream lets a NaN lose every comparison"
        yield from _where_wrong(case, name, ours(x, y), expected, FLOAT64, reason)


def _tensor_spearman(case: str, record: Record) -> Iterator[Row]:
    prediction, target, mask = (np.array(record[name], dtype=np.float32) for name in ("pred", "target", "mask"))
    for name, used in (("nomask", None), ("mask", mask)):
        each = upstream.frame_spearman(prediction, target, used)
        yield _row(case, f"per row, {name}", each.tolist(), record[f"per_{name}"], FLOAT32)
        yield _row(case, f"mean, {name}", float(each.mean()), record[f"agg_{name}"], FLOAT32)
    if record["one_d"]["ok"]:
        first = upstream.frame_spearman(prediction[:1], target[:1])
        yield _row(case, "one row alone", float(first[0]), record["one_d"]["value"], FLOAT32)
    else:
        value = metrics.spearman(prediction[0], target[0])
        yield Row(case, "one row alone", math.nan, FLOAT32, f"upstream raises {record['one_d']['error']}", brief(value))


def _auc_mse_mae(case: str, record: Record) -> Iterator[Row]:
    scores, labels = (np.array(record[name], dtype=np.float32) for name in ("scores", "labels"))
    ours = float(metrics.auroc(scores, labels)[0])
    yield _row(case, "auc", upstream.auroc(scores, labels), record["auc"], FLOAT32)
    reason = "upstream's area is 1/2 with one class only, where it is undefined"
    yield from _where_wrong(case, "auc", ours, record["auc"], FLOAT32, reason)
    reason = "upstream's own fallback adds trapezoids without width, so it is not the area under the curve"
    yield Row(case, "manual_auc", gap(ours, record["manual_auc"]), FLOAT32, reason, brief(ours))
    yield _row(case, "accuracy", upstream.accuracy(scores, labels, 0.0), record["accuracy_at_0"], FLOAT32)
    values, truth = torch.from_numpy(scores)[:, None], torch.from_numpy(labels)
    for name, kind in (("mse", "l2"), ("mae", "l1")):
        yield _row(case, name, float(progress_error(values, truth, kind).mean()), record[name], FLOAT32)


def _trajectory_rewards(case: str, record: Record) -> Iterator[Row]:
    progress = np.array(record["progress_pred"], dtype=np.float32)
    for name, aggregate in (("last", "last"), ("sum", "sum"), ("average", "avg")):
        ours = upstream.trajectory_reward(progress, aggregate, record["progress_pred_type"] == "relative")
        if record[name]["ok"]:
            yield _row(case, name, ours, record[name]["value"], FLOAT32)
        else:
            reason = f"upstream raises {record[name]['error']}"
            yield Row(case, name, math.nan, FLOAT32, reason, brief(ours))


def _decoded(record: Record, prediction: Any) -> np.ndarray:
    values = np.array(prediction, dtype=np.float32)
    return progress_from_logits(torch.from_numpy(values)).numpy() if record["is_discrete_mode"] else values


def _target(target: Any) -> np.ndarray:
    values = np.array(target, dtype=np.float32)
    return decode_bins(values).astype(np.float32) if values.ndim == 2 else values


def _partial_success(value: Any) -> float | None:
    return float(decode_bins(np.array(value["__two_hot__"]))) if isinstance(value, dict) else value


def _judged(record: Record, order: list[str]) -> list[Judged]:
    """The trajectories of a record in `order`, the results of each by the length of the prefix that was shown."""
    results: dict[str, list[Record]] = defaultdict(list)
    for result in record["results"]:
        results[result["id"]].append(result)
    made = []
    for name in order:
        shown = results[name]
        if len(shown) > 1:
            shown = sorted(shown, key=lambda result: result["metadata"].get("frame_step", 0))
        made.append(
            Judged(
                name,
                shown[0]["task"],
                shown[0]["quality_label"],
                [_decoded(record, result["progress_pred"]) for result in shown],
                [_target(result["target_progress"]) for result in shown if "target_progress" in result],
                _partial_success(shown[0]["partial_success"]),
            )
        )
    return made


def _relative(record: Record) -> bool:
    # Upstream compares with this very text, so that its `relative_first_frame` is not summed up (defect 17).
    return bool(record["progress_pred_type"] == "relative")


def _policy_ranking(case: str, record: Record) -> Iterator[Row]:
    if not record["output"]["ok"]:
        yield Row(case, "metrics", math.nan, FLOAT32, f"upstream raises {record['output']['error']}", "not defined")
        return
    output, trajectories = record["output"]["value"], _judged(record, record["upstream_iteration_order"])
    graded = any(name in record["data_source"] for name in GRADED)
    rank = upstream.rank_by_partial_success if graded else upstream.rank_by_quality
    made = {
        name: rank(trajectories, name, record["correlation_method"], _relative(record)) for name in upstream.AGGREGATES
    }
    found: Values = {f"{key}_{name}": value for name, ranked in made.items() for key, value in ranked.metrics.items()}
    expected = output["metrics"]
    if not found:
        ours = {"error": "No valid correlations computed"}
        yield _row(case, "no task can be ranked", ours, expected, EXACT)
        return
    yield _row(case, "metrics", found, expected, FLOAT32)
    yield _row(case, "rewards", _rewards(record, trajectories, graded), _recorded_rewards(output), FLOAT32)
    yield _row(case, "per task", _per_task(made), output["task_details"], FLOAT32)
    if not graded:
        yield from _our_ranking(case, trajectories, expected, _relative(record))


def _per_task(made: dict[str, upstream.Ranked]) -> dict[str, Values]:
    tasks: dict[str, Values] = defaultdict(dict)
    for aggregate, ranked in made.items():
        suffix = "" if aggregate == "last" else f"_{aggregate}"
        for task, row in ranked.per_task.items():
            tasks[task] |= {f"{key}{suffix}": value for key, value in row.items()}
    return dict(tasks)


def _rewards(record: Record, trajectories: list[Judged], graded: bool) -> dict[str, list[float]]:
    return {
        t.id: [trajectory_reward(t, aggregate, record) for aggregate in upstream.AGGREGATES]
        for t in trajectories
        if not graded or t.partial_success is not None
    }


def trajectory_reward(trajectory: Judged, aggregate: str, record: Record) -> float:
    return upstream.trajectory_reward(trajectory.last_predictions(), aggregate, _relative(record))


def _recorded_rewards(output: Record) -> dict[str, list[float]]:
    names = [f"final_predicted_reward_{aggregate}" for aggregate in upstream.AGGREGATES]
    return {entry["id"]: [entry[name] for name in names] for group in output["task_groups"].values() for entry in group}


def _our_ranking(case: str, trajectories: list[Judged], expected: Values, relative: bool) -> Iterator[Row]:
    """Our own evaluation of the same predictions, which it refuses where one is not finite."""
    curves = [t.last_predictions() for t in trajectories]
    if not np.isfinite(np.concatenate(curves)).all():
        return
    none = np.zeros(0, dtype=np.float32)
    clips = [
        ClipPrediction("s", t.id, i, "s", t.task, t.quality_label, FORWARD, np.cumsum(c) if relative else c, *[none] * 3)
        for i, (t, c) in enumerate(zip(trajectories, curves, strict=True))
    ]
    ours = policy_ranking.summary(clips)
    if "kendall_last" in expected:
        yield _row(case, "our kendall", ours["kendall"], expected["kendall_last"], FLOAT32)
    reason = "upstream counts a tie as right or wrong by the order in which a set yields the ids, ours as 1/2"
    yield from _where_wrong(case, "ranking_acc", ours["accuracy"], expected["ranking_acc_last"], FLOAT32, reason)


def _confusion_matrix(case: str, record: Record) -> Iterator[Row]:
    output = record["output"]
    if not output["ok"]:
        yield Row(case, "metrics", math.nan, FLOAT32, f"upstream raises {output['error']}", "not defined")
        return
    # Of bins upstream takes the last frame before it sums up, so that there is nothing left to sum.
    summed = _relative(record) and not record["is_discrete_mode"]
    records = [
        InstructionPrediction(
            "s", str(i), i, r["metadata"]["video_task"], r["metadata"]["lang_task"],
            upstream.trajectory_reward(_decoded(record, r["progress_pred"]), "last", summed),
        )
        for i, r in enumerate(record["results"]) if _usable(r)
    ]  # fmt: skip
    if not records:
        none = {"error": {"error": "No valid confusion matrix data found"}}
        yield _row(case, "nothing was predicted", none, output["value"], EXACT)
        return
    matrix, found = upstream.confusion_matrix(records)
    cells = {
        row: dict(zip(matrix.columns, values, strict=True))
        for row, values in zip(matrix.rows, matrix.values, strict=True)
    }
    yield _row(case, "matrix", cells, output["value"]["matrix"], FLOAT32)
    yield _row(case, "metrics", found, output["value"]["metrics"], FLOAT32)
    name = "normalized_trace_minus_offdiag"
    reason = "upstream takes an empty cell for a reward of 0, ours leaves it out"
    ours = diagonal_gap(np.array(matrix_of(records).values))
    yield from _where_wrong(case, name, ours, output["value"]["metrics"][name], FLOAT32, reason)


def _usable(result: Record) -> bool:
    return len(result["progress_pred"]) > 0 and None not in result["metadata"].values()


def _reward_alignment(case: str, record: Record) -> Iterator[Row]:
    trajectories = _judged(record, list(dict.fromkeys(result["id"] for result in record["results"])))
    modes = record["use_frame_steps"], record["last_frame_only"], _relative(record)
    found = _aligned(record, trajectories, modes)
    if not record["output"]["ok"]:
        reason = f"upstream raises {record['output']['error']} where a class of success labels is absent"
        yield Row(case, "metrics", math.nan, FLOAT32, reason, brief(found))
        return
    output = record["output"]["value"]
    yield _row(case, "metrics", found, output["metrics"], FLOAT32)
    curves = {t.id: upstream.scored_frames(t, *modes)[0].tolist() for t in trajectories}
    yield _row(case, "curves", curves, output["trajectory_progress"], FLOAT32)
    reason = "upstream takes prediction k of prefix k, ours its last, which is of the frame that the prefix ends at"
    last = upstream.reward_alignment(trajectories, modes[0], modes[0] or modes[1], modes[2])["pearson"]
    yield from _where_wrong(case, "pearson", last, output["metrics"]["pearson"], FLOAT32, reason)
    if record["is_discrete_mode"]:
        reason = "upstream's cross-entropy takes the frames of a prefix for the classes"
        ours = _discrete_loss(record, our_own=True)
        yield from _where_wrong(case, "loss", ours, output["metrics"]["loss"], FLOAT32, reason)


def _aligned(record: Record, trajectories: list[Judged], modes: tuple[bool, bool, bool]) -> Values:
    found = upstream.reward_alignment(trajectories, *modes)
    squared = found.pop("squared_error")
    found["loss"] = _discrete_loss(record) if record["is_discrete_mode"] else squared
    if record["train_success_head"]:
        sides = [np.concatenate([r[name] for r in record["results"]]) for name in ("success_probs", "success_labels")]
        found |= upstream.success_rates(sides[0], sides[1])
    if any(name in record["data_source"] for name in GRADED):
        graded = [
            (float(upstream.scored_frames(t, *modes)[0][-1]), t.partial_success)
            for t in trajectories
            if t.partial_success is not None
        ]
        final, reached = (np.array(side) for side in zip(*graded, strict=True))
        found["partial_success_abs_delta"] = float(np.abs(final - reached).mean())
        if "roboreward" in record["data_source"]:
            found["mae"] = upstream.grade_error(final, reached)
    return found


def _discrete_loss(record: Record, our_own: bool = False) -> float:
    """Mean over successful trajectories; ours is the mean over their frames of the loss that we train."""
    results: dict[str, list[Record]] = defaultdict(list)
    for result in record["results"]:
        if result["quality_label"] == "successful":
            results[result["id"]].append(result)
    losses = []
    for shown in results.values():
        logits, target = (
            np.array([r[name] for r in shown], dtype=np.float32) for name in ("progress_pred", "target_progress")
        )
        if our_own:
            truth = torch.from_numpy(decode_bins(target)).float()
            losses.append(float(progress_error(torch.from_numpy(logits), truth, "discrete").mean()))
        else:
            whole = not record["use_frame_steps"]
            losses.append(upstream.cross_entropy(logits[0] if whole else logits, target[0] if whole else target))
    return float(np.mean(losses)) if losses else math.nan


def _pair(result: Record) -> PairPrediction:
    """A recorded preference as ours: the clip that the label names is the chosen one."""
    task, (prediction,) = result["task"], result["preference_pred"]
    first = prediction if result["preference_labels"] == 1.0 else 1.0 - prediction
    a, b = (result["metadata"][f"{side}_metadata"]["quality_label"] for side in ("chosen", "rejected"))
    return PairPrediction("s", "quality", task, "a", "b", a, b, first, math.nan)


def _answered(result: Record, graded: bool) -> bool:
    """Of a graded source upstream also leaves out a pair of which a clip has no grade."""
    sides = (result["metadata"][f"{side}_metadata"]["partial_success"] for side in ("chosen", "rejected"))
    return result["preference_pred"] is not None and not (graded and None in sides)


def _quality_preference(case: str, record: Record) -> Iterator[Row]:
    output = record["output"]
    graded = any(name in record["data_source"] for name in GRADED)
    pairs = [_pair(result) for result in record["results"] if _answered(result, graded)]
    overall = upstream.preference_accuracy(pairs)
    if not output["ok"]:
        yield Row(case, "accuracy", math.nan, FLOAT64, f"upstream raises {output['error']}", brief(overall))
        return
    value = output["value"]
    yield _row(case, "accuracy", overall, value["metrics"]["preference_accuracy"], FLOAT64)
    tasks: dict[str, list[PairPrediction]] = defaultdict(list)
    for pair in pairs:
        tasks[pair.task].append(pair)
    details = {
        task: {
            "preference_accuracy": upstream.preference_accuracy(members),
            "num_correct": sum(pair.chosen_first > 0.5 for pair in members),
            "num_total": len(members),
            "quality_accuracies": None if graded else upstream.preference_by_quality(members),
        }
        for task, members in tasks.items()
    }
    yield _row(case, "per task", details, value["task_details"], FLOAT64)
    yield _row(case, "sizes", {task: len(members) for task, members in tasks.items()}, value["task_sizes"], EXACT)


def _preference_accuracy(case: str, record: Record) -> Iterator[Row]:
    answers = [(r["predicted_preference"], r["preference_label"]) for r in record["results"]]
    asked = [float(answer == label) for answer, label in answers if answer is not None]
    lasts = [(r["progress_pred_chosen"][-1], r["progress_pred_rejected"][-1]) for r in record["results"]]
    for name, first in (("accuracy", asked), ("accuracy_from_progress", [float(a > b) for a, b in lasts])):
        pairs = [PairPrediction("s", "quality", "t", "a", "b", "", "", value, math.nan) for value in first]
        ours = {"num_correct": int(sum(first)), "num_total": len(first)}
        ours["num_skipped"] = len(answers) - len(first)
        expected = dict(record[name])
        theirs = expected.pop("preference_accuracy")
        yield _row(case, f"{name}, counts", ours, expected, EXACT)
        value = upstream.preference_accuracy(pairs)
        if pairs or theirs is None:
            yield _row(case, name, value, theirs, FLOAT64)
        else:
            yield from _where_wrong(case, name, value, theirs, FLOAT64, "upstream's accuracy of no pair is 0, not undefined")


def _roboreward_mae(case: str, record: Record) -> Iterator[Row]:
    for side in ("pred", "gt"):
        bins = nearest_bin(np.array(record[side]), record["num_bins"])
        yield _row(case, f"bins of {side}", bins.tolist(), record[f"{side}_bins"], EXACT)
    yield _row(case, "mae", upstream.grade_error(record["pred"], record["gt"]), record["mae"], FLOAT64)


_FILES: dict[str, Callable[[str, Record], Iterator[Row]]] = {
    "correlations": _correlations,
    "tensor_spearman": _tensor_spearman,
    "auc_mse_mae": _auc_mse_mae,
    "trajectory_rewards": _trajectory_rewards,
    "policy_ranking": _policy_ranking,
    "confusion_matrix": _confusion_matrix,
    "reward_alignment": _reward_alignment,
    "quality_preference": _quality_preference,
    "preference_accuracy": _preference_accuracy,
    "roboreward_mae": _roboreward_mae,
}
