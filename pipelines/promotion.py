"""Move an alias of the model registry to a new version, if its model is better than the one that has it now.

Better means: on the clips of one split, by which neither model was chosen, the interval of the paired difference leaves
out 0.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from pipelines.evaluate import run_evaluate
from robometer.configs.loading import from_dict, override, to_dict
from robometer.configs.renamed import current
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.evaluation.paired import Difference
from robometer.models.checkpoint import checkpoint_hash
from robometer.models.layouts import open_checkpoint
from robometer.models.sources import locate
from robometer.report.comparison import differences
from robometer.report.headlines import HEADLINES
from robometer.report.runs import EvaluationRun, load_runs
from robometer.runs import tracking
from robometer.runs.publishing import Publication, PublishingError, to_mlflow
from robometer.settings import ConfigError, not_a_choice

logger = logging.getLogger(__name__)

CURRENT = "current"
"""Folder below an evaluation with that of the model that has the alias."""


@dataclass(frozen=True)
class Criterion:
    """The metric that decides.

    Attributes:
        lower_is_better: whether it is an error.
    """

    split: str
    evaluation: str
    metric: str
    lower_is_better: bool

    def __str__(self) -> str:
        return f"{self.split}/{self.evaluation}/{self.metric}"

    def is_better(self, difference: Difference) -> bool:
        """Whether the interval of new minus old lies wholly on the better side of 0."""
        return difference.high < 0 if self.lower_is_better else difference.low > 0


def criterion(name: str) -> Criterion:
    """The criterion `SPLIT/EVALUATION/METRIC`.

    Raises:
        ConfigError: it is not one of the metrics of which everybody knows which way is better.
    """
    known = {f"{one.evaluation}/{one.main}": one for one in HEADLINES}
    split, _, metric = name.partition("/")
    if not split or metric not in known:
        raise ConfigError(f"--metric must be SPLIT/METRIC: {not_a_choice('METRIC', metric, list(known))}")
    return Criterion(split, known[metric].evaluation, known[metric].main, known[metric].lower_is_better)


def promote(what: Publication, config: Config, name: str, alias: str, evaluation: str, by: Criterion) -> str:
    """Publish as a new version of `name`, and give it the alias if it is better than the version that has it.

    Args:
        evaluation: folder of `robometer evaluate` of the model. The model that has the alias is evaluated on the same
            corpus, in a folder below it.

    Returns:
        What was done, in a sentence.

    Raises:
        ConfigError: the split of `by` chose one of the models, or was not evaluated.
        PublishingError: the evaluation is of another model or corpus, or tracking is off.
    """
    if re.fullmatch(r"latest|v\d+", alias):
        raise ConfigError(f"--alias={alias} means a version to MLflow. Choose a word, such as champion.")
    _check_kept(what.checkpoint.config, "the new model", by)
    [run] = load_runs([evaluation])
    if run.metric(by.evaluation, by.split, by.metric) is None:
        raise ConfigError(f"{evaluation} has no {by}: evaluate the split, or choose another --metric.")
    if tracking.is_off(config):
        raise PublishingError("tracking is off: give the registry's store, tracking.uri=...")
    before = tracking.version_of_alias(config, name, alias)
    if not before:
        return f"{_moved(what, config, name, alias, before)}, which no version had"
    source = f"models:/{name}/{before}"
    checkpoint = open_checkpoint(locate(source, config.tracking.uri))
    if checkpoint_hash(checkpoint.folder) == what.revision:
        return f"{source} has the alias {alias} already, and is this model; nothing is published"
    _check_kept(checkpoint.config, source, by)
    old = _evaluated(run, config, source, evaluation)
    difference = differences(old, run).get((by.evaluation, by.split, by.metric))
    if difference is None:
        raise PublishingError(f"{source} has no {by}, so that the new model cannot be compared with it")
    said = f"{by} {_value(old, by)} -> {_value(run, by)}, difference {difference.value:+.4g}"
    said += f" [{difference.low:+.4g}, {difference.high:+.4g}]" if not difference.reason else f" ({difference.reason})"
    if by.is_better(difference):
        return f"{_moved(what, config, name, alias, before)}, from {source}: {said}"
    return f"{to_mlflow(what, config, name)} is published; the alias {alias} stays at {source}: {said}"


def _moved(what: Publication, config: Config, name: str, alias: str, before: str) -> str:
    place = to_mlflow(what, config, name)
    if (now := tracking.version_of_alias(config, name, alias)) != before:
        raise PublishingError(
            f"{place} is published, but the alias {alias} was given to version {now or 'none'} meanwhile: run the same "
            "command again, to compare with that one"
        )
    tracking.set_alias(config, name, alias, place.rpartition("/")[2])
    return f"{place} has the alias {alias} now"


def _check_kept(config: Config, model: str, by: Criterion) -> None:
    train = config.train
    if by.split == config.sampling.split or (train.validate and by.split in train.validation_splits):
        raise ConfigError(
            f"--metric={by}: {model} was trained or chosen by {by.split} (sampling.split, train.validation_splits), so "
            f"that {by.split} is no test of it. Name a split that was kept back, such as held_out."
        )


def _evaluated(run: EvaluationRun, config: Config, source: str, evaluation: str) -> EvaluationRun:
    """The evaluation of the model that has the alias, by the settings of that of the new model."""
    settings = from_dict(current(dict(run.provenance["config"])))
    output = f"{evaluation}/{CURRENT}"
    settings = override(
        from_dict(to_dict(config) | {"evaluate": to_dict(settings)["evaluate"], "corpus": to_dict(settings)["corpus"]}),
        {"evaluate.scorer": source, "evaluate.output": output, "evaluate.against": []},
    )
    if Corpus(settings.corpus.path).content_hash != run.provenance["corpus_hash"]:
        raise PublishingError(
            f"{settings.corpus.path} has changed since {evaluation} was made, so that {source} cannot be compared: "
            "evaluate the new model again"
        )
    logger.info("%s, which has the alias, is evaluated on the same clips", source)
    run_evaluate(settings)
    return load_runs([output])[0]


def _value(run: EvaluationRun, by: Criterion) -> str:
    metric = run.metric(by.evaluation, by.split, by.metric)
    return "-" if metric is None else f"{metric.estimate.value:.4g}"
