"""Train a reward model with Ray Train and DeepSpeed; the same command again resumes the run."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.data import DataContext
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.result import Result
from ray.train.v2.api.validation_config import ValidationConfig, ValidationTaskConfig

from pipelines.cluster import Needs, check_room, connected, interactive, watched
from pipelines.sample_stream import BesideWorkers, stream
from pipelines.training.checkpointing import HISTORY, MODEL, PULSE, TrainingError, known
from pipelines.training.validation import validate_checkpoint, with_validations
from pipelines.training.worker import train_worker
from robometer.configs.loading import current, override, to_dict
from robometer.configs.schema import Config, ConfigError
from robometer.corpus.corpus import Corpus
from robometer.files import write_atomically
from robometer.models.checkpoint import build_collator, checkpoint_hash
from robometer.models.sources import for_workers, locate
from robometer.report import plots
from robometer.runs import tracking
from robometer.runs.outputs import exclusive_folder, with_absolute_paths
from robometer.runs.provenance import HOW_IT_RUNS, provenance_of
from robometer.sampling import Histograms, ManifestIndex, effective_mix, in_words

logger = logging.getLogger(__name__)

RUN_NAME = "run"
MIX = "sampling.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class TrainReport:
    """What a training run left behind.

    Attributes:
        best: checkpoint folder of the best validation (of the last step where there was none).
        metrics: the validation metrics of that checkpoint.
        history: everything recorded by step.
    """

    best: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]


def run_train(config: Config, callbacks: list[UserCallback] | None = None, parent_run_id: str = "") -> TrainReport:
    """Train `config.model` on the corpus; resumes from the latest checkpoint in `train.output`.

    Raises:
        ConfigError: the output folder belongs to a run with other settings, or corpus and model do not fit.
        InUseError: another job writes into the output folder.
        TrackingError: the tracking store cannot be used.
        TrainingError: the loss stopped being a number, or workers failed more often than `train.max_failures`.
    """
    config = with_absolute_paths(config, "train.output", "corpus.path", "tracking.uri")
    corpus = Corpus(config.corpus.path)
    mix = _mix(config, _check_inputs(config, corpus))
    start = for_workers(config.train.load_from_checkpoint, config.tracking.uri)
    config = override(config, {"train.load_from_checkpoint": start})
    with exclusive_folder("train.output", config.train.output):
        return _run(config, corpus, mix, callbacks or [], parent_run_id)


def _run(
    config: Config, corpus: Corpus, mix: Histograms, callbacks: list[UserCallback], parent_run_id: str
) -> TrainReport:
    output = Path(config.train.output)
    run_id = _open_run(config, output, corpus, mix, parent_run_id)
    if finished := _finished(config, output):
        return finished
    with connected(config):
        check_room("training", needs(config), "ask for less (train.num_workers, train.cpus_per_worker)")
        trainer = _trainer(config, corpus, output, run_id, callbacks)
        ends = (cast(Result, trainer.fit()) for _ in range(1))
        try:
            (result,) = watched(ends, "training", needs(config), lambda: last_pulse(output))
        except TrainingFailedError as error:
            logger.error("%s", error)
            reason = str(error).strip().splitlines()[-1]
            raise TrainingError(
                f"workers failed more than {config.train.max_failures} times; at last: {reason}"
            ) from error
    if result.return_value:
        raise TrainingError(result.return_value)
    return _finish(config, output, result, run_id)


def needs(config: Config) -> Needs:
    """What a run must have to make any step: its least number of workers, who pay for all that runs beside them."""
    train = config.train
    return Needs(train.min_workers or train.num_workers, train.cpus_per_worker, float(train.use_gpu))


def last_pulse(output: Path) -> str:
    """How far the run in a folder says that it is."""
    try:
        return (output / PULSE).read_text()
    except OSError:
        return ""


def _check_inputs(config: Config, corpus: Corpus) -> ManifestIndex:
    """Fail in the driver, in one sentence, where every worker would fail in a hundred lines; returns the index."""
    index = ManifestIndex.from_table(corpus.manifest, config.sampling)
    build_collator(config, corpus)
    if config.model.kind == "rewind":
        corpus.embeddings(config.embed.image_encoder, 0)
    return index


def _mix(config: Config, index: ManifestIndex) -> Histograms:
    """What the first samples are, logged: ratios say what is asked for, the corpus decides what comes of them."""
    mix = effective_mix(index, config.train.seed)
    logger.info("the first samples: %s", in_words(mix))
    return mix


_FREE = HOW_IT_RUNS | {"steps"}
"""Keys of `train` that may differ when a run is resumed: the rest decides what is computed."""

_CONVERTIBLE = {0: "0", 1: "1 or 2", 2: "1 or 2", 3: "3"}
"""ZeRO stages among which a training state can be converted (DeepSpeed's universal checkpoints know no other way)."""


def _fingerprint(config: Config, corpus: Corpus) -> dict[str, Any]:
    values = to_dict(config)
    kept = {section: dict(values[section]) for section in ("sampling", "model", "loss", "train", "embed")}
    kept["train"] = {key: value for key, value in kept["train"].items() if key not in _FREE}
    kept["train"]["zero_stage"] = _CONVERTIBLE[config.train.zero_stage]
    return kept | {"corpus": {"content_hash": corpus.content_hash}}


def _open_run(config: Config, output: Path, corpus: Corpus, mix: Histograms, parent_run_id: str) -> str:
    """Create or check `run.json`, which ties the folder to its settings and to its tracked run: a new one, where the
    store has lost it.

    A new run keeps its `mix` as `sampling.json`, in the folder and in the tracker.
    """
    fingerprint, path = _fingerprint(config, corpus), output / "run.json"
    if path.is_file():
        known = json.loads(path.read_text())
        before = current(known["fingerprint"])
        for section, values in fingerprint.items():
            for key, value in values.items():
                if before[section].get(key) != value:
                    raise ConfigError(
                        f"{output} holds a run with {section}.{key}={before[section].get(key)!r}, "
                        f"not {value!r}: choose another train.output, or delete that folder"
                    )
        run_id = str(known["run_id"])
        if tracking.is_off(config) or tracking.continued(config, run_id):
            return run_id
    (output / MIX).write_text(json.dumps(mix, indent=1))
    with tracking.start(config, "train", parent_run_id=parent_run_id) as run:
        run.artifact(output / MIX)
        write_atomically(path, json.dumps({"fingerprint": fingerprint, "run_id": run.run_id}, indent=1))
        return run.run_id


def _trainer(config: Config, corpus: Corpus, output: Path, run_id: str, callbacks: list[UserCallback]) -> TorchTrainer:
    train = config.train
    # Batches are small and many: without this Ray Data would weigh each block of the stream against its own heuristics.
    DataContext.get_current().enable_progress_bars = False
    spec = {
        "config": to_dict(config),
        "provenance": _provenance(config, corpus) | {"run_id": run_id},
        "run_id": run_id,
        "interactive": interactive(),
    }

    def run_worker() -> str:  # Ray's dashboard shows what is given as `train_loop_config`, passwords of URIs too
        return train_worker(spec)

    scaling = ScalingConfig(  # type: ignore[call-arg]  # the annotations are those of Ray Train V1's class
        num_workers=cast(Any, (train.min_workers, train.num_workers) if train.min_workers else train.num_workers),
        elastic_resize_monitor_interval_s=train.resize_every_s,
        use_gpu=train.use_gpu,
        resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.use_gpu else {}),
    )
    best = train.best_metric if train.validate else "step"
    checkpoints = CheckpointConfig(
        num_to_keep=train.keep_checkpoints,
        checkpoint_score_attribute=best,
        checkpoint_score_order=train.best_mode if train.validate else "max",
    )
    return TorchTrainer(
        cast(Callable[[], None], run_worker),  # Ray's annotation has no room for the return value
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=scaling,
        datasets={"train": lambda: stream(config, _next_step(output / RUN_NAME))},
        dataset_config=BesideWorkers(),
        validation_config=_validation(spec, train.validation_gpus) if train.validate_async else None,
        run_config=RunConfig(  # type: ignore[call-arg]  # the annotation is that of Ray Train V1's class
            name=RUN_NAME,
            storage_path=str(output),
            checkpoint_config=checkpoints,
            failure_config=FailureConfig(max_failures=train.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=cast(Any, callbacks),
        ),
    )


def _validation(spec: dict[str, Any], num_gpus: float) -> ValidationConfig:
    bare = [node["NodeID"] for node in ray.nodes() if not node["Resources"].get("CPU")]
    return ValidationConfig(
        cast(Any, validate_checkpoint),  # Ray's annotation has no room for named arguments
        ValidationTaskConfig({"config": spec["config"], "run_id": spec["run_id"]}),
        # The workers reserve CPUs for it too. A node without CPUs, as some heads are, is there to run nothing.
        {"num_cpus": 0, "num_gpus": num_gpus, "max_retries": 3, "label_selector": _not_on(bare)},
    )


def _not_on(nodes: list[str]) -> dict[str, str]:
    return {"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else {}


def _provenance(config: Config, corpus: Corpus) -> dict[str, Any]:
    start = config.train.load_from_checkpoint
    return provenance_of(corpus) | ({"base": checkpoint_hash(locate(start))} if start else {})


def _next_step(run: Path) -> int:
    """The step after Ray Train's latest committed checkpoint; asked again whenever workers are started anew."""
    result = _committed(run).get("latest_checkpoint_result")
    return int(result["checkpoint_dir_name"].removeprefix("step-")) if result else 0


def kept_checkpoints(output: Path) -> list[tuple[dict[str, float], Path]]:
    """Metrics and folder of each checkpoint that the run in `output` has committed and kept, by step."""
    run = output / RUN_NAME
    found = _committed(run).get("checkpoint_results", [])
    return [
        (one["metrics"], run / one["checkpoint_dir_name"]) for one in sorted(found, key=lambda r: r["metrics"]["step"])
    ]


def _committed(run: Path) -> dict[str, Any]:
    """Ray Train's own record of a run; empty before its first checkpoint."""
    if not (run / SNAPSHOT).is_file():
        return {}
    record = json.loads((run / SNAPSHOT).read_text())
    return dict(json.loads(record) if isinstance(record, str) else record)


def _finished(config: Config, output: Path) -> TrainReport | None:
    """The report of a run that came to its end before."""
    if not (output / HISTORY).is_file():
        return None
    history = [json.loads(line) for line in (output / HISTORY).read_text().splitlines()]
    if history[-1]["step"] < config.train.steps:
        return None
    logger.info("%s is finished", output)
    metrics = json.loads((output / "best/provenance.json").read_text())["metrics"]
    return TrainReport(output / "best", {name: float(value) for name, value in metrics.items()}, history)


def _finish(config: Config, output: Path, result: Result, run_id: str) -> TrainReport:
    """Copy the best checkpoint (of equals, the last) to `best/`, draw the plots, register the model."""
    ranked = result.best_checkpoints or []
    if not ranked:
        raise TrainingError(f"{output / RUN_NAME} holds no checkpoint")
    key = config.train.best_metric if config.train.validate else "step"
    given = {name for _, metrics in ranked for name, value in metrics.items() if known(value)} - {"step"}
    ranked = [(checkpoint, metrics) for checkpoint, metrics in ranked if known(metrics.get(key, math.nan))]
    if not ranked:
        what = ", ".join(sorted(given)) or "nothing, for the reason that the log gives"
        raise ConfigError(f"train.best_metric={key} is not among what the validations of {output} gave: {what}")
    sign = -1.0 if config.train.validate and config.train.best_mode == "min" else 1.0
    checkpoint, metrics = max(ranked, key=lambda item: (sign * item[1][key], item[1]["step"]))
    best = output / "best"
    staging = output / ".best.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(Path(checkpoint.path, MODEL), staging)
    provenance = json.loads((staging / "provenance.json").read_text()) | {"metrics": metrics}
    (staging / "provenance.json").write_text(json.dumps(provenance, indent=2))
    shutil.rmtree(best, ignore_errors=True)
    staging.rename(best)
    assert result.checkpoint is not None
    history = [json.loads(line) for line in Path(result.checkpoint.path, HISTORY).read_text().splitlines()]
    history = with_validations(history, output)
    plots.plot_history(history, output / "training.png")
    with tracking.start(config, "train", run_id=run_id) as run:
        run.artifact(output / "training.png")
        run.artifact(best)
        run.register_model("best", {name: value for name, value in metrics.items() if name != "step"})
    write_atomically(
        output / HISTORY, "".join(json.dumps(entry) + "\n" for entry in history)
    )  # the mark of a finished run
    return TrainReport(best, {k: float(v) for k, v in metrics.items()}, history)
