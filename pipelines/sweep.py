"""Sweep the loss weights, or any other key, with Ray Tune: each trial is a training run of its own."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from ray import tune
from ray.train.v2.api.callback import UserCallback
from ray.tune import TuneConfig, Tuner
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from pipelines.cluster import Progress, check_room, connected, progress_bar, watched
from pipelines.train import check_metric, kept_checkpoints, last_pulse, needs, run_train
from pipelines.training.checkpointing import BEST, MODEL, TrainingError, best_of, is_measured
from pipelines.training.worker import NotANumberError
from robometer.configs.loading import from_dict, override, to_dict
from robometer.configs.renamed import RENAMED, current
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.files import atomic_folder, write_atomically
from robometer.report import png
from robometer.runs import tracking
from robometer.runs.outputs import exclusive_folder, with_absolute_paths
from robometer.runs.provenance import HOW_IT_RUNS
from robometer.settings import ConfigError

logger = logging.getLogger(__name__)

RUN_NAME = "tune"
TABLE, PLOT, TRIALS = "trials.csv", "sweep.png", "trials"
NOT_A_NUMBER = "not-a-number"
"""File of a trial that ended because a loss or a gradient was not finite: why."""
TRIAL_BYTES = 256 * 1024 * 1024
_DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "choice": tune.choice,
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
}


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep.

    Attributes:
        best: checkpoint folder of the best trial.
        table: one row for each trial, the best first: the swept keys, the metrics at its best validation, the step it
            reached, and `error`, why it failed; trials that failed come last.
        plot: the metric over each swept key.
    """

    best: Path
    table: pd.DataFrame
    plot: Path

    def __str__(self) -> str:
        """The table as text, with `error` only where a trial failed."""
        table = self.table if (self.table["error"] != "").any() else self.table.drop(columns="error")
        return str(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def parse_space(entries: list[str]) -> dict[str, Any]:
    """Ray Tune's search space from entries such as `loss.progress_weight=loguniform(0.1,3)`.

    Raises:
        ConfigError: an entry is not KEY=DISTRIBUTION(ARGUMENTS), or the distribution refuses the arguments.
    """
    space = {}
    for entry in entries:
        match = re.fullmatch(r"([\w.]+)\s*=\s*(\w+)\((.*)\)", entry.strip())
        if not match or match[2] not in _DISTRIBUTIONS:
            raise ConfigError(f"sweep.space entry {entry!r} is not KEY={'|'.join(_DISTRIBUTIONS)}(ARGUMENTS)")
        arguments = yaml.safe_load(f"[{match[3]}]")
        try:
            space[match[1]] = (
                tune.choice(arguments) if match[2] == "choice" else _DISTRIBUTIONS[match[2]](*map(float, arguments))
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"sweep.space entry {entry!r}: {error}") from error
    return space


def run_sweep(config: Config) -> SweepReport:
    """Run or resume the sweep in `sweep.output`.

    Raises:
        ConfigError: the search space has unknown keys, or the output folder belongs to another sweep.
        InUseError: another job writes into the output folder.
        TrainingError: no trial reached a validation, or some trials failed again and again. The outputs of the others
            are written all the same.
    """
    config = with_absolute_paths(config, "sweep.output", "corpus.path", "tracking.uri")
    corpus = Corpus(config.corpus.path)
    space = parse_space(config.sweep.space)
    override(config, {key: domain.sample() for key, domain in space.items()})  # unknown keys end here, not in a trial
    if not config.train.validate:
        raise ConfigError("A sweep compares trials by their validations: it needs train.validate=true.")
    check_metric("sweep.metric", config.sweep.metric, config, corpus)
    with exclusive_folder("sweep.output", config.sweep.output):
        return _run(config, _settings(config, corpus))


def _run(config: Config, settings: dict[str, Any]) -> SweepReport:
    output = Path(config.sweep.output)
    stored = _stored_sweep(output, settings)
    stored_run_id = str(stored.get("run_id", ""))
    # Tune ties a sweep to the keys that it began with, even if they have other names now.
    settings = stored.get("settings", settings)
    space = parse_space(settings["sweep"]["space"])
    run_id = tracking.continued(config, stored_run_id)
    with connected(config), tracking.start(config, "sweep", run_id=run_id) as run:
        check_room("a trial", needs(config), "ask for less (train.num_workers, train.cpus_per_worker)")
        sweep = {"run_id": run.run_id or stored_run_id, "settings": settings}
        write_atomically(output / "sweep.json", json.dumps(sweep, indent=1))
        tuner = _tuner(config, output, space, run.run_id)
        results = (tuner.fit() for _ in range(1))
        # Some trials may wait while others go on, so that the pulse of all of them counts.
        (grid,) = watched(results, "the sweep", needs(config), lambda: _pulses(output))
        trials = [grid[i] for i in range(len(grid))]
        report = _finish(config, output, trials, list(space))
        for artifact in (report.plot, output / TABLE, report.best):
            run.artifact(artifact)
        _check_all_ended(report.table, trials, output)
    return report


def _check_all_ended(table: pd.DataFrame, results: list[tune.Result], output: Path) -> None:
    """Log why trials failed; raise `TrainingError` if Tune gave up on some, which another run may finish."""
    failed = table[table["error"] != ""]
    for trial, error in zip(failed["trial"], failed["error"], strict=True):
        logger.warning("Trial %s failed: %s", trial, error)
    if lost := sum(result.error is not None for result in results):
        raise TrainingError(
            f"{lost} of {len(table)} trials failed; {output / TABLE} says why. The best of the others is published. "
            "Rerun the same command to run the failed ones again."
        )


def _pulses(output: Path) -> str:
    return ", ".join(f"trial {folder.name} at {last_pulse(folder)}" for folder in sorted(output.glob(f"{TRIALS}/*")))


_FREE = HOW_IT_RUNS | {"best_metric", "best_mode"}
"""Keys of `train` that may differ when a sweep is resumed, or that the sweep sets itself. The others decide what a
trial computes, and the number of steps after which trials are compared."""


def _settings(config: Config, corpus: Corpus) -> dict[str, Any]:
    """The settings that a sweep is tied to."""
    values = to_dict(config)
    settings = {section: dict(values[section]) for section in ("sampling", "model", "loss", "train", "sweep", "embed")}
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in _FREE}
    del settings["sweep"]["output"]
    return settings | {"corpus": {"content_hash": corpus.content_hash}}


def _stored_sweep(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Tracked run and settings of the sweep in a folder, as they were written; empty for a new one.

    Raises:
        ConfigError: it was made with other settings.
    """
    path = output / "sweep.json"
    if not path.is_file():
        return {}
    sweep: dict[str, Any] = json.loads(path.read_text())
    stored = current(sweep["settings"])
    for section, values in settings.items():
        for key, value in values.items():
            stored_value = stored.get(section, {}).get(key)
            if stored_value != value:
                raise ConfigError(
                    f"{output} holds a sweep with {section}.{key}={stored_value!r}, not {value!r}: set it as before, "
                    "choose another sweep.output, or delete that folder"
                )
    return sweep


class ReportValidations(TuneReportCallback):
    """Reports every validated checkpoint to Tune; one that was saved because of a node's notice is not validated."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if _validated(metrics[0]):
            super().after_report(run_context, metrics, checkpoint)


def _validated(metrics: Mapping[str, float]) -> bool:
    return all(map(is_measured, metrics.values()))


class ShowTrials(tune.Callback):
    """Shows how many trials have ended."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._show: Progress | None = None

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See `tune.Callback`; in a resumed sweep, some trials have ended before."""
        if self._show is None:
            self._show = progress_bar("sweep", self._total, interactive=False)
            self._show(_ended(trials), {})

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See `tune.Callback`; trials that Tune stopped early are complete too."""
        if self._show is not None:
            self._show(_ended(trials), {})

    def __getstate__(self) -> dict[str, Any]:
        return {"_total": self._total, "_show": None}


def _ended(trials: list[Trial]) -> int:
    return sum(trial.is_finished() for trial in trials)


def run_trial(values: dict[str, Any], base: dict[str, Any], parent_run_id: str) -> None:
    """One trial: a training run with the drawn values, in a folder named after the trial.

    A trial that Tune starts again resumes, or has ended; either way it reports again what Tune forgot.
    """
    trial = tune.get_context().get_trial_id()
    folder = Path(base["sweep"]["output"], TRIALS, trial)
    values = {RENAMED.get(key, key): value for key, value in values.items()}
    own = {
        "train.output": str(folder),
        "tracking.run_name": f"trial {trial}",
        # Tune stops trials by the metrics that come with a reported checkpoint.
        "train.validate_async": False,
        "train.validation_gpus": 0.0,
        # The checkpoint that decides about a trial must be among those that the trial keeps.
        "train.best_metric": base["sweep"]["metric"],
        "train.best_mode": base["sweep"]["mode"],
        "ray.stall_timeout_s": 0.0,  # a trial may wait for another; the sweep watches all of them
    }
    for metrics, checkpoint in kept_checkpoints(folder):
        if _validated(metrics):
            tune.report(metrics | {CHECKPOINT_PATH_KEY: str(checkpoint)})
    callbacks: list[UserCallback] = [ReportValidations()]  # type: ignore[no-untyped-call]  # Ray's own __init__
    try:
        run_train(override(from_dict(base), values | own), callbacks, parent_run_id)
    except NotANumberError as error:  # Tune would try again, in vain
        write_atomically(folder / NOT_A_NUMBER, str(error))


def _tuner(config: Config, output: Path, space: dict[str, Any], run_id: str) -> Tuner:
    sweep, train = config.sweep, config.train
    scheduler: TrialScheduler = FIFOScheduler()
    if sweep.scheduler == "asha":
        grace = min(train.steps, sweep.grace_checkpoints * train.checkpoint_every)
        scheduler = ASHAScheduler(time_attr="step", max_t=train.steps, grace_period=grace, reduction_factor=2)
    search: Searcher | SearchAlgorithm
    if sweep.search == "optuna":
        search = ConcurrencyLimiter(OptunaSearch(seed=train.seed), max_concurrent=sweep.max_concurrent)
    else:
        search = BasicVariantGenerator(max_concurrent=sweep.max_concurrent, random_state=train.seed)
    # The trial itself only waits for its training workers, which reserve their own CPUs and GPUs. Tune requires some
    # resource: a small part of a CPU would keep stages of the trainings from using the rest of that CPU.
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, base=to_dict(config), parent_run_id=run_id), {"memory": TRIAL_BYTES}
    )
    storage = output / RUN_NAME
    if Tuner.can_restore(str(storage)):
        logger.info("Resuming the sweep in %s.", output)
        return Tuner.restore(str(storage), trainable, resume_unfinished=True, restart_errored=True, param_space=space)
    return Tuner(
        trainable,
        param_space=space,
        tune_config=TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            num_samples=sweep.num_trials,
            scheduler=scheduler,
            search_alg=search,
        ),
        run_config=tune.RunConfig(
            name=RUN_NAME,
            storage_path=str(output),
            verbose=0,
            callbacks=[ShowTrials(sweep.num_trials)],
            # A trial whose node is lost starts again on another one, from its last checkpoint.
            failure_config=tune.FailureConfig(max_failures=train.max_failures),
        ),
    )


def _finish(config: Config, output: Path, results: list[tune.Result], keys: list[str]) -> SweepReport:
    table = _trial_table(config, output, results, keys)
    table.to_csv(output / TABLE, index=False)
    png.plot_sweep(table[table["error"] == ""], keys, config.sweep.metric, output / PLOT)
    _publish_best(config, output, str(table["trial"][0]))
    for path in output.glob(f"{TRIALS}/*/run.json"):  # trials that Tune stopped have left theirs open
        tracking.close_open_run(config, json.loads(path.read_text())["run_id"])
    return SweepReport(output / BEST, table, output / PLOT)


def _trial_table(config: Config, output: Path, results: list[tune.Result], keys: list[str]) -> pd.DataFrame:
    """The table of `SweepReport`.

    Raises:
        TrainingError: no trial reported the metric and ended well.
    """
    metric, smallest = config.sweep.metric, config.sweep.mode == "min"
    rows = [_row(result, output, keys, metric, smallest) for result in results]
    good = [row for row in rows if not row["error"]]
    if not good:
        first = next((row["error"] for row in rows), "there was none")
        raise TrainingError(f"no trial of the sweep in {output} reported {metric}: {first}")
    good.sort(key=lambda row: float(row[metric]), reverse=not smallest)
    table = pd.DataFrame([*good, *(row for row in rows if row["error"])])
    return table[[name for name in table if name not in ("step", "error")] + ["step", "error"]]


def _row(result: tune.Result, output: Path, keys: list[str], metric: str, smallest: bool) -> dict[str, Any]:
    """A trial in the table: its metrics are those of its best validation, its step is the last."""
    name = Path(result.path).name
    trial = next((t.name for t in output.glob(f"{TRIALS}/*") if name.startswith(f"run_trial_{t.name}_")), name)
    # Tune tells the settings of a trial that reported nothing in a file only.
    config: dict[str, Any] = result.config or json.loads(Path(result.path, "params.json").read_text())
    row: dict[str, Any] = {"trial": trial} | {key: config[key] for key in keys} | {"step": 0, "error": ""}
    history = result.metrics_dataframe
    if history is not None and metric in history and history[metric].notna().any():
        best = history.loc[history[metric].idxmin() if smallest else history[metric].idxmax()]
        row |= {
            name: best[name]
            for name in (metric, *(one for one in history if "/" in one and one != metric))
            if not name.startswith("config/")
        }
        row["step"] = int(history["step"].max())
    elif not result.error:
        row["error"] = f"it reported no {metric}"
    cause = output / TRIALS / trial / NOT_A_NUMBER
    if cause.is_file():
        row["error"] = cause.read_text()
    elif result.error:
        row["error"] = " ".join(str(result.error).split())[-300:]
    return row


def _publish_best(config: Config, output: Path, trial: str) -> None:
    """Copy the model of the best checkpoint of a trial to `best/`."""
    checkpoint = best_checkpoint(output / TRIALS / trial, config.sweep.metric, config.sweep.mode)
    with atomic_folder(output / BEST) as staging:
        shutil.copytree(checkpoint / MODEL, staging)


def best_checkpoint(trial: Path, metric: str, mode: str) -> Path:
    """The best checkpoint that a trial kept; of several equal ones, Ray Train does not keep the one that Tune names."""
    best = best_of([(metrics, path) for metrics, path in kept_checkpoints(trial) if _validated(metrics)], metric, mode)
    if best is None:
        raise TrainingError(f"{trial} has kept no checkpoint with {metric}")
    return best[1]
