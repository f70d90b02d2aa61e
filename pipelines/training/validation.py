"""Validation of a checkpoint: by the first worker while the others wait, or by a task beside training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray
from ray.train import Checkpoint

from pipelines.sample_stream import Shared, opened
from pipelines.training.checkpointing import MODEL, POSITION, History
from robometer.configs.loading import from_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation.validation import validate
from robometer.models.checkpoint import load_model, make_scorer
from robometer.runs import tracking

FOLDER = "validations"


def measure(folder: Path, config: Config, corpus: Corpus, device: str) -> dict[str, float]:
    """Metrics (`robometer.evaluation.validation.validate`) of the model in a folder, with the settings of `train`."""
    train = config.train
    model, trained = load_model(folder)
    scorer = make_scorer(model, trained, "validation", device, folder=folder, corpus=corpus)
    return validate(scorer, corpus, train.validation_splits, train.validation_clips, train.seed)


def validate_checkpoint(
    checkpoint: Checkpoint, config: dict[str, Any], shared: ray.ObjectRef[Shared], run_id: str
) -> dict[str, float]:
    """Ray Train runs this as a task (`ValidationConfig`) and adds the metrics to those of the checkpoint.

    The metrics are tracked, and written into `train.output`, since Ray Train deletes them with the checkpoint. A
    validation that was interrupted runs again when the run resumes.
    """
    settings = from_dict(config)
    train = settings.train
    corpus, _ = opened(settings, shared)
    with checkpoint.as_directory() as folder:
        step = int(json.loads(Path(folder, POSITION).read_text())["step"])
        device = "cuda" if train.validation_gpus else "cpu"
        metrics = measure(Path(folder, MODEL), settings, corpus, device)
    entry = json.dumps({"step": step} | metrics)
    Storage(train.output).write_bytes(f"{FOLDER}/{step:07d}.json", entry.encode())
    tracking.attached(settings, run_id).metrics(metrics, step)
    return metrics


def with_validations(history: History, output: Storage) -> History:
    """A run's history, with what `validate_checkpoint` wrote beside it."""
    validations = [json.loads(output.read_bytes(name)) for name in output.list(FOLDER, ".json")]
    return sorted([*history, *validations], key=lambda entry: entry["step"])
