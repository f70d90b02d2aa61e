"""A sweep's trials in Ray Tune: which begin, what each does, and how the scheduler learns what happened before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from ray import tune
from ray.train.v2.api.callback import UserCallback
from ray.tune.experiment import Trial, _convert_to_experiment_list
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from pipelines.cluster import Progress, progress_bar
from pipelines.train import fork, kept_checkpoints, run_train
from pipelines.training.checkpointing import is_measured
from pipelines.training.worker import NotANumberError
from robometer.configs.loading import from_dict, override
from robometer.configs.schema import Config
from robometer.corpus.storage import Storage
from robometer.sweeps.journal import Event, Journal, Metrics
from robometer.sweeps.space import Values

logger = logging.getLogger(__name__)

TRIALS = "trials"
NOT_A_NUMBER = "not-a-number"
"""File of a trial that ended because a loss or a gradient was not finite: why."""


class Waiting(SearchAlgorithm):
    """Hands named trials to Tune, in their order: each is written into the journal before it runs.

    Tune's own `SearchGenerator` gives trials random ids, by which a scheduler would not know them again.

    Args:
        over: why no more trials may begin, while those of some names run; empty where they may.
        sources: for each trial that goes on from another one, the name of that one.
    """

    def __init__(
        self,
        names: Sequence[str],
        values: Callable[[str], Values],
        journal: Journal,
        concurrent: int,
        over: Callable[[Collection[str]], str],
        sources: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._names, self._values, self._journal, self._sources = list(names), values, journal, sources
        self._concurrent, self._live = concurrent, set[str]()
        self._over = over

    def add_configurations(self, experiments: Any) -> None:
        """See `SearchAlgorithm`."""
        (experiment,) = _convert_to_experiment_list(experiments)
        self._spec, self._parser = experiment.spec, _make_parser()

    def next_trial(self) -> Trial | None:
        """See `SearchAlgorithm`."""
        if self._names and (reason := self._over(self._live)):
            logger.warning("%s. Trials left for the next run of this sweep: %d.", reason, len(self._names))
            self._names = []
        if not self._names or len(self._live) >= self._concurrent:
            return None
        name = self._names.pop(0)
        values = self._values(name)
        self._journal.append(Event("start", name, values, source=self._sources.get(name, "")))
        self._live.add(name)
        return cast(Trial, _create_trial_from_spec(self._spec | {"config": values}, self._parser, trial_id=name))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `SearchAlgorithm`; trials that failed come here too."""
        self._live.discard(trial_id)

    def is_finished(self) -> bool:
        """See `SearchAlgorithm`."""
        return not self._names or self._finished

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes it into a file that nobody reads: the journal says all


class Written(tune.Callback):
    """Writes into the journal what becomes of trials, and shows how many of some have ended."""

    def __init__(self, journal: Journal, output: Storage, names: Sequence[str]) -> None:
        self._journal, self._output, self._names = journal, output, list(names)
        self._show: Progress | None = None

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See `tune.Callback`; some trials may have ended in an earlier run."""
        if self._show is None:
            self._show = progress_bar("sweep", len(self._names), interactive=False)
            self._show(self._ended(), {})

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See `tune.Callback`; the scheduler has decided before."""
        self._journal.append(Event("report", trial.trial_id, metrics=_metrics(result)))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `tune.Callback`; trials that the scheduler stopped are complete too."""
        self._end(Event("end", trial.trial_id, reason=_not_a_number(self._output, trial.trial_id)))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `tune.Callback`; trials that are tried again do not come here."""
        error = trial.get_pickled_error() or trial.get_error()
        self._end(Event("fail", trial.trial_id, reason=" ".join(str(error).split())[-300:]))

    def _end(self, event: Event) -> None:
        self._journal.append(event)
        if self._show is not None:
            self._show(self._ended(), {})

    def _ended(self) -> int:
        records = [self._journal.trials[name] for name in self._names if name in self._journal.trials]
        return sum(record.ended or bool(record.error) for record in records)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _not_a_number(output: Storage, trial: str) -> str:
    cause = f"{TRIALS}/{trial}/{NOT_A_NUMBER}"
    return output.read_bytes(cause).decode() if output.exists(cause) else ""


def _metrics(result: Mapping[str, Any]) -> Metrics:
    """What validation measured, of all that Tune adds to a result."""
    return {
        name: value
        for name, value in result.items()
        if name == "step" or ("/" in name and isinstance(value, int | float))
    }


def make_scheduler(config: Config) -> TrialScheduler:
    """The scheduler that the settings ask for."""
    sweep, train = config.sweep, config.train
    if sweep.scheduler == "fifo":
        return FIFOScheduler()
    grace = min(train.steps, sweep.grace_checkpoints * train.checkpoint_every)
    return ASHAScheduler(
        time_attr="step",
        metric=sweep.metric,
        mode=sweep.mode,
        max_t=train.steps,
        grace_period=grace,
        reduction_factor=2,
    )


class _Earlier:
    """A trial of the journal, as much of it as a scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def replay(journal: Journal, scheduler: TrialScheduler, names: Callable[[str], bool] = str.isdigit) -> None:
    """Tell a new scheduler what the one of an earlier run was told, so that it decides as that one would have.

    Ray Tune does not keep a scheduler's state. A trial that was to stop, and whose end was not written down any more,
    ends now.
    """
    stopped: dict[str, _Earlier] = {}
    for event in [one for one in journal.events if names(one.trial)]:
        trial = cast(Trial, _Earlier(event.trial))
        controller = cast(Any, None)  # what decides trial by trial asks nothing of Tune
        if event.kind == "start":
            scheduler.on_trial_add(controller, trial)
        elif event.kind == "report":
            if scheduler.on_trial_result(controller, trial, event.metrics) == TrialScheduler.STOP:
                stopped[event.trial] = _Earlier(event.trial)
        else:
            stopped.pop(event.trial, None)
            record = journal.trials[event.trial]
            if event.kind == "end":
                scheduler.on_trial_complete(controller, trial, record.reports[-1] if record.reports else {})
            else:
                scheduler.on_trial_error(controller, trial)
    for name in stopped:
        journal.append(Event("end", name))
        scheduler.on_trial_complete(cast(Any, None), cast(Trial, stopped[name]), journal.trials[name].reports[-1])


class ReportValidations(TuneReportCallback):
    """Reports every validated checkpoint to Tune; one that was saved because of a node's notice is not validated."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if validated(metrics[0]):
            super().after_report(run_context, metrics, checkpoint)


def validated(metrics: Mapping[str, float]) -> bool:
    """Whether a checkpoint has all of its metrics."""
    return all(map(is_measured, metrics.values()))


def run_trial(
    values: dict[str, Any], base: dict[str, Any], parent_run_id: str, sources: Mapping[str, str], start: int
) -> None:
    """One trial: a training run with its settings, in a folder named after the trial.

    A trial that Tune starts again resumes, or has ended; either way it reports again what Tune forgot.

    Args:
        sources: for each trial that goes on from step `start` of another one, the name of that one.
    """
    trial = tune.get_context().get_trial_id()
    trials = Storage(Storage(base["sweep"]["output"]).at(TRIALS))
    folder = Storage(trials.at(trial))
    if trial in sources:
        fork(Storage(trials.at(sources[trial])), start, folder)
    own = {
        "train.output": folder.path,
        "tracking.run_name": f"trial {trial}",
        # Tune stops trials by the metrics that come with a reported checkpoint.
        "train.validate_async": False,
        "train.validation_gpus": 0.0,
        # The checkpoint that decides about a trial must be among those that the trial keeps.
        "train.best_metric": base["sweep"]["metric"],
        "train.best_mode": base["sweep"]["mode"],
        "ray.stall_timeout_s": 0.0,  # a trial may wait for another; the sweep watches all of them
    }
    for metrics, name in kept_checkpoints(folder):
        if validated(metrics):
            tune.report(metrics | {CHECKPOINT_PATH_KEY: folder.at(name)})
    callbacks: list[UserCallback] = [ReportValidations()]  # type: ignore[no-untyped-call]  # Ray's own __init__
    try:
        run_train(override(from_dict(base), values | own), callbacks, parent_run_id)
    except NotANumberError as error:  # Tune would try again, in vain
        folder.write_bytes(NOT_A_NUMBER, str(error).encode())
