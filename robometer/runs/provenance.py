"""Provenance of a model: the corpus that it was trained on, and the code that trained it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from robometer.configs.renamed import first_names
from robometer.corpus.corpus import Corpus
from robometer.corpus.summary import summarise


def provenance_of(corpus: Corpus) -> dict[str, Any]:
    """Hash, size, sources and frame settings of a corpus, and the commit of this code.

    Every checkpoint holds it, and its scorer makes frames by the same settings.
    """
    counts = summarise(corpus)
    return {
        "corpus": counts.content_hash,
        "trajectories": counts.trajectories,
        "sources": counts.by_source,
        "splits": counts.by_split,
        "frames": corpus.frame_settings.as_dict(),
        "commit": commit(),
    }


_TRAINED = {"sampling", "model", "loss", "train"}

HOW_IT_RUNS = {
    "compile",
    "output",
    "max_failures",
    "on_nonfinite",
    "max_skipped_steps",
    "profile_steps",
    "accelerator_type",
    "collective_timeout_s",
    "log_every",
    "data_actors",
    "num_workers",
    "min_workers",
    "resize_every_s",
    "cpus_per_worker",
    "gpus_per_worker",
    "micro_batch_size",
    "gradient_checkpointing",
    "zero_init",
    "offload",
    "deepspeed",
    "peak_tflops",
    "validate_async",
    "validation_gpus",
}
"""Keys of `train` that say where a run is stored and how it is distributed. The others decide what is computed."""

_NOT_THE_RECIPE = HOW_IT_RUNS | {"seed", "load_from_checkpoint"}  # `base`, the hash of its weights, stands for it


def trained_by(folder: str | Path) -> dict[str, str | int]:
    """`recipe` and `train_seed` of a checkpoint folder; empty if the folder does not say.

    Runs with one recipe and different seeds are repetitions of one experiment.
    """
    config, provenance = Path(folder, "config.yaml"), Path(folder, "provenance.json")
    if not config.is_file() or not provenance.is_file():
        return {}
    values, origin = yaml.safe_load(config.read_text()), json.loads(provenance.read_text())
    if not isinstance(values, dict) or not values.keys() >= _TRAINED or "corpus" not in origin:
        return {}
    return {"recipe": recipe(values, origin), "train_seed": int(values["train"]["seed"])}


def recipe(config: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """First 12 hex digits of a hash over what was trained, on which corpus and from which weights, without the seed.

    Args:
        config: of the run, as `to_dict` returns it.
        origin: the checkpoint's provenance.
    """
    values = first_names(config)
    parts = {section: values[section] for section in sorted(_TRAINED - {"train"})}
    parts["train"] = {key: value for key, value in values["train"].items() if key not in _NOT_THE_RECIPE}
    if not parts["train"].get("tf32"):  # left out, as it was before there was such a setting
        parts["train"].pop("tf32", None)
    parts["encoders"] = {key: v for key, v in values.get("embed", {}).items() if key.endswith("_encoder")}
    parts["from"] = {name: origin.get(name, "") for name in ("corpus", "base")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def commit() -> str:
    """Commit of this code: ROBOMETER_COMMIT, else git's (with `-dirty` if there are changes), else the version."""
    if from_environment := os.environ.get("ROBOMETER_COMMIT"):
        return from_environment
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"robometer {version('robometer')}"
    except PackageNotFoundError:
        return ""
