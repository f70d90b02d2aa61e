"""The quickstart's settings. `make quickstart` runs it as a whole."""

from __future__ import annotations

from jobs.quickstart import _sweep_config
from pipelines.sweep import Search
from robometer.configs import load


def test_trials_are_short_and_nothing_is_chosen_by_clips_that_the_evaluation_reports() -> None:
    config = load(["recipe=quickstart"])
    sweep = _sweep_config(config)
    assert (sweep.train.steps, sweep.train.checkpoint_every) == (40, 20)
    for train, metric in ((config.train, config.train.best_metric), (sweep.train, sweep.sweep.metric)):
        assert train.validation_splits == [metric.partition("/")[0]] == ["validation"]
        assert not set(train.validation_splits) & set(config.evaluate.splits)
    assert len(Search.of(sweep).given) == 1
