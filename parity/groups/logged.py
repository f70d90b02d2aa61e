"""What upstream logs of a training step, by its own names: losses, accuracies and correlations, whole and by stratum.

Its means are kept as they are: of strata over all frames, supervised or not; what is undefined is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from parity.difference import close, exact
from parity.row import Row
from parity.upstream.losses import upstream_losses
from robometer.evaluation import metrics
from robometer.training.batch import Batch, RewardOutput, progress_from_logits
from robometer.training.config import LossConfig
from robometer.training.losses import binary_error, progress_error, two_hot

_TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
_NEAR = 1e-5
"""Predictions no further apart than this may rank either way: processors round them differently."""


def logged_rows(
    case: str,
    output: RewardOutput,
    batch: Batch,
    supervised: Tensor,
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
    config: LossConfig,
    kind: str,
    logged: Mapping[str, float],
) -> Iterator[Row]:
    """Compare everything that upstream logged of a step on a mixed batch.

    Args:
        supervised: bool [B], samples whose progress is trained, whatever their frames' own mask.
        facts: what upstream's preference and progress batch say of their samples besides tensors.
        kind: the progress loss.
    """
    ours: dict[str, list[float]] = {}
    for is_pair, about in zip((True, False), facts, strict=True):
        members = batch.preference_mask == is_pair
        if members.any():
            # A stratum that both batches have is logged by both: the progress batch comes last.
            own = RewardOutput(*(None if part is None else part.detach()[members] for part in output))  # type: ignore[arg-type]
            part, about_all = batch.map(itemgetter(members)), (supervised[members], about, config, kind)
            orders = [_values(own, part, *about_all, lean) for lean in (None, -1, 0, 1)]
            ours |= {name: [values[name] for values in orders] for name in orders[0]}
    theirs = {name: value for name, value in logged.items() if name.startswith("train")}
    if not any(name.startswith("train_") for name in theirs):  # without its strata
        ours = {name: value for name, value in ours.items() if name.startswith("train/")}
    yield exact(case, "names of what is logged", sorted(ours), sorted(theirs))
    for name in sorted(ours.keys() & theirs.keys()):
        low, high = min(ours[name]), max(ours[name])
        is_open = low < theirs[name] < high
        nearest = theirs[name] if is_open else min(ours[name], key=lambda value: abs(value - theirs[name]))
        yield close(case, f"logged {name.split('/')[name.startswith('train/')]}", nearest, theirs[name], **_TOLERANCE)


def _values(
    output: RewardOutput,
    batch: Batch,
    supervised: Tensor,
    about: Mapping[str, Any],
    config: LossConfig,
    kind: str,
    lean: int | None,
) -> dict[str, float]:
    """Of a batch of pairs, or of single clips; `lean` as in `spearman`."""
    pairs = bool(batch.preference_mask.all())
    losses = upstream_losses(output, batch, config, kind)
    scores: dict[str, float] = {}
    if pairs:
        assert output.preference_logits is not None
        right = ((output.preference_logits > 0) == (batch.preference_label > 0.5)).float()
        error = binary_error(output.preference_logits, batch.preference_label)
        scores |= {"train/preference_loss": float(losses.preference), "train/preference_accuracy": float(right.mean())}
        groups = {"strat": about["rejected_data_gen_strategy"], "ds": about["data_source"]}
        scores |= _strata(groups, {"pref_acc": right, "pref_loss": error})
    names = (
        ("trajectory_A_data_gen_strategy", "trajectory_A_data_source")
        if pairs
        else ("data_gen_strategy", "data_source")
    )
    groups = {stratum: _shown(about[name], supervised) for stratum, name in zip(("strat", "ds"), names, strict=True)}
    if config.pair_progress or not pairs:
        prefix = "pref_prog_" if pairs else ""
        scores |= _progress(output, batch, supervised, kind, prefix, float(losses.progress), groups, lean)
    if config.success_weight:
        scores |= _success(output, batch, "pref_" if pairs else "", float(losses.success), groups)
    return scores


def _shown(names: Sequence[str], supervised: Tensor) -> list[str]:
    """Strata of the samples whose progress is supervised; others belong to none."""
    return [name if shown else "" for name, shown in zip(names, supervised.tolist(), strict=True)]


def _progress(
    output: RewardOutput,
    batch: Batch,
    supervised: Tensor,
    kind: str,
    prefix: str,
    loss: float,
    groups: Mapping[str, Sequence[str]],
    lean: int | None,
) -> dict[str, float]:
    logits, target, mask = output.progress_logits, batch.a.progress_target, batch.a.progress_mask.float()
    error = (progress_error(logits, target, kind) * mask).mean(1)
    ranks = spearman(progress_from_logits(logits), target, mask, lean)
    scores = {f"train/{prefix or 'prog_'}loss": loss, f"train/{prefix}spearman_corr": float(ranks.mean())}
    if kind == "discrete":
        right = (logits.argmax(-1) == two_hot(target, logits.shape[-1]).argmax(-1)) * mask
        scores[f"train/{prefix or 'prog_'}accuracy"] = float(
            right.sum() / max(1, int(supervised.sum()) * right.shape[1])
        )
    return scores | _strata(groups, {"prog_loss": error, "spearman_corr": ranks})


def spearman(prediction: Tensor, target: Tensor, mask: Tensor, lean: int | None = None) -> Tensor:
    """Of each sample over its supervised frames [B]; 0 where it is not defined.

    Args:
        lean: how predictions that are almost equal rank: None: as they are; 0: as equals; 1 and -1: as their targets
            do, and the other way around (the highest and the lowest correlation that rounding leaves open).
    """
    supervised = mask.expand_as(target) > 0
    values = []
    for p, t, m in zip(prediction, target, supervised, strict=True):
        values.append(metrics.spearman(p[m] if lean is None or not m.any() else _leaning(p[m], t[m], lean), t[m]))
    return torch.tensor([0.0 if math.isnan(value) else value for value in values])


def _leaning(prediction: Tensor, target: Tensor, lean: int) -> Tensor:
    """Numbers that rank as the predictions do, but those that are almost equal as `lean` says."""
    ordered, order = prediction.sort()
    groups = torch.zeros(len(prediction), dtype=torch.float64)
    groups[order[1:]] = (ordered.diff() > _NEAR).cumsum(0).double()
    within = target.double() - target.min()
    return groups + lean * within / (within.max() + 1)  # less than 1: no group reaches the next


def _success(
    output: RewardOutput, batch: Batch, prefix: str, loss: float, groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    label, mask = batch.a.success_label, batch.a.success_mask
    of_all = success_metrics(output.success_logits, label, mask)
    scores = {f"train/{prefix}success_loss": loss}
    for name in ("accuracy", "auprc", "loss_weight"):
        scores[f"train/{prefix}success_{name}"] = of_all[name]
    for name in ("weighted", "positive", "negative"):
        scores[f"train/{prefix}{name}_success_accuracy"] = of_all[name]
    if not prefix:
        return scores | {f"train/success_{name}": of_all[name] for name in ("num_positives", "num_negatives")}
    right = ((output.success_logits > 0) == (label > 0.5)).float()
    error = binary_error(output.success_logits, label) * mask
    by_class = {"pos": mask & (label > 0.5), "neg": mask & (label <= 0.5)}
    frames = {"success_loss": error, "success_acc": right * mask}
    frames |= {f"success_{name}_acc": torch.where(own, right, math.nan) for name, own in by_class.items()}
    return scores | _strata(groups, frames)


def success_metrics(logits: Tensor, label: Tensor, mask: Tensor) -> dict[str, float]:
    """Over the frames of a mask. Where they are of one class, upstream says 0 for the accuracy of each class."""
    right = ((logits > 0) == (label > 0.5)).float()
    positive, negative = mask & (label > 0.5), mask & (label <= 0.5)
    counts = int(positive.sum()), int(negative.sum())
    accuracy = float(right[mask].mean()) if mask.any() else 0.0
    recalls = [float(right[own].mean()) if min(counts) else 0.0 for own in (positive, negative)]
    area = float(metrics.auprc(logits[mask], label[mask])[0])
    return {
        "accuracy": accuracy,
        "auprc": 0.0 if math.isnan(area) else area,
        "weighted": sum(recalls) / 2 if min(counts) else accuracy,
        "positive": recalls[0],
        "negative": recalls[1],
        "loss_weight": max(counts) / min(counts) if min(counts) else 1.0,
        "num_positives": float(counts[0]),
        "num_negatives": float(counts[1]),
    }


def _strata(groups: Mapping[str, Sequence[str]], values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of values [B] or [B, T] over the samples of each stratum, without what is NaN."""
    scores = {}
    for stratum, names in groups.items():
        for name in set(names) - {""}:
            members = torch.tensor([other == name for other in names])
            for metric, value in values.items():
                own = value[members]
                if not own.isnan().all():
                    scores[f"train_{stratum}_{metric}/{name}"] = float(own.nanmean())
    return scores
