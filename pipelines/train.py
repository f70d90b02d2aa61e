"""Train a reward model with Ray Train and DeepSpeed; the same command again resumes the run."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import ray
from ray.data import DataContext
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.result import Result
from ray.train.v2.api.validation_config import ValidationConfig, ValidationTaskConfig

from pipelines.cluster import Needs, Stalled, check_room, connected, interactive, watched
from pipelines.sample_stream import BesideWorkers, share, stream
from pipelines.training.checkpointing import (
    BEST,
    HISTORY,
    MODEL,
    PULSE,
    History,
    TrainingError,
    best_of,
    history_text,
    is_measured,
    read_history,
)
from pipelines.training.deepspeed_settings import check_deepspeed
from pipelines.training.process_group import Reachable
from pipelines.training.validation import validate_checkpoint, with_validations
from pipelines.training.whereabouts import explain
from pipelines.training.worker import NotANumberError, train_worker
from robometer.configs.loading import first_change, override, to_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation.validation import measurable
from robometer.models.checkpoint import PROVENANCE, build_collator, checkpoint_hash
from robometer.models.sources import for_workers, locate
from robometer.models.weights import INDEX, WEIGHTS
from robometer.runs import tracking
from robometer.runs.outputs import exclusive_folder, with_absolute_paths
from robometer.runs.provenance import HOW_IT_RUNS, provenance_of
from robometer.sampling.index import ManifestIndex
from robometer.sampling.mix import effective_mix, in_words
from robometer.settings import ConfigError
from robometer.training.validation_split import training_corpus

logger = logging.getLogger(__name__)

RUN_NAME = "run"
MIX = "sampling.json"
PLOT = "training.png"
SNAPSHOT = f"{RUN_NAME}/checkpoint_manager_snapshot.json"
RUN = "run.json"

WEIGHTS_LAST = (WEIGHTS, INDEX)
"""Files of which a model needs one."""


@dataclass(frozen=True)
class TrainReport:
    """The result of a training run.

    Attributes:
        best: checkpoint folder, or its URI, of the best validation (of the last step if there was none).
        metrics: validation metrics of that checkpoint.
        history: everything that was recorded, by step.
    """

    best: Path | str
    metrics: dict[str, float]
    history: History


def run_train(config: Config, callbacks: list[UserCallback] | None = None, parent_run_id: str = "") -> TrainReport:
    """Train `config.model` on the corpus; resumes from the latest checkpoint in `train.output`.

    Args:
        callbacks: of Ray Train.
        parent_run_id: the tracked run, such as a sweep's, that this one is part of.

    Raises:
        ConfigError: the output folder belongs to a run with other settings, or the corpus does not fit the model.
        InUseError: another job writes into the output folder.
        TrackingError: the tracking store cannot be used.
        NotANumberError: a loss or a gradient was not finite.
        TrainingError: workers failed more often than `train.max_failures`.
    """
    check_deepspeed(config)
    config = with_absolute_paths(config, "train.output", "corpus.path", "tracking.uri")
    output, corpus = Storage(config.train.output), training_corpus(config)
    index = _checked_index(config, corpus)
    start = for_workers(config.train.load_from_checkpoint, config.tracking.uri)
    config = override(config, {"train.load_from_checkpoint": start})
    with exclusive_folder("train.output", output.path):
        run_id = _open_run(config, output, corpus, index, parent_run_id)
        if report := _finished(config, output):
            return report
        result = _fit(config, output, corpus, index, run_id, callbacks or [])
        return _finish(config, output, result, run_id)


def needs(config: Config) -> Needs:
    """What a run needs to make any step: its smallest number of workers, which reserve for what runs beside them."""
    train = config.train
    return Needs(train.min_workers or train.num_workers, train.cpus_per_worker, train.gpus)


def last_pulse(output: Storage) -> str:
    """The progress that the run in a folder has last written; empty where there is none."""
    try:
        return output.read_bytes(PULSE).decode()
    except OSError:
        return ""


def kept_checkpoints(output: Storage) -> list[tuple[dict[str, float], str]]:
    """Metrics and name of the committed checkpoints that the run in `output` has kept, by step."""
    records = sorted(_committed(output).get("checkpoint_results", []), key=lambda record: record["metrics"]["step"])
    return [(record["metrics"], f"{RUN_NAME}/{record['checkpoint_dir_name']}") for record in records]


# --- before training ------------------------------------------------------------------------------------------------


def _checked_index(config: Config, corpus: Corpus) -> ManifestIndex:
    """The index of the manifest; what every worker would report in a hundred lines ends here in one sentence."""
    index = ManifestIndex.from_table(corpus.manifest, config.sampling)
    if config.train.validate:
        check_metric("train.best_metric", config.train.best_metric, config, corpus)
    build_collator(config, corpus)
    if config.model.kind == "rewind":
        corpus.embeddings(config.embed.image_encoder, 0)
    return index


def check_metric(key: str, metric: str, config: Config, corpus: Corpus) -> None:
    """Raise `ConfigError` for a metric that no validation of this corpus can give, before anything is trained."""
    train = config.train
    metrics = measurable(corpus, train.validation_splits, train.validation_clips, train.seed)
    if metric not in metrics:
        splits = f"train.validation_splits=[{','.join(train.validation_splits)}]"
        without = ", or set train.validate=false" if key == "train.best_metric" else ""
        raise ConfigError(
            f"{key}={metric} cannot be measured: with {splits} {corpus.storage.path} gives "
            f"{', '.join(metrics) or 'no metric'}. Add clips of two qualities of one task to such a split, or choose "
            f"another metric{without}."
        )


_FREE = HOW_IT_RUNS | {"steps"}
"""Keys of `train` that may differ when a run is resumed; the others decide what is computed."""

_CONVERTIBLE = {0: "0", 1: "1 or 2", 2: "1 or 2", 3: "3"}
"""Groups of ZeRO stages between which DeepSpeed's universal checkpoints can convert a training state."""


def _fingerprint(config: Config, corpus: Corpus) -> dict[str, Any]:
    """The settings that a run is tied to."""
    values = to_dict(config)
    fingerprint = {section: dict(values[section]) for section in ("sampling", "model", "loss", "train", "embed")}
    fingerprint["train"] = {key: value for key, value in fingerprint["train"].items() if key not in _FREE}
    fingerprint["train"]["zero_stage"] = _CONVERTIBLE[config.train.zero_stage]
    return fingerprint | {"corpus": {"content_hash": corpus.content_hash}}


def _open_run(config: Config, output: Storage, corpus: Corpus, index: ManifestIndex, parent_run_id: str) -> str:
    """The id of the tracked run of `output`. The folder's `run.json` ties it to its settings and to that run.

    A run that the tracking store has lost is tracked as a new one. A new run writes the mix of its first samples as
    `sampling.json` into the folder and the tracker: settings ask for ratios, and the corpus decides about the outcome.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    fingerprint = _fingerprint(config, corpus)
    mix = effective_mix(index, config.train.seed)
    logger.info("The first samples: %s", in_words(mix))
    if output.exists(RUN):
        run = json.loads(output.read_bytes(RUN))
        if change := first_change(run["fingerprint"], fingerprint):
            key, before, now = change
            raise ConfigError(
                f"{output.path} holds a run with {key}={before!r}, not {now!r}: choose another train.output, or delete "
                "that folder"
            )
        run_id = str(run["run_id"])
        earlier, count = run.get("micro_batches", config.train.micro_batches), config.train.micro_batches
        lora = config.model.lora
        if earlier != count and (config.model.dropout or (lora.rank and lora.dropout)):
            logger.warning(
                "%s had %d micro-batches a step and now has %d, so that dropout draws other masks: its losses will not "
                "be those of the run without the change. Set train.micro_batch_size to keep them.",
                output.path,
                earlier,
                count,
            )
        if tracking.is_off(config) or tracking.continued(config, run_id):
            return run_id
    output.write_bytes(MIX, json.dumps(mix, indent=1).encode())
    with tracking.start(config, "train", parent_run_id=parent_run_id) as tracked:
        with output.local_copy(MIX) as copy:
            tracked.artifact(copy)
        micro_batches = config.train.micro_batches
        run = {"fingerprint": fingerprint, "run_id": tracked.run_id, "micro_batches": micro_batches}
        output.write_bytes(RUN, json.dumps(run, indent=1).encode())
        return tracked.run_id


def _finished(config: Config, output: Storage) -> TrainReport | None:
    """The report of a run that is complete; None where it has steps to do."""
    if not output.exists(HISTORY):
        return None
    history = read_history(output)
    if history[-1]["step"] < config.train.steps:
        return None
    logger.info("%s is finished.", output.path)
    metrics = json.loads(output.read_bytes(f"{BEST}/{PROVENANCE}"))["metrics"]
    return TrainReport(place(output, BEST), {name: float(value) for name, value in metrics.items()}, history)


# --- training -------------------------------------------------------------------------------------------------------


def _fit(
    config: Config, output: Storage, corpus: Corpus, index: ManifestIndex, run_id: str, callbacks: list[UserCallback]
) -> Result:
    """Train to the last step on the cluster.

    Raises:
        TrainingError: see `run_train`.
    """
    with connected(config):
        check_room("training", needs(config), "ask for less (train.num_workers, train.cpus_per_worker)")
        trainer = _trainer(config, corpus, index, run_id, callbacks)
        results = (cast(Result, trainer.fit()) for _ in range(1))
        try:
            (result,) = watched(results, "training", needs(config), lambda: last_pulse(output))
        except Stalled as error:
            raise Stalled(f"{error} {explain(output)}".strip()) from error
        except TrainingFailedError as error:
            logger.error("%s", error)
            reason = " ".join([str(error).strip().splitlines()[-1], explain(output)]).strip()
            raise TrainingError(
                f"workers failed more than {config.train.max_failures} times; the last time: {reason}"
            ) from error
    if result.return_value:
        raise NotANumberError(result.return_value)
    return result


def _trainer(
    config: Config, corpus: Corpus, index: ManifestIndex, run_id: str, callbacks: list[UserCallback]
) -> TorchTrainer:
    # There are many small batches, and Ray Data would update its progress bars for each.
    DataContext.get_current().enable_progress_bars = False
    train, output = config.train, Storage(config.train.output)
    shared = share(corpus, index)
    spec = {
        "config": to_dict(config),
        "shared": shared,
        "provenance": _provenance(config, corpus) | {"run_id": run_id},
        "run_id": run_id,
        "interactive": interactive(),
    }

    def run_worker() -> str:  # Ray's dashboard would show a `train_loop_config`, with passwords in URIs
        return train_worker(spec)

    return TorchTrainer(
        cast(Callable[[], None], run_worker),  # Ray's annotation has no room for the return value
        torch_config=Reachable(
            backend="nccl" if train.use_gpu else "gloo", timeout_s=math.ceil(train.collective_timeout_s)
        ),
        scaling_config=_scaling(config),
        datasets={"train": lambda: stream(config, _next_step(output), shared)},
        dataset_config=BesideWorkers(),
        validation_config=_validation(spec, train.validation_gpus) if train.validate_async else None,
        run_config=RunConfig(  # type: ignore[call-arg]  # the annotation is that of Ray Train V1's class
            name=RUN_NAME,
            storage_path=output.path,
            checkpoint_config=CheckpointConfig(
                num_to_keep=train.keep_checkpoints,
                checkpoint_score_attribute=_best_metric(config),
                checkpoint_score_order=_best_mode(config),
            ),
            failure_config=FailureConfig(max_failures=train.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=cast(Any, callbacks),
        ),
    )


def _best_metric(config: Config) -> str:
    """The metric that decides about the best checkpoint; without validation, the last one is the best."""
    return config.train.best_metric if config.train.validate else "step"


def _best_mode(config: Config) -> str:
    return config.train.best_mode if config.train.validate else "max"


def _scaling(config: Config) -> ScalingConfig:
    train = config.train
    return ScalingConfig(  # type: ignore[call-arg]  # the annotations are those of Ray Train V1's class
        num_workers=cast(Any, (train.min_workers, train.num_workers) if train.min_workers else train.num_workers),
        elastic_resize_monitor_interval_s=train.resize_every_s,
        use_gpu=train.use_gpu,
        accelerator_type=train.accelerator_type or None,
        resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": train.gpus} if train.gpus else {}),
    )


def _validation(spec: dict[str, Any], num_gpus: float) -> ValidationConfig:
    bare = [node["NodeID"] for node in ray.nodes() if not node["Resources"].get("CPU")]
    return ValidationConfig(
        cast(Any, validate_checkpoint),  # Ray's annotation has no room for named arguments
        ValidationTaskConfig({name: spec[name] for name in ("config", "shared", "run_id")}),
        # The workers reserve its CPUs. Nothing should run on a node without CPUs, as some heads are.
        {"num_cpus": 0, "num_gpus": num_gpus, "max_retries": 3, "label_selector": _not_on(bare)},
    )


def _not_on(nodes: list[str]) -> dict[str, str]:
    return {"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else {}


def _provenance(config: Config, corpus: Corpus) -> dict[str, Any]:
    start = config.train.load_from_checkpoint
    return provenance_of(corpus) | ({"base": checkpoint_hash(locate(start))} if start else {})


def _next_step(output: Storage) -> int:
    """The step after Ray Train's latest committed checkpoint; read again at each restart of the workers."""
    record = _committed(output).get("latest_checkpoint_result")
    return int(record["checkpoint_dir_name"].removeprefix("step-")) if record else 0


def fork(source: Storage, step: int, target: Storage) -> None:
    """Make a folder in which a training run goes on, under settings of its own, from a step of another run.

    Raises:
        TrainingError: the other run has kept no checkpoint of this step.
    """
    if target.exists(SNAPSHOT):
        return
    record = _committed(source)
    found = [one for one in record.get("checkpoint_results", []) if one["metrics"]["step"] == step]
    if not found:
        raise TrainingError(f"{source.path} has kept no checkpoint of step {step}")
    folder = f"{RUN_NAME}/{found[0]['checkpoint_dir_name']}"
    with source.local_copy(folder) as copy, target.write_folder(folder, last=()) as staging:
        shutil.copytree(copy, staging)
    nothing: dict[str, Any] = {name: [] for name, value in record.items() if isinstance(value, list)}
    first = {"checkpoint_results": found, "checkpoint_report_indices": [0], "latest_checkpoint_result": found[0]}
    target.write_bytes(SNAPSHOT, json.dumps(record | nothing | first | {"current_report_index": 1}).encode())


def _committed(output: Storage) -> dict[str, Any]:
    """Ray Train's own record of a run; empty before the first checkpoint."""
    if not output.exists(SNAPSHOT):
        return {}
    record = json.loads(output.read_bytes(SNAPSHOT))
    return dict(json.loads(record) if isinstance(record, str) else record)


# --- after training -------------------------------------------------------------------------------------------------


def place(output: Storage, name: str) -> Path | str:
    """Where a file or folder of an output folder is: a path, or a URI."""
    return Path(output.at(name)) if output.is_local else output.at(name)


def _finish(config: Config, output: Storage, result: Result, run_id: str) -> TrainReport:
    """Publish the best checkpoint and the history once all steps are done; a run that is killed here does it again."""
    from robometer.report import png  # matplotlib: the workers do without

    metrics, checkpoint = _best_checkpoint(config, output, result)
    _publish_best(checkpoint, metrics, output)
    assert result.checkpoint is not None
    history = with_validations(read_history(output, _name_of(result.checkpoint)), output)
    with tempfile.TemporaryDirectory() as folder:
        png.plot_history(history, Path(folder, PLOT))
        output.write_bytes(PLOT, Path(folder, PLOT).read_bytes())
    _track_outcome(config, output, metrics, run_id)
    output.write_bytes(HISTORY, history_text(history).encode())  # last, since it marks the run as finished
    return TrainReport(place(output, BEST), {name: float(value) for name, value in metrics.items()}, history)


def _name_of(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint's folder within `train.output`."""
    return f"{RUN_NAME}/{PurePosixPath(checkpoint.path).name}"


def _best_checkpoint(config: Config, output: Storage, result: Result) -> tuple[dict[str, float], str]:
    """Metrics and name of the best checkpoint that was kept; of equal ones, the last."""
    checkpoints = [(metrics, _name_of(checkpoint)) for checkpoint, metrics in result.best_checkpoints or []]
    if not checkpoints:
        raise TrainingError(f"{output.path} holds no checkpoint")
    metric = _best_metric(config)
    best = best_of(checkpoints, metric, _best_mode(config))
    if best is None:
        names = {name for metrics, _ in checkpoints for name, value in metrics.items() if is_measured(value)} - {"step"}
        measured = ", ".join(sorted(names)) or "none (see the log)"
        raise ConfigError(f"train.best_metric={metric} is not a metric of the validations in {output.path}: {measured}")
    return best


def _publish_best(checkpoint: str, metrics: dict[str, float], output: Storage) -> None:
    """Copy the model of a checkpoint to `best/`, with its metrics in its provenance."""
    if output.is_local:
        for stale in Path(output.path).glob(f".{BEST}.*"):  # of a run that was killed here; no other job writes here
            shutil.rmtree(stale)
    with output.write_folder(BEST, last=WEIGHTS_LAST) as staging, output.local_copy(f"{checkpoint}/{MODEL}") as model:
        shutil.copytree(model, staging)
        provenance = json.loads((staging / PROVENANCE).read_text()) | {"metrics": metrics}
        (staging / PROVENANCE).write_text(json.dumps(provenance, indent=2))


def _track_outcome(config: Config, output: Storage, metrics: dict[str, float], run_id: str) -> None:
    with tracking.start(config, "train", run_id=run_id) as run:
        for name in (PLOT, BEST):
            with output.local_copy(name) as copy:
                run.artifact(copy)
        run.register_model(BEST, {name: value for name, value in metrics.items() if name != "step"})
