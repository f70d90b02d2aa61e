"""Published reward models other than ours, and trivial ones that keep everyone honest: each a Scorer, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from robometer.configs.schema import BaselineConfig, ConfigError
from robometer.scoring import Scorer

PREFIX = "baseline:"

_MODULES = {
    "clock": "trivial",
    "constant": "trivial",
    "random": "trivial",
    "frame_difference": "trivial",
    "gvl": "gvl",
    "rl_vlm_f": "rl_vlm_f",
    "topreward": "topreward",
    "roboreward": "roboreward",
    "robo_dopamine": "robo_dopamine",
    "vlac": "vlac",
}
"""The module of each; its `make(name, config, device)` makes the scorer, and is all that is imported of it here."""

_HOW = ("requests_per_minute", "concurrency", "cache", "timeout_s")

BASELINES = tuple(_MODULES)

ASK_APIS = ("gvl", "rl_vlm_f", "robo_dopamine")
"""Those that can ask an API, whose answers `baseline.cache` keeps."""

_PIP = {
    "vlac": [
        "evo_vlac @ git+https://github.com/InternRobotics/VLAC.git",
        "transformers<4.52",
        "trl>=0.13,<0.17",
    ],
}
"""What a baseline's authors need that cannot be installed beside us."""


def load_baseline(name: str, config: BaselineConfig, device: str = "cpu") -> Scorer:
    """The scorer of a baseline.

    Raises:
        ConfigError: no baseline has that name, or its settings cannot work.
    """
    _check(name)
    make: Callable[[str, BaselineConfig, str], Scorer] = import_module(f"robometer.baselines.{_MODULES[name]}").make
    return make(name, config, device)


def _check(name: str) -> None:
    if name not in _MODULES:
        raise ConfigError(f"{PREFIX}{name} is none of {', '.join(PREFIX + known for known in BASELINES)}")


def identity(name: str, config: BaselineConfig) -> str:
    """What answers follow from: all settings but those of how fast and where they are asked and kept, and the contents
    of the files that settings name.

    Raises:
        ConfigError: no baseline has that name, or `baseline.prompt` cannot be read.
    """
    _check(name)
    kept = {k: v for k, v in asdict(config).items() if k not in _HOW} | _contents(config)
    return ",".join([name, *(f"{key}={value}" for key, value in kept.items())])


def _contents(config: BaselineConfig) -> dict[str, str]:
    """Hashes of the prompt's text and of a local model's files, where there are any."""
    found = {}
    if config.prompt:
        from robometer.baselines.asking import read_prompt

        found["prompt_hash"] = hashlib.sha256(read_prompt(config).encode()).hexdigest()[:12]
    folder = _model_folder(config)
    if folder is not None:
        from robometer.models.weights import folder_hash

        found["model_hash"] = folder_hash(folder)
    return found


def _model_folder(config: BaselineConfig) -> Path | None:
    """The folder that `baseline.model` is; None where it is a hub id, a random model or a name at an API."""
    if not config.model or config.base_url or not Path(config.model).expanduser().is_dir():
        return None
    from robometer.models.tiny import TINY

    return None if config.model in TINY else Path(config.model).expanduser().absolute()


def for_workers(config: BaselineConfig) -> BaselineConfig:
    """The same settings with names that mean the same in a worker, whose working directory may be another."""
    from robometer.corpus.storage import Storage  # not above: commands read the names of baselines for their --help

    prompt = str(Path(config.prompt).expanduser().absolute()) if config.prompt else ""
    model = str(_model_folder(config) or config.model)
    return replace(config, cache=Storage(config.cache).path, prompt=prompt, model=model)


def runtime_env(name: str) -> dict[str, Any]:
    """The Ray `runtime_env` of the workers that run a baseline; empty where ours will do."""
    return {"pip": list(_PIP[name])} if name in _PIP else {}
