"""Parity of whole evaluations: policy ranking, confusion matrix and reward alignment, a record of `c_metrics` each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity.recorded import EXACT, FLOAT32, Record, compared, raised, unless_wrong
from parity.row import Row
from parity.upstream import measures
from parity.upstream.clips import decoded
from parity.upstream.measures import Judged, Values
from robometer.evaluation.measures.confusion_matrix import diagonal_gap, matrix_of
from robometer.evaluation.measures.policy_ranking import summary
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction
from robometer.evaluation.views import FORWARD
from robometer.training.batch import progress_from_logits
from robometer.training.losses import progress_error


def _decoded(record: Record, prediction: Any) -> np.ndarray:
    values = np.array(prediction, dtype=np.float32)
    return progress_from_logits(torch.from_numpy(values)).numpy() if record["is_discrete_mode"] else values


def _target(target: Any) -> np.ndarray:
    values = np.array(target, dtype=np.float32)
    return decoded(values).astype(np.float32) if values.ndim == 2 else values


def _partial_success(value: Any) -> float | None:
    return float(decoded(np.array(value["__two_hot__"]))) if isinstance(value, dict) else value


def _judged(record: Record, order: list[str]) -> list[Judged]:
    """The trajectories of a record in `order`, the results of each by the length of the prefix that was shown."""
    results: dict[str, list[Record]] = defaultdict(list)
    for result in record["results"]:
        results[result["id"]].append(result)
    trajectories = []
    for name in order:
        of_clip = results[name]
        if len(of_clip) > 1:
            of_clip = sorted(of_clip, key=lambda result: result["metadata"].get("frame_step", 0))
        trajectories.append(
            Judged(
                name,
                of_clip[0]["task"],
                of_clip[0]["quality_label"],
                [_decoded(record, result["progress_pred"]) for result in of_clip],
                [_target(result["target_progress"]) for result in of_clip if "target_progress" in result],
                _partial_success(of_clip[0]["partial_success"]),
            )
        )
    return trajectories


def _relative(record: Record) -> bool:
    # Upstream compares with this very text, so that its `relative_first_frame` is not summed up.
    return bool(record["progress_pred_type"] == "relative")


def policy_ranking(case: str, record: Record) -> Iterator[Row]:
    output, trajectories = record["output"], _judged(record, record["upstream_iteration_order"])
    graded = measures.is_graded(record["data_source"])
    rank = measures.rank_by_partial_success if graded else measures.rank_by_quality
    by_aggregate = {
        name: rank(trajectories, name, record["correlation_method"], _relative(record)) for name in measures.AGGREGATES
    }
    ours: Values = {f"{key}_{name}": v for name, ranked in by_aggregate.items() for key, v in ranked.metrics.items()}
    if not output["ok"]:
        yield raised(case, "metrics", output, ours)
        return
    value, expected = output["value"], output["value"]["metrics"]
    if not ours:
        yield compared(case, "no task can be ranked", 0.0, float("error" not in expected), EXACT)
        return
    yield compared(case, "metrics", ours, expected, FLOAT32)
    yield compared(case, "rewards", _rewards(record, trajectories, graded), _recorded_rewards(value), FLOAT32)
    yield compared(case, "per task", _per_task(by_aggregate), value["task_details"], FLOAT32)
    if not graded:
        yield from _our_ranking(case, trajectories, expected, _relative(record))


def _per_task(by_aggregate: dict[str, measures.Ranked]) -> dict[str, Values]:
    tasks: dict[str, Values] = defaultdict(dict)
    for aggregate, ranked in by_aggregate.items():
        suffix = "" if aggregate == "last" else f"_{aggregate}"
        for task, row in ranked.per_task.items():
            tasks[task] |= {f"{key}{suffix}": value for key, value in row.items()}
    return dict(tasks)


def _rewards(record: Record, trajectories: list[Judged], graded: bool) -> dict[str, list[float]]:
    return {
        t.id: [measures.trajectory_reward(t.last_predictions(), how, _relative(record)) for how in measures.AGGREGATES]
        for t in trajectories
        if not graded or t.partial_success is not None
    }


def _recorded_rewards(output: Record) -> dict[str, list[float]]:
    names = [f"final_predicted_reward_{aggregate}" for aggregate in measures.AGGREGATES]
    return {entry["id"]: [entry[name] for name in names] for group in output["task_groups"].values() for entry in group}


def _our_ranking(case: str, trajectories: list[Judged], expected: Values, relative: bool) -> Iterator[Row]:
    """Our own evaluation of the same predictions, which it refuses where one is not finite."""
    curves = [t.last_predictions() for t in trajectories]
    if not np.isfinite(np.concatenate(curves)).all():
        return
    none = np.zeros(0, dtype=np.float32)
    clips = []
    for i, (t, curve) in enumerate(zip(trajectories, curves, strict=True)):
        progress = np.cumsum(curve) if relative else curve
        clip = ClipPrediction("s", t.id, i, "s", t.task, t.quality_label, FORWARD, progress, none, none, none)
        clips.append(clip)
    ours = summary(clips)
    if "kendall_last" in expected:
        yield compared(case, "our kendall", ours["kendall"], expected["kendall_last"], FLOAT32)
    reason = "upstream counts a tie as right or wrong by the order in which a set yields the ids, ours as 1/2"
    rewards = [(clip.task, float(clip.progress[-1])) for clip in clips]
    ties = len(set(rewards)) < len(rewards)
    yield unless_wrong(case, "our ranking_acc", ours["accuracy"], expected["ranking_acc_last"], FLOAT32, ties, reason)


def confusion_matrix(case: str, record: Record) -> Iterator[Row]:
    output = record["output"]
    # Of bins upstream takes the last frame before it sums up, so that there is nothing left to sum.
    summed = _relative(record) and not record["is_discrete_mode"]
    records = [
        InstructionPrediction(
            "s", str(i), i, r["metadata"]["video_task"], r["metadata"]["lang_task"],
            measures.trajectory_reward(_decoded(record, r["progress_pred"]), "last", summed),
        )
        for i, r in enumerate(record["results"]) if _usable(r)
    ]  # fmt: skip
    if not records:
        yield compared(case, "nothing was predicted", 0.0, float("error" not in (output.get("value") or ())), EXACT)
        return
    matrix, scores = measures.confusion_matrix(records)
    cells = {
        row: dict(zip(matrix.columns, values, strict=True))
        for row, values in zip(matrix.rows, matrix.values, strict=True)
    }
    if not output["ok"]:
        yield raised(case, "matrix", output, cells)
        return
    yield compared(case, "matrix", cells, output["value"]["matrix"], FLOAT32)
    yield compared(case, "metrics", scores, output["value"]["metrics"], FLOAT32)
    name = "normalized_trace_minus_offdiag"
    reason = "upstream takes an empty cell for a reward of 0, ours leaves it out"
    means = np.array(matrix_of(records).values)
    empty = bool(np.isnan(means).any()) or len(means) == 1  # one task leaves nothing off the diagonal
    expected = output["value"]["metrics"][name]
    yield unless_wrong(case, f"our {name}", diagonal_gap(means), expected, FLOAT32, empty, reason)


def _usable(result: Record) -> bool:
    return len(result["progress_pred"]) > 0 and None not in result["metadata"].values()


def reward_alignment(case: str, record: Record) -> Iterator[Row]:
    trajectories = _judged(record, list(dict.fromkeys(result["id"] for result in record["results"])))
    modes = record["use_frame_steps"], record["last_frame_only"], _relative(record)
    scores = _aligned(record, trajectories, modes)
    if not record["output"]["ok"]:
        yield raised(case, "metrics", record["output"], scores)
        return
    output = record["output"]["value"]
    yield compared(case, "metrics", scores, output["metrics"], FLOAT32)
    curves = {t.id: measures.scored_frames(t, *modes)[0].tolist() for t in trajectories}
    yield compared(case, "curves", curves, output["trajectory_progress"], FLOAT32)
    reason = "upstream takes prediction k of prefix k, ours its last, which is of the frame that the prefix ends at"
    last = measures.reward_alignment(trajectories, modes[0], modes[0] or modes[1], modes[2])["pearson"]
    shifted = modes[0] and not modes[1]
    yield unless_wrong(case, "our pearson", last, output["metrics"]["pearson"], FLOAT32, shifted, reason)
    if record["is_discrete_mode"]:
        reason = "upstream's cross-entropy takes the frames of a prefix for the classes"
        ours = _discrete_loss(record, our_own=True)
        yield unless_wrong(case, "our loss", ours, output["metrics"]["loss"], FLOAT32, modes[0], reason)


def _aligned(record: Record, trajectories: list[Judged], modes: tuple[bool, bool, bool]) -> Values:
    scores = measures.reward_alignment(trajectories, *modes)
    squared = scores.pop("squared_error")
    scores["loss"] = _discrete_loss(record) if record["is_discrete_mode"] else squared
    if record["train_success_head"]:
        sides = [np.concatenate([r[name] for r in record["results"]]) for name in ("success_probs", "success_labels")]
        scores |= measures.success_rates(sides[0], sides[1])
    graded = [
        (float(measures.scored_frames(t, *modes)[0][-1]), t.partial_success)
        for t in trajectories
        if t.partial_success is not None
    ]
    if graded and measures.is_graded(record["data_source"]):
        final, reached = (np.array(side) for side in zip(*graded, strict=True))
        scores["partial_success_abs_delta"] = float(np.abs(final - reached).mean())
        if "roboreward" in record["data_source"].lower():
            scores["mae"] = measures.grade_error(final, reached)
    return scores


def _discrete_loss(record: Record, our_own: bool = False) -> float:
    """Mean over successful trajectories; ours is the mean over their frames of the loss that we train."""
    results: dict[str, list[Record]] = defaultdict(list)
    for result in record["results"]:
        if result["quality_label"] == "successful":
            results[result["id"]].append(result)
    losses = []
    for of_clip in results.values():
        logits, target = (
            np.array([r[name] for r in of_clip], dtype=np.float32) for name in ("progress_pred", "target_progress")
        )
        if our_own:
            truth = torch.from_numpy(decoded(target)).float()
            losses.append(float(progress_error(torch.from_numpy(logits), truth, "discrete").mean()))
        else:
            whole = not record["use_frame_steps"]
            losses.append(measures.cross_entropy(logits[0] if whole else logits, target[0] if whole else target))
    return float(np.mean(losses)) if losses else math.nan
