"""Sweep the loss weights, or any other key, with Ray Tune: each trial is a training run of its own."""

from __future__ import annotations

import json
import logging
import posixpath
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pipelines.cluster import check_room, connected, watched
from pipelines.train import RUN, WEIGHTS_LAST, check_metric, kept_checkpoints, last_pulse, needs, place
from pipelines.training.checkpointing import BEST, MODEL, TrainingError, best_of
from pipelines.trials import TRIALS, Waiting, Written, make_scheduler, replay, run_trial, validated
from robometer.configs.loading import first_change, override, setting_keys, to_dict, unknown_key
from robometer.configs.renamed import refuse_old_name
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.report.sweep_page import SweepStory, render
from robometer.runs import tracking
from robometer.runs.outputs import exclusive_folder, with_absolute_paths
from robometer.runs.provenance import HOW_IT_RUNS
from robometer.settings import ConfigError
from robometer.sweeps.journal import Journal, TrialRecord, as_values, number_of, repeated, trial_of
from robometer.sweeps.population import boundaries, heirs
from robometer.sweeps.search import check_number, check_search, draw, given_points
from robometer.sweeps.space import Space, Values
from robometer.sweeps.table import Confirmation, confirmation, trial_table, with_ties
from robometer.training.validation_split import training_corpus

logger = logging.getLogger(__name__)

RUN_NAME = "tune"
SETTINGS, TABLE, PAGE, JOURNAL = "sweep.json", "trials.csv", "sweep.html", "journal.jsonl"
TRIAL_BYTES = 256 * 1024 * 1024

Over = Callable[[Collection[str]], str]


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep.

    Attributes:
        best: checkpoint folder of the best trial, or its URI.
        table: one row for each trial, the best first (`robometer.sweeps.table.trial_table`).
        page: all that there is to see, as one HTML file.
        confirmation: the winner beside the settings as they are; None where that was not asked for.
    """

    best: Path | str
    table: pd.DataFrame
    page: Path | str
    confirmation: Confirmation | None = None

    def __str__(self) -> str:
        """The table as text, with `error` only where a trial failed, and what was confirmed."""
        table = self.table if (self.table["error"] != "").any() else self.table.drop(columns="error")
        text = str(table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
        return f"{text}\n{self.confirmation}" if self.confirmation else text


@dataclass(frozen=True)
class Search:
    """What a sweep tries.

    Attributes:
        config: the settings that trials have where the space leaves them as they are.
        given: the settings of the first trials: those as they are, and those of `sweep.first`.
    """

    config: Config
    space: Space
    given: list[Values]

    @classmethod
    def of(cls, config: Config) -> Search:
        """The search that the settings ask for.

        Raises:
            ConfigError: it cannot be done, or one of its trials would be refused.
        """
        sweep, space = config.sweep, Space.parse(config.sweep.space)
        as_they_are = _values(config, space.keys)
        given = [as_they_are, *(_typed(config, point) for point in given_points(space, sweep.first))]
        if sweep.max_gpu_hours and not config.train.use_gpu:
            raise ConfigError("sweep.max_gpu_hours needs train.use_gpu=true: without GPUs, set sweep.max_hours")
        check_search(sweep.search, space, sweep.objectives, sweep.scheduler)
        check_number(space, sweep.num_trials, len(given))
        _check_generations(config)
        for key in ("confirm_seeds", "seeds_per_trial"):
            if getattr(sweep, key) > 1 and "train.seed" in space.keys:
                raise ConfigError(f"sweep.{key} sets train.seed, which sweep.space sets too: leave one of them out")
        search = cls(config, space, given)
        for index in range(len(given), sweep.num_trials):  # a mistake ends here, not in a trial
            search.drawn("random", index)
        return search

    def values(self, index: int, journal: Journal) -> Values:
        """The settings of a trial by its number."""
        return (
            self.given[index]
            if index < len(self.given)
            else self.drawn(self.config.sweep.search, index, journal.searched(self.seeds))
        )

    @property
    def seeds(self) -> list[int]:
        """Of the runs of a trial after its first one."""
        return [self.config.train.seed + i for i in range(1, self.config.sweep.seeds_per_trial)]

    def records(self, journal: Journal) -> list[TrialRecord]:
        """The trials of the search, by number."""
        return list(journal.evolved() if self.evolves else journal.searched(self.seeds))

    def runs(self, journal: Journal, trial: str) -> list[str]:
        """The training runs one of which holds the best checkpoint of a trial."""
        return [run.name for run in journal.ancestry(trial)] if self.evolves else [trial]

    def table(self, journal: Journal) -> pd.DataFrame:
        """The table of all trials."""
        return trial_table(self.records(journal), self.space.keys, self.config.sweep.objectives)

    @property
    def evolves(self) -> bool:
        """Whether trials go on from others."""
        return self.config.sweep.scheduler == "pbt"

    def drawn(self, kind: str, index: int, others: Iterable[TrialRecord] = ()) -> Values:
        """The settings of a trial that is drawn.

        Raises:
            ConfigError: nothing can be trained with them.
        """
        over = [record for record in others if record.ended or record.error]
        number, seed = index - len(self.given), self.config.train.seed
        return _typed(self.config, draw(self.space, kind, self.config.sweep.objectives, seed, index, number, over))


def _every(config: Config) -> int:
    """The steps of a generation."""
    return config.sweep.perturb_every or config.train.checkpoint_every


def _check_generations(config: Config) -> None:
    every, train = _every(config), config.train
    if config.sweep.scheduler == "pbt" and (every % train.checkpoint_every or every >= train.steps):
        raise ConfigError(
            f"sweep.scheduler=pbt compares trials at every {every} steps: set sweep.perturb_every to a multiple of "
            f"train.checkpoint_every={train.checkpoint_every} below train.steps={train.steps}"
        )


def _values(config: Config, keys: Sequence[str]) -> Values:
    """Settings by their dotted keys.

    Raises:
        ConfigError: an unknown key.
    """
    values: Values = {}
    for key in keys:
        if key not in setting_keys():
            refuse_old_name(key)
            raise ConfigError(unknown_key(key))
        values[key] = reduce(getitem, key.split("."), to_dict(config))
    return as_values(values)


def _typed(config: Config, values: Values) -> Values:
    """Settings as a trial has them: `1e-3` of a choice is a number.

    Raises:
        ConfigError: settings of the wrong type, or that contradict each other.
    """
    return _values(override(config, values), list(values))


def run_sweep(config: Config) -> SweepReport:
    """Run, resume or extend the sweep in `sweep.output`.

    Raises:
        ConfigError: the search space has unknown keys, or the output folder belongs to another sweep.
        InUseError: another job writes into the output folder.
        TrainingError: no trial reached a validation, or some trials failed again and again. The outputs of the others
            are written all the same.
    """
    config = with_absolute_paths(config, "sweep.output", "corpus.path", "tracking.uri")
    corpus = training_corpus(config)
    if not config.train.validate:
        raise ConfigError("A sweep compares trials by their validations: it needs train.validate=true.")
    search = Search.of(config)
    for key, metric in _asked_for(config):
        check_metric(key, metric, _confirming(config) if key == "sweep.confirm_metric" else config, corpus)
    with exclusive_folder("sweep.output", config.sweep.output):
        return _run(search, _settings(config, corpus))


def _asked_for(config: Config) -> list[tuple[str, str]]:
    """The metrics that the settings name, with the keys."""
    first, *more = [metric for metric, _ in config.sweep.objectives]
    confirmed = config.sweep.confirm_metric
    return [
        ("sweep.metric", first),
        *(("sweep.more_metrics", metric) for metric in more),
        *([("sweep.confirm_metric", confirmed)] if confirmed else []),
    ]


def _run(search: Search, settings: dict[str, Any]) -> SweepReport:
    config, output = search.config, Storage(search.config.sweep.output)
    stored = _stored_sweep(output, settings)
    stored_run_id = str(stored.get("run_id", ""))
    journal = Journal(output.at(JOURNAL))
    run_id = tracking.continued(config, stored_run_id)
    with connected(config), tracking.start(config, "sweep", run_id=run_id) as run:
        check_room("a trial", needs(config), "ask for less (train.num_workers, train.cpus_per_worker)")
        sweep = {"run_id": run.run_id or stored_run_id, "settings": settings}
        output.write_bytes(SETTINGS, json.dumps(sweep, indent=1).encode())
        over = _limits(config, journal)
        (_evolve if search.evolves else _search)(search, journal, run.run_id, over)
        trials = _ranked(search, journal)
        report = _finish(search, journal, None)
        if confirmed := _confirm(search, journal, trials, run.run_id, over):
            report = _finish(search, journal, confirmed)
        for name in (PAGE, TABLE, BEST):
            with output.local_copy(name) as copy:
                run.artifact(copy)
        _check_all_ended(report.table, journal, output, search.seeds)
    return report


def _limits(config: Config, journal: Journal) -> Over:
    """Why no more trials may begin, given the names of those that run."""
    sweep, end = config.sweep, time.monotonic() + 3600 * config.sweep.max_hours

    def over(live: Collection[str]) -> str:
        if sweep.max_hours and time.monotonic() > end:
            return f"sweep.max_hours={sweep.max_hours:g} are over"
        if sweep.max_gpu_hours and gpu_hours(config, journal, live, time.time()) >= sweep.max_gpu_hours:
            return f"sweep.max_gpu_hours={sweep.max_gpu_hours:g} are used up"
        return ""

    return over


def gpu_hours(config: Config, journal: Journal, live: Collection[str], now: float) -> float:
    """What the training runs of a sweep have used by `now`; of one that was killed, up to its last event."""
    train = config.train
    return sum(
        (run.seconds + (now - run.at if name in live else 0))
        / 3600
        * train.gpus
        * int(run.values.get("train.num_workers", train.num_workers))
        for name, run in journal.trials.items()
    )


def _search(search: Search, journal: Journal, run_id: str, over: Over) -> None:
    """Run all trials that have not ended."""
    sweep = search.config.sweep
    scheduler = make_scheduler(search.config)
    replay(journal, scheduler)
    trials = [number_of(index) for index in range(sweep.num_trials)]
    names = [name for trial in trials for name in (trial, *(repeated(trial, seed) for seed in search.seeds))]

    def values(name: str) -> Values:
        record = journal.trials.get(name)
        trial, _, seed = name.partition("-seed")
        if record or not seed:
            return record.values if record else search.values(int(trial), journal)
        return journal.trials[trial].values | {"train.seed": int(seed)}

    _fit(search.config, names, values, journal, scheduler, run_id, over)


def _evolve(search: Search, journal: Journal, run_id: str, over: Over) -> None:
    """Run all generations of a population that have not ended, each after the one before."""
    config, sweep, seed = search.config, search.config.sweep, search.config.train.seed
    values = {number_of(index): search.values(index, journal) for index in range(sweep.num_trials)}
    sources: dict[str, str] = {}
    start, ends = 0, boundaries(_every(config), config.train.steps)
    for generation, until in enumerate(ends):
        logger.info("Generation %d of %d, to step %d.", generation + 1, len(ends), until)
        _fit(config, list(values), values.__getitem__, journal, FIFOScheduler(), run_id, over, sources, start, until)
        runs = [journal.trials[name] for name in values if name in journal.trials]
        if not all(run.ended for run in runs) or len(runs) < len(values):
            return
        next_ones = heirs(search.space, seed, generation + 1, runs, sweep.metric, sweep.mode)
        values = {heir.name: heir.values for heir in next_ones}
        sources = {heir.name: heir.source for heir in next_ones}
        start = until


def _ranked(search: Search, journal: Journal) -> pd.DataFrame:
    """The table of all trials, of which one ended well."""
    sweep, table = search.config.sweep, search.table(journal)
    if not len(table) or table["error"].iloc[0]:
        first = table["error"].iloc[0] if len(table) else "there was none"
        raise TrainingError(f"no trial of the sweep in {sweep.output} reported {sweep.metric}: {first}")
    return table


def _confirm(search: Search, journal: Journal, table: pd.DataFrame, run_id: str, over: Over) -> Confirmation | None:
    """Train with the settings as they are and with the winner's, both with the same new seeds.

    None if that was not asked for, or there is nothing to compare yet.

    Raises:
        TrainingError: fewer than two pairs of runs measured the metrics.
    """
    config, given, winner = _confirming(search.config), number_of(0), str(table["trial"].iloc[0])
    if not config.sweep.confirm_seeds:
        return None
    if len(table) < config.sweep.num_trials:
        logger.warning("The winner is not confirmed before all trials have run.")
        return None
    if winner == given:
        logger.warning("No trial is better than the settings as they are: there is nothing to confirm.")
        return None
    seeds = [config.train.seed + config.sweep.seeds_per_trial + i for i in range(config.sweep.confirm_seeds)]
    values = {
        repeated(name, seed): journal.trials[name].values | {"train.seed": seed}
        for seed in seeds
        for name in (given, winner)
    }
    _fit(config, list(values), values.__getitem__, journal, FIFOScheduler(), run_id, over)
    runs = [
        (seed, journal.trials[repeated(given, seed)], journal.trials[repeated(winner, seed)])
        for seed in seeds
        if {repeated(given, seed), repeated(winner, seed)} <= set(journal.trials)
    ]
    for name in values:
        record = journal.trials.get(name)
        if not record or not record.ended or record.error:
            logger.warning(
                "Run %s is left out: %s", name, record.error or "it did not end" if record else "it did not begin"
            )
    try:
        return confirmation(journal.trials[winner], runs, _confirmed_metric(config), config.sweep.objectives)
    except ValueError as error:
        raise TrainingError(f"The winner cannot be compared: {error}") from error


def _confirmed_metric(config: Config) -> str:
    return config.sweep.confirm_metric or config.sweep.metric


def _confirming(config: Config) -> Config:
    """The settings of runs that confirm: their validations measure `sweep.confirm_metric` too."""
    split = _confirmed_metric(config).partition("/")[0]
    splits = config.train.validation_splits
    return override(config, {"train.validation_splits": [*splits, *({split} - set(splits))]})


def _fit(
    config: Config,
    names: Sequence[str],
    values: Callable[[str], Values],
    journal: Journal,
    scheduler: TrialScheduler,
    run_id: str,
    over: Over,
    sources: Mapping[str, str] = MappingProxyType({}),
    start: int = 0,
    until: int = 0,
) -> None:
    """Run the trials of these names that have not ended.

    Args:
        over: see `Waiting`.
        sources: for each trial that goes on from step `start` of another one, the name of that one.
        until: the step at which all end; 0: `train.steps`.
    """
    output, sweep, train = Storage(config.sweep.output), config.sweep, config.train
    waiting = [name for name in names if name not in journal.trials or not journal.trials[name].ended]
    if not waiting:
        return
    if len(waiting) < len(names):
        logger.info("Going on with %d of %d trials in %s.", len(waiting), len(names), output.path)
    # The trial itself only waits for its training workers, which reserve their own CPUs and GPUs. Tune requires some
    # resource: a small part of a CPU would keep stages of the trainings from using the rest of that CPU.
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, base=to_dict(config), parent_run_id=run_id, sources=dict(sources), start=start),
        {"memory": TRIAL_BYTES},
    )
    output.remove_folder(RUN_NAME)  # of an earlier run: the journal says all that counts
    tuner = Tuner(
        trainable,
        param_space={},
        tune_config=TuneConfig(
            num_samples=len(waiting),
            scheduler=scheduler,
            search_alg=Waiting(waiting, values, journal, sweep.max_concurrent, over, sources),
        ),
        run_config=tune.RunConfig(
            name=RUN_NAME,
            storage_path=output.path,
            verbose=0,
            stop={"step": until} if until else None,
            callbacks=[Written(journal, output, names)],
            # A trial whose node is lost starts again on another one, from its last checkpoint.
            failure_config=tune.FailureConfig(max_failures=train.max_failures),
        ),
    )
    results = (tuner.fit() for _ in range(1))
    # Some trials may wait while others go on, so that the pulse of all of them counts.
    list(watched(results, "the sweep", needs(config), lambda: _pulses(output)))


def _check_all_ended(table: pd.DataFrame, journal: Journal, output: Storage, seeds: Sequence[int] = ()) -> None:
    """Log why trials failed; raise `TrainingError` if Tune gave up on some, which another run may finish."""
    failed = table[table["error"] != ""]
    for trial, error in zip(failed["trial"], failed["error"], strict=True):
        logger.warning("Trial %s failed: %s", trial, error)
    alone = {repeated(trial, seed) for trial in table["trial"] for seed in seeds} | set(table["trial"])
    counted = [run for name, run in journal.trials.items() if name in alone or "-gen" in name]
    if lost := len({trial_of(run.name) for run in counted if not run.ended}):
        raise TrainingError(
            f"{lost} of {len(table)} trials failed; {output.at(TABLE)} says why. The best of the others is published. "
            "Rerun the same command to run the failed ones again."
        )


def _pulses(output: Storage) -> str:
    folders = output.folders(TRIALS)
    return ", ".join(f"trial {posixpath.basename(one)} at {last_pulse(Storage(output.at(one)))}" for one in folders)


_FREE = HOW_IT_RUNS | {"best_metric", "best_mode"}
"""Keys of `train` that may differ when a sweep is resumed, or that the sweep sets itself. The others decide what a
trial computes, and the number of steps after which trials are compared."""

_FREE_OF_SWEEP = {"output", "max_concurrent", "max_hours", "max_gpu_hours", "confirm_seeds", "confirm_metric"}


def _settings(config: Config, corpus: Corpus) -> dict[str, Any]:
    """The settings that a sweep is tied to."""
    values = to_dict(config)
    settings = {section: dict(values[section]) for section in ("sampling", "model", "loss", "train", "sweep", "embed")}
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in _FREE}
    settings["sweep"] = {key: value for key, value in settings["sweep"].items() if key not in _FREE_OF_SWEEP}
    return settings | {"corpus": {"content_hash": corpus.content_hash}}


def _stored_sweep(output: Storage, settings: dict[str, Any]) -> dict[str, Any]:
    """Tracked run and settings of the sweep in a folder, as they were written; empty for a new one.

    Raises:
        ConfigError: it was made with other settings, has more trials, or has no journal.
    """
    if not output.exists(SETTINGS):
        return {}
    if not output.exists(JOURNAL) and output.tree(RUN_NAME):
        raise ConfigError(
            f"{output.path} holds a sweep of an earlier version, which kept no journal: choose another sweep.output, "
            "or delete that folder"
        )
    sweep: dict[str, Any] = json.loads(output.read_bytes(SETTINGS))
    trials, wanted = sweep["settings"]["sweep"]["num_trials"], settings["sweep"]["num_trials"]
    if trials > wanted:
        raise ConfigError(
            f"{output.path} holds a sweep of {trials} trials, which sweep.num_trials={wanted} cannot undo: set "
            f"{trials}, or more to go on with further trials"
        )
    if trials != wanted and settings["sweep"]["scheduler"] == "pbt":
        raise ConfigError(
            f"{output.path} holds a population of {trials} trials, which cannot grow: set sweep.num_trials={trials}, "
            "or choose another sweep.output"
        )
    if change := first_change(sweep["settings"], settings | {"sweep": settings["sweep"] | {"num_trials": trials}}):
        key, before, now = change
        raise ConfigError(
            f"{output.path} holds a sweep with {key}={before!r}, not {now!r}: set it as before, choose another "
            "sweep.output, or delete that folder"
        )
    return sweep


def _finish(search: Search, journal: Journal, confirmed: Confirmation | None) -> SweepReport:
    config, output = search.config, Storage(search.config.sweep.output)
    table = search.table(journal)
    if confirmed:
        table = with_ties(table, config.sweep.metric, confirmed.least)
    output.write_bytes(TABLE, table.to_csv(index=False).encode())
    output.write_bytes(PAGE, render(_story(search, journal, table, confirmed)).encode())
    _publish_best(config, output, search.runs(journal, str(table["trial"].iloc[0])))
    for trial in output.folders(TRIALS):  # those that Tune stopped have left their runs open
        if output.exists(f"{trial}/{RUN}"):
            tracking.close_open_run(config, json.loads(output.read_bytes(f"{trial}/{RUN}"))["run_id"])
    return SweepReport(place(output, BEST), table, place(output, PAGE), confirmed)


def _story(search: Search, journal: Journal, table: pd.DataFrame, confirmed: Confirmation | None) -> SweepStory:
    config = search.config
    sweep, split = config.sweep, config.sweep.metric.partition("/")[0]
    settings = {
        "space": "; ".join(sweep.space),
        "search": f"{sweep.search}, seed {config.train.seed}",
        "length": f"{config.train.steps} steps, {sweep.scheduler}",
        "corpus": config.corpus.path,
        "folder": sweep.output,
    }
    remarks = [
        f"Trials were chosen by clips of the split {split}, so that their figures there say too much of them. What you "
        "report should come from clips that nothing was chosen by."
    ]
    heritage = [
        (record.name, record.source, {key: record.values[key] for key in search.space.keys})
        for record in journal.trials.values()
        if record.source and trial_of(record.source) != trial_of(record.name)
    ]
    if search.evolves:
        remarks.append(
            "A trial is the last of its runs, with the weights that it ended with; its metrics are those of all runs "
            "that led to it. What wins is a schedule of weights, not the weights in its row."
        )
    if sweep.seeds_per_trial > 1:
        remarks.append(f"Each trial is the mean of {sweep.seeds_per_trial} training runs with seeds of their own.")
    elif confirmed is None:
        remedy = "" if search.evolves else ": set sweep.confirm_seeds or sweep.seeds_per_trial"
        remarks.append(
            "Each trial has one seed. How far two of them differ by their seed alone was not measured" + remedy + "."
        )
    records = {record.name: record for record in search.records(journal)}
    given = "begins with the settings as they are" if search.evolves else "settings as they are"
    return SweepStory(
        table, records, search.space.keys, sweep.objectives, settings, remarks, given, heritage, confirmed
    )


def _publish_best(config: Config, output: Storage, runs: Sequence[str]) -> None:
    """Copy the model of the best checkpoint of a trial to `best/`."""
    checkpoint = best_checkpoint(output, runs, config.sweep.metric, config.sweep.mode)
    with output.write_folder(BEST, WEIGHTS_LAST) as staging, output.local_copy(f"{checkpoint}/{MODEL}") as model:
        shutil.copytree(model, staging)


def best_checkpoint(output: Storage, runs: Sequence[str], metric: str, mode: str) -> str:
    """The best checkpoint that the training runs of a trial kept, by its name in the folder of the sweep.

    Of several equal ones, Ray Train does not keep the one that Tune names.
    """
    kept = [
        (metrics, f"{TRIALS}/{run}/{name}")
        for run in runs
        for metrics, name in kept_checkpoints(Storage(output.at(f"{TRIALS}/{run}")))
        if validated(metrics)
    ]
    best = best_of(kept, metric, mode)
    if best is None:
        raise TrainingError(f"{output.at(TRIALS)}/{runs[-1]} has kept no checkpoint with {metric}")
    return best[1]
