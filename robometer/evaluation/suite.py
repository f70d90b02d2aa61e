"""All evaluations by name, and how to run them on stored predictions without the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.measures import (
    confusion_matrix,
    instruction_grounding,
    partial_success,
    policy_ranking,
    preference,
    reward_alignment,
    robustness,
    success_detection,
)
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Result
from robometer.settings import ConfigError, not_a_choice

Evaluation = Callable[[Predictions, str, Resampling], Result]

EVALUATIONS: dict[str, Evaluation] = {
    module.NAME: module.evaluate
    for module in (
        reward_alignment,
        policy_ranking,
        confusion_matrix,
        preference,
        success_detection,
        partial_success,
        robustness,
        instruction_grounding,
    )
}
"""In the order of the report."""


def check_evaluations(names: Sequence[str]) -> None:
    """Raise `ConfigError` for an evaluation that does not exist."""
    for name in names:
        if name not in EVALUATIONS:
            raise ConfigError(not_a_choice("evaluate.evaluations", name, EVALUATIONS))


def evaluate_all(predictions: Predictions, config: EvaluateConfig) -> list[Result]:
    """Every evaluation of the configuration on every split that has predictions, in the order of the report."""
    check_evaluations(config.evaluations)
    settings = Resampling(config.bootstrap, config.confidence, config.seed)
    return [
        EVALUATIONS[name](predictions.split(split), split, settings)
        for split in config.splits
        for name in EVALUATIONS
        if name in config.evaluations
    ]
