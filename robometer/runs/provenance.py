"""Where a model comes from: the corpus that it learned from and the code that trained it."""

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
    """Hash, size and sources of a corpus, how its frames were made, and the commit of this code; part of every
    checkpoint, whose scorer is shown frames that are made alike."""
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
    "output",
    "max_failures",
    "log_every",
    "data_actors",
    "num_workers",
    "min_workers",
    "resize_every_s",
    "cpus_per_worker",
    "micro_batch_size",
    "gradient_checkpointing",
    "zero_init",
    "offload",
    "peak_tflops",
    "validate_async",
    "validation_gpus",
}
"""Keys of `train` that say where a run lies and how its computation is spread; the others decide what is computed."""

_NOT_THE_RECIPE = HOW_IT_RUNS | {"seed", "load_from_checkpoint"}  # for which the hash of its weights stands (`base`)


def trained_by(folder: str | Path) -> dict[str, str | int]:
    """`recipe` and `train_seed` of a checkpoint folder; empty where the folder does not say.

    Runs of one recipe and different seeds are one experiment that was repeated.
    """
    config, provenance = Path(folder, "config.yaml"), Path(folder, "provenance.json")
    if not config.is_file() or not provenance.is_file():
        return {}
    values, origin = yaml.safe_load(config.read_text()), json.loads(provenance.read_text())
    if not isinstance(values, dict) or not values.keys() >= _TRAINED or "corpus" not in origin:
        return {}
    return {"recipe": recipe(values, origin), "train_seed": int(values["train"]["seed"])}


def recipe(config: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """First 12 hex digits of a hash of what was trained, on which corpus and from which weights, without the seed.

    Args:
        config: of the run, as `to_dict` has it.
        origin: the checkpoint's provenance.
    """
    values = first_names(config)
    kept = {section: values[section] for section in sorted(_TRAINED - {"train"})}
    kept["train"] = {key: value for key, value in values["train"].items() if key not in _NOT_THE_RECIPE}
    kept["encoders"] = {key: v for key, v in values.get("embed", {}).items() if key.endswith("_encoder")}
    kept["from"] = {name: origin.get(name, "") for name in ("corpus", "base")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def commit() -> str:
    """Commit of this code: ROBOMETER_COMMIT, or what git says (`-dirty` with changes), else the package's version."""
    if given := os.environ.get("ROBOMETER_COMMIT"):
        return given
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"robometer {version('robometer')}"
    except PackageNotFoundError:
        return ""
