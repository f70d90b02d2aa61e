"""The metrics that stand for an evaluation, and which way they are better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robometer.report.runs import EvaluationRun, evaluations_of

_LOWER_IS_BETTER = {"error", "mae", "mse", "ece", "brier", "loss", "seconds"}


@dataclass(frozen=True)
class Headline:
    """One evaluation in one number.

    Attributes:
        what: the words for `main`, which is the large number.
        beside: the metric that is to be read with it, and the words for that; empty where there is none.
    """

    title: str
    what: str
    evaluation: str
    main: str
    beside: str = ""
    beside_what: str = ""

    @property
    def lower_is_better(self) -> bool:
        """Whether a word of the metric's name says that it is an error."""
        return not _LOWER_IS_BETTER.isdisjoint(self.main.split("_"))


HEADLINES = (
    Headline("Reward alignment", "VOC r", "reward_alignment", "voc", "voc_reversed", "reversed video"),
    Headline("Ranking", "Kendall τ", "policy_ranking", "kendall_last", "accuracy_last", "pair accuracy"),
    Headline("Instructions", "own one highest", "confusion_matrix", "own_instruction_highest", "diagonal_gap",
             "gap to others"),
    Headline("Preference", "accuracy", "preference", "accuracy_quality", "order_consistency_quality",
             "order consistency"),
    Headline("Success", "AUROC", "success_detection", "auroc_last", "auprc_last", "AUPRC"),
    Headline("Partial success", "error in grades", "partial_success", "mae", "pair_accuracy", "pair accuracy"),
    Headline("Robustness", "VOC r of a retry", "robustness", "voc_retry", "hesitation_error", "hesitation error"),
    Headline("Grounding", "own over opposite", "instruction_grounding", "counterfactual_accuracy",
             "paraphrase_sensitivity", "paraphrase sensitivity"),
)  # fmt: skip


def headlines_of(runs: Sequence[EvaluationRun]) -> list[Headline]:
    """A headline for every evaluation that has metrics; one that is not among `HEADLINES` shows its first metric."""
    known = {headline.evaluation: headline for headline in HEADLINES}
    found = []
    for evaluation in evaluations_of(runs):
        names = [m.name for run in runs for r in run.results if r.evaluation == evaluation for m in r.metrics]
        if names:
            own = Headline(words(evaluation), names[0].replace("_", " "), evaluation, names[0])
            found.append(known.get(evaluation, own))
    return found


def words(name: str) -> str:
    """A name of the code as the page writes it."""
    return name.replace("_", " ").capitalize()


def best(values: Sequence[float], lower_is_better: bool) -> float:
    """The best of some values, NaN if fewer than two of them are defined or all of those are equal."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2 or min(known) == max(known):
        return math.nan
    return min(known) if lower_is_better else max(known)
