"""The metrics that represent an evaluation, and whether lower or higher is better."""

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
        what: the words for `main`, the large number.
        beside: the metric to read together with it; empty if there is none.
        beside_what: the words for `beside`.
    """

    title: str
    what: str
    evaluation: str
    main: str
    beside: str = ""
    beside_what: str = ""

    @property
    def lower_is_better(self) -> bool:
        """Whether a word in the metric's name says that it is an error."""
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
    """A headline for every evaluation that has metrics: one of `HEADLINES`, or else its first metric."""
    by_evaluation = {headline.evaluation: headline for headline in HEADLINES}
    headlines = []
    for evaluation in evaluations_of(runs):
        names = [m.name for run in runs for r in run.results if r.evaluation == evaluation for m in r.metrics]
        if names:
            own = Headline(words(evaluation), names[0].replace("_", " "), evaluation, names[0])
            headlines.append(by_evaluation.get(evaluation, own))
    return headlines


def words(name: str) -> str:
    """A name from the code in the spelling of the page."""
    return name.replace("_", " ").capitalize()


def best(values: Sequence[float], lower_is_better: bool) -> float:
    """The best of some values; NaN if fewer than two are defined, or all are equal."""
    defined = [value for value in values if math.isfinite(value)]
    if len(defined) < 2 or min(defined) == max(defined):
        return math.nan
    return min(defined) if lower_is_better else max(defined)
