"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from robometer.runs import paths
from robometer.settings import Count, NotNegative, Range, Settings, WholeNumber


@dataclass
class EvaluateConfig(Settings, section="evaluate"):
    """Evaluations of one scorer, or of several, on splits of a corpus."""

    scorer: str = "outputs/train/best"
    """What is evaluated: a checkpoint folder or its URI, `org/name` of the hub, an MLflow URI, the URL of an
    endpoint, or `baseline:NAME`."""
    against: list[str] = field(default_factory=list)
    """More scorers, each evaluated alike into a folder below OUTPUT/against, and compared with the first."""
    output: str = "outputs/evaluation"
    """Folder, or any URI that pyarrow opens."""
    splits: list[str] = field(default_factory=lambda: ["seen", "held_out"])
    """Splits of the corpus to evaluate on."""
    sources: list[str] = field(default_factory=list)
    """Data sets and groups (such as `rbm-1m-ood`) to evaluate on; empty: all."""
    evaluations: list[str] = field(
        default_factory=lambda: [
            "reward_alignment",
            "policy_ranking",
            "confusion_matrix",
            "preference",
            "success_detection",
            "partial_success",
            "robustness",
            "instruction_grounding",
        ]
    )
    """Evaluations to run, by name."""
    mode: Literal["whole", "prefix"] = "whole"
    """`whole`: a clip is seen at once; `prefix`: each frame with those before it, as a policy sees it."""
    max_clips: Count = 2000
    """Clips per split."""
    pairs_per_task: WholeNumber = 50
    """Pairs of each kind and task in the preference evaluation."""
    bootstrap: WholeNumber = 1000
    """Bootstrap resamples of an interval; 0: no intervals."""
    confidence: Annotated[float, Range(above=0, below=1)] = 0.95
    """Confidence level of the intervals."""
    batch_size: Count = 16
    """Clips or pairs that a scorer gets at once."""
    actors: Count = 1
    """Processes that score."""
    num_gpus: NotNegative = 0.0
    """GPUs of each of them; a fraction lets them share one."""
    seed: WholeNumber = 42
    """Decides which clips, pairs and resamples are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_storage("evaluate.output", self.output)
        paths.check_scorer("evaluate.scorer", self.scorer)
        for scorer in self.against:
            paths.check_scorer("evaluate.against", scorer)
