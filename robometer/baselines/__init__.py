"""Baselines: other published reward models, and trivial ones that any model must beat. Each is a Scorer, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robometer.baselines.config import BaselineConfig
from robometer.settings import ConfigError, did_you_mean

if TYPE_CHECKING:  # which loads decoders, and settings are read without
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
"""The module of each baseline, whose `make(name, config, device)` makes the scorer. Modules are imported on demand."""

_NOT_IDENTITY = ("requests_per_minute", "concurrency", "cache", "timeout_s")

BASELINES = tuple(_MODULES)

ASK_APIS = ("gvl", "rl_vlm_f", "robo_dopamine")
"""Baselines that can ask an API, whose answers are kept in `baseline.cache`."""

_PIP = {
    "vlac": [
        "evo_vlac @ git+https://github.com/InternRobotics/VLAC.git",
        "transformers<4.52",
        "trl>=0.13,<0.17",
    ],
}
"""Packages that a baseline's authors need and that cannot be installed beside ours."""


def load_baseline(name: str, config: BaselineConfig, device: str = "cpu") -> Scorer:
    """The scorer of a baseline.

    Raises:
        ConfigError: the name is unknown, or the settings are invalid.
    """
    _check_name(name)
    make: Callable[[str, BaselineConfig, str], Scorer] = import_module(f"robometer.baselines.{_MODULES[name]}").make
    return make(name, config, device)


def _check_name(name: str) -> None:
    if name not in _MODULES:
        raise ConfigError(f"There is no baseline {name!r}: {', '.join(BASELINES)}.{did_you_mean(name, BASELINES)}")


def identity(name: str, config: BaselineConfig) -> str:
    """Text that is equal where answers are: all settings but rate, concurrency, time-out and cache, and hashes of the
    files that settings name.

    Raises:
        ConfigError: the name is unknown, or `baseline.prompt` cannot be read.
    """
    _check_name(name)
    settings = {k: v for k, v in asdict(config).items() if k not in _NOT_IDENTITY} | _contents(config)
    return ",".join([name, *(f"{key}={value}" for key, value in settings.items())])


def _contents(config: BaselineConfig) -> dict[str, str]:
    """Hashes of the prompt's text and of a local model's files, if there are any."""
    hashes = {}
    if config.prompt:
        from robometer.baselines.asking import read_prompt

        hashes["prompt_hash"] = hashlib.sha256(read_prompt(config).encode()).hexdigest()[:12]
    folder = _model_folder(config)
    if folder is not None:
        from robometer.models.weights import folder_hash

        hashes["model_hash"] = folder_hash(folder)
    return hashes


def _model_folder(config: BaselineConfig) -> Path | None:
    """The folder that `baseline.model` names; None for a hub id, a random model, or a name at an API."""
    if not config.model or config.base_url or not Path(config.model).expanduser().is_dir():
        return None
    from robometer.models.tiny import TINY

    return None if config.model in TINY else Path(config.model).expanduser().absolute()


def for_workers(config: BaselineConfig) -> BaselineConfig:
    """The same settings with absolute paths, for workers whose working directory may differ."""
    from robometer.corpus.storage import Storage  # imported late: commands import this module for their --help

    prompt = str(Path(config.prompt).expanduser().absolute()) if config.prompt else ""
    model = str(_model_folder(config) or config.model)
    return replace(config, cache=Storage(config.cache).path, prompt=prompt, model=model)


def runtime_env(name: str) -> dict[str, Any]:
    """The Ray `runtime_env` of the workers that run a baseline; empty if ours will do."""
    return {"pip": list(_PIP[name])} if name in _PIP else {}
